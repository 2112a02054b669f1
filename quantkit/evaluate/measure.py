"""Measure models on the same windows of text, side by side, a group of windows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantkit.arch import Network
from quantkit.evaluate.network import Arithmetic, Weights, run
from quantkit.evaluate.score import SLAB_TOKENS, Scores, score

# Of one group: enough that reading the weights again for every group costs little beside computing; few enough that
# their hidden states are small beside a layer, and that a stopped run has finished groups to show.
GROUP_TOKENS = 8192


@dataclass
class Measurement:
    """What has been measured so far: finished groups of windows.

    windows   asked for
    n_done    finished
    scored    positions of a window that are scored
    scores    of each model, in the order of the windows
    """

    windows: int
    scored: int
    n_done: int = 0
    _parts: list[list[Scores]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.n_done == self.windows

    def add(self, parts: list[Scores]) -> None:
        self._parts.append(parts)
        self.n_done += len(parts[0].nll) // self.scored

    def scores(self, i: int) -> Scores:
        """All scores of model i, float64 (n_done * scored,)."""
        parts = [group[i] for group in self._parts]
        kld = [part.kld for part in parts if part.kld is not None]
        agree = [part.agree for part in parts if part.agree is not None]
        return Scores(
            np.concatenate([part.nll for part in parts]),
            np.concatenate(kld) if kld else None,
            np.concatenate(agree) if agree else None,
        )


def measure(
    models: Sequence[Weights],
    windows: npt.NDArray[np.int64],
    how: Arithmetic,
    *,
    has_base: bool,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Measurement]:
    """The measurement after each group of windows; the last one is complete.

    models    of one vocabulary; the first is the base of the others if has_base
    windows   int64 (n, positions) of tokens; the second half of each is scored
    progress  called n_steps() times in all
    """
    result = Measurement(len(windows), n_scored(windows.shape[1]))
    for group in groups(windows):
        result.add(measure_group(models, group, how, has_base=has_base, together=False, progress=progress))
        yield result


def measure_group(
    models: Sequence[Weights],
    group: npt.NDArray[np.int64],
    how: Arithmetic,
    *,
    has_base: bool,
    together: bool,
    progress: Callable[[], None] = lambda: None,
) -> list[Scores]:
    """The scores of each model in one group of windows, the same to the bit whichever other models are there.

    together   run the models side by side, so that what they share is read once, and all their hidden states have to
               fit into memory; else one after another
    the rest   as of measure()
    """
    scored = slice(group.shape[1] - 1 - n_scored(group.shape[1]), group.shape[1] - 1)
    states: list[Tensor] = []
    with torch.inference_mode():
        for some in [models] if together else [[model] for model in models]:
            found = run(some, group, how, kept=scored, progress=progress)
            states += [state.flatten(0, 1) for state in found]
    targets = group[:, scored.start + 1 :].reshape(-1)
    return score(models, states, targets, how, has_base=has_base, progress=progress)


def n_scored(n_positions: int) -> int:
    """Positions of a window that are scored: those of its second half that have a token after them."""
    return n_positions - 1 - n_positions // 2


def n_steps(models: Sequence[Weights], windows: npt.NDArray[np.int64]) -> int:
    """How often measure() will call progress."""
    return n_groups(windows) * n_group_steps([model.network for model in models])


def n_group_steps(networks: Sequence[Network]) -> int:
    """How often measure_group() will call progress, for models of these networks."""
    return sum(network.layers for network in networks) + -(-networks[0].vocabulary // SLAB_TOKENS)


def groups(windows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """The windows a few at a time: GROUP_TOKENS, or one."""
    size = _group_size(windows)
    for start in range(0, len(windows), size):
        yield windows[start : start + size]


def n_groups(windows: npt.NDArray[np.int64]) -> int:
    """How many groups() gives."""
    return -(-len(windows) // _group_size(windows))


def _group_size(windows: npt.NDArray[np.int64]) -> int:
    size: int = max(1, GROUP_TOKENS // windows.shape[1])
    return size
