"""The container: what every GGUF file has, and how its header is spelled in bytes.

    "GGUF"  version u32  n_tensors i64  n_fields i64
    fields   key string, kind i32, value
    tensors  name string, n_dims u32, n_dims x i64 (fastest dimension first), type i32, offset u64 from the data section
    zeros up to a multiple of the alignment, then the data section: tensors in this order, each padded to the alignment

All numbers are little endian; a string is u64 bytes and UTF-8; an array is item kind i32, count u64, items.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quantkit.gguf_io.fields import FORMATS, Field, Kind
from quantkit.qtypes import QType

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
MAX_NAME_BYTES = 63
MAX_DIMS = 4


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the file's table has it.

    shape   NumPy order, (rows, columns) for a matrix
    offset  of its first byte in the data section
    """

    name: str
    shape: tuple[int, ...]
    qtype: QType
    offset: int

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.n_weights // self.shape[-1] * self.qtype.row_bytes(self.shape[-1])


def padded(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """nbytes rounded up to a multiple of alignment."""
    return -(-nbytes // alignment) * alignment


def place(tensors: Iterable[tuple[str, tuple[int, ...], QType]]) -> tuple[TensorEntry, ...]:
    """Give each (name, shape, type) its offset, one after another with padding between."""
    entries, offset = [], 0
    for name, shape, qtype in tensors:
        entries.append(TensorEntry(name, shape, qtype, offset))
        offset += padded(entries[-1].nbytes)
    return tuple(entries)


def data_bytes(tensors: Sequence[TensorEntry]) -> int:
    """Size of the data section: to the padded end of the last tensor."""
    return padded(tensors[-1].offset + tensors[-1].nbytes) if tensors else 0


def header(fields: Sequence[Field], tensors: Sequence[TensorEntry]) -> bytes:
    """All bytes of a file before its data section."""
    parts = [MAGIC, struct.pack("<Iqq", VERSION, len(tensors), len(fields))]
    parts += map(spelled, fields)
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts += [
            _string(tensor.name),
            struct.pack(f"<I{len(dims)}qiQ", len(dims), *dims, tensor.qtype.id, tensor.offset),
        ]
    joined = b"".join(parts)
    return joined + bytes(padded(len(joined)) - len(joined))


def spelled(field: Field) -> bytes:
    """A field as a header has it."""
    return _string(field.key) + struct.pack("<i", field.kind) + _value(field)


def _value(field: Field) -> bytes:
    if field.kind is Kind.STRING:
        return _string(field.value)
    if field.kind is not Kind.ARRAY:
        return struct.pack("<" + FORMATS[field.kind], field.value)
    assert field.item_kind is not None
    head = struct.pack("<iQ", field.item_kind, len(field.value))
    if field.item_kind is Kind.STRING:
        return head + b"".join(map(_string, field.value))
    return head + struct.pack(f"<{len(field.value)}{FORMATS[field.item_kind]}", *field.value)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data
