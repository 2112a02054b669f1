"""Importance matrices: both formats to llama-quantize's bits, refusals that name the place, coverage of a model."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import struct
from pathlib import Path

import libgguf
import numpy as np
import pytest
import synthetic_imatrix

from quantkit.errors import FormatError, InputError, QuantkitError, TensorError
from quantkit.gguf_io import Field, Kind, data_bytes, header, place
from quantkit.imatrix import Imatrix, coverage, read_imatrix
from quantkit.qtypes import F16, F32

A, B = "blk.0.attn_qkv.weight", "blk.0.ffn_up.weight"
KEYS = (
    Field("general.type", Kind.STRING, "imatrix"),
    Field("imatrix.datasets", Kind.ARRAY, ["a.txt", "b.txt"], Kind.STRING),
    Field("imatrix.chunk_count", Kind.U32, 7),
    Field("imatrix.chunk_size", Kind.U32, 512),
)
Tensors = dict[str, list[list[float]]]  # name: rows
DENORMAL = 2.0**-149


def gguf_of(tensors: Tensors, keys: tuple[Field, ...] = KEYS) -> bytes:
    arrays = {name: np.array(rows, "<f4") for name, rows in tensors.items()}
    placed = place((name, array.shape, F32) for name, array in arrays.items())
    section = bytearray(data_bytes(placed))
    for entry in placed:
        section[entry.offset : entry.offset + entry.nbytes] = arrays[entry.name].tobytes()
    return header(keys, placed) + section


def dat_text(text: bytes) -> bytes:
    return struct.pack("<i", len(text)) + text


def dat_entry(name: bytes, n_calls: int, values: list[float]) -> bytes:
    return dat_text(name) + struct.pack(f"<ii{len(values)}f", n_calls, len(values), *values)


def dat_of(*entries: bytes, end: bytes = struct.pack("<i", 7) + dat_text(b"a.txt")) -> bytes:
    return struct.pack("<i", len(entries)) + b"".join(entries) + end


def entry_of(name: str, sums: list[list[float]], counts: list[float]) -> Tensors:
    return {f"{name}.in_sum2": sums, f"{name}.counts": [[count] for count in counts]}


SUMS = [3.0, 1.0, 0.0, 1e-3, DENORMAL, 3e38]  # over 3: one, a third that rounds, zero, small, a tie of denormals, huge
GGUF = gguf_of({**entry_of(A, [SUMS], [3]), f"{A}.in_sum": [[-1.0] * 6], **entry_of(B, [[4.0, 8.0]], [2])})
DAT = dat_of(dat_entry(A.encode(), 3, SUMS), dat_entry(B.encode(), 2, [4.0, 8.0]))
FORMATS = {"gguf": GGUF, "dat": DAT}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.imatrix"


def read(file: Path, data: bytes) -> Imatrix:
    file.write_bytes(data)
    return read_imatrix(file)


# ---- values


@pytest.mark.parametrize("kind", FORMATS)
def test_sums_become_means(file: Path, kind: str) -> None:
    imatrix = read(file, FORMATS[kind])
    expected = [1.0, float.fromhex("0x1.555556p-2"), 0.0, float(np.float32(1e-3) / np.float32(3)), 0.0, 1e38]
    found = imatrix.of(A, 6)
    assert found is not None
    assert found.dtype == np.float32
    assert found.tobytes() == np.array(expected, np.float32).tobytes()
    assert list(imatrix.entries[B].ravel()) == [2.0, 4.0]
    assert imatrix.kind == kind
    assert imatrix.chunk_count == 7
    assert (imatrix.chunk_size, imatrix.datasets) == {"gguf": (512, ("a.txt", "b.txt")), "dat": (0, ("a.txt",))}[kind]
    assert imatrix.sha256 == hashlib.sha256(FORMATS[kind]).hexdigest()


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_synthetic_equals_libgguf(file: Path, kind: str) -> None:
    """A second reader, and the maker of the golden files' matrix, agree on every bit."""
    tensors = [(A, 576), (B, 768), ("blk.1.ffn_up.weight", 1536)]
    synthetic_imatrix.write(file, kind, tensors)
    imatrix = read_imatrix(file)
    theirs = libgguf.load_imatrix(file)
    assert imatrix.entries.keys() == theirs.keys() == {name for name, _ in tensors}
    for name, n_columns in tensors:
        found = imatrix.of(name, n_columns)
        assert found is not None
        assert found.tobytes() == theirs[name].tobytes()
        assert found.tobytes() == synthetic_imatrix.importance(name, n_columns).tobytes()
    assert (imatrix.chunk_count, imatrix.datasets) == (8, ("synthetic",))


