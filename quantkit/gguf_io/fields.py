"""One key of a GGUF file: its name, the type it is stored as, and its value."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from quantkit.errors import UsageError


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


# struct's letter for each kind of fixed size
FORMATS = {
    Kind.U8: "B",
    Kind.I8: "b",
    Kind.U16: "H",
    Kind.I16: "h",
    Kind.U32: "I",
    Kind.I32: "i",
    Kind.F32: "f",
    Kind.BOOL: "?",
    Kind.U64: "Q",
    Kind.I64: "q",
    Kind.F64: "d",
}


@dataclass(frozen=True)
class Field:
    """A key, the kind its value is stored as, and the value; an array also names the kind of its items."""

    key: str
    kind: Kind
    value: Any
    item_kind: Kind | None = None


_FIXED = ("general.architecture", "general.alignment", "general.file_type", "general.quantization_version")
OURS = ("quantkit.", "split.", "quantize.")  # of one conversion, not of the model
_NEW = {"str": Kind.STRING, "int": Kind.I32, "float": Kind.F32, "bool": Kind.BOOL}
_PARSERS: dict[Kind, Callable[[str], Any]] = {
    Kind.STRING: str,
    Kind.F32: float,
    Kind.F64: float,
    Kind.BOOL: {"true": True, "false": False}.__getitem__,
}


def overridden(fields: Sequence[Field], overrides: Mapping[str, str]) -> tuple[Field, ...]:
    """fields with values of the user's, in place; new keys at the end.

    overrides   by key, as typed; a key that is there keeps its kind, a new one is a string unless the value begins with
                `int:`, `float:` or `bool:`, as llama.cpp's --override-kv has it; an empty value takes the key away
    raises      UsageError  a value of the wrong kind, or a key that says what the file is
    """
    known = {field.key: field for field in fields}
    result = dict(known)
    for key, text in overrides.items():
        field = known.get(key)
        fixed = key in _FIXED or key.startswith(OURS) or (field is not None and field.kind is Kind.ARRAY)
        if fixed or not key or len(key.encode()) > 1 << 16:
            raise UsageError("this key cannot be set", key=key)
        if not text:
            result.pop(key, None)
            continue
        result[key] = replace(field, value=_parsed(key, field.kind, text)) if field else _new(key, text)
    return tuple(result.values())


def _new(key: str, text: str) -> Field:
    prefix, _, value = text.partition(":")
    kind = _NEW.get(prefix, Kind.STRING)
    return Field(key, kind, _parsed(key, kind, value if prefix in _NEW else text))


def _parsed(key: str, kind: Kind, text: str) -> Any:
    try:
        value = _PARSERS.get(kind, int)(text)
        if kind is not Kind.STRING:
            struct.pack("<" + FORMATS[kind], value)
    except (ValueError, KeyError, OverflowError, struct.error):
        raise UsageError("the value is not of this key's kind", key=key, expected=kind.name, found=text) from None
    return value
