"""Which option of each item to take: the least cost that fits a budget, exactly (multiple-choice knapsack).

    minimise    sum over items i and their options o of  cost[i, o] x[i, o]
    subject to  sum of nbytes[i, o] x[i, o] <= budget,  sum over o of x[i, o] = 1 for each i,  x[i, o] 0 or 1

solved by the branch and bound of HiGHS (https://highs.dev).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from quantkit.errors import BugError, UsageError

COST_SCALE = 1000.0  # what the worst costs add up to, for tolerances of 1e-7 or so to mean nothing
# To the proven optimum, and the same one every time.
SETTINGS = {"output_flag": False, "threads": 1, "random_seed": 0, "mip_rel_gap": 0.0, "mip_abs_gap": 0.0}


@dataclass(frozen=True)
class Option:
    """One way to take an item: what it weighs, and what it costs (0 or more)."""

    nbytes: int
    cost: float


@dataclass(frozen=True)
class Solution:
    """What to take.

    chosen  of each item, the number of its option
    nbytes  in all
    cost    in all
    gap     (cost - proven lower bound) / cost: 0 where it is proven the best
    """

    chosen: tuple[int, ...]
    nbytes: int
    cost: float
    gap: float


def needs_solver() -> None:
    """Raises UsageError where HiGHS is not installed: it is an extra."""
    if find_spec("highspy") is None:
        raise UsageError("--optimize needs highspy", hint="pip install 'quantkit[optimize]'")


def smallest(items: Sequence[Sequence[Option]]) -> int:
    """The least that any choice weighs."""
    return sum(min(option.nbytes for option in options) for options in items)


def solve(items: Sequence[Sequence[Option]], budget: int) -> Solution:
    """The best choice; budget is at least smallest(items).

    raises  UsageError  HiGHS is not installed
    """
    needs_solver()
    assert smallest(items) <= budget, "that nothing fits is seen by whoever asks"
    highs = _model(items, budget)
    highs.run()
    values = iter(highs.getSolution().col_value)
    weights = [[next(values) for _ in options] for options in items]
    chosen = tuple(row.index(max(row)) for row in weights)
    taken = [options[number] for options, number in zip(items, chosen, strict=True)]
    nbytes, cost = sum(option.nbytes for option in taken), sum(option.cost for option in taken)
    if nbytes > budget:
        raise BugError("the solver's choice does not fit", expected=f"at most {budget}", found=nbytes)
    return Solution(chosen, nbytes, cost, float(highs.getInfo().mip_gap))


def _model(items: Sequence[Sequence[Option]], budget: int) -> Any:
    """The problem as HiGHS takes it.

    Bytes are counted in their greatest common divisor, from each item's least: numbers so small that the solver's
    tolerance of 1e-6 is less than one of them.
    """
    import highspy

    least = [min(option.nbytes for option in options) for options in items]
    more = [option.nbytes - first for options, first in zip(items, least, strict=True) for option in options]
    unit = math.gcd(*more) or 1
    scale = COST_SCALE / (sum(max(option.cost for option in options) for options in items) or 1.0)
    highs = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in SETTINGS.items():
        highs.setOptionValue(name, value)
    first, rows = 0, []
    for options in items:
        for option in options:
            number = highs.getNumCol()
            highs.addVar(0.0, 1.0)
            highs.changeColCost(number, option.cost * scale)
            highs.changeColIntegrality(number, highspy.HighsVarType.kInteger)
        rows.append(list(range(first, first + len(options))))
        first += len(options)
    for columns in rows:
        highs.addRow(1.0, 1.0, len(columns), columns, [1.0] * len(columns))
    room = float((budget - sum(least)) // unit)
    highs.addRow(-highspy.kHighsInf, room, first, list(range(first)), [nbytes // unit for nbytes in more])
    return highs