def test_synthetic_is_what_the_golden_files_were_made_with() -> None:
    values = synthetic_imatrix.importance("blk.1.attn_output.weight", 576)
    digest = hashlib.sha256(values.astype("<f4")).hexdigest()
    assert digest == "121e8daf99f1d0368fd482b9b84ef433e6a4a1c8281a82b653935e44af720d7e"
    assert not values[256:512].any()


@pytest.mark.parametrize("count", [1, 3, 10, 3584, 2**24 - 1])
@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_any_count_equals_libgguf(file: Path, kind: str, count: int) -> None:
    values = np.random.PCG64(count).random_raw(999).astype(np.uint32) >> 1  # bit patterns of floats of either size
    sums = [value for value in values.view(np.float32).tolist() if math.isfinite(value)]
    data = {"gguf": gguf_of(entry_of(A, [sums], [count])), "dat": dat_of(dat_entry(A.encode(), count, sums))}[kind]
    found = read(file, data).of(A, len(sums))
    assert found is not None
    assert found.tobytes() == libgguf.load_imatrix(file)[A].tobytes()


def test_matrices_of_a_stack_have_their_own_counts(file: Path) -> None:
    imatrix = read(file, gguf_of(entry_of(A, [[2.0, 4.0], [5.0, 7.0], [9.0, 6.0]], [2, 0, 3])))
    assert imatrix.entries[A].tolist() == [[1.0, 2.0], [1.0, 1.0], [3.0, 2.0]]
    assert imatrix.entries[A].ravel().tobytes() == libgguf.load_imatrix(file)[A].tobytes()


@pytest.mark.parametrize(("count", "mean"), [(0.4, 1.0), (0.5, 9.0), (1.5, 4.5), (2.5, 3.0), (2.4, 4.5)])
def test_a_count_is_taken_to_the_nearest_integer(file: Path, count: float, mean: float) -> None:
    """lround in common/imatrix-loader.cpp: halves away from zero."""
    assert read(file, gguf_of(entry_of(A, [[9.0]], [count]))).entries[A].tolist() == [[mean]]


def test_a_dat_entry_of_no_calls_is_taken_as_it_is(file: Path) -> None:
    assert read(file, dat_of(dat_entry(A.encode(), 0, [2.0, 0.5]))).entries[A].tolist() == [[2.0, 0.5]]


@pytest.mark.parametrize(
    ("end", "chunks", "datasets"),
    [(b"", 0, ()), (struct.pack("<i", 9), 9, ()), (struct.pack("<ii", 9, 0), 9, ())],
    ids=["nothing", "chunks", "no dataset"],
)
def test_older_dat_files_end_earlier(file: Path, end: bytes, chunks: int, datasets: tuple[str, ...]) -> None:
    imatrix = read(file, dat_of(dat_entry(A.encode(), 1, [2.0]), end=end))
    assert (imatrix.chunk_count, imatrix.datasets) == (chunks, datasets)


# ---- refusals


def without(key: str) -> tuple[Field, ...]:
    return tuple(field for field in KEYS if field.key != key)


def replaced(field: Field) -> tuple[Field, ...]:
    return (*without(field.key), field)


def in_f16() -> bytes:
    return header(KEYS, place([(f"{A}.in_sum2", (1, 2), F16), (f"{A}.counts", (1, 1), F32)])) + bytes(64)


