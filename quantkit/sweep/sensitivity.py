"""What each matrix costs in each type: measured once on a few windows, kept, and the same for every mix.

    cost(t, type) = S(t) E(t, type) / E(t, probed)

S(t) is the mean KL divergence with t alone in its probed type.  E(t, type) is the sum of |dW x|^2 over a text: by how
much the type changes what t computes.  That small changes add up, and grow as their errors do, is the linearity theorem
of Malinovskii et al. 2024 (https://arxiv.org/abs/2411.17525).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit import __version__
from quantkit.errors import Paused, UsageError
from quantkit.evaluate import measure_probes, n_probe_steps, n_scored, output_errors
from quantkit.qtypes import Q3_K, QType
from quantkit.recipe import fitting, layer_of
from quantkit.sweep.candidates import Base, Candidate, Probe
from quantkit.sweep.cost import memory_bytes
from quantkit.sweep.measurements import GOES_ON, Measurements
from quantkit.sweep.store import Facts, Store

PROBED = Q3_K  # coarse enough to be seen through the noise of a few windows, fine enough to be a small change
PROBES_AT_ONCE = 24  # so many hidden states are there, and so much can a kill cost
LEAST_KLD = 1e-9  # of a probe: one that seems to do no harm, or good, is not free

Shapes = Mapping[str, tuple[int, ...]]  # (rows, columns) by GGUF name


@dataclass(frozen=True)
class Sensitivity:
    """The costs of a network's matrices, by GGUF name.

    kld     with this one alone in its probed type, nats
    errors  sum of |dW x|^2 of each type
    types   the probed type
    probed  names of those that were probed; the kld of the others is interpolated
    """

    kld: Mapping[str, float]
    errors: Mapping[str, Mapping[QType, float]]
    types: Mapping[str, QType]
    probed: frozenset[str]

    def cost(self, name: str, qtype: QType) -> float:
        """Nats that it adds to the KL divergence, as far as costs add up."""
        error = self.errors[name]
        probed = error[self.types[name]]
        return self.kld[name] * error[qtype] / probed if probed else 0.0

    def total(self, types: Mapping[str, QType]) -> float:
        """The sum of all costs; types by GGUF name."""
        return sum(self.cost(name, types[name]) for name in self.kld)


class Survey:
    """The measurements that a Sensitivity is made of: those that are there already, and those that are missing.

    measured  the source, the text and the arithmetic; its windows all run side by side
    shapes    of the matrices
    types     to know the errors of; of a matrix that does not divide into one's blocks, of its fallback
    n_probes  matrices to probe at most, evenly over the layers; None for all
    store     where measurements are kept
    """

    def __init__(
        self, measured: Measurements, shapes: Shapes, types: Sequence[QType], n_probes: int | None, store: Store
    ) -> None:
        self._measured, self._shapes, self._store = measured, shapes, store
        n_windows, n_positions = measured.sample.windows.shape
        self._probed = {name: fitting(PROBED, shapes[name][1]) for name in spread_over_layers(list(shapes), n_probes)}
        n_scores = n_windows * n_scored(n_positions)
        self._scores = {name: store.get(self._facts_of_probe(name), n_scores) for name in self._probed}
        self._errors = {qtype: self._known_errors(qtype) for qtype in dict.fromkeys([PROBED, *types])}

    @property
    def n_missing(self) -> int:
        """How many probes are to be made."""
        return len(self._missing_probes())

    def n_steps(self) -> int:
        """How often measure() will call progress."""
        passes = -(-self.n_missing // PROBES_AT_ONCE) + bool(self._missing_types())
        return passes * n_probe_steps(self._measured.model.network)

    def memory_bytes(self) -> int:
        """About how much memory measure() takes at most."""
        windows = self._measured.sample.windows.shape
        at_once = min(PROBES_AT_ONCE, len(self._probed))
        every = [self._uniform(qtype) for qtype in self._errors]
        side_by_side = [*every, *[every[0]] * max(0, at_once - len(every))]
        return memory_bytes(self._measured.model, side_by_side, windows, self._measured.strategy)

    def measure(self, progress: Callable[[], None] = lambda: None) -> None:
        """Make what is missing, and keep each as it is made.

        raises  Paused  KeyboardInterrupt came
                NotFiniteError, MagnitudeError, OutputError, DiskError: as Measurements.measure()
        """
        base = Base(self._measured.model, self._measured.importance, self._measured.strategy)
        try:
            self._measure_errors(base, progress)
            missing = self._missing_probes()
            for first in range(0, len(missing), PROBES_AT_ONCE):
                self._measure_probes(base, missing[first : first + PROBES_AT_ONCE], progress)
        except KeyboardInterrupt:
            raise Paused("stopped", hint=GOES_ON) from None

    def sensitivity(self) -> Sensitivity:
        """The result; everything is measured."""
        errors = {
            name: {fitting(qtype, shape[1]): found[name] for qtype, found in self._errors.items() if found is not None}
            for name, shape in self._shapes.items()
        }
        types = {name: fitting(PROBED, shape[1]) for name, shape in self._shapes.items()}
        kld = {
            name: max(LEAST_KLD, float(scores.kld.mean()))
            for name, scores in self._scores.items()
            if scores is not None and scores.kld is not None
        }
        error = {name: errors[name][types[name]] for name in self._shapes}
        return Sensitivity(interpolated(kld, error), errors, types, frozenset(self._probed))

    def _measure_errors(self, base: Base, progress: Callable[[], None]) -> None:
        missing, measured = self._missing_types(), self._measured
        if missing:
            models = [Candidate(base, measured.model, self._uniform(qtype)) for qtype in missing]
            found = output_errors(base, models, measured.sample.windows, measured.how, progress)
            for qtype, errors in zip(missing, found, strict=True):
                self._store.remember(self._facts({"errors_of": qtype.name}), json.dumps(errors))
                self._errors[qtype] = errors

    def _measure_probes(self, base: Base, names: Sequence[str], progress: Callable[[], None]) -> None:
        measured = self._measured
        probes = [Probe(base, measured.model, name, self._probed[name]) for name in names]
        found = measure_probes(base, probes, measured.sample.windows, measured.how, progress)
        for name, scores in zip(names, found, strict=True):
            self._store.put(self._facts_of_probe(name), scores)
            self._scores[name] = scores

    def _missing_probes(self) -> list[str]:
        """From the last layer to the first: of those made together none then begins long before the others."""
        missing = [name for name, scores in self._scores.items() if scores is None]
        return sorted(missing, key=layer_of, reverse=True)

    def _missing_types(self) -> list[QType]:
        return [qtype for qtype, errors in self._errors.items() if errors is None]

    def _uniform(self, qtype: QType) -> dict[str, QType]:
        return {name: fitting(qtype, shape[1]) for name, shape in self._shapes.items()}

    def _facts(self, of: Facts) -> dict[str, object]:
        """All that decides a measurement."""
        measured = self._measured
        return {
            "quantkit": __version__,
            **measured.conditions,
            "network_sha256": measured.model.network_sha256,
            "device": measured.how.device,
            "imatrix_sha256": measured.imatrix_sha256,
            **({"strategy": measured.recorded} if measured.recorded else {}),
            **of,
        }

    def _facts_of_probe(self, name: str) -> dict[str, object]:
        return self._facts({"probe": [name, self._probed[name].name]})

    def _known_errors(self, qtype: QType) -> dict[str, float] | None:
        answer = self._store.recall(self._facts({"errors_of": qtype.name}))
        return None if answer is None else json.loads(answer)


def spread_over_layers(names: Sequence[str], most: int | None) -> list[str]:
    """At most so many of the matrices: all that are of no layer, and all of some layers, the first and the last among
    them; all for None.

    raises  UsageError  most is too few for that
    """
    if most is None or most >= len(names):
        return list(names)
    layers = sorted({layer_of(name) for name in names} - {-1})
    n_others = sum(layer_of(name) < 0 for name in names)
    n_each = (len(names) - n_others) // len(layers)
    n_layers = (most - n_others) // n_each
    if n_layers < 2:
        raise UsageError("too few probes", expected=f"at least {n_others + 2 * n_each}", found=most)
    taken = {layers[round(i * (len(layers) - 1) / (n_layers - 1))] for i in range(n_layers)} | {-1}
    return [name for name in names if layer_of(name) in taken]


def interpolated(kld: Mapping[str, float], error: Mapping[str, float]) -> dict[str, float]:
    """The kld of every matrix that has an error, from that of some.

    How sensitive the network is to an error at some place, kld / error, changes slowly from layer to layer: its
    logarithm is interpolated between the same matrices of the layers that have one.
    """
    ratios: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for name in sorted(kld, key=layer_of):
        if error[name] > 0:
            ratios[_kind(name)].append((layer_of(name), math.log(kld[name] / error[name])))

    def between(name: str) -> float:
        known = ratios[_kind(name)]
        if not known:
            return LEAST_KLD
        layers, logs = zip(*known, strict=True)
        return error[name] * math.exp(np.interp(layer_of(name), layers, logs))

    return {name: kld[name] if name in kld else between(name) for name in error}


def _kind(name: str) -> str:
    """What a matrix has in common with those of other layers: "ffn_up.weight"."""
    return name.rpartition(f"blk.{layer_of(name)}.")[2]
