"""Bad checkpoints made by hand: each is refused by its own error class, exit code and words, and names its place."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import (
    ConfigError,
    FormatError,
    InputError,
    QuantkitError,
    TensorError,
    UnsafeError,
    UnsupportedError,
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
A, B = "a-of-2.safetensors", "b-of-2.safetensors"


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def packed(header: bytes | dict[str, Any], data: bytes = bytes(16), length: int | None = None) -> bytes:
    """A safetensors file; length is what its first 8 bytes say where that is a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(**parts: Any) -> bytes:
    """A file whose one tensor, w, differs from a good one in the given parts of its entry."""
    return packed({"w": entry(**parts)})


GOOD_ENTRY = json.dumps(entry()).encode()
GOOD = packed({"w": entry()})


@dataclass(frozen=True)
class Bad:
    """A bad file, and what must be said of it: the error's class, some of its words, the tensor or key it names."""

    name: str
    content: bytes
    error: type[QuantkitError]
    words: str
    tensor: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return self.name


BAD_FILES = [
    Bad("empty file", b"", FormatError, "the file is cut"),
    Bad("seven bytes", bytes(7), FormatError, "found 7"),
    Bad("length only", (2).to_bytes(8, "little"), FormatError, "cut inside its header"),
    Bad("length 0", packed(b"", b""), FormatError, "brace"),
    Bad("length past the end", packed({"w": entry()}, length=10**6), FormatError, "cut inside its header"),
    Bad("length 2^64 - 1", packed(b"{}", length=2**64 - 1), FormatError, "longer than a safetensors file may"),
    Bad("length over the limit", packed(b"{}", length=100_000_001), FormatError, "at most 100000000 bytes"),
    Bad("length too short", packed({"w": entry()}, length=20), FormatError, "is not JSON"),
    Bad("another kind of file", b"#!/bin/sh\n" + bytes(60), FormatError, "another kind of file"),
    Bad("a GGUF file", b"GGUF" + bytes(60), FormatError, "GGUF"),
    Bad("a PyTorch archive", b"PK\x03\x04" + bytes(range(60)), FormatError, "pickle"),
    Bad("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\n", FormatError, "git lfs pull"),
    Bad("leading space", packed(b' {"w":' + GOOD_ENTRY + b"}"), FormatError, "brace"),
    Bad("leading newline", packed(b'\n{"w":' + GOOD_ENTRY + b"}"), FormatError, "brace"),
    Bad("byte order mark", packed(b"\xef\xbb\xbf{}"), FormatError, "brace"),
    Bad("a list", packed(b"[]"), FormatError, "brace"),
    Bad("padded with zeros", packed(b'{"w":' + GOOD_ENTRY + b"}\0\0\0"), FormatError, "is not JSON"),
    Bad("two objects", packed(b"{}{}"), FormatError, "is not JSON"),
    Bad("single quotes", packed(b"{'w': 1}"), FormatError, "is not JSON"),
    Bad("trailing comma", packed(b'{"w":' + GOOD_ENTRY + b",}"), FormatError, "is not JSON"),
    Bad("not UTF-8", packed(b'{"\xff":' + GOOD_ENTRY + b"}"), FormatError, "is not UTF-8"),
    Bad("half a surrogate pair", packed(b'{"\\ud800":' + GOOD_ENTRY + b"}"), FormatError, "surrogate"),
    Bad("nested 100,000 deep", packed(b'{"w":' + b"[" * 100_000), FormatError, "nested too deeply"),
    Bad("a number of 5,000 digits", packed(b'{"w":' + b"9" * 5000 + b"}"), FormatError, "is not JSON"),
    Bad("a name twice", packed(b'{"w":' + GOOD_ENTRY + b',"w":' + GOOD_ENTRY + b"}"), FormatError, "twice", key="w"),
    Bad(
        "a field twice",
        packed(b'{"w":{"dtype":"F16","dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'),
        FormatError,
        "twice",
        key="dtype",
    ),
    Bad("an empty name", packed({"": entry()}), FormatError, "name cannot be used"),
    Bad("NUL in a name", packed({"a\0b": entry()}), FormatError, r"'a\x00b'"),
    Bad("terminal escape in a name", packed({"\x1b[2J": entry()}), FormatError, r"'\x1b[2J'"),
    Bad("an endless name", packed({"n" * 100_000: entry()}), FormatError, "1 to 512 printable"),
    Bad("entry is a list", packed({"w": ["F32", [2, 2], [0, 16]]}), FormatError, "not made of dtype", "w"),
    Bad("entry is null", packed({"w": None}), FormatError, "found null", "w"),
    Bad("entry without shape", packed({"w": {"dtype": "F32", "data_offsets": [0, 16]}}), FormatError, "shape", "w"),
    Bad("entry with a strange field", packed({"w": entry() | {"scale": 2}}), FormatError, "'scale': 2", "w"),
    Bad("dtype is a number", one(dtype=7), FormatError, "dtype is not a string", "w"),
    *(
        Bad(f"dtype {dtype}", one(dtype=dtype), UnsupportedError, f"dtype '{dtype}' is not supported", "w")
        for dtype in ("F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "F4", "C64", "f32", "F99", "")
    ),
    Bad("shape is a number", one(shape=4), FormatError, "not a list of counts", "w"),
    Bad("shape of strings", one(shape=["2", "2"]), FormatError, "not a list of counts", "w"),
    Bad("shape of fractions", one(shape=[2.0, 2]), FormatError, "found [2.0, 2]", "w"),
    Bad("shape of truths", one(shape=[True, 4]), FormatError, "found [true, 4]", "w"),
    Bad("negative shape", one(shape=[-2, -2]), FormatError, "found [-2, -2]", "w"),
    Bad("shape too large", one(shape=[2, 3]), FormatError, "expected F32 [2, 3], found 16 bytes", "w"),
    Bad("shape too small", one(shape=[2, 1]), FormatError, "expected F32 [2, 1], found 16 bytes", "w"),
    Bad("shape that wraps to 16 bytes", one(shape=[2**62 + 1, 4]), FormatError, "contradict", "w"),
    Bad("shape of 500,000 huge numbers", one(shape=[10**18] * 500_000), FormatError, "contradict", "w"),
    Bad("dtype half as wide", one(dtype="F16"), FormatError, "expected F16 [2, 2], found 16 bytes", "w"),
    Bad("no elements", packed({"w": entry(shape=[0], offsets=[0, 0])}, b""), TensorError, "no elements", "w"),
    Bad(
        "no elements at another's place",
        packed({"w": entry(), "z": entry(shape=[4, 0], offsets=[0, 0])}),
        TensorError,
        "no elements",
        "z",
    ),
    Bad("one offset", one(offsets=[16]), FormatError, "not [begin, end]", "w"),
    Bad("three offsets", one(offsets=[0, 8, 16]), FormatError, "not [begin, end]", "w"),
    Bad("offsets reversed", one(offsets=[16, 0]), FormatError, "not [begin, end]", "w"),
    Bad("negative offset", one(offsets=[-16, 0]), FormatError, "found [-16, 0]", "w"),
    Bad("offset null", one(offsets=None), FormatError, "found null", "w"),
    Bad("offset infinite", packed(b'{"w":{"data_offsets":[0,Infinity]}}'), FormatError, "not finite"),
    Bad("offset 1e999", packed(b'{"w":{"data_offsets":[0,1e999]}}'), FormatError, "not finite"),
    Bad("offset beyond 63 bits", one(offsets=[2**63, 2**63 + 16]), FormatError, "leaves a hole", "w"),
    Bad("offset beyond 64 bits", one(offsets=[2**64, 2**64 + 16]), FormatError, "not [begin, end]", "w"),
    Bad("offset of 4,300 digits", one(offsets=[10**4300 - 17, 10**4300 - 1]), FormatError, "not [begin, end]", "w"),
    Bad("hole at the start", packed({"w": entry(offsets=[4, 20])}, bytes(20)), FormatError, "leaves a hole", "w"),
    Bad(
        "hole between",
        packed({"v": entry(), "w": entry(offsets=[20, 36])}, bytes(36)),
        FormatError,
        "leaves a hole",
        "w",
    ),
    Bad("two names for one place", packed({"v": entry(), "w": entry()}), FormatError, "overlaps another", "w"),
    Bad(
        "overlap", packed({"v": entry(), "w": entry(offsets=[8, 24])}, bytes(24)), FormatError, "overlaps another", "w"
    ),
    Bad("no data", packed({"w": entry()}, b""), FormatError, "cut inside a tensor", "w"),
    Bad("last byte missing", GOOD[:-1], FormatError, "cut inside a tensor", "w"),
    Bad(
        "second tensor missing",
        packed({"v": entry(), "w": entry(offsets=[16, 32])}),
        FormatError,
        "cut inside a tensor",
        "w",
    ),
    Bad("one byte more", GOOD + b"\0", FormatError, "bytes follow the last tensor"),
    Bad("bytes without a tensor", packed(b"{}"), FormatError, "bytes follow the last tensor"),
    # Only the library looks into __metadata__, so these show that it is asked.
    Bad("metadata of numbers", packed({"__metadata__": {"a": 1}, "w": entry()}), FormatError, "library refuses"),
    Bad("metadata is a list", packed({"__metadata__": ["a"], "w": entry()}), FormatError, "library refuses"),
]


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in {"config.json": b"{}", **files}.items():
        (folder / name).write_bytes(content)


def refused(folder: Path) -> QuantkitError:
    """The error with which folder is refused, after the checks that every refusal stands."""
    start = time.process_time()
    with pytest.raises(QuantkitError) as caught:
        open_checkpoint(folder)
    assert time.process_time() - start < 5
    error = caught.value
    assert str(error).isprintable()
    assert len(str(error)) < 2000
    json.dumps(error.details, default=os.fspath)
    return error


def test_the_good_file_is_accepted(tmp_path: Path) -> None:
    write(tmp_path, {SINGLE: GOOD})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]


