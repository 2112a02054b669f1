"""JSON from outside, read strictly: one value, one meaning, a bounded size."""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

from quantkit.errors import FormatError
from quantkit.osio import InputFile


class _Shown(reprlib.Repr):
    """A value from a file as an error shows it: on one line, short, in JSON's words, nothing that a terminal obeys."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"


shown = _Shown().repr


def read_json(path: Path, *, max_bytes: int = 256 << 20) -> Any:
    """The value in a JSON file.

    path       a regular file, UTF-8
    max_bytes  a longer file is refused before it is read
    returns    dict, list, str, int, float, bool or None; floats are finite, strings are valid Unicode
    raises     InputError   missing or unreadable
               FormatError  too long, no JSON, or not one value to every reader: a key given twice, NaN, infinity,
                            half a surrogate pair
               DiskError    reading fails
    """
    with InputFile(path) as file:
        if file.size > max_bytes:
            raise FormatError("the file is too long", file=path, expected=f"at most {max_bytes} bytes", found=file.size)
        return parse_json(file.read(file.size), file=path)


def parse_json(data: bytes | bytearray, *, file: Path, offset: int = 0) -> Any:
    """The value that data spells; data stands at offset in file, for errors. Raises FormatError as read_json does."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            "is not UTF-8", file=file, offset=offset + error.start, found=f"byte {data[error.start]:#04x}"
        ) from None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            hint = "remove one: readers disagree about which one counts"
            raise FormatError("a key is given twice", hint=hint, file=file, key=shown(twice)[1:-1])
        return result

    def finite(word: str) -> float:
        value = float(word)
        if not math.isfinite(value):
            raise FormatError("a number is not finite", file=file, found=shown(word))
        return value

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
        if "\\ud" in text or "\\uD" in text:  # an escape may be half a surrogate pair, which no file can be named by
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        at = offset + len(text[: error.pos].encode("utf-8"))
        raise FormatError(f"is not JSON: {error.msg}", file=file, offset=at) from None
    except RecursionError:
        raise FormatError("is nested too deeply", file=file) from None
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise FormatError("half of a surrogate pair stands alone", file=file, found=ascii(half)) from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise FormatError(f"is not JSON: {error}", file=file) from None
    return value
