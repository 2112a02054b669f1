"""The network against transformers' Phi3ForCausalLM in float32, position by position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from quantkit.evaluate.model import Model, open_model
from quantkit.evaluate.network import Arithmetic, run
from quantkit.evaluate.score import score

POSITIONS = 128
EXACT = Arithmetic()


@pytest.fixture(scope="module", params=["real_small", "phi4_tiny", "phi4_mini_tiny"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Iterator[Model]:
    with open_model(checkpoint, pytest.fail) as opened:
        yield opened


@pytest.fixture(scope="module")
def ids(model: Model) -> NDArray[np.int64]:
    return np.random.default_rng(4).integers(0, model.network.vocabulary, (2, POSITIONS))


def our_nll(model: Model, ids: NDArray[np.int64], how: Arithmetic = EXACT) -> NDArray[np.float64]:
    with torch.inference_mode():
        states = run([model], ids, how)[0][:, :-1].flatten(0, 1)
        (scores,) = score([model], [states], ids[:, 1:].reshape(-1), how, has_base=False)
    return scores.nll


def test_nll_as_transformers(checkpoint: Path, model: Model, ids: NDArray[np.int64]) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        logits = theirs(torch.from_numpy(ids)).logits[:, :-1]
    expected = -torch.log_softmax(logits.double(), -1).gather(-1, torch.from_numpy(ids)[:, 1:, None])
    assert np.abs(our_nll(model, ids) - expected.flatten().numpy()).max() < 1e-4
