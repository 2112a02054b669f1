"""Models to measure: the small checkpoint with files made of it, and one whose weights are trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import small
import small_gguf
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from quantkit.evaluate import Model, open_model


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint: two layers of random weights, a token for each byte."""
    return small.write(tmp_path_factory.mktemp("evaluate") / "little", edit_tensors=small.lively)


@pytest.fixture(scope="session")
def little_files(little: Path) -> dict[str, Path]:
    """GGUF files of it, by preset."""
    return small_gguf.run(little, little.parent / "gguf", ["F32", "BF16", "Q8_0", "Q4_K_M", "Q2_K"])


TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")  # of the recorded baseline


@pytest.fixture(scope="session")
def trained_files(real_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """GGUF files of the checkpoint of trained weights, by preset, named as `make ppl` names them; 880 MB."""
    folder = tmp_path_factory.mktemp("evaluate")
    made = small_gguf.run(real_small, folder, TYPES)
    yield {name: path.rename(folder / f"real_small-{name}.gguf") for name, path in made.items()}
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def trained(real_small: Path) -> Iterator[Model]:
    with open_model(real_small, pytest.fail) as model:
        yield model


@pytest.fixture(scope="session")
def their_trained(real_small: Path) -> PreTrainedModel:
    """The same in transformers, float32; whoever changes its weights restores them."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        real_small, dtype=torch.float32, attn_implementation="eager"
    )
    return model
