"""Importance matrices: how much each column of a weight matrix counts, from both formats of llama-imatrix.

A column's importance is the mean square of what it was multiplied by while a calibration text ran through the model.
What is read here has the bits that llama-quantize hands to its encoders (llama.cpp, tools/quantize/quantize.cpp:195 and
common/imatrix-loader.cpp).

    gguf  general.type = "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size
          NAME.in_sum2  F32 (n_matrices, k)   sums of squares
          NAME.counts   F32 (n_matrices, 1)   how many rows each sum is of
          NAME.in_sum, NAME.stats and others  not for quantizing
    dat   n_entries i32; for each: name, n_calls i32, n_values i32, n_values x f32 (mean squares times n_calls)
          n_chunks i32, dataset               older files end before one of these
          a name or dataset is i32 bytes and UTF-8; all numbers are little endian
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from quantkit import __version__
from quantkit.arch import EMBEDDING, HEAD
from quantkit.errors import FormatError, TensorError
from quantkit.gguf_io import Field, GGUFFile, Kind, TensorEntry, data_bytes, header, place, read_gguf
from quantkit.gguf_io.layout import MAGIC
from quantkit.osio import AtomicFile, InputFile
from quantkit.qtypes import F32

Values = npt.NDArray[np.float32]

_HINT = "an importance matrix is a file that llama-imatrix writes, as GGUF or .dat"
_PARTS = {"in_sum2", "counts", "in_sum"}
_SMALLEST_ENTRY = 4 + 1 + 4 + 4 + 4
_NAMES_SHOWN = 3

# llama-imatrix collects for the layers alone unless told otherwise, and for the embedding never: no product has it.
USUALLY_WITHOUT = (EMBEDDING, HEAD)


@dataclass(frozen=True, eq=False)
class Imatrix:
    """The importance of a model's columns, and where it is from.

    entries      by GGUF tensor name: float32 (n_matrices, k), finite and >= 0; a .dat file does not tell matrices
                 apart, there n_matrices is 1
    sha256       of the file
    chunk_count  chunks of text it was collected on; 0 where the file does not say
    chunk_size   tokens of a chunk; 0 where the file does not say
    datasets     names of the texts, as typed by whoever collected it
    kind         the format
    """

    entries: dict[str, Values]
    sha256: str
    chunk_count: int
    chunk_size: int
    datasets: tuple[str, ...]
    kind: Literal["gguf", "dat"]

    def of(self, tensor: str, n_columns: int) -> Values | None:
        """The importance of each column of a matrix, or None: then it is packed unweighted.

        tensor     GGUF name
        n_columns  of the matrix
        returns    float32 (n_columns,); None where there is no entry, and for an embedding where it does not fit, as in
                   llama-quantize (src/llama-quant.cpp:1281)
        raises     TensorError  the entry is of a matrix of another size
        """
        entry = self.entries.get(tensor)
        if entry is None:
            return None
        if entry.shape == (1, n_columns):
            return entry.reshape(n_columns)
        if tensor == EMBEDDING:
            return None
        raise TensorError(
            "the importance is of a matrix of another size",
            hint="collect the importance matrix with this very model",
            tensor=tensor,
            expected=[1, n_columns],
            found=list(entry.shape),
        )


def read_imatrix(path: Path) -> Imatrix:
    """Read and check an importance matrix of either format; the first bytes tell which.

    raises  InputError        missing or unreadable
            FormatError       neither format, truncated, contradicting itself, or a value that no mean of squares has
            UnsupportedError  a GGUF version or tensor type that is not known
            DiskError         reading failed
    """
    with InputFile(path) as file:
        is_gguf = file.read(min(len(MAGIC), file.size)) == MAGIC
        return _read_gguf(file) if is_gguf else _read_dat(file)


@dataclass(frozen=True, eq=False)
class ColumnSums:
    """What was seen of one matrix's input.

    sums   float64 (k,): squares of each column's values, added up
    count  rows that were added up
    """

    sums: npt.NDArray[np.float64]
    count: int


def write_imatrix(
    out: AtomicFile, entries: Mapping[str, ColumnSums], *, chunk_count: int, chunk_size: int, text_sha256: str
) -> None:
    """Write an importance matrix in llama.cpp's GGUF format, which llama-quantize and read_imatrix take.

    out          opened before anything was collected, so that a name that cannot be written to is refused first
    entries      by GGUF tensor name
    chunk_count  windows of text it was collected on
    chunk_size   tokens of a window
    text_sha256  of that text; it stands where llama-imatrix names the text's file
    raises       OutputError, DiskError
    """
    fields = [
        Field("general.type", Kind.STRING, "imatrix"),
        Field("imatrix.datasets", Kind.ARRAY, [f"sha256:{text_sha256}"], Kind.STRING),
        Field("imatrix.chunk_count", Kind.U32, chunk_count),
        Field("imatrix.chunk_size", Kind.U32, chunk_size),
        Field("quantkit.version", Kind.STRING, __version__),
    ]
    values: dict[str, Values] = {}
    for name, entry in sorted(entries.items()):  # llama-imatrix's order
        values[f"{name}.in_sum2"] = entry.sums.astype(np.float32)[np.newaxis]
        values[f"{name}.counts"] = np.full((1, 1), entry.count, np.float32)
    tensors = place((name, array.shape, F32) for name, array in values.items())
    head = header(fields, tensors)
    out.resize(len(head) + data_bytes(tensors))
    out.write(head, 0)
    for tensor in tensors:
        out.write(values[tensor.name].astype("<f4").tobytes(), len(head) + tensor.offset)
    out.publish()


def coverage(imatrix: Imatrix, tensors: Iterable[tuple[str, int]], warn: Callable[[str], None]) -> tuple[str, ...]:
    """Hold an importance matrix against the matrices of a model.

    tensors  (GGUF name, columns) of each matrix that may be quantized
    warn     called with each warning: matrices without importance, but for those that usually are; entries that are of
             no matrix; an embedding's entry that does not fit
    returns  names of all matrices without importance, in their order
    raises   TensorError  an entry is of a matrix of another size, or none is of this model
    """
    columns = dict(tensors)
    without = tuple(name for name, n_columns in columns.items() if imatrix.of(name, n_columns) is None)
    if len(without) == len(columns):
        raise TensorError(
            "no entry of the importance matrix is of this model",
            hint="collect the importance matrix with this very model",
            expected=_some(list(columns)),
            found=_some(list(imatrix.entries)),
        )
    if EMBEDDING in without and EMBEDDING in imatrix.entries:
        warn(f"the importance of {EMBEDDING} is of another size; it is packed unweighted")
    if unusual := [name for name in without if name not in USUALLY_WITHOUT]:
        warn(f"no importance for {len(unusual)} of {len(columns)} matrices, packed unweighted: {_some(unusual)}")
    if unknown := [name for name in imatrix.entries if name not in columns]:
        warn(f"{len(unknown)} of {len(imatrix.entries)} importance entries are of no matrix here: {_some(unknown)}")
    return without


def _some(names: list[str]) -> str:
    """The first few of names."""
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _read_gguf(file: InputFile) -> Imatrix:
    found = read_gguf(file.path)
    kind = _field(found, "general.type", Kind.STRING)
    if kind != "imatrix":
        raise FormatError(
            "is no importance matrix", hint=_HINT, file=file.path, key="general.type", expected="imatrix", found=kind
        )
    groups: dict[str, dict[str, TensorEntry]] = {}
    for entry in found.tensors.values():
        if entry.qtype is not F32:
            raise FormatError(
                "an importance matrix in another type",
                file=file.path,
                tensor=entry.name,
                expected=F32,
                found=entry.qtype,
            )
        name, _, part = entry.name.rpartition(".")
        if part in _PARTS:
            groups.setdefault(name, {})[part] = entry
    if not groups:
        raise FormatError("holds no importance", file=file.path)
    return Imatrix(
        {name: _mean_squares(file, found.data_offset, name, parts) for name, parts in groups.items()},
        file.sha256(),
        _field(found, "imatrix.chunk_count", Kind.U32),
        _field(found, "imatrix.chunk_size", Kind.U32),
        tuple(_field(found, "imatrix.datasets", Kind.ARRAY, Kind.STRING)),
        "gguf",
    )


def _field(found: GGUFFile, key: str, kind: Kind, item_kind: Kind | None = None) -> Any:
    """The value of a key that every importance matrix has; raises FormatError."""
    field = found.fields.get(key)
    if field is None:
        raise FormatError("a key of importance matrices is missing", hint=_HINT, file=found.path, key=key)
    if (field.kind, field.item_kind) != (kind, item_kind):
        raise FormatError(
            "a key has another kind of value", file=found.path, key=key, expected=kind.name, found=field.kind.name
        )
    return field.value


def _mean_squares(file: InputFile, data_offset: int, name: str, parts: dict[str, TensorEntry]) -> Values:
    """Sums over counts, float32 (n_matrices, k); ones for a matrix that no row was collected for."""
    if missing := {"in_sum2", "counts"} - parts.keys():
        raise FormatError("a part of an entry is missing", file=file.path, tensor=f"{name}.{missing.pop()}")
    n_sums, n_counts = parts["in_sum2"].n_weights, parts["counts"].n_weights
    if n_sums % n_counts or parts.get("in_sum", parts["in_sum2"]).n_weights != n_sums:
        raise FormatError(
            "the parts of an entry do not fit together",
            file=file.path,
            tensor=name,
            found={part: list(entry.shape) for part, entry in parts.items()},
        )
    sums, counts = (
        _values(file, parts[part].name, data_offset + parts[part].offset, parts[part].n_weights)
        for part in ("in_sum2", "counts")
    )
    # llama.cpp takes a count to the nearest integer, halves up (lround); in float64 the sum is exact.
    counts = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)[:, np.newaxis]
    sums = sums.reshape(n_counts, -1)
    return np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)


class _DatCursor:
    """Reads forward through a .dat file; every length is held against what is left of it before it is used."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self.offset = 0

    @property
    def left(self) -> int:
        return self._file.size - self.offset

    def error(self, message: str, **facts: Any) -> FormatError:
        return FormatError(message, hint=_HINT, file=self._file.path, **({"offset": self.offset} | facts))

    def number(self, what: str, least: int, nbytes_each: int = 0) -> int:
        """A number of things, at least `least`, that each need nbytes_each of what is left."""
        at = self.offset
        if self.left < 4:
            raise self.error(f"the file ends inside {what}", expected="4 bytes", found=f"{self.left} left")
        (n,) = struct.unpack("<i", self._file.read(4, at))
        self.offset += 4
        if n < least or n * nbytes_each > self.left:
            most = f" to {self.left // nbytes_each}" if nbytes_each else " or more"
            raise self.error(f"{what} cannot be right", offset=at, expected=f"{least}{most} here", found=n)
        return int(n)

    def text(self, what: str, least: int) -> str:
        """A text of at least `least` bytes."""
        nbytes = self.number(f"the length of {what}", least, 1)
        at = self.offset
        self.offset += nbytes
        try:
            return self._file.read(nbytes, at).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8", offset=at + error.start) from None

    def values(self, tensor: str) -> Values:
        n_values = self.number("the number of values", 1, 4)
        at = self.offset
        self.offset += n_values * 4
        return _values(self._file, tensor, at, n_values)


