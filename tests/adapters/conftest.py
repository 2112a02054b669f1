"""Bases of a few hundred kilobytes, and adapters that PEFT trained for them, each made when first asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapters
import layouts
import pytest
import small
import small_gguf
import torch


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model: "fused", "split" (as LlamaForCausalLM), "gguf" (BF16); and "tied", with one matrix less."""
    folder = tmp_path_factory.mktemp("bases")

    def tie(config: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = True

    fused = small.write(folder / "fused", edit_tensors=small.lively)
    split = small.write(folder / "split", edit_tensors=small.lively)
    layouts.llama(split)
    tied = small.write(
        folder / "tied", edit_config=tie, edit_tensors=lambda tensors: tensors.pop("lm_head.weight") is None
    )
    gguf = small_gguf.run(fused, folder, ["BF16"])["BF16"]
    return {"fused": fused, "split": split, "gguf": gguf, "tied": tied}


@pytest.fixture(scope="session")
def trained(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a name in TRAINED to the adapter's folder."""
    folder = tmp_path_factory.mktemp("adapters")

    @functools.cache
    def make(name: str) -> Path:
        base, config = adapters.TRAINED[name]
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # these matrices are too small to share
        try:
            return adapters.train(bases[base], folder / name.replace(" ", "-"), **config)
        finally:
            torch.set_num_threads(before)

    return make
