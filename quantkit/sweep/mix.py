"""A mix of types that was found, and what is known of it before it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.qtypes import QType
from quantkit.recipe import Recipe


@dataclass(frozen=True)
class Budget:
    """Room for the matrices of one mix.

    name     of the mix
    nbytes   for the matrices in counted, each padded as in a file
    counted  GGUF names; what is not among them takes no room: it stays in the host's memory
    """

    name: str
    nbytes: int
    counted: frozenset[str]


@dataclass(frozen=True)
class Mix:
    """What was found for a budget.

    recipe     as written
    types      of the matrices, by GGUF name
    nbytes     of those that are counted
    predicted  KL divergence on the text that is reported on, nats
    gap        (sum of costs - its proven lower bound) / sum of costs: 0 where no mix has a lower sum
    """

    recipe: Recipe
    types: Mapping[str, QType]
    budget: Budget
    nbytes: int
    predicted: float
    gap: float

    def described(self) -> dict[str, Any]:
        """For the report."""
        return {
            "type": self.recipe.name,
            "budget_bytes": self.budget.nbytes,
            "used_bytes": self.nbytes,
            "predicted_kld": self.predicted,
            "gap": self.gap,
        }


@dataclass(frozen=True)
class Optimized:
    """The mixes that were found, and how: the part `optimized` of the report, see README.md."""

    mixes: Sequence[Mix]
    report: Mapping[str, Any]
