"""Shrinkage is chosen by what it saves on the other half: all where the halves agree, little where they do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quantkit.evaluate import shrinkage
from quantkit.evaluate.shrinkage import KEPT, chosen_shrinkage

K = 64
DAMPING = 0.03


def correlated(seed: int) -> Tensor:
    """(k, k): columns of it mix k independent values so that a few directions have most of the squares."""
    generator = torch.Generator().manual_seed(seed)
    turned, _ = torch.linalg.qr(torch.randn(K, K, generator=generator))
    return turned * torch.logspace(0, -1.5, K)


def moments(mixture: Tensor, n_tokens: int, seed: int) -> Tensor:
    x = torch.randn(n_tokens, K, generator=torch.Generator().manual_seed(seed)) @ mixture.T
    return x.T @ x


def test_one_distribution_and_many_tokens_keep_all() -> None:
    mixture = correlated(0)
    assert chosen_shrinkage((moments(mixture, 100 * K, 1), moments(mixture, 100 * K, 2)), DAMPING) == KEPT[0]


def test_the_fewer_tokens_the_less_is_kept() -> None:
    mixture = correlated(0)
    chosen = [
        chosen_shrinkage((moments(mixture, n, 1), moments(mixture, n, 2)), DAMPING) for n in (K // 8, K // 2, 2 * K)
    ]
    assert chosen == sorted(chosen)
    assert chosen[0] < 0.7 <= chosen[-1]


def test_columns_that_go_together_in_one_half_only_keep_little() -> None:
    halves = moments(correlated(0), 100 * K, 1), moments(correlated(1), 100 * K, 2)
    assert chosen_shrinkage(halves, DAMPING) <= KEPT[-2]


def test_no_candidate_is_tried_once_the_cost_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def cost(known: Tensor, unseen: Tensor, kept: float, damping: float) -> float:
        tried.append(kept)
        return {KEPT[0]: 1.2, KEPT[1]: 0.8, KEPT[2]: 0.7, KEPT[3]: 0.75}[kept]

    monkeypatch.setattr(shrinkage, "_cost", cost)
    assert chosen_shrinkage((torch.ones(1, 1), torch.ones(1, 1)), DAMPING) == KEPT[2]
    assert tried == sorted(2 * KEPT[:4], reverse=True)


def test_what_costs_more_than_plain_rounding_is_not_chosen() -> None:
    """Of these two tokens 0.97 costs more than plain rounding, and 0.9 yet more: the least of the costs is further."""
    one, other = (torch.cos(step * torch.arange(K)) for step in (1.0, 1.3))
    assert chosen_shrinkage((torch.outer(one, one), torch.outer(other, other)), DAMPING) == KEPT[-1]


def test_neither_half_comes_first_and_sums_are_as_good_as_means() -> None:
    a, b = moments(correlated(0), K // 4, 1), moments(correlated(0), K, 2)
    chosen = chosen_shrinkage((a, b), DAMPING)
    assert KEPT[-1] < chosen < KEPT[0], "or nothing is shown"
    assert chosen_shrinkage((b, a), DAMPING) == chosen
    assert chosen_shrinkage((a / K, 1000 * b), DAMPING) == chosen


def test_the_cost_is_that_of_the_errors_of_the_other_half() -> None:
    """The random errors against their expected value, from M itself in float64."""
    known, unseen = moments(correlated(0), 2 * K, 1), 3 * moments(correlated(0), 2 * K, 2)
    kept = KEPT[2]
    exact = known.double()
    shrunk = kept * exact + torch.diag((1 - kept) * exact.diagonal() + DAMPING * exact.diagonal().mean())
    lower = torch.linalg.cholesky(shrunk)
    unit = lower / lower.diagonal()
    inverse = torch.linalg.inv(unit)
    expected = torch.trace(inverse @ unseen.double() @ inverse.T) / torch.trace(unseen.double())
    assert shrinkage._cost(known, unseen, kept, DAMPING) == pytest.approx(float(expected), rel=0.1)
    assert expected < 0.9


def test_nothing_is_overwritten() -> None:
    halves = moments(correlated(0), K, 1), moments(correlated(0), K, 2)
    before = [half.clone() for half in halves]
    chosen_shrinkage(halves, DAMPING)
    assert all(map(torch.equal, halves, before))


def test_moments_that_cannot_be_factored_are_no_gain() -> None:
    assert shrinkage._cost(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.eye(2), KEPT[0], DAMPING) == math.inf


@pytest.mark.parametrize("second", [torch.zeros(K, K), torch.full((K, K), math.nan), torch.full((K, K), math.inf)])
def test_a_half_that_says_nothing_keeps_the_least(second: Tensor) -> None:
    first = moments(correlated(0), 100 * K, 1)
    assert chosen_shrinkage((first, second), DAMPING) == KEPT[-1]
    assert chosen_shrinkage((second, first), DAMPING) == KEPT[-1]


def test_columns_of_zeros_do_not_count() -> None:
    mixture = correlated(0)
    halves = moments(mixture, K, 1), moments(mixture, K, 2)
    chosen = chosen_shrinkage(halves, DAMPING)
    padded = [torch.nn.functional.pad(half, (0, K, 0, K)) for half in halves]
    assert chosen_shrinkage((padded[0], padded[1]), 2 * DAMPING) == chosen  # twice: their mean square is half as large


def test_one_token_a_half() -> None:
    """The same twice keeps all; of two others any is right."""
    one, other = moments(correlated(0), 1, 1), moments(correlated(0), 1, 2)
    assert chosen_shrinkage((one, one), DAMPING) == KEPT[0]
    assert chosen_shrinkage((one, other), DAMPING) in KEPT


def test_one_column() -> None:
    assert chosen_shrinkage((torch.ones(1, 1), torch.ones(1, 1)), DAMPING) in KEPT
