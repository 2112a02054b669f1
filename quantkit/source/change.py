"""What an adapter does to the rows of a matrix, as float32 while they go by: hop 3 of a tensor's journey.

    row += scale * (b x a)                                        LoRA
    row = magnitude * row / norm(row), after that                 DoRA

Rows of b are read with the rows they belong to and a is read each time: it is small beside them, and nothing has to be
kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from quantkit import kernels
from quantkit.checkpoint import Adapter, Pair, TensorInfo
from quantkit.errors import NotFiniteError

F32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LowRank:
    """The change of the rows first to first + n_rows of one tensor of an output."""

    adapter: Adapter
    pair: Pair
    first: int
    n_rows: int

    def apply(self, start: int, rows: F32Array) -> None:
        """Change those of rows float32 (n, k) in place that are the module's; rows begin at row start of the tensor."""
        low, high = max(start, self.first), min(start + len(rows), self.first + self.n_rows)
        if low >= high:
            return
        own = rows[low - start : high - start]
        coefficients, basis = self._factors(low - self.first, high - self.first)
        kernels.add_low_rank(own, coefficients, basis, self.pair.scale)
        if self.pair.magnitude is not None:
            self._normalize(own, self.pair.magnitude, low - self.first)

    def _normalize(self, rows: F32Array, magnitude: TensorInfo, start: int) -> None:
        """Give the rows from start on their magnitudes; raises NotFiniteError for one that has no direction."""
        norms = kernels.row_norms(rows)
        for row in np.flatnonzero(~((norms > 0) & np.isfinite(norms))):
            raise NotFiniteError(
                "a row that gets a magnitude has no direction",
                file=magnitude.file,
                tensor=magnitude.name,
                row=start + int(row),
                expected="a norm above 0",
                found=float(norms[row]),
            )
        rows *= self._read(_as_column(magnitude), start, start + len(rows)) / norms[:, None]

    def _factors(self, start: int, stop: int) -> tuple[F32Array, F32Array]:
        """What the module's rows start to stop get is coefficients float32 (stop - start, rank) x basis (rank, k)."""
        a, b = self.pair.a, self.pair.b
        if not self.pair.of_embedding:
            return self._read(b, start, stop), self._read(a, 0, a.n_rows)
        rank, n_tokens = a.shape
        columns = [self._read(_as_column(a), i * n_tokens + start, i * n_tokens + stop) for i in range(rank)]
        return np.hstack(columns), np.ascontiguousarray(self._read(b, 0, b.n_rows).T)

    def _read(self, tensor: TensorInfo, start: int, stop: int) -> F32Array:
        """Rows start to stop of a tensor of the adapter, float32; raises NotFiniteError, DiskError."""
        raw = np.empty((stop - start, tensor.row_bytes), np.uint8)
        self.adapter.read_rows(tensor, start, stop, raw)
        rows = kernels.decode(raw, tensor.dtype)
        if not np.isfinite(rows).all():
            row, column = divmod(int(np.isfinite(rows).argmin()), rows.shape[1])
            raise NotFiniteError(
                "an adapter's weight is not a finite number",
                hint="the adapter is damaged or training diverged",
                file=tensor.file,
                tensor=tensor.name,
                row=start + row,
                column=column,
                found=float(rows[row, column]),
            )
        return rows


def _as_column(tensor: TensorInfo) -> TensorInfo:
    """The same elements, one a row, so that any stretch of them can be read."""
    return replace(tensor, shape=(prod(tensor.shape), 1))