@pytest.mark.parametrize("bad", BAD_FILES, ids=str)
def test_bad_file(bad: Bad, tmp_path: Path) -> None:
    write(tmp_path, {SINGLE: bad.content})
    error = refused(tmp_path)
    assert type(error) is bad.error
    assert error.exit_code == 65
    assert bad.words in f"{error} {error.hint}"
    assert error.details["file"] == tmp_path / SINGLE
    assert error.details.get("tensor") == bad.tensor
    assert error.details.get("key") == bad.key


@pytest.mark.parametrize("bad", [bad for bad in BAD_FILES if bad.tensor], ids=str)
def test_bad_shard(bad: Bad, tmp_path: Path) -> None:
    """The same files as second shard: the error names the shard."""
    write(tmp_path, {INDEX: index({"a": A, "w": B}), A: packed({"a": entry()}), B: bad.content})
    error = refused(tmp_path)
    assert type(error) is bad.error
    assert error.details["file"] == tmp_path / B


# ---- the index


def index(weight_map: Any) -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


SHARDS = {A: packed({"a": entry()}), B: packed({"b": entry(), "c": entry(offsets=[16, 32])}, bytes(32))}
MAP = {"a": A, "b": B, "c": B}

BAD_INDEXES = [
    Bad("empty", b"", FormatError, "is not JSON"),
    Bad("a list", b"[]", FormatError, "not an index", key="weight_map"),
    Bad("no map", b'{"metadata":{}}', FormatError, "found null", key="weight_map"),
    Bad("map is a list", index([A, B]), FormatError, "not an index", key="weight_map"),
    Bad("map is empty", index({}), FormatError, "not an index", key="weight_map"),
    Bad("map twice", b'{"weight_map":{"a":"x"},"weight_map":{"b":"y"}}', FormatError, "twice", key="weight_map"),
    Bad("tensor twice", b'{"weight_map":{"a":"x","a":"y"}}', FormatError, "twice", key="a"),
    Bad("byte order mark", b"\xef\xbb\xbf" + index(MAP), FormatError, "is not JSON"),
    Bad("shard is a number", index(MAP | {"a": 7}), FormatError, "not a string", "a"),
    Bad("shard is null", index(MAP | {"a": None}), FormatError, "not a string", "a"),
    Bad("shard missing", index(MAP | {"d": "c-of-3.safetensors"}), FormatError, "'c-of-3.safetensors'"),
    Bad("shard is a folder", index(MAP | {"d": "folder"}), FormatError, "missing"),
    Bad("shard with too long a name", index(MAP | {"d": "n" * 300}), InputError, "too long"),
    Bad("NUL in a tensor's name", index(MAP | {"a\0": A}), FormatError, r"'a\x00'"),
    Bad("tensor in no shard", index(MAP | {"d": A}), TensorError, "a tensor is missing", "d"),
    Bad("tensor in no index", index({"a": A, "b": B}), TensorError, "missing from the index", "c"),
    Bad("tensor elsewhere", index(MAP | {"b": A}), TensorError, f"expected {A}, found {B}", "b"),
]

