"""The best choice is the best: against all there are."""

from __future__ import annotations

import itertools
import random

import pytest

from quantkit.errors import UsageError
from quantkit.sweep import knapsack
from quantkit.sweep.knapsack import Option, smallest, solve

UNIT = 32


def problem(rng: random.Random) -> tuple[list[list[Option]], int]:
    """One to five items of one to four options; sizes and costs as far apart as those of a network's matrices."""
    items = [
        [Option(UNIT * rng.randrange(1, 2000), rng.random() ** 6) for _ in range(rng.randrange(1, 5))]
        for _ in range(rng.randrange(1, 6))
    ]
    largest = sum(max(option.nbytes for option in options) for options in items)
    return items, rng.randrange(smallest(items), largest + UNIT)


def test_it_is_the_best_of_all() -> None:
    rng = random.Random(6)
    for _ in range(150):
        items, budget = problem(rng)
        found = solve(items, budget)
        taken = [options[number] for options, number in zip(items, found.chosen, strict=True)]
        fitting = [every for every in itertools.product(*items) if sum(option.nbytes for option in every) <= budget]
        best = min(sum(option.cost for option in every) for every in fitting)
        assert found.nbytes == sum(option.nbytes for option in taken) <= budget
        assert found.cost == sum(option.cost for option in taken) == pytest.approx(best, rel=1e-9)
        assert found.gap == 0


@pytest.mark.parametrize("n_bytes", [0, 1, 95])
def test_to_the_byte(n_bytes: int) -> None:
    """96 bytes more buy the better option of either item, a byte less does not; 8 GB stand beside them."""
    heavy = [Option(8_000_000_000, 0.5)]
    items = [heavy, [Option(64, 0.4), Option(160, 0.1)], [Option(64, 0.4), Option(160, 0.2)]]
    assert solve(items, smallest(items) + n_bytes).chosen == (0, 0, 0)
    assert solve(items, smallest(items) + 96 + n_bytes).chosen == (0, 1, 0)


def test_the_same_every_time() -> None:
    items, budget = problem(random.Random(4))
    assert solve(items, budget) == solve(items, budget)


def test_without_the_solver_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        solve([[Option(1, 1.0)]], 1)
    assert caught.value.hint == "pip install 'quantkit[optimize]'"