ENTRY = entry_of(A, [[1.0, 2.0]], [1])
ONE = dat_entry(A.encode(), 1, [1.0, 2.0])
BAD: dict[str, tuple[bytes, str]] = {
    "gguf: a model": (gguf_of(ENTRY, replaced(Field("general.type", Kind.STRING, "model"))), "expected imatrix"),
    "gguf: no general.type": (gguf_of(ENTRY, without("general.type")), "general.type"),
    "gguf: no datasets": (gguf_of(ENTRY, without("imatrix.datasets")), "imatrix.datasets"),
    "gguf: no chunk count": (gguf_of(ENTRY, without("imatrix.chunk_count")), "imatrix.chunk_count"),
    "gguf: no chunk size": (gguf_of(ENTRY, without("imatrix.chunk_size")), "imatrix.chunk_size"),
    "gguf: a chunk size in text": (gguf_of(ENTRY, replaced(Field("imatrix.chunk_size", Kind.STRING, "512"))), "U32"),
    "gguf: datasets in numbers": (
        gguf_of(ENTRY, replaced(Field("imatrix.datasets", Kind.ARRAY, [1], Kind.U32))),
        "imatrix.datasets",
    ),
    "gguf: in F16": (in_f16(), "found F16"),
    "gguf: no tensors": (gguf_of({}), "holds no importance"),
    "gguf: nothing but statistics": (gguf_of({f"{A}.stats": [[1.0]]}), "holds no importance"),
    "gguf: no counts": (gguf_of({f"{A}.in_sum2": [[1.0]]}), r"counts: a part"),
    "gguf: no sums": (gguf_of({f"{A}.counts": [[1.0]]}), r"in_sum2: a part"),
    "gguf: two counts for three sums": (gguf_of(entry_of(A, [[1.0, 2.0, 3.0]], [1, 1])), "do not fit"),
    "gguf: more counts than sums": (gguf_of(entry_of(A, [[1.0]], [1, 1])), "do not fit"),
    "gguf: sums of two lengths": (gguf_of(ENTRY | {f"{A}.in_sum": [[1.0]]}), "do not fit"),
    "gguf: cut": (gguf_of(ENTRY)[:-32], "ends inside a tensor"),
    "dat: empty": (b"", "ends inside the number of entries"),
    "dat: three bytes": (b"\1\0\0", "ends inside the number of entries"),
    "dat: no entries": (struct.pack("<ii", 0, 0), "number of entries"),
    "dat: fewer than no entries": (struct.pack("<i", -1) + bytes(99), "number of entries"),
    "dat: more entries than bytes": (struct.pack("<i", 2**31 - 1) + bytes(99), "number of entries"),
    "dat: some text": (b"Once upon a time there was a tensor", "number of entries"),
    "dat: a name without an end": (struct.pack("<ii", 1, 2**31 - 1) + bytes(99), "length of a tensor's name"),
    "dat: a name of -1 bytes": (struct.pack("<ii", 1, -1) + bytes(99), "length of a tensor's name"),
    "dat: no name": (dat_of(dat_entry(b"", 1, [1.0])), "length of a tensor's name"),
    "dat: a name that is not UTF-8": (dat_of(dat_entry(b"blk\xff", 1, [1.0])), "offset 11: a tensor's name is not"),
    "dat: a name twice": (dat_of(ONE, ONE), "twice"),
    "dat: -1 calls": (dat_of(dat_entry(A.encode(), -1, [1.0])), "number of calls"),
    "dat: no values": (dat_of(dat_entry(A.encode(), 1, [])), "number of values"),
    "dat: -1 values": (struct.pack("<ii3sii", 1, 3, b"abc", 1, -1) + bytes(99), "number of values"),
    "dat: more values than bytes": (struct.pack("<ii3sii", 1, 3, b"abc", 1, 2**30) + bytes(99), "number of values"),
    "dat: -1 chunks": (dat_of(ONE, end=struct.pack("<ii", -1, 0)), "number of chunks"),
    "dat: a dataset of -1 bytes": (dat_of(ONE, end=struct.pack("<ii", 7, -1)), "length of the dataset"),
    "dat: a dataset without an end": (dat_of(ONE, end=struct.pack("<ii", 7, 9)), "length of the dataset"),
    "dat: bytes after the end": (DAT + b"\0", "data follows the end"),
}


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_with_the_place(file: Path, data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        read(file, data)
    assert caught.value.details["file"] == file


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -DENORMAL])
@pytest.mark.parametrize("place", ["sums", "counts", "dat"])
def test_an_impossible_value_is_refused_with_its_offset(file: Path, place: str, value: float) -> None:
    data = {
        "sums": gguf_of(entry_of(A, [[1.0, value]], [1])),
        "counts": gguf_of(entry_of(A, [[1.0], [1.0]], [1, value])),
        "dat": dat_of(dat_entry(A.encode(), 1, [1.0, value])),
    }[place]
    with pytest.raises(FormatError, match="impossible value") as caught:
        read(file, data)
    offset = caught.value.details["offset"]
    assert data[offset : offset + 4] == struct.pack("<f", value)
    assert str(caught.value.details["tensor"]).startswith(A)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_cut_is_refused(file: Path, kind: str) -> None:
    ends_of_older_files = {DAT.index(b"a.txt") - 4, DAT.index(b"a.txt") - 8}
    read_whole = []
    for size in range(len(FORMATS[kind])):
        with contextlib.suppress(FormatError):
            read(file, FORMATS[kind][:size])
            read_whole.append(size)
    padding = set(range(len(GGUF) - 28, len(GGUF)))  # behind the last tensor, a count of 4 bytes: not needed
    assert set(read_whole) == {"gguf": padding, "dat": ends_of_older_files}[kind]


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_refused_or_harmless(file: Path, kind: str) -> None:
    """Whatever bytes change: a typed error, or importance that an encoder can work with."""
    randomly = random.Random(kind)
    refused = 0
    for _ in range(3000):
        data = bytearray(FORMATS[kind])
        for _ in range(randomly.choice((1, 1, 1, 4))):
            data[randomly.randrange(len(data))] = randomly.choice((0, 1, 127, 128, 255, randomly.randrange(256)))
        try:
            imatrix = read(file, bytes(data))
        except QuantkitError as error:
            assert isinstance(error, InputError)
            refused += 1
            continue
        for values in imatrix.entries.values():
            assert values.ndim == 2
            assert np.isfinite(values).all()
            assert (values >= 0).all()
    assert 0 < refused < 3000


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError) as caught:
            read_imatrix(path)
        assert caught.value.details["file"] == path


