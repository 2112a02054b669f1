"""What is measured: the scores of a source, and of files that would be made of it, kept as they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit import __version__
from quantkit.errors import Paused
from quantkit.evaluate import (
    Arithmetic,
    Model,
    Sample,
    Scores,
    conditions,
    groups,
    measure_group,
    n_group_steps,
    n_scored,
)
from quantkit.qtypes import QType
from quantkit.strategy import Strategy
from quantkit.sweep.candidates import Base, Candidate, Importance
from quantkit.sweep.cost import memory_bytes
from quantkit.sweep.store import Store, key

GOES_ON = "the same command goes on from what is measured"
Types = Mapping[str, QType]  # of every tensor of a file, by GGUF name; None in place of it stands for the base


@dataclass(frozen=True)
class Unit:
    """Measurements that are made side by side, in one group of windows.  The base runs along in any case.

    number      of the group
    wants_base  whether the base is one of them
    types       the others
    """

    number: int
    wants_base: bool
    types: Sequence[Types]

    @property
    def n_measurements(self) -> int:
        return self.wants_base + len(self.types)


class Measurements:
    """Of one source on one sample: a measurement is of the base, or of some types, in one group of windows.

    model           the source, which is the base
    sample          the text
    how             the arithmetic
    importance      of the columns of each matrix, as Base has it
    imatrix_sha256  of the file that the importance is from, None without one
    strategy        how the codes of matrices are found
    recorded        what files say of that strategy, as strategy.recorded() has it
    base_sha256     of the source
    store           where measurements are kept
    """

    def __init__(
        self,
        model: Model,
        sample: Sample,
        how: Arithmetic,
        *,
        importance: Importance,
        imatrix_sha256: str | None,
        strategy: Strategy,
        recorded: Mapping[str, Any] | None,
        base_sha256: str,
        store: Store,
    ) -> None:
        self.model, self.sample, self.how = model, sample, how
        self.importance, self.imatrix_sha256 = importance, imatrix_sha256
        self.strategy, self.recorded = strategy, recorded
        self.conditions = conditions(sample, how, None) | {"base_sha256": base_sha256}
        self._store = store
        self._groups = list(groups(sample.windows))
        self._found: dict[str, Scores | None] = {}

    def on(self, sample: Sample) -> Measurements:
        """Those of the same source, in the same store, on another sample."""
        return Measurements(
            self.model,
            sample,
            self.how,
            importance=self.importance,
            imatrix_sha256=self.imatrix_sha256,
            strategy=self.strategy,
            recorded=self.recorded,
            base_sha256=self.conditions["base_sha256"],
            store=self._store,
        )

    def units(self, wanted: Sequence[Types], parts: int = 1) -> list[Unit]:
        """What is not measured yet, of these types and the base; the same types twice are one.

        parts  into which each group of windows is divided, at most
        """
        units = []
        for number in range(len(self._groups)):
            distinct = {key(self._facts(types, number)): types for types in wanted}
            types = [one for one in distinct.values() if self._known(one, number) is None]
            wants_base = self._known(None, number) is None
            size = max(1, -(-len(types) // parts))
            for start in range(0, max(len(types), int(wants_base)), size):
                units.append(Unit(number, wants_base and start == 0, types[start : start + size]))
        return units

    def n_missing(self, wanted: Sequence[Types]) -> int:
        """How many measurements are to be made for these types, and the base."""
        return sum(unit.n_measurements for unit in self.units(wanted))

    def n_steps(self, wanted: Sequence[Types], parts: int = 1) -> int:
        """How often measure() will call progress."""
        return sum(map(self.n_unit_steps, self.units(wanted, parts)))

    def n_unit_steps(self, unit: Unit) -> int:
        """How often it is called for a unit."""
        return n_group_steps([self.model.network] * (1 + len(unit.types)))

    def memory_bytes(self, wanted: Sequence[Types], parts: int = 1) -> int:
        """About how much memory a unit takes at most."""
        side_by_side = [unit.types for unit in self.units(wanted, parts)]
        n_windows, n_positions = self._groups[0].shape
        return memory_bytes(self.model, max(side_by_side, key=len, default=()), (n_windows, n_positions), self.strategy)

    def measure(self, wanted: Sequence[Types], progress: Callable[[], None] = lambda: None) -> None:
        """Make the measurements that are missing, all types side by side, and keep each as it is made.

        raises  Paused              KeyboardInterrupt came; the groups of windows that were finished are kept
                NotFiniteError, MagnitudeError   a weight that cannot be packed, or values that are no numbers
                OutputError, DiskError
        """
        base = Base(self.model, self.importance, self.strategy)
        try:
            for unit in self.units(wanted):
                models: list[Base | Candidate] = [base, *(Candidate(base, self.model, types) for types in unit.types)]
                windows = self.windows(unit)
                self.keep(
                    unit, measure_group(models, windows, self.how, has_base=True, together=True, progress=progress)
                )
        except KeyboardInterrupt:
            raise Paused("stopped", hint=GOES_ON) from None

    def windows(self, unit: Unit) -> npt.NDArray[np.int64]:
        """That a unit is measured in: int64 (n, positions)."""
        return self._groups[unit.number]

    def keep(self, unit: Unit, found: Sequence[Scores]) -> None:
        """Keep what was measured, of the base and of each of the unit's types; raises OutputError, DiskError."""
        for types, scores in zip([None, *unit.types], found, strict=True):
            if types is not None or unit.wants_base:
                facts = self._facts(types, unit.number)
                self._store.put(facts, scores)
                self._found[key(facts)] = scores

    def is_complete(self, types: Types | None) -> bool:
        """Whether all groups of windows are measured."""
        return all(self._known(types, number) is not None for number in range(len(self._groups)))

    def scores(self, types: Types | None) -> Scores:
        """All scores, in the order of the windows; everything is measured."""
        parts = [part for number in range(len(self._groups)) for part in [self._known(types, number)] if part]
        kld = [part.kld for part in parts if part.kld is not None]
        agree = [part.agree for part in parts if part.agree is not None]
        return Scores(
            np.concatenate([part.nll for part in parts]),
            np.concatenate(kld) if kld else None,
            np.concatenate(agree) if agree else None,
        )

    def _facts(self, types: Types | None, number: int) -> dict[str, Any]:
        """All that decides the figures of some types, or of the base, in one group of windows."""
        start = sum(map(len, self._groups[:number]))
        quantized: dict[str, Any] | None = None
        if types is not None:
            named = {name: qtype.name for name, qtype in sorted(types.items())}
            quantized = {"types": named, "imatrix_sha256": self.imatrix_sha256}
            quantized |= {"strategy": self.recorded} if self.recorded else {}
        return {
            "quantkit": __version__,
            **self.conditions,
            "network_sha256": self.model.network_sha256,
            "device": self.how.device,
            "windows": [start, start + len(self._groups[number])],
            "quantized": quantized,
        }

    def _known(self, types: Types | None, number: int) -> Scores | None:
        """What is measured already, or None."""
        facts = self._facts(types, number)
        name = key(facts)
        if name not in self._found:
            self._found[name] = self._store.get(facts, len(self._groups[number]) * self._n_scored)
        return self._found[name]

    @property
    def _n_scored(self) -> int:
        return n_scored(self.sample.windows.shape[1])
