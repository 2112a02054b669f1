"""What a user wants of a mix whatever it costs, and so which types each matrix may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from quantkit.errors import UsageError
from quantkit.qtypes import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0, QType
from quantkit.recipe import fitting

OFFERED = (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0)


@dataclass(frozen=True)
class Bounds:
    """What is asked of a mix beside its size.

    A pattern is a shell pattern on GGUF names, as in recipes; here it may leave out ".weight" at their end.

    keep   (pattern, type): matrices that have this type; the first pattern that matches decides
    least  no other matrix gets fewer bits than this type has
    same   the matrices of each of these patterns get one type among them
    """

    keep: Sequence[tuple[str, QType]] = ()
    least: QType | None = None
    same: Sequence[str] = ()

    def groups(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, ...]]:
        """The matrices that get one type each group, in order; shapes (rows, columns) by GGUF name.

        raises  UsageError  a pattern matches nothing, or two of `same` one matrix
        """
        for pattern in [*(pattern for pattern, _ in self.keep), *self.same]:
            if not any(_matches(name, pattern) for name in shapes):
                raise UsageError("a pattern matches no matrix of this model", found=pattern, expected=_some(shapes))
        group_of: dict[str, str] = {}
        for name in shapes:
            patterns = [pattern for pattern in self.same if _matches(name, pattern)]
            if len(patterns) > 1:
                raise UsageError("a matrix is in two groups of one type", tensor=name, found=", ".join(patterns))
            group_of[name] = patterns[0] if patterns else name
        return [tuple(name for name in shapes if group_of[name] == group) for group in dict.fromkeys(group_of.values())]

    def options(self, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[QType, ...]:
        """The types that all matrices of a group may have, fewest bits first.

        A row that does not divide into a type's blocks has its fallback in its place, as in recipes.
        raises  UsageError  no type is left
        """
        each = [self._options(name, shapes[name][-1]) for name in names]
        shared = [qtype for qtype in each[0] if all(qtype in others for others in each)]
        if not shared:
            hint = f"bounds contradict each other, or ask for too much: mixes are of {', '.join(map(str, OFFERED))}"
            raise UsageError("no type is left for a matrix", tensor=names[0], hint=hint)
        return tuple(sorted(shared, key=lambda qtype: qtype.bits_per_weight))

    def _options(self, name: str, n_columns: int) -> list[QType]:
        for pattern, qtype in self.keep:
            if _matches(name, pattern):
                return [fitting(qtype, n_columns)]
        offered = dict.fromkeys(fitting(qtype, n_columns) for qtype in OFFERED)
        floor = self.least.bits_per_weight if self.least else 0.0
        return [qtype for qtype in offered if qtype.bits_per_weight >= floor]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)


def _some(names: Mapping[str, object]) -> str:
    first, *_, last = names
    return f"one of {len(names)} such as {first}, {last}"