# ---- lengths and coverage


@pytest.fixture
def imatrix(file: Path) -> Imatrix:
    return read(file, GGUF)


def test_a_tensor_without_an_entry_has_none(imatrix: Imatrix) -> None:
    assert imatrix.of("output.weight", 6) is None


def test_another_size_is_refused(imatrix: Imatrix) -> None:
    with pytest.raises(TensorError) as caught:
        imatrix.of(A, 7)
    assert caught.value.details == {"tensor": A, "expected": [1, 7], "found": [1, 6]}


def test_two_matrices_are_not_one_of_twice_the_columns(file: Path) -> None:
    with pytest.raises(TensorError):
        read(file, gguf_of(entry_of(A, [[1.0, 2.0], [3.0, 4.0]], [1, 1]))).of(A, 4)


def test_an_embedding_of_another_size_is_left_unweighted(file: Path) -> None:
    """llama-quantize lets it pass with a line in its log (src/llama-quant.cpp:1291)."""
    embedding = "token_embd.weight"
    imatrix = read(file, gguf_of({**entry_of(A, [[1.0]], [1]), **entry_of(embedding, [[1.0, 2.0]], [1])}))
    found = imatrix.of(embedding, 2)
    assert found is not None
    assert found.tolist() == [1.0, 2.0]
    assert imatrix.of(embedding, 3) is None
    warnings: list[str] = []
    assert coverage(imatrix, [(A, 1), (embedding, 3)], warnings.append) == (embedding,)
    assert warnings == ["the importance of token_embd.weight is of another size; it is packed unweighted"]


def test_a_full_cover_says_nothing(imatrix: Imatrix) -> None:
    usual = [("token_embd.weight", 6), (A, 6), (B, 2), ("output.weight", 6)]
    assert coverage(imatrix, usual, pytest.fail) == ("token_embd.weight", "output.weight")


def test_what_is_missing_is_told_once(imatrix: Imatrix) -> None:
    warnings: list[str] = []
    missing = [(f"blk.{i}.ffn_up.weight", 2) for i in range(1, 6)]
    names = coverage(imatrix, [("output.weight", 6), (A, 6), (B, 2), *missing], warnings.append)
    assert names == ("output.weight", *(name for name, _ in missing))
    assert warnings == [
        "no importance for 5 of 8 matrices, packed unweighted: "
        "blk.1.ffn_up.weight, blk.2.ffn_up.weight, blk.3.ffn_up.weight, ..."
    ]


def test_what_the_model_lacks_is_told(imatrix: Imatrix) -> None:
    warnings: list[str] = []
    assert coverage(imatrix, [(A, 6)], warnings.append) == ()
    assert warnings == [f"1 of 2 importance entries are of no matrix here: {B}"]


def test_coverage_holds_the_lengths(imatrix: Imatrix) -> None:
    with pytest.raises(TensorError, match=B):
        coverage(imatrix, [(A, 6), (B, 3)], pytest.fail)


def test_nothing_in_common_is_refused(imatrix: Imatrix) -> None:
    with pytest.raises(TensorError) as caught:
        coverage(imatrix, [("blk.0.attn_q.weight", 6), ("output.weight", 6)], pytest.fail)
    assert caught.value.details["expected"] == "blk.0.attn_q.weight, output.weight"
    assert caught.value.details["found"] == f"{A}, {B}"
