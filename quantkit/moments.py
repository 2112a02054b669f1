"""Second moments of what matrices are multiplied by: sums of x x^T over the tokens of a text, one file a layer.

    <folder>/blk.0.safetensors, blk.1.safetensors, ...
    NAME              F32 (k (k + 1) / 2,)  of the matrix of that GGUF name with k columns: the rows of the lower
                      triangle, one after another
    NAME.correction   F16 (n, k), not of every matrix: what is to be added to its weights before they are packed, to
                      make good for what the matrices before it lost
    metadata          count: tokens that were added up;  text_sha256;  quantkit: its version;
                      run_sha256: of all that decides what was added up: the model, the windows, the arithmetic, ...
                      TENSOR.sha256: of the bytes of each tensor;  NAME.kept: what part of the moments beside the
                      diagonal is likely to hold for another text
                      behind packed matrices: recipe, the name of what they were packed by;  types_sha256: of the
                      lines "<name>  <type>" of all matrices, sorted by name

They are for methods that round one column with an eye to the others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit import __version__
from quantkit.checkpoint.header import TensorInfo, read_header
from quantkit.errors import FormatError, OutputError, TensorError
from quantkit.osio import AtomicFile, InputFile
from quantkit.qtypes import F16, F32, QType

F32Array = npt.NDArray[np.float32]
F16Array = npt.NDArray[np.float16]

_HINT = "name an empty folder, or remove the files of this one"
_COLLECT = "collect the second moments with this very model: quantkit imatrix --covariance"
_LAYER_FILE = re.compile(r"(blk\.([0-9]+))\.safetensors", re.ASCII)
_IN_A_LAYER = re.compile(r"(blk\.[0-9]+)\..+", re.ASCII | re.DOTALL)
_COUNT = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f]{1,200}")
_PART = re.compile(r"0\.[0-9]{1,17}|1\.0", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MIRRORED_AT_ONCE = 1024  # columns; a square of them, 4 MiB, is turned over within the cache


@dataclass(frozen=True)
class Run:
    """What the files of one run of `imatrix --covariance` have in common.

    count        tokens that are added up
    text_sha256  of the text they are of
    sha256       of all that decides what is added up
    packed       what the matrices before each were packed by; None where they are as they are
    """

    count: int
    text_sha256: str
    sha256: str
    packed: Packed | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """As the files have it."""
        common = {"count": str(self.count), "text_sha256": self.text_sha256, "run_sha256": self.sha256}
        return common | (asdict(self.packed) if self.packed else {})


@dataclass(frozen=True)
class Packed:
    """What the matrices were packed by while moments were collected behind them.

    recipe        its name
    types_sha256  of the types of all matrices
    """

    recipe: str
    types_sha256: str


@dataclass(frozen=True)
class Record:
    """What is recorded of the second moments of one matrix.

    run     that it comes from
    kept    what part of the moments beside the diagonal to use, from 0 to 1
    sha256  of the bytes of each of its tensors, by name
    """

    run: Run
    kept: float
    sha256: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Collected:
    """What is to be written of one matrix.

    triangle    pack() of the sums
    kept        as in Record
    correction  float16 (n, k), or None
    """

    triangle: F32Array
    kept: float
    correction: F16Array | None = None


@dataclass(frozen=True, eq=False)
class Moments:
    """The second moments of what one matrix is multiplied by.

    sums        float32 (k, k), symmetric, finite: x x^T added up over the tokens
    count       tokens
    kept        as in Record
    correction  float16 (n, k), finite: what is to be added to the weights; None for nothing
    """

    sums: F32Array
    count: int
    kept: float
    correction: F16Array | None = None


def nbytes(shapes: Iterable[tuple[int, int]], corrected: bool = False) -> int:
    """Bytes of the moments of matrices of these shapes (n, k), and of their corrections."""
    return sum(4 * (k * (k + 1) // 2) + 2 * n * k * corrected for n, k in shapes)


def types_sha256(types: Mapping[str, QType]) -> str:
    """Of the types of matrices by GGUF name, as a layer's file records it."""
    return hashlib.sha256("".join(f"{name}  {types[name]}\n" for name in sorted(types)).encode()).hexdigest()


