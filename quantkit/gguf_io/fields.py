"""One key of a GGUF file: its name, the type it is stored as, and its value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    """GGUF's value types (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


@dataclass(frozen=True)
class Field:
    """A key, the kind its value is stored as, and the value; an array also names the kind of its items."""

    key: str
    kind: Kind
    value: Any
    item_kind: Kind | None = None
