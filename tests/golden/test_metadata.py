"""The BF16 files have the keys that convert_hf_to_gguf.py writes, in its order, and the same tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracle import GOLDEN, metadata

Converted = Callable[[Path], dict[str, Path]]

# What quantkit writes beside them: where a file comes from, and the token that ends a turn, which llama.cpp guesses.
_OWN = ("quantkit.", "tokenizer.ggml.eot_token_id")


@pytest.fixture(scope="module", params=["real_small", "phi4_tiny", "phi4_tiny_v5", "phi4_mini_tiny"])
def found_and_golden(request: pytest.FixtureRequest, converted: Converted) -> tuple[dict[str, Any], dict[str, Any]]:
    checkpoint: Path = request.getfixturevalue(request.param)
    golden = json.loads((GOLDEN / "metadata" / f"{checkpoint.name}.json").read_text("utf-8"))
    return metadata(converted(checkpoint)["BF16"]), golden


def test_fields(found_and_golden: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found, golden = found_and_golden
    assert [field for field in found["fields"] if not field["key"].startswith(_OWN)] == golden["fields"]


def test_own_fields(found_and_golden: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """The exceptions of test_fields are these and no more."""
    found, _ = found_and_golden
    own = {field["key"] for field in found["fields"] if field["key"].startswith(_OWN)}
    sources = {key for key in own if re.fullmatch(r"quantkit\.source\.\d\.(name|sha256)", key)}
    assert sources and len(sources) % 2 == 0
    assert own - sources == {
        "quantkit.version",
        "quantkit.recipe.name",
        "quantkit.recipe.sha256",
        "quantkit.strategy",
        "tokenizer.ggml.eot_token_id",
    }


def test_tensors(found_and_golden: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Names, types and shapes; the order is llama-quantize's, which the golden files hold."""
    found, golden = found_and_golden
    assert sorted(found["tensors"]) == sorted(golden["tensors"])
