"""What every matrix is multiplied by while a text runs through the model: sums of squares, and whole second moments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantkit.evaluate.measure import groups
from quantkit.evaluate.model import Model
from quantkit.evaluate.network import Arithmetic, Weights, run, summed_over_tokens
from quantkit.evaluate.shrinkage import chosen_shrinkage
from quantkit.imatrix import ColumnSums
from quantkit.moments import Collected, Run, has_moments, pack, write_layer
from quantkit.strategy import DAMPING

EXACT = Arithmetic()


def collect(
    weights: Weights,
    windows: npt.NDArray[np.int64],
    *,
    how: Arithmetic = EXACT,
    moments: tuple[Path, Run] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, ColumnSums]:
    """The sums of squares of every column's inputs, of each matrix of the layers and of the head.

    windows      int64 (n, positions) of tokens; every position counts
    moments      a folder that gets the second moments of each layer, one file a layer, as the layer is done, and what
                 they record; all windows then run side by side, so that their hidden states have to fit into memory
    progress     called once for each layer of each group of windows
    """
    sums = SquareSums()
    whole = _Moments(*moments) if moments else None
    observe = _Observer(sums, whole)
    with torch.inference_mode():
        for group in _groups(windows, whole=moments is not None):
            (last,) = run([weights], group, how, observe=observe, progress=progress)
            sums.add(weights.head, last.flatten(0, 1))
        if whole is not None:
            whole.write()
    return sums.by_name


def moment_shapes(model: Model) -> list[tuple[int, int]]:
    """The shape (n, k) of each matrix that has second moments, those of the layers."""
    return [(shape[0], shape[1]) for name, shape in model.tensors.items() if has_moments(name) and len(shape) == 2]


def n_collect_steps(weights: Weights, windows: npt.NDArray[np.int64], covariance: bool) -> int:
    """How often collect() will call progress."""
    return len(_groups(windows, whole=covariance)) * weights.network.layers


def _groups(windows: npt.NDArray[np.int64], whole: bool) -> list[npt.NDArray[np.int64]]:
    """The windows that run side by side: whole for all of them."""
    return [windows] if whole else list(groups(windows))


class SquareSums:
    """The sums of squares of each column of what matrices are multiplied by, by GGUF name."""

    def __init__(self) -> None:
        self.by_name: dict[str, ColumnSums] = {}

    def add(self, name: str, x: Tensor) -> None:
        """x float32 (tokens, k)."""
        squares = x.square().sum(dim=0, dtype=torch.float64).cpu().numpy()
        before = self.by_name.get(name)
        if before is not None:
            squares = squares + before.sums
        self.by_name[name] = ColumnSums(squares, (before.count if before else 0) + len(x))


class Halves:
    """x x^T added up, of the first half of the tokens and of the second.

    sums  float32 (k, k) each
    """

    def __init__(self, n_columns: int, n_tokens: int, device: torch.device) -> None:
        self.sums = (torch.zeros(n_columns, n_columns, device=device), torch.zeros(n_columns, n_columns, device=device))
        self._n_tokens, self._n_seen = n_tokens, 0

    def add(self, x: Tensor) -> None:
        """x float32 (tokens, k)."""
        of_first = max(0, self._n_tokens // 2 - self._n_seen)
        for sums, some in zip(self.sums, (x[:of_first], x[of_first:]), strict=True):
            if len(some):
                sums += summed_over_tokens(some, some)
        self._n_seen += len(x)

    def collected(self) -> Collected:
        """The sum of both, and what part of it to keep beside the diagonal; the halves are let go."""
        kept = chosen_shrinkage(self.sums, DAMPING)
        total, other = self.sums
        del self.sums
        return Collected(pack(total.add_(other).cpu().numpy()), kept)


class _Moments:
    """The second moments of the layer that is being computed; the layer before is written when the next begins."""

    def __init__(self, folder: Path, run: Run) -> None:
        self._folder, self._run = folder, run
        self._layer = ""
        self._halves: dict[str, Halves] = {}

    def add(self, name: str, x: Tensor) -> None:
        layer = ".".join(name.split(".")[:2])
        if layer != self._layer:
            self.write()
            self._layer = layer
        if name not in self._halves:
            self._halves[name] = Halves(x.shape[1], self._run.count, x.device)
        self._halves[name].add(x)

    def write(self) -> None:
        if self._halves:
            collected = {name: halves.collected() for name, halves in self._halves.items()}
            write_layer(self._folder, self._layer, collected, self._run)
        self._halves = {}


class _Observer:
    """Hands what a matrix is multiplied by to all that collect it."""

    def __init__(self, sums: SquareSums, moments: _Moments | None) -> None:
        self._collectors = [collector for collector in (sums, moments) if collector is not None]

    def __call__(self, name: str, x: Tensor) -> None:
        for collector in self._collectors:
            collector.add(name, x)
