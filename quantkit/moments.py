"""Second moments of what matrices are multiplied by: sums of x x^T over the tokens of a text, one file a layer.

    <folder>/blk.0.safetensors, blk.1.safetensors, ...
    NAME              F32 (k (k + 1) / 2,)  of the matrix of that GGUF name with k columns: the rows of the lower
                      triangle, one after another
    metadata          count: tokens that were added up;  text_sha256;  quantkit: its version

They are for methods that round one column with an eye to the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit import __version__
from quantkit.errors import OutputError
from quantkit.osio import AtomicFile

F32Array = npt.NDArray[np.float32]

_HINT = "name an empty folder, or remove the files of this one"
_LAYER_FILE = re.compile(r"(blk\.([0-9]+))\.safetensors", re.ASCII)


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
    with AtomicFile(layer_file(folder, layer)) as out:
        out.write(save(packed, metadata=metadata), 0)
        out.publish()


def layer_file(folder: Path, layer: str) -> Path:
    return folder / f"{layer}.safetensors"


def layers_in(folder: Path) -> list[str]:
    """The layers whose files are in folder, in the order of their numbers."""
    found = [match for path in folder.iterdir() if (match := _LAYER_FILE.fullmatch(path.name))]
    return [match[1] for match in sorted(found, key=lambda match: int(match[2]))]


def refuse_others(folder: Path, count: int, text_sha256: str) -> None:
    """Raise OutputError if folder has a layer's file that is of another text or of another number of tokens."""
    from safetensors import SafetensorError, safe_open

    wanted = {"count": str(count), "text_sha256": text_sha256}
    for layer in layers_in(folder):
        path = layer_file(folder, layer)
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise OutputError(f"cannot be read as second moments: {error}", hint=_HINT, file=path) from None
        for key, value in wanted.items():
            if metadata.get(key) != value:
                raise OutputError(
                    "the folder has second moments of another text, or of other windows of it",
                    hint=_HINT,
                    file=path,
                    key=key,
                    expected=value,
                    found=metadata.get(key, "nothing"),
                )


def pack(matrix: F32Array) -> F32Array:
    """The lower triangle of (k, k), row by row: (k (k + 1) / 2,)."""
    k = len(matrix)
    packed = np.empty(k * (k + 1) // 2, np.float32)
    for row in range(k):
        first = row * (row + 1) // 2
        packed[first : first + row + 1] = matrix[row, : row + 1]
    return packed