def write_layer(folder: Path, layer: str, collected: Mapping[str, Collected], run: Run) -> None:
    """Write one layer's file, whole or not at all.

    layer      "blk.0"
    collected  by GGUF name
    raises     OutputError, DiskError
    """
    from safetensors.numpy import save

    tensors: dict[str, npt.NDArray[np.floating]] = {name: one.triangle for name, one in collected.items()}
    tensors |= {correction_of(name): one.correction for name, one in collected.items() if one.correction is not None}
    metadata = {"quantkit": __version__} | run.metadata
    metadata |= {f"{name}.sha256": hashlib.sha256(tensor.data).hexdigest() for name, tensor in tensors.items()}
    metadata |= {f"{name}.kept": repr(one.kept) for name, one in collected.items()}
    with AtomicFile(layer_file(folder, layer)) as out:
        out.write(save(tensors, metadata=metadata), 0)
        out.publish()


def correction_of(name: str) -> str:
    """The name of the correction of a matrix."""
    return f"{name}.correction"


def layer_file(folder: Path, layer: str) -> Path:
    return folder / f"{layer}.safetensors"


def layers_in(folder: Path) -> list[str]:
    """The layers whose files are in folder, in the order of their numbers."""
    found = [match for path in folder.iterdir() if (match := _LAYER_FILE.fullmatch(path.name))]
    return [match[1] for match in sorted(found, key=lambda match: int(match[2]))]


def refuse_others(folder: Path, run: Run) -> None:
    """Raise OutputError if folder has a layer's file of another run."""
    from safetensors import SafetensorError, safe_open

    wanted: dict[str, str | None] = {"types_sha256": None} | run.metadata
    wanted.pop("recipe", None)  # a name; types_sha256 says what it stands for
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
                    "the folder has second moments of another text, of other windows of it, or of another model",
                    hint=_HINT,
                    file=path,
                    key=key,
                    expected=value or "nothing",
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


def unpack(triangle: F32Array, k: int) -> F32Array:
    """The symmetric matrix (k, k) of a packed triangle."""
    matrix = np.empty((k, k), np.float32)
    for row in range(k):
        first = row * (row + 1) // 2
        matrix[row, : row + 1] = triangle[first : first + row + 1]
    _mirror(matrix)
    return matrix


def has_moments(name: str) -> bool:
    """Whether the matrix of a GGUF name has second moments: those of layers do."""
    return _IN_A_LAYER.fullmatch(name) is not None


def read_record(folder: Path, name: str, n_columns: int) -> Record:
    """What is recorded of the second moments of a matrix; raises as read_moments, but for what the values are."""
    with InputFile(_file_of(folder, name)) as file:
        return _find(file, name, n_columns)[1]


def read_moments(folder: Path, name: str, shape: tuple[int, int]) -> Moments:
    """Read and check the second moments of one matrix.  It takes 4 k^2 bytes for k columns, and 2 n k for a correction.

    name    GGUF name
    shape   (n, k) of the matrix
    raises  InputError   no such file, or none to be read
            FormatError  no safetensors file, or what no second moments have: a value that is no finite number, a
                         negative sum of squares, no count of tokens
            TensorError  the matrix is not in it, or is of another size
            DiskError    reading failed
    """
    with InputFile(_file_of(folder, name)) as file:
        tensors, record = _find(file, name, shape[1])
        sums = _read_triangle(file, tensors[name], shape[1], record.sha256[name])
        correction = tensors.get(correction_of(name))
        values = None
        if correction is not None:
            values = _read_correction(file, correction, shape, record.sha256[correction.name])
        return Moments(sums, record.run.count, record.kept, values)