def _read_dat(file: InputFile) -> Imatrix:
    cursor = _DatCursor(file)
    entries: dict[str, Values] = {}
    for _ in range(cursor.number("the number of entries", 1, _SMALLEST_ENTRY)):
        at = cursor.offset
        name = cursor.text("a tensor's name", 1)
        if name in entries:
            raise cursor.error("an entry stands twice", offset=at, tensor=name)
        n_calls = cursor.number("the number of calls", 0)
        values = cursor.values(name)
        entries[name] = (values / np.float32(n_calls) if n_calls else values)[np.newaxis]
    chunk_count = cursor.number("the number of chunks", 0) if cursor.left else 0
    dataset = cursor.text("the dataset's name", 0) if cursor.left else ""
    if cursor.left:
        raise cursor.error("data follows the end", found=f"{cursor.left} bytes")
    return Imatrix(entries, file.sha256(), chunk_count, 0, (dataset,) if dataset else (), "dat")


def _values(file: InputFile, tensor: str, offset: int, n_values: int) -> Values:
    """float32 (n_values,) at offset; raises FormatError for one that is no sum of squares or no count."""
    values = np.frombuffer(file.read(n_values * 4, offset), "<f4").astype(np.float32)
    possible = np.isfinite(values) & (values >= 0)
    if not possible.all():
        at = int(np.argmin(possible))
        raise FormatError(
            "an impossible value in an importance matrix",
            file=file.path,
            tensor=tensor,
            offset=offset + 4 * at,
            expected="a finite number, not negative",
            found=float(values[at]),
        )
    return values
