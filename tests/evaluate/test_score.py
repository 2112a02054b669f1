"""The sums over slabs of the vocabulary, against the definition over all of it in float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from quantkit import qtypes
from quantkit.errors import NotFiniteError
from quantkit.evaluate import score as module
from quantkit.evaluate.network import Arithmetic
from quantkit.evaluate.score import Scores, score
from quantkit.qtypes import QType

HIDDEN, TOKENS, POSITIONS = 32, 1000, 700


@dataclass
class Sizes:
    vocabulary: int = TOKENS


class OnlyHead:
    """A model of which nothing but the head is asked for."""

    head = "output.weight"
    path = Path("a.gguf")

    def __init__(self, seed: int, spread: float = 0.5) -> None:
        self.network = Sizes()
        self.values = (np.random.default_rng(seed).standard_normal((TOKENS, HIDDEN)) * spread).astype(np.float32)

    def qtype(self, name: str) -> QType:
        return qtypes.F32

    def matrix(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        return self.values[start:stop]


@pytest.fixture(params=[64, 999, 4096], ids=lambda n: f"slabs of {n}")
def slabs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLAB_TOKENS", request.param)


def scored(models: list[OnlyHead], has_base: bool) -> tuple[list[Scores], list[npt.NDArray[np.float64]]]:
    """The scores, and log-probabilities float64 (positions, tokens) of each model."""
    states = np.random.default_rng(9).standard_normal((POSITIONS, HIDDEN)).astype(np.float32)
    logs = []
    for model in models:
        logits = (torch.from_numpy(states) @ torch.from_numpy(model.values).T).double()
        logs.append(torch.log_softmax(logits, -1).numpy())
    tensors = [torch.from_numpy(states) for _ in models]
    return score(models, tensors, TARGETS, Arithmetic(), has_base=has_base), logs  # type: ignore[arg-type]


TARGETS = np.random.default_rng(8).integers(0, TOKENS, POSITIONS)


@pytest.mark.usefixtures("slabs")
def test_against_a_base() -> None:
    models = [OnlyHead(1), OnlyHead(1), OnlyHead(2)]
    models[1].values = models[1].values + np.float32(0.02) * models[2].values
    scores, logs = scored(models, has_base=True)
    at = np.arange(POSITIONS), TARGETS
    assert scores[0].kld is None
    for its_scores, its_logs in zip(scores, logs, strict=True):
        assert np.allclose(its_scores.nll, -its_logs[at], atol=2e-6)
    for its_scores, its_logs in zip(scores[1:], logs[1:], strict=True):
        kld = (np.exp(logs[0]) * (logs[0] - its_logs)).sum(-1)
        assert its_scores.kld is not None and its_scores.agree is not None
        assert np.allclose(its_scores.kld, kld, rtol=1e-4, atol=2e-6)
        assert np.array_equal(its_scores.agree, logs[0].argmax(-1) == its_logs.argmax(-1))
    assert scores[1].agree is not None
    assert 0.5 < scores[1].agree.mean() < 1


@pytest.mark.usefixtures("slabs")
def test_without_a_base() -> None:
    scores, _ = scored([OnlyHead(1), OnlyHead(2)], has_base=False)
    assert [its_scores.kld for its_scores in scores] == [None, None]


@pytest.mark.usefixtures("slabs")
def test_a_model_is_nothing_from_itself() -> None:
    scores, _ = scored([OnlyHead(1), OnlyHead(1)], has_base=True)
    assert scores[1].kld is not None
    assert np.abs(scores[1].kld).max() == 0


def test_no_number_among_the_logits() -> None:
    model = OnlyHead(1)
    model.values[500, 3] = np.nan
    with pytest.raises(NotFiniteError, match=r"a\.gguf, tensor output\.weight"):
        scored([model], has_base=False)


@pytest.mark.parametrize("has_base", [False, True])
def test_a_token_that_can_never_come(has_base: bool) -> None:
    """A logit of -infinity leaves the sum of exponentials finite, and no figure else."""
    models = [OnlyHead(1), OnlyHead(1)]
    models[1].values[TARGETS[0], 3] = -np.inf
    states = [torch.rand(POSITIONS, HIDDEN) + 0.1 for _ in models]  # above 0: the product is -infinity everywhere
    with pytest.raises(NotFiniteError, match=r"output\.weight"):
        score(models, states, TARGETS, Arithmetic(), has_base=has_base)  # type: ignore[arg-type]


def test_far_apart_logits_do_not_overflow() -> None:
    scores, logs = scored([OnlyHead(1, spread=400.0), OnlyHead(2, spread=400.0)], has_base=True)
    kld = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
    assert scores[1].kld is not None
    assert np.allclose(scores[1].kld, kld, rtol=1e-4)
