"""Second moments of what matrices are multiplied by: sums of x x^T over the tokens of a text, one file a layer.

    <folder>/blk.0.safetensors, blk.1.safetensors, ...
    NAME              F32 (k (k + 1) / 2,)  of the matrix of that GGUF name with k columns: the rows of the lower
                      triangle, one after another
    metadata          count: tokens that were added up;  text_sha256;  quantkit: its version

They are for methods that round one column with an eye to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit import __version__
from quantkit.osio import AtomicFile

F32Array = npt.NDArray[np.float32]


def nbytes(columns: Iterable[int]) -> int:
    """Bytes of the moments of matrices with so many columns."""
    return sum(4 * (k * (k + 1) // 2) for k in columns)


def write_layer(folder: Path, layer: str, sums: Mapping[str, F32Array], count: int, text_sha256: str) -> None:
    """Write one layer's file, whole or not at all.

    layer   "blk.0"
    sums    float32 (k, k), symmetric, by GGUF name
    raises  OutputError, DiskError
    """
    from safetensors.numpy import save

    packed = {name: pack(matrix) for name, matrix in sums.items()}
    metadata = {"count": str(count), "text_sha256": text_sha256, "quantkit": __version__}
    with AtomicFile(folder / f"{layer}.safetensors") as out:
        out.write(save(packed, metadata=metadata), 0)
        out.publish()


def pack(matrix: F32Array) -> F32Array:
    """The lower triangle of (k, k), row by row: (k (k + 1) / 2,)."""
    k = len(matrix)
    packed = np.empty(k * (k + 1) // 2, np.float32)
    for row in range(k):
        first = row * (row + 1) // 2
        packed[first : first + row + 1] = matrix[row, : row + 1]
    return packed


def unpack(packed: F32Array) -> F32Array:
    """The symmetric (k, k) of a packed lower triangle."""
    k = int((np.sqrt(8 * len(packed) + 1) - 1) / 2)
    matrix = np.empty((k, k), np.float32)
    for row in range(k):
        first = row * (row + 1) // 2
        matrix[row, : row + 1] = matrix[: row + 1, row] = packed[first : first + row + 1]
    return matrix