UNSAFE_NAMES = [
    "../a-of-2.safetensors",
    "../../etc/passwd",
    "..",
    ".",
    "",
    ". .",
    ".. ",
    "..\\a-of-2.safetensors",
    "\\\\server\\share\\a.safetensors",
    "/etc/passwd",
    "//server/share",
    "sub/a-of-2.safetensors",
    "./a-of-2.safetensors",
    "a-of-2.safetensors/",
    "a-of-2.safetensors/.",
    "a-of-2.safetensors.",
    "a-of-2.safetensors ",
    "C:\\model.safetensors",
    "C:model.safetensors",
    "a-of-2.safetensors:stream",
    "file:///etc/passwd",
    "a\0.safetensors",
    "a\n.safetensors",
    "a\x1b[2J.safetensors",
    "a\u202esrotcnet.safetensors",
    "CON",
    "nul.safetensors",
    "com1.safetensors",
    "LPT9 .safetensors",
]


@pytest.mark.parametrize("bad", BAD_INDEXES, ids=str)
def test_bad_index(bad: Bad, tmp_path: Path) -> None:
    write(tmp_path, {**SHARDS, INDEX: bad.content})
    (tmp_path / "folder").mkdir()
    error = refused(tmp_path)
    assert type(error) is bad.error
    assert error.exit_code == 65
    assert bad.words in str(error)
    assert error.details["file"].parent == tmp_path
    assert error.details.get("tensor") == bad.tensor
    assert error.details.get("key") == bad.key


