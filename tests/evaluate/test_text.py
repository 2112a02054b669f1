"""Texts: taken to the byte, refused by name; and those that are shipped."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import FormatError, HubError, InputError, QuantkitError, UsageError
from quantkit.evaluate import text as text_module
from quantkit.evaluate.text import calibration_text, read_text, shipped

# SHA-256 of the shipped texts: figures are compared under a version, so a text never changes under one.
SHIPPED = {
    "eval.txt": "b23a676041ddb9468ebc046be70840152d2a7cd4c593d51da7f83bc0a38b4703",
    "calibration.txt": "8b1531af358fd1364dec43370ab5809cb24f2cb6dc7c09efbd88a82e178727aa",
    "broad.txt": "8c243b0835f90283225c6e252e881e0e8a99142daf477a9dfd3b49318a0114ed",
}
LEAST_BYTES = 64 << 10
SHARED_LINE, SHARED_WINDOW = 40, 60


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_to_the_byte(tmp_path: Path) -> None:
    data = " Été\r\n\tx\x00\n\n<|im_end|>🚀\u2028 \n".encode()
    (tmp_path / "a.txt").write_bytes(data)
    found = read_text([str(tmp_path / "a.txt")])
    assert found.text.encode() == data
    assert found.sha256 == sha256(data)
    assert found.names == ("a.txt",)


def test_files_are_joined_by_a_blank_line(tmp_path: Path) -> None:
    for name, content in (("a.txt", "one"), ("b.txt", "two\n"), ("c", "three")):
        (tmp_path / name).write_text(content)
    found = read_text([str(tmp_path / name) for name in ("a.txt", "b.txt", "c")])
    assert found.text == "one\n\ntwo\n\n\nthree"
    assert found.sha256 == sha256(found.text.encode())
    assert found.names == ("a.txt", "b.txt", "c")


BAD: dict[str, tuple[bytes, type[QuantkitError], dict[str, object]]] = {
    "nothing": (b"", InputError, {}),
    "Latin-1": ("über den Fluß".encode("latin-1"), FormatError, {"offset": 0, "found": "byte 0xfc"}),
    "UTF-16": ("a text".encode("utf-16"), FormatError, {"offset": 0, "found": "byte 0xff"}),
    "half a character": ("Fluß".encode()[:-1], FormatError, {"offset": 3, "found": "byte 0xc3"}),
    "half a surrogate pair": (b"ab\xed\xa0\x80", FormatError, {"offset": 2, "found": "byte 0xed"}),
    "a byte order mark": ("a text".encode("utf-8-sig"), FormatError, {"offset": 0}),
}


@pytest.mark.parametrize(("data", "error", "facts"), BAD.values(), ids=BAD.keys())
def test_refused(tmp_path: Path, data: bytes, error: type[QuantkitError], facts: dict[str, object]) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(error) as caught:
        read_text([str(tmp_path / "good.txt"), str(tmp_path / "bad.txt")])
    assert type(caught.value) is error
    assert caught.value.details == {"file": tmp_path / "bad.txt"} | facts


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for place, words in ((tmp_path / "none.txt", "no such file"), (tmp_path, "regular file")):
        with pytest.raises(InputError, match=words):
            read_text([str(place)])


# ---- on the hub


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of the hub; it gives a file with "from the hub" for everything."""
    asked: list[tuple[Any, ...]] = []
    (tmp_path / "fetched").write_text("from the hub")

    def fetch(*arguments: object, repo_type: str) -> Path:
        asked.append((*arguments, repo_type))
        return tmp_path / "fetched"

    monkeypatch.setattr(text_module, "fetch_file", fetch)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        ("hub:org/texts/a.txt", ("org/texts", "a.txt", None, "dataset")),
        ("hub:org/texts/raw/b/c d.txt", ("org/texts", "raw/b/c d.txt", None, "dataset")),
        ("hub:org/texts/a.txt@v1", ("org/texts", "a.txt", "v1", "dataset")),
        ("hub:org/texts/raw/a.txt@refs/pr/3", ("org/texts", "raw/a.txt", "refs/pr/3", "dataset")),
        ("hub:org/texts/me@home.txt@main", ("org/texts", "me@home.txt", "main", "dataset")),
    ],
)
def test_a_file_on_the_hub(fetched: list[tuple[Any, ...]], place: str, asked: tuple[Any, ...]) -> None:
    found = read_text([place])
    assert fetched == [asked]
    assert (found.text, found.names) == ("from the hub", (place,))


@pytest.mark.parametrize("place", ["hub:", "hub:org", "hub:org/texts", "hub:org/texts/", "hub:/texts/a.txt", "hub:a@b"])
def test_what_names_no_file_on_the_hub(fetched: list[tuple[Any, ...]], place: str) -> None:
    with pytest.raises(UsageError, match="neither a local file nor"):
        read_text([place])
    assert fetched == []


@pytest.mark.skipif(os.name == "nt", reason="no file's name has a colon there")
def test_a_local_file_of_that_name_wins(fetched: list[tuple[Any, ...]], tmp_path: Path) -> None:
    place = "hub:org/texts/a.txt"
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("from here")
    found = read_text([place])
    assert (found.text, found.names, fetched) == ("from here", ("a.txt",), [])


def test_any_other_name_is_a_path(fetched: list[tuple[Any, ...]]) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_text(["org/texts/a.txt"])
    assert fetched == []


def test_a_refusal_of_the_hub_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "fetch_file", lambda *arguments, **keywords: (_ for _ in ()).throw(HubError("no")))
    with pytest.raises(HubError):
        read_text(["hub:org/texts/a.txt"])


# ---- shipped


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_texts_are_what_they_were(name: str) -> None:
    found = shipped(name)
    assert found.names == (name,)
    assert len(found.text.encode()) >= LEAST_BYTES
    assert found.sha256 == sha256(found.text.encode()) == SHIPPED[name]


def test_there_are_no_others() -> None:
    assert {path.name for path in text_module.SHIPPED.iterdir()} == SHIPPED.keys()


def shared(one: str, other: str) -> set[str]:
    """What two texts have in common: long lines, and stretches of SHARED_WINDOW characters."""
    lines = [{line for line in text.splitlines() if len(line) > SHARED_LINE} for text in (one, other)]
    stretches = [{text[i : i + SHARED_WINDOW] for i in range(len(text) - SHARED_WINDOW + 1)} for text in (one, other)]
    return lines[0] & lines[1] | stretches[0] & stretches[1]


def test_shipped_texts_share_nothing() -> None:
    """Else a matrix calibrated on one looks better on the other than it is."""
    for one, other in itertools.combinations(SHIPPED, 2):
        assert shared(shipped(one).text, shipped(other).text) == set()


def test_second_moments_are_of_all_texts(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("the hen and the egg")
    own = str(tmp_path / "own.txt")
    assert calibration_text([], broad=False).names == ("calibration.txt",)
    assert calibration_text([own], broad=False).names == ("own.txt",)
    assert calibration_text([own], broad=True).names == ("own.txt", "calibration.txt", "broad.txt")
    assert calibration_text([], broad=True).text.endswith(shipped("broad.txt").text)


def test_what_texts_share_is_found() -> None:
    common = "It was the forty-first year in which nobody had counted the years."
    assert shared(f"a\n{common}\nb", f"c\n{common}") != set()
    assert shared(f"a {common[:60]} b", f"c-{common[:60]}-d") == {common[:60]}
    assert shared(f"a {common[:59]} b", f"c\n{common[:40]}\n{common[41:59]} d") == set()
