"""Every preset of the small checkpoints has the data section that llama-quantize makes, and its tensor table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracle import GOLDEN, PRESETS, contents, weights_sha256

Converted = Callable[[Path], dict[str, Path]]


@pytest.fixture(scope="module", params=["real_small", "phi4_tiny", "phi4_mini_tiny"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def golden(checkpoint: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((GOLDEN / "files" / f"{checkpoint.name}.json").read_text("utf-8"))
    if weights_sha256(checkpoint) != data["weights_sha256"]:
        pytest.fail(f"the maker of {checkpoint.name} no longer makes the weights that the golden data is of")
    return data


@pytest.mark.parametrize("preset", PRESETS)
def test_file(converted: Converted, checkpoint: Path, golden: dict[str, Any], preset: str) -> None:
    assert contents(converted(checkpoint)[preset]) == golden["quantize"][preset]