def _file_of(folder: Path, name: str) -> Path:
    layer = _IN_A_LAYER.fullmatch(name)
    if layer is None:
        raise TensorError("only the matrices of layers have second moments", tensor=name)
    return layer_file(folder, layer[1])


def _find(file: InputFile, name: str, k: int) -> tuple[dict[str, TensorInfo], Record]:
    """The tensors of a matrix with k columns by name, and what they are of."""
    tensors = read_header(file)
    if name not in tensors:
        raise TensorError("no second moments of this matrix", hint=_COLLECT, file=file.path, tensor=name)
    found = {one: tensors[one] for one in (name, correction_of(name)) if one in tensors}
    _check_size(file, found[name], F32, (k * (k + 1) // 2,), f"the triangle of {k} columns")
    return found, _record(file.path, list(found))


def _check_size(file: InputFile, tensor: TensorInfo, dtype: QType, shape: tuple[int, ...], what: str) -> None:
    if tensor.dtype is not dtype or tensor.shape != shape:
        raise TensorError(
            "the second moments are of a matrix of another size",
            hint=_COLLECT,
            file=file.path,
            tensor=tensor.name,
            expected=f"{dtype} {list(shape)}, {what}",
            found=f"{tensor.dtype} {list(tensor.shape)}",
        )


def _record(path: Path, names: Sequence[str]) -> Record:
    """What the metadata of a file whose header is sound says of a matrix and these, its tensors; raises FormatError."""
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

    digest = "64 hexadecimal digits"
    packed = None
    if "types_sha256" in metadata:
        packed = Packed(value("recipe", _NAME, "a name"), value("types_sha256", _SHA256, digest))
    run = Run(
        int(value("count", _COUNT, "a number of tokens")),
        value("text_sha256", _SHA256, digest),
        value("run_sha256", _SHA256, digest),
        packed,
    )
    kept = float(value(f"{names[0]}.kept", _PART, "a number from 0 to 1"))
    return Record(run, kept, {name: value(f"{name}.sha256", _SHA256, digest) for name in names})


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
            expected = "a finite number, on the diagonal at least 0"
            raise _no_such_number("no second moment", file, tensor, row, wrong, expected, values[wrong])
    _check_digest(file, tensor, digest.hexdigest(), sha256)
    _mirror(sums)
    return sums


def _read_correction(file: InputFile, tensor: TensorInfo, shape: tuple[int, int], sha256: str) -> F16Array:
    """A correction (n, k) with that SHA-256."""
    _check_size(file, tensor, F16, shape, "a number for each weight")
    values = np.empty(shape, np.float16)
    file.read_into(values.data.cast("B"), tensor.offset)
    _check_digest(file, tensor, hashlib.sha256(values.data).hexdigest(), sha256)
    finite = np.isfinite(values)
    if not finite.all():
        row, column = divmod(int(finite.argmin()), shape[1])
        raise _no_such_number("no correction", file, tensor, row, column, "a finite number", values[row, column])
    return values


def _no_such_number(
    what: str, file: InputFile, tensor: TensorInfo, row: int, column: int, expected: str, found: np.floating
) -> FormatError:
    return FormatError(
        f"{what} is such a number",
        hint=_COLLECT,
        file=file.path,
        tensor=tensor.name,
        row=row,
        column=column,
        expected=expected,
        found=float(found),
    )


def _check_digest(file: InputFile, tensor: TensorInfo, found: str, expected: str) -> None:
    if found != expected:
        raise FormatError(
            "the second moments are not those that were collected",
            hint=_COLLECT,
            file=file.path,
            tensor=tensor.name,
            expected=expected,
            found=found,
        )


def _mirror(matrix: F32Array) -> None:
    """Copy the lower triangle of (k, k) into the upper, in place."""
    step = _MIRRORED_AT_ONCE
    for row in range(0, len(matrix), step):
        corner = matrix[row : row + step, row : row + step]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
        for column in range(0, row, step):
            matrix[column : column + step, row : row + step] = matrix[row : row + step, column : column + step].T
