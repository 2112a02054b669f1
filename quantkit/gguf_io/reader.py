"""A strict reader of GGUF files from anywhere: what it returns is consistent with itself and with the file's size."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import FormatError, UnsupportedError
from quantkit.gguf_io.fields import FORMATS, Field, Kind
from quantkit.gguf_io.layout import ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME_BYTES, TensorEntry, padded
from quantkit.osio import InputFile
from quantkit.qtypes import by_id

_VERSIONS = (2, 3)  # the same layout; 3 added big-endian files, which are refused
_BUFFER_BYTES = 1 << 20
_SMALLEST_ITEM = {Kind.STRING: 8} | {kind: struct.calcsize("<" + letter) for kind, letter in FORMATS.items()}
_SMALLEST_FIELD = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 4 + 8


@dataclass(frozen=True)
class GGUFFile:
    """What a GGUF file says of itself.

    fields       by key, in file order
    tensors      by name, in file order
    data_offset  where the data section starts in the file
    file_bytes   the file's size
    """

    path: Path
    version: int
    fields: dict[str, Field]
    tensors: dict[str, TensorEntry]
    data_offset: int
    file_bytes: int


def read_gguf(path: Path) -> GGUFFile:
    """Read and check the header of a GGUF file; the data section is not read.

    raises  InputError        missing or unreadable
            FormatError       not GGUF, truncated, or contradicting itself (names the offset)
            UnsupportedError  big endian, a version or tensor type that is not known
    """
    with InputFile(path) as file:
        return read_open_gguf(file)


def read_open_gguf(file: InputFile) -> GGUFFile:
    """read_gguf of a file that stays open; raises FormatError, UnsupportedError, DiskError."""
    cursor = _Cursor(file)
    version, n_tensors, n_fields = _read_preamble(cursor)
    fields = cursor.unique(n_fields, lambda: _read_field(cursor), lambda field: field.key, "key")
    tensors = cursor.unique(n_tensors, lambda: _read_tensor(cursor), lambda tensor: tensor.name, "tensor")
    alignment = _alignment(fields, file.path)
    data_offset = padded(cursor.offset, alignment)
    _check_placement(tensors, alignment, data_offset, file.size, file.path)
    return GGUFFile(file.path, version, fields, tensors, data_offset, file.size)


class _Cursor:
    """Reads forward through a file; every length is held against what is left of it before anything is allocated."""

    def __init__(self, file: InputFile) -> None:
        self.path = file.path
        self._file = file
        self._buffer = memoryview(b"")
        self._buffer_offset = 0
        self.offset = 0

    @property
    def left(self) -> int:
        return self._file.size - self.offset

    def error(self, message: str, **facts: Any) -> FormatError:
        return FormatError(message, file=self.path, **({"offset": self.offset} | facts))

    def take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self.left:
            raise self.error(f"the file ends inside {what}", expected=f"{nbytes} bytes", found=f"{self.left} left")
        start = self.offset - self._buffer_offset
        if start + nbytes > len(self._buffer):
            self._buffer = memoryview(self._file.read(min(max(nbytes, _BUFFER_BYTES), self.left), self.offset))
            self._buffer_offset, start = self.offset, 0
        self.offset += nbytes
        return bytes(self._buffer[start : start + nbytes])

    def number(self, letter: str, what: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter), what))[0]

    def count(self, letter: str, what: str, smallest: int) -> int:
        """A number of things that each need at least `smallest` bytes of what is left."""
        at = self.offset
        n: int = self.number(letter, what)
        if not 0 <= n <= self.left // smallest:
            raise self.error(
                f"{what} cannot be right", offset=at, expected=f"at most {self.left // smallest} here", found=n
            )
        return n

    def string(self, what: str) -> str:
        data = self.take(self.count("Q", f"the length of {what}", 1), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            at = self.offset - len(data) + error.start
            raise self.error(f"{what} is not UTF-8", offset=at, found=f"byte {data[error.start]:#04x}") from None

    def unique(self, n: int, read: Callable[[], Any], name_of: Callable[[Any], str], what: str) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for _ in range(n):
            at = self.offset
            item = read()
            if name_of(item) in items:
                raise self.error(f"{what} {name_of(item)!r} stands twice", offset=at)
            items[name_of(item)] = item
        return items


def _read_preamble(cursor: _Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4, "the magic")
    if magic != MAGIC:
        raise cursor.error("not a GGUF file", offset=0, expected=MAGIC, found=magic)
    version = cursor.number("I", "the version")
    if version not in _VERSIONS:
        big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        raise UnsupportedError(
            "a big-endian GGUF file" if big_endian else "an unknown GGUF version",
            file=cursor.path,
            offset=4,
            expected=" or ".join(map(str, _VERSIONS)),
            found=f"{version:#x}" if big_endian else version,
        )
    n_tensors = cursor.count("q", "the number of tensors", _SMALLEST_TENSOR)
    return version, n_tensors, cursor.count("q", "the number of keys", _SMALLEST_FIELD)


def _read_field(cursor: _Cursor) -> Field:
    key = cursor.string("a key")
    kind = _read_kind(cursor, key)
    if kind is not Kind.ARRAY:
        return Field(key, kind, _read_value(cursor, kind, key))
    item_kind = _read_kind(cursor, key)
    if item_kind is Kind.ARRAY:
        raise cursor.error("an array of arrays", key=key)
    n = cursor.count("Q", "the length of an array", _SMALLEST_ITEM[item_kind])
    if item_kind in (Kind.STRING, Kind.BOOL):
        items = [_read_value(cursor, item_kind, key) for _ in range(n)]
    else:
        letter = FORMATS[item_kind]
        items = list(struct.unpack(f"<{n}{letter}", cursor.take(n * _SMALLEST_ITEM[item_kind], "an array")))
    return Field(key, kind, items, item_kind)


def _read_kind(cursor: _Cursor, key: str) -> Kind:
    at = cursor.offset
    number = cursor.number("i", "a value's kind")
    try:
        return Kind(number)
    except ValueError:
        raise cursor.error("an unknown kind of value", offset=at, key=key, expected="0 to 12", found=number) from None


def _read_value(cursor: _Cursor, kind: Kind, key: str) -> Any:
    if kind is Kind.STRING:
        return cursor.string("a string")
    if kind is not Kind.BOOL:
        return cursor.number(FORMATS[kind], "a value")
    at = cursor.offset
    byte = cursor.number("B", "a value")
    if byte > 1:
        raise cursor.error("a bool that is neither 0 nor 1", offset=at, key=key, found=byte)
    return bool(byte)


def _read_tensor(cursor: _Cursor) -> TensorEntry:
    at = cursor.offset
    name = cursor.string("a tensor's name")
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        found = f"{len(name.encode())} bytes"
        raise cursor.error("a tensor's name has a wrong length", offset=at, expected="1 to 63 bytes", found=found)
    n_dims = cursor.number("I", "a number of dimensions")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.error("a wrong number of dimensions", offset=at, tensor=name, expected="1 to 4", found=n_dims)
    shape = tuple(cursor.number("q", "a dimension") for _ in range(n_dims))[::-1]
    if min(shape) < 1:
        raise cursor.error("a dimension below 1", offset=at, tensor=name, found=list(shape))
    type_id = cursor.number("i", "a tensor's type")
    offset = cursor.number("Q", "a tensor's offset")
    try:
        qtype = by_id(type_id)
    except UnsupportedError as error:
        raise UnsupportedError(error.message, hint=error.hint, file=cursor.path, offset=at, tensor=name) from None
    if not qtype.divides(shape[-1]):
        raise cursor.error(
            f"a row does not divide into {qtype} blocks",
            offset=at,
            tensor=name,
            expected=f"a multiple of {qtype.block_weights}",
            found=shape[-1],
        )
    return TensorEntry(name, shape, qtype, offset)


def _alignment(fields: dict[str, Field], path: Path) -> int:
    field = fields.get("general.alignment")
    if field is None:
        return ALIGNMENT
    value = field.value
    if field.kind is not Kind.U32 or not 8 <= value <= 1 << 20 or value & (value - 1):
        raise FormatError(
            "an impossible alignment", file=path, key=field.key, expected="a power of two, 8 to 1048576", found=value
        )
    return int(value)


def _check_placement(tensors: dict[str, TensorEntry], alignment: int, data_offset: int, size: int, path: Path) -> None:
    """Every tensor follows the one before it, padded, and all lie inside the file. Python's integers do not wrap."""
    expected = 0
    for tensor in tensors.values():
        if tensor.offset != expected:
            raise FormatError(
                "a tensor does not stand where the one before it ends",
                file=path,
                tensor=tensor.name,
                expected=f"offset {expected}",
                found=tensor.offset,
            )
        end = data_offset + tensor.offset + tensor.nbytes
        if end > size:
            raise FormatError(
                "the file ends inside a tensor",
                file=path,
                tensor=tensor.name,
                offset=data_offset + tensor.offset,
                expected=f"{end} bytes of file",
                found=size,
            )
        expected += padded(tensor.nbytes, alignment)
