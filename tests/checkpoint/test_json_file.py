"""JSON from outside: what is read, and what is refused where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.json_file import parse_json, read_json, shown
from quantkit.errors import FormatError, InputError

FILE = Path("some.json")

GOOD: list[Any] = [
    None,
    [True, False, 0, -1, 2**63, 10**4000],
    [0.1, -2.5e-3, 1e-400, 1.7976931348623157e308],
    {"": {"a": [], "b": {}}, "A": [], "a": []},
    ["é", "日本", "\0\n\x1b", "\U0001f600", "</s>"],
]

# the bytes, words of the refusal, the offset it names or None
BAD: list[tuple[bytes, str, int | None]] = [
    (b"", "is not JSON", 0),
    (b"nul", "is not JSON", 0),
    (b"[1, 2", "is not JSON", 5),
    (b'["\xc3\xa9", x]', "is not JSON", 7),
    (b"[1] 2", "Extra data", 4),
    (b'"\n"', "control character", 1),
    (b'["\xff"]', "is not UTF-8", 2),
    (b"\xff\xfe{\0}\0", "is not UTF-8", 0),
    (b"\xef\xbb\xbf{}", "is not JSON", 0),
    (b'"\xed\xa0\x80"', "is not UTF-8", 1),
    (b'{"a": 1, "a": 1}', "key a: a key is given twice", None),
    (b'[{"b": {"a": 1, "c": 2, "a": 1}}]', "key a: a key is given twice", None),
    (b"[NaN]", "not finite", None),
    (b"[-Infinity]", "not finite", None),
    (b"[-1e999]", "not finite", None),
    (b"[" * 100_000, "nested too deeply", None),
    (b'{"a":' * 100_000, "nested too deeply", None),
    (b"[" + b"7" * 4301 + b"]", "is not JSON", None),
    (b'["\\ud83d"]', "surrogate", None),
    (b'["\\uDE00\\uD83D"]', "surrogate", None),
    (b'{"\\ud83d": 1}', "surrogate", None),
]


@pytest.mark.parametrize("value", GOOD, ids=lambda value: shown(value)[:30])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_good(value: Any, ascii_only: bool, tmp_path: Path) -> None:
    path = tmp_path / "good.json"
    path.write_text(json.dumps(value, ensure_ascii=ascii_only), encoding="utf-8")
    assert read_json(path) == value


@pytest.mark.parametrize(("data", "words", "offset"), BAD, ids=lambda value: repr(value)[:30])
def test_bad(data: bytes, words: str, offset: int | None) -> None:
    with pytest.raises(FormatError) as caught:
        parse_json(data, file=FILE)
    assert words in str(caught.value)
    assert caught.value.details["file"] == FILE
    assert caught.value.details.get("offset") == offset


def test_offset_is_within_the_file() -> None:
    with pytest.raises(FormatError) as caught:
        parse_json(b"[x]", file=FILE, offset=8)
    assert caught.value.details["offset"] == 9


def test_length_limit(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_bytes(b"[1,2]")
    assert read_json(path, max_bytes=5) == [1, 2]
    with pytest.raises(FormatError, match="at most 4 bytes, found 5"):
        read_json(path, max_bytes=4)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "absent.json")


LONG = ["\x1b[31m\n" * 1000, ["x" * 10**6] * 10**4, {"k" * 1000: None}, 10**4000, [[[[[[[[]]]]]]]]]


@pytest.mark.parametrize("value", LONG, ids=lambda value: type(value).__name__)
def test_shown_is_short_and_printable(value: Any) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) < 1000


def test_shown_speaks_json() -> None:
    assert shown([None, True, False, 1, "a"]) == "[null, true, false, 1, 'a']"
