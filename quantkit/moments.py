"""Second moments of what matrices are multiplied by: sums of x x^T over the tokens of a text, one file a layer.

    <folder>/blk.0.safetensors, blk.1.safetensors, ...
    NAME              F32 (k (k + 1) / 2,)  of the matrix of that GGUF name with k columns: the rows of the lower
                      triangle, one after another
    metadata          count: tokens that were added up;  text_sha256;  quantkit: its version;
                      NAME.sha256: of that tensor's bytes

They are for methods that round one column with an eye to the others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit import __version__
from quantkit.checkpoint.header import TensorInfo, read_header
from quantkit.errors import FormatError, OutputError, TensorError
from quantkit.osio import AtomicFile, InputFile
from quantkit.qtypes import F32

F32Array = npt.NDArray[np.float32]

_HINT = "name an empty folder, or remove the files of this one"
_COLLECT = "collect the second moments with this very model: quantkit imatrix --covariance"
_LAYER_FILE = re.compile(r"(blk\.([0-9]+))\.safetensors", re.ASCII)
_IN_A_LAYER = re.compile(r"(blk\.[0-9]+)\..+", re.ASCII | re.DOTALL)
_COUNT = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MIRRORED_AT_ONCE = 1024  # columns; a square of them, 4 MiB, is turned over within the cache


@dataclass(frozen=True)
class Record:
    """What is recorded of the second moments of one matrix.

    count        tokens that were added up
    text_sha256  of the text they are of
    sha256       of the packed triangle's bytes
    """

    count: int
    text_sha256: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Moments(Record):
    """The second moments of what one matrix is multiplied by.

    sums  float32 (k, k), symmetric, finite: x x^T added up over the tokens
    """

    sums: F32Array


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
    digests = {f"{name}.sha256": hashlib.sha256(matrix.data).hexdigest() for name, matrix in packed.items()}
    metadata = {"count": str(count), "text_sha256": text_sha256, "quantkit": __version__} | digests
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


def has_moments(name: str) -> bool:
    """Whether the matrix of a GGUF name has second moments: those of layers do."""
    return _IN_A_LAYER.fullmatch(name) is not None


def read_record(folder: Path, name: str, n_columns: int) -> Record:
    """What is recorded of the second moments of a matrix; raises as read_moments, but for what the values are."""
    with InputFile(_file_of(folder, name)) as file:
        return _find(file, name, n_columns)[1]


def read_moments(folder: Path, name: str, n_columns: int) -> Moments:
    """Read and check the second moments of one matrix.  It takes the 4 n_columns^2 bytes of the result.

    name       GGUF name
    n_columns  of the matrix
    raises     InputError   no such file, or none to be read
               FormatError  no safetensors file, or what no second moments have: a value that is no finite number, a
                            negative sum of squares, no count of tokens
               TensorError  the matrix is not in it, or is of another size
               DiskError    reading failed
    """
    with InputFile(_file_of(folder, name)) as file:
        tensor, record = _find(file, name, n_columns)
        return Moments(**asdict(record), sums=_read_triangle(file, tensor, n_columns, record.sha256))


def _file_of(folder: Path, name: str) -> Path:
    layer = _IN_A_LAYER.fullmatch(name)
    if layer is None:
        raise TensorError("only the matrices of layers have second moments", tensor=name)
    return layer_file(folder, layer[1])


def _find(file: InputFile, name: str, k: int) -> tuple[TensorInfo, Record]:
    """Where the triangle of a matrix with k columns is, and what it is of."""
    tensors = read_header(file)
    if name not in tensors:
        raise TensorError("no second moments of this matrix", hint=_COLLECT, file=file.path, tensor=name)
    tensor = tensors[name]
    if tensor.dtype is not F32 or tensor.shape != (k * (k + 1) // 2,):
        raise TensorError(
            "the second moments are of a matrix of another size",
            hint=_COLLECT,
            file=file.path,
            tensor=name,
            expected=f"F32 [{k * (k + 1) // 2}], the triangle of {k} columns",
            found=f"{tensor.dtype} {list(tensor.shape)}",
        )
    return tensor, _record(file.path, name)


def _record(path: Path, name: str) -> Record:
    """What the metadata of a file whose header is sound says of a matrix; raises FormatError."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}

    def value(key: str, form: re.Pattern[str], expected: str) -> str:
        found: str = metadata.get(key, "")
        if not form.fullmatch(found):
            raise FormatError(
                "is no file of second moments", hint=_COLLECT, file=path, key=key, expected=expected, found=found[:80]
            )
        return found

    return Record(
        int(value("count", _COUNT, "a number of tokens")),
        value("text_sha256", _SHA256, "64 hexadecimal digits"),
        value(f"{name}.sha256", _SHA256, "64 hexadecimal digits"),
    )


def _read_triangle(file: InputFile, tensor: TensorInfo, k: int, sha256: str) -> F32Array:
    """The symmetric matrix (k, k) whose packed triangle has that SHA-256."""
    sums = np.empty((k, k), np.float32)
    digest = hashlib.sha256()
    for row in range(k):
        values = sums[row, : row + 1]
        file.read_into(values.data.cast("B"), tensor.offset + 4 * (row * (row + 1) // 2))
        digest.update(values.data)
        if not np.isfinite(values).all() or values[row] < 0:
            wrong = row if values[row] < 0 else int(np.isfinite(values).argmin())
            raise FormatError(
                "no second moment is such a number",
                hint=_COLLECT,
                file=file.path,
                tensor=tensor.name,
                row=row,
                column=wrong,
                expected="a finite number, on the diagonal at least 0",
                found=float(values[wrong]),
            )
    if digest.hexdigest() != sha256:
        raise FormatError(
            "the second moments are not those that were collected",
            hint=_COLLECT,
            file=file.path,
            tensor=tensor.name,
            expected=sha256,
            found=digest.hexdigest(),
        )
    _mirror(sums)
    return sums


def _mirror(matrix: F32Array) -> None:
    """Copy the lower triangle of (k, k) into the upper, in place."""
    step = _MIRRORED_AT_ONCE
    for row in range(0, len(matrix), step):
        corner = matrix[row : row + step, row : row + step]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
        for column in range(0, row, step):
            matrix[column : column + step, row : row + step] = matrix[row : row + step, column : column + step].T
