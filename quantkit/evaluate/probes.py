"""What it costs to change one matrix of a network: in its own output, and in the network's predictions.

A probe is a model that differs from its base in one matrix.  It is the base up to the half layer that has the matrix,
and is computed from there on; from then on its states are so many more windows of the base, whose matrices are there
once for all of them.  So a probe costs half a pass on average, and no reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantkit.arch import EMBEDDING, Network
from quantkit.evaluate.measure import n_group_steps, n_scored
from quantkit.evaluate.network import (
    HALVES,
    Arithmetic,
    Layer,
    Turn,
    Weights,
    check_finite,
    embedded,
    last_states,
    multiplication,
    windows_at_once,
)
from quantkit.evaluate.score import SLAB_TOKENS, Scores, score


class Probe(Weights, Protocol):
    """A model whose every tensor is the base's but the matrix of that GGUF name."""

    @property
    def tensor(self) -> str: ...


def measure_probes(
    base: Weights,
    probes: Sequence[Probe],
    windows: npt.NDArray[np.int64],
    how: Arithmetic,
    progress: Callable[[], None] = lambda: None,
) -> list[Scores]:
    """The scores of each probe against the base.

    windows   int64 (n, positions) of tokens; the second half of each is scored
    progress  called n_probe_steps() times
    raises    NotFiniteError  values that are no numbers
    """
    positions = windows.shape[1]
    scored = slice(positions - 1 - n_scored(positions), positions - 1)
    turn, size = Turn(base.rotation, positions, how), windows_at_once(base.network, positions)
    with torch.inference_mode():
        own = embedded(base, windows, how)
        states = {probe: embedded(probe, windows, how) for probe in probes if probe.tensor == EMBEDDING}
        for i in range(base.network.layers):
            for prefix, half in HALVES.items():
                begun = {probe: own.clone() for probe in probes if probe.tensor.startswith(f"blk.{i}.{prefix}_")}
                for probe, x in begun.items():
                    Layer(probe, i, how, turn).compute(half, x.split(size))
                every = [own, *states.values()]
                Layer(base, i, how, turn).compute(half, [*chain.from_iterable(x.split(size) for x in every)])
                states |= begun
            for x in (own, *states.values()):
                check_finite(x, base, f"blk.{i}")
            progress()
        kept = [
            last_states(base, x, how, scored).flatten(0, 1)
            for x in (own, *(states.get(probe, own) for probe in probes))
        ]
        models = [base, *(probe if probe.tensor == base.head else base for probe in probes)]
        targets = windows[:, scored.start + 1 :].reshape(-1)
        return score(models, kept, targets, how, has_base=True, progress=progress)[1:]


def output_errors(
    base: Weights,
    models: Sequence[Weights],
    windows: npt.NDArray[np.int64],
    how: Arithmetic,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, float]]:
    """By how much other matrices change what each computes of the base's own inputs x: the sum of |dW x|^2.

    That is trace(dW H dW^T) with H the sum of x x^T, their second moments.  Of the embedding, unless it is the head, it
    is the sum of |dW x|^2 with x the tokens: rows count as often as they occur.

    models    of the base's network
    windows   int64 (n, positions) of tokens; every position counts
    progress  called n_probe_steps() times
    returns   of each model by GGUF name, for the matrices of the layers, the embedding and the head
    """
    found: list[dict[str, float]] = [{} for _ in models]
    seen: dict[str, list[Tensor]] = defaultdict(list)

    def observe(name: str, x: Tensor) -> None:
        seen[name].append(x)

    def add(name: str, inputs: Sequence[Tensor], start: int = 0, stop: int | None = None) -> None:
        rows = base.matrix(name, start, stop)
        for model, errors in zip(models, found, strict=True):
            product = multiplication(torch.from_numpy(rows - model.matrix(name, start, stop)).to(how.device))
            errors[name] = errors.get(name, 0.0) + sum(_squares(product(x)) for x in inputs)

    network = base.network
    turn, size = Turn(base.rotation, windows.shape[1], how), windows_at_once(network, windows.shape[1])
    with torch.inference_mode():
        own = embedded(base, windows, how)
        if base.head != EMBEDDING:
            for model, errors in zip(models, found, strict=True):
                errors[EMBEDDING] = _squares(own - embedded(model, windows, how))
        for i in range(network.layers):
            for half in HALVES.values():
                Layer(base, i, how, turn, observe).compute(half, own.split(size))
                for name, inputs in seen.items():
                    add(name, inputs)
                seen.clear()
            check_finite(own, base, f"blk.{i}")
            progress()
        last = last_states(base, own, how, slice(None)).flatten(0, 1)
        for start in range(0, network.vocabulary, SLAB_TOKENS):
            add(base.head, [last], start, min(start + SLAB_TOKENS, network.vocabulary))
            progress()
    return found


def n_probe_steps(network: Network) -> int:
    """How often measure_probes(), and output_errors(), will call progress."""
    return n_group_steps([network])


def _squares(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))
