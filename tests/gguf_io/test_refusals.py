"""Bad GGUF files: each is refused by a typed error that names the place, whatever sizes it claims."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest

from quantkit.errors import FormatError, InputError, QuantkitError, UnsupportedError
from quantkit.gguf_io import Field, Kind, data_bytes, header, place, read_gguf
from quantkit.qtypes import F32, Q4_K

FIELDS = [Field("general.architecture", Kind.STRING, "phi3"), Field("a.numbers", Kind.ARRAY, [1, 2, 3], Kind.U32)]
TENSORS = place([("a.weight", (2, 256), Q4_K), ("b.weight", (8,), F32)])
GOOD = header(FIELDS, TENSORS) + bytes(data_bytes(TENSORS))
U64 = struct.Struct("<Q")


def string(data: bytes) -> bytes:
    return U64.pack(len(data)) + data


def preamble(n_tensors: int, n_fields: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<Iqq", version, n_tensors, n_fields)


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<i", kind) + value


def tensor(name: bytes = b"t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}qiQ", len(dims), *dims, kind, offset)


def with_tensors(*tensors: bytes) -> bytes:
    return preamble(len(tensors), 0) + b"".join(tensors) + bytes(4096)


def with_fields(*fields: bytes) -> bytes:
    return preamble(0, len(fields)) + b"".join(fields) + bytes(64)


ARRAY = struct.Struct("<iQ")
HUGE = 2**61
BAD: dict[str, tuple[bytes, type[QuantkitError], str]] = {
    "empty": (b"", FormatError, "magic"),
    "three bytes": (b"GGU", FormatError, "magic"),
    "another magic": (b"GGML" + GOOD[4:], FormatError, "not a GGUF file"),
    "only a magic": (b"GGUF", FormatError, "version"),
    "version 1": (preamble(0, 0, 1) + bytes(64), UnsupportedError, "version"),
    "version 4": (preamble(0, 0, 4) + bytes(64), UnsupportedError, "version"),
    "big endian": (b"GGUF" + struct.pack(">Iqq", 3, 0, 0), UnsupportedError, "big-endian"),
    "no counts": (b"GGUF\x03\0\0\0", FormatError, "number of tensors"),
    "more tensors than bytes": (preamble(HUGE, 0) + bytes(64), FormatError, "number of tensors"),
    "negative tensors": (preamble(-1, 0) + bytes(64), FormatError, "number of tensors"),
    "more keys than bytes": (preamble(0, HUGE) + bytes(64), FormatError, "number of keys"),
    "negative keys": (preamble(0, -1) + bytes(64), FormatError, "number of keys"),
    "a key longer than the file": (preamble(0, 1) + U64.pack(HUGE) + bytes(64), FormatError, "length of a key"),
    "a key of 2^64-1 bytes": (preamble(0, 1) + U64.pack(2**64 - 1) + bytes(64), FormatError, "length of a key"),
    "a key that is not UTF-8": (with_fields(field(b"\xff\xfe", 4, bytes(4))), FormatError, "UTF-8"),
    "a string longer than the file": (with_fields(field(b"k", 8, U64.pack(HUGE))), FormatError, "length of a string"),
    "a string that is not UTF-8": (with_fields(field(b"k", 8, string(b"\xc3("))), FormatError, "UTF-8"),
    "kind 13": (with_fields(field(b"k", 13, bytes(8))), FormatError, "kind"),
    "kind -1": (with_fields(field(b"k", -1, bytes(8))), FormatError, "kind"),
    "a bool of 2": (with_fields(field(b"k", 7, b"\2")), FormatError, "bool"),
    "an array of arrays": (with_fields(field(b"k", 9, ARRAY.pack(9, 1) + bytes(16))), FormatError, "array of arrays"),
    "an array of kind 99": (with_fields(field(b"k", 9, ARRAY.pack(99, 1) + bytes(16))), FormatError, "kind"),
    "an array longer than the file": (with_fields(field(b"k", 9, ARRAY.pack(4, HUGE))), FormatError, "array"),
    "an array whose size wraps": (with_fields(field(b"k", 9, ARRAY.pack(10, 2**61 + 1))), FormatError, "array"),
    "strings longer than the file": (with_fields(field(b"k", 9, ARRAY.pack(8, HUGE))), FormatError, "array"),
    "a key twice": (with_fields(*[field(b"k", 4, bytes(4))] * 2), FormatError, "twice"),
    "a tensor twice": (with_tensors(tensor(), tensor(offset=32)), FormatError, "twice"),
    "a tensor without a name": (with_tensors(tensor(b"")), FormatError, "name"),
    "a name of 64 bytes": (with_tensors(tensor(b"n" * 64)), FormatError, "name"),
    "no dimensions": (with_tensors(tensor(dims=())), FormatError, "dimensions"),
    "five dimensions": (with_tensors(tensor(dims=(1,) * 5)), FormatError, "dimensions"),
    "a dimension of 0": (with_tensors(tensor(dims=(4, 0))), FormatError, "dimension below 1"),
    "a negative dimension": (with_tensors(tensor(dims=(-4,))), FormatError, "dimension below 1"),
    "weights that wrap 64 bits": (with_tensors(tensor(dims=(2**32, 2**32))), FormatError, "ends inside a tensor"),
    "bytes that wrap 64 bits": (with_tensors(tensor(dims=(2**62 + 1,))), FormatError, "ends inside a tensor"),
    "a row that is no whole block": (with_tensors(tensor(dims=(255,), kind=12)), FormatError, "blocks"),
    "an unknown type": (with_tensors(tensor(kind=4)), UnsupportedError, "type 4"),
    "a negative type": (with_tensors(tensor(kind=-1)), UnsupportedError, "type -1"),
    "a tensor beyond the file": (with_tensors(tensor(dims=(10**6,))), FormatError, "ends inside a tensor"),
    "a gap before a tensor": (with_tensors(tensor(b"a"), tensor(b"b", offset=64)), FormatError, "where the one before"),
    "overlapping tensors": (with_tensors(tensor(b"a"), tensor(b"b", offset=0)), FormatError, "where the one before"),
    "an unaligned tensor": (with_tensors(tensor(b"a"), tensor(b"b", offset=16)), FormatError, "where the one before"),
    "an offset of 2^64-32": (with_tensors(tensor(offset=2**64 - 32)), FormatError, "where the one before"),
    "alignment 0": (with_fields(field(b"general.alignment", 4, bytes(4))), FormatError, "alignment"),
    "alignment 48": (with_fields(field(b"general.alignment", 4, b"\x30\0\0\0")), FormatError, "alignment"),
    "alignment 2^31": (with_fields(field(b"general.alignment", 4, b"\0\0\0\x80")), FormatError, "alignment"),
    "alignment as text": (with_fields(field(b"general.alignment", 8, string(b"32"))), FormatError, "alignment"),
}


@pytest.mark.parametrize(("data", "error", "words"), BAD.values(), ids=BAD.keys())
def test_refused(tmp_path: Path, data: bytes, error: type[QuantkitError], words: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(error, match=words) as caught:
        read_gguf(path)
    assert caught.value.exit_code == 65
    assert str(path) in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    end = len(GOOD) - len(GOOD) % 32
    for length in [*range(len(header(FIELDS, TENSORS)) + 1), end - 1]:
        path.write_bytes(GOOD[:length])
        with pytest.raises(FormatError):
            read_gguf(path)


def test_changed_bytes_are_read_or_refused_by_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "changed.gguf"
    for at in range(len(header(FIELDS, TENSORS))):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            data = bytearray(GOOD)
            data[at] = value
            path.write_bytes(data)
            with contextlib.suppress(InputError):
                read_gguf(path)


def test_the_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    assert list(read_gguf(path).tensors) == ["a.weight", "b.weight"]
