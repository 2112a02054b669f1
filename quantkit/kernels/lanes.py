"""What the NumPy texts share: runs side by side, and rounding as ggml rounds.

A lane is a column: an array (run length, lanes) holds one run of weights in each column.  Sums go down the columns in
index order, one row at a time, never through np.sum, whose order differs; so the bits are those of the C kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]
F16Array = npt.NDArray[np.float16]
I32Array = npt.NDArray[np.int32]
I8Array = npt.NDArray[np.int8]
U8Array = npt.NDArray[np.uint8]

ROUNDING_MAGIC = np.float32(12582912)  # 1.5 * 2^23: the sum's low 23 bits are the integer part, rounded half to even


@dataclass(frozen=True)
class Importance:
    """What an encoder knows of n blocks beside their weights.

    columns           float32 (n, block), >= 0: how much each weight counts in the squared error
    row_mean_square   float32 (n,): of the whole row that the block lies in
    """

    columns: F32Array
    row_mean_square: F32Array


def to_lanes(x: F32Array, run: int) -> F32Array:
    """float32 (n, m) -> (run, n * m / run), each run of consecutive weights a column."""
    return np.ascontiguousarray(x.reshape(-1, run).T)


def from_lanes(codes: I32Array, width: int) -> U8Array:
    """Codes 0..255 (run, lanes) -> uint8 (n, width), the runs in a row again."""
    return codes.T.astype(np.uint8).reshape(-1, width)


def nearest(x: F32Array) -> I32Array:
    """x rounded half to even.  Beyond +-4194303 the result means nothing, but is the same everywhere; NaN gives 0."""
    return ((x + ROUNDING_MAGIC).view(np.int32) & 0x7FFFFF) - 0x400000


def ordered_sum(terms: Iterable[F32Array]) -> F32Array:
    """0 and the terms added one after another in float32; from 0, for the sum of -0 alone is 0 then, as in ggml."""
    terms = iter(terms)
    total = next(terms) + np.float32(0)
    for term in terms:
        total += term
    return total


def mean_squares(rows: F32Array) -> F32Array:
    """The mean square of each row of (n, k), its squares added in index order: float32 (n,)."""
    return ordered_sum(column * column for column in np.ascontiguousarray(rows.T)) / np.float32(rows.shape[1])
