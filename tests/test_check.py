"""`convert --check-only` names every tensor with weights that cannot be packed, and writes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import small


def check(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", "convert", str(source), "--check-only", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=source.parent)


def test_a_sound_source_is_said_to_be_sound(tmp_path: Path) -> None:
    result = check(small.write(tmp_path / "small"), "-t", "Q4_K_M")
    assert result.returncode == 0
    assert "15 tensors are sound" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_every_bad_tensor_is_named(tmp_path: Path) -> None:
    def spoil(tensors: small.Tensors) -> None:
        tensors["lm_head.weight"][3, 5] = np.nan
        tensors["lm_head.weight"][9, 1] = np.inf
        tensors["model.layers.1.mlp.down_proj.weight"][200, 300] = 1e30
        tensors["model.norm.weight"][7] = -np.inf

    source = small.write(tmp_path / "small", edit_tensors=spoil)
    result = check(source, "-t", "Q8_0", "--json")
    assert result.returncode == 65
    findings = {finding["tensor"]: finding for finding in json.loads(result.stdout)["findings"]}
    facts = {
        name: (finding["row"], finding["column"], finding["n_not_finite"], finding["n_too_large"])
        for name, finding in findings.items()
    }
    assert facts == {
        "lm_head.weight": (3, 5, 2, 0),
        "model.layers.1.mlp.down_proj.weight": (200, 300, 0, 1),
        "model.norm.weight": (0, 7, 1, 0),
    }
    assert all(name in result.stderr for name in findings)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_what_is_too_large_depends_on_the_type(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small", edit_tensors=lambda t: t["lm_head.weight"].put(9, 1e30))
    assert check(source, "-t", "BF16").returncode == 0
    assert check(source, "-t", "BF16", "-t", "F16").returncode == 65