@pytest.mark.parametrize("name", UNSAFE_NAMES, ids=ascii)
def test_shard_name_that_is_no_plain_name(name: str, tmp_path: Path) -> None:
    """Refused also where the name leads to a sound shard: there is one in the folder, above it and below it."""
    folder = tmp_path / "checkpoint"
    for place in (tmp_path, folder, folder / "sub"):
        place.mkdir(exist_ok=True)
        write(place, SHARDS)
    write(folder, {INDEX: index(MAP | {"a": name})})
    error = refused(folder)
    assert type(error) is UnsafeError
    assert error.exit_code == 77
    assert error.details["tensor"] == "a"
    assert error.details["file"] == folder / INDEX


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    write(tmp_path, {A: SHARDS[B], B: SHARDS[B], INDEX: index({"b": A, "c": B})})
    error = refused(tmp_path)
    assert type(error) is TensorError
    assert error.details["tensor"] == "b"
    assert f"more than one shard (found {A}, {B})" in str(error)


@pytest.mark.parametrize("total_size", [0, 1, 10**30, "many", None])
def test_total_size_is_not_judged(total_size: Any, tmp_path: Path) -> None:
    content = {"metadata": {"total_size": total_size}, "weight_map": MAP}
    write(tmp_path, {**SHARDS, INDEX: json.dumps(content).encode()})
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b", "c"}


# ---- the folder


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def adapter(folder: Path) -> None:
    no_config(folder)
    (folder / "adapter_config.json").write_bytes(b"{}")


def pickles_only(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def other_name(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "weights.safetensors")
    (folder / "training_args.bin").write_bytes(b"")


def no_weights(folder: Path) -> None:
    (folder / SINGLE).unlink()


def config_is(content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "config.json").write_bytes(content)

    return make


def huge_config(folder: Path) -> None:
    os.truncate(folder / "config.json", (256 << 20) + 1)


def fifo(folder: Path) -> None:
    no_weights(folder)
    os.mkfifo(folder / SINGLE)


def hidden_by_socket(folder: Path) -> None:
    no_weights(folder)
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # a socket's path is short
        listener.bind(SINGLE)


BAD_FOLDERS = [
    (no_config, InputError, 65, "config.json", "copy it from the base model"),
    (adapter, InputError, 65, "config.json", "this is an adapter"),
    (config_is(b"[]"), ConfigError, 65, "config.json", "is not an object"),
    (config_is(b"{"), FormatError, 65, "config.json", "is not JSON"),
    (config_is(b'{"rope_theta": NaN}'), FormatError, 65, "config.json", "not finite"),
    (huge_config, FormatError, 65, "config.json", "too long"),
    (no_weights, InputError, 65, "", f"{SINGLE} or {INDEX}"),
    (other_name, InputError, 65, "", "weights.safetensors"),
    (pickles_only, UnsafeError, 77, "", "save_pretrained(...) of transformers"),
    (fifo, InputError, 65, "", "no weights"),
    (hidden_by_socket, InputError, 65, "", "no weights"),
]


@pytest.mark.parametrize(("spoil", "kind", "exit_code", "place", "words"), BAD_FOLDERS)
def test_bad_folder(
    spoil: Callable[[Path], None], kind: type[QuantkitError], exit_code: int, place: str, words: str, tmp_path: Path
) -> None:
    write(tmp_path, {SINGLE: GOOD})
    spoil(tmp_path)
    error = refused(tmp_path)
    assert type(error) is kind
    assert error.exit_code == exit_code
    assert error.details["file"] == tmp_path / place
    assert words in f"{error} {error.hint}"


@pytest.mark.parametrize("name", ["absent", SINGLE, f"{SINGLE}/below"])
def test_no_folder(name: str, tmp_path: Path) -> None:
    write(tmp_path, {SINGLE: GOOD})
    error = refused(tmp_path / name)
    assert type(error) is InputError
    assert "is not a folder" in str(error)
