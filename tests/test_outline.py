"""`plan`: llama-quantize's sizes from config.json alone, and the size of the file that convert then writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small
from oracle import GOLDEN
from published import PHI4, write_config

from quantkit.errors import InputError
from quantkit.outline import outlines
from quantkit.recipe import preset, presets


def test_phi4_from_config_json_alone(tmp_path: Path) -> None:
    """The MiB that llama-quantize --dry-run prints, for every preset."""
    golden = json.loads((GOLDEN / "types" / "phi-4.json").read_text("utf-8"))
    found = {
        outline.name: outline
        for outline in outlines(
            write_config(tmp_path / "phi-4", **PHI4), [preset(name) for name in presets()], None, pytest.fail
        )
    }
    assert found["Q4_K_M"].tensor_bytes == 9_055_703_040
    assert found["Q4_K_M"].types == {"Q4_K": 121, "F32": 81, "Q6_K": 41}
    assert found["Q4_K_M"].n_weights == 14_659_507_200
    assert all(outline.file_bytes is None for outline in found.values())
    assert found["Q2_K_S"].needs_imatrix
    text = json.dumps(golden)
    for name in ("Q2_K", "Q3_K_M", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0"):
        assert f"{found[name].tensor_bytes / 2**20:.2f}" in text, name


@pytest.mark.parametrize("name", ["Q4_K_M", "Q8_0", "F32"])
@pytest.mark.parametrize("has", ["weights", "no weights"])
def test_file_bytes_are_those_of_the_file(tmp_path: Path, name: str, has: str) -> None:
    source = small.write(tmp_path / "small")
    command = [sys.executable, "-m", "quantkit", "convert", str(source), "-t", name, "-o", str(tmp_path / "a.gguf")]
    subprocess.run(command, check=True, capture_output=True)
    if has == "no weights":
        (source / "model.safetensors").unlink()
    (outline,) = outlines(source, [preset(name)], None, pytest.fail)
    assert outline.file_bytes == (tmp_path / "a.gguf").stat().st_size


def test_shards_that_only_the_index_names(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small")
    (one,) = outlines(source, [preset("Q8_0")], None, pytest.fail)
    (source / "model.safetensors").unlink()
    index = {
        "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    }
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (two,) = outlines(source, [preset("Q8_0")], None, pytest.fail)
    assert one.file_bytes is not None and two.file_bytes is not None
    assert two.file_bytes > one.file_bytes


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    folder = write_config(tmp_path / "small")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError):
        outlines(folder, [preset("Q8_0")], None, pytest.fail)


def test_the_command(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small")
    command = [sys.executable, "-m", "quantkit", "plan", str(source)]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert table.index("Q2_K ") < table.index("Q4_K_M") < table.index("F32 ")
    assert "needs --imatrix" in table
    report = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)
    assert {entry["type"] for entry in report["types"]} == set(presets())
    assert report["memory_bytes"] < 1 << 30
    one = subprocess.run([*command, "-t", "q4_k_m", "--tensors"], check=True, capture_output=True, text=True).stdout
    assert "blk.1.ffn_down.weight" in one
    shutil.rmtree(source)
    assert subprocess.run(command, capture_output=True).returncode == 65
