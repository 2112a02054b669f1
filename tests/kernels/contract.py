"""What every tensor type promises, checked on every candidate.

A type's test file derives a class from Contract, or from BlockContract where the type has a picture of its bits.
The oracle is libgguf, ggml's own encoders for Python; golden files stand in for it where it cannot be installed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import platform
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
from fills import FILLS, IMPORTANCES, ROW, Source, fill, importance
from float_mode import MODE_MASK, MODES, float_mode, read_mxcsr
from million import N_BLOCKS, mismatches, wanted
from numpy.typing import NDArray

from quantkit.errors import MagnitudeError, NotFiniteError, ShapeError
from quantkit.kernels import NUMPY_TEXTS
from quantkit.osio import cpu_count
from quantkit.qtypes import QType

try:
    from quantkit import _native as NATIVE
except ImportError:
    NATIVE = None
NATIVE_NAMES: tuple[str, ...] = NATIVE.isas() if NATIVE else ()

GOLDEN = Path(__file__).parents[1] / "golden" / "kernels"
ROWS_OF_A_FILL = 20_000 // len(FILLS) + 1  # so that each candidate packs 20,000 blocks
UNWEIGHTED = ("F32", "F16", "BF16", "Q8_0")  # come out the same with any importance
GOLDEN_COLUMNS = 2 * ROW  # of the golden rows with importance
GOLDEN_IMPORTANCES = ("skewed", "wide")
# What fewer than one block in 100 shows, as (fill, seed, importance): found by planting the fault and looking for rows
# that tell. Guarded: codes are clamped before they are rounded, for a nearly singular fit throws them beyond integers.
RARE = {
    "Q4_1": {"guarded": ("sparse", 47, "wide")},
    "Q5_1": {"guarded": ("sparse", 138, "wide")},
    "Q2_K": {"guarded": ("sparse", 564, "wide"), "a fifth round of fit_positive": ("bell", 5694, "zero_columns")},
    "Q4_K": {"guarded": ("sparse", 197, "wide"), "scale codes beyond 63": ("one_outlier", 64, "wide")},
    "Q5_K": {"guarded": ("sparse", 47, "wide")},
}
# (rows, columns) with importance: around what a kernel takes at once, and chunks that begin and end inside rows.
SHAPES = ((17, ROW), (33, 9 * 32), (3, 9 * ROW), (1, 20 * ROW))
CANARY = 0xA5
MAX_LANES = 16
N_THREADS = 8

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

needs_oracle = pytest.mark.skipif(
    importlib.util.find_spec("libgguf") is None, reason="libgguf has no wheel for this platform; golden files stand in"
)


@dataclass(frozen=True)
class Candidate:
    """Something that packs: quantkit.kernels.encode and decode with one backend."""

    name: str
    encode: Callable[..., U8]
    decode: Callable[..., F32]


@dataclass(frozen=True)
class PictureLine:
    """One field of one block, set to a value that fills it, and the only bytes that are then not zero."""

    field: str
    index: int | None  # None for a field that a block has once
    value: int  # of a float16 field: its bits
    bytes: Mapping[int, int]


# The head of a block that Q4_K and Q5_K share: a line of the picture in scale_min_block each.
SCALE_MIN_PICTURE = (
    PictureLine("d", None, 0x7BFF, {0: 0xFF, 1: 0x7B}),
    PictureLine("dmin", None, 0x7BFF, {2: 0xFF, 3: 0x7B}),
    PictureLine("scale", 2, 0b111111, {4 + 2: 0b111111}),
    PictureLine("scale", 4 + 2, 0b110000, {4 + 2: 0b11 << 6}),
    PictureLine("scale", 4 + 2, 0b001111, {12 + 2: 0b1111}),
    PictureLine("min", 3, 0b111111, {8 + 3: 0b111111}),
    PictureLine("min", 4 + 3, 0b110000, {8 + 3: 0b11 << 6}),
    PictureLine("min", 4 + 3, 0b001111, {12 + 3: 0b1111 << 4}),
)


@functools.cache
def reference(qtype: QType, fill_name: str) -> tuple[F32, U8]:
    """Rows of a fill, and what ggml packs them into."""
    rows = fill(fill_name, ROWS_OF_A_FILL, qtype.max_abs)
    return rows, packed_by_ggml(rows, qtype, None)


@functools.cache
def weighted_references(qtype: QType) -> list[tuple[str, F32, F32, U8]]:
    """Every fill in every shape, with one kind of importance after another: (what it is, rows, importance, blocks).

    Without the widest importance: libgguf is older than the release whose bytes are promised, and lacks its guard
    against codes that a nearly singular fit throws out of range.  Golden data has it.
    """
    kinds = itertools.cycle(name for name in IMPORTANCES if name != "wide")
    cases = []
    for (n, k), name in itertools.product(SHAPES, FILLS):
        if qtype.divides(k):
            for kind in itertools.islice(kinds, 3):
                rows = fill(name, -(-n * k // ROW), qtype.max_abs).reshape(-1)[: n * k].reshape(n, k)
                columns = importance(kind, k)
                what = f"{name}, {n} rows of {k}, importance {kind}"
                cases.append((what, rows, columns, packed_by_ggml(rows, qtype, columns)))
    return cases


def packed_by_ggml(rows: F32, qtype: QType, columns: F32 | None) -> U8:
    """What libgguf packs rows into, columns being their importance."""
    import libgguf

    packed = np.asarray(libgguf.quantize_rows(rows, qtype.id, columns)).view(np.uint8)
    return packed.reshape(len(rows), qtype.row_bytes(rows.shape[1]))


def golden_cases(qtype: QType) -> dict[str, tuple[str, int, tuple[str, ...]]]:
    """What golden data has of a type: (fill, seed, kinds of importance), every fill and then what is rare."""
    kinds = ("none",) if qtype.name in UNWEIGHTED else ("none", *GOLDEN_IMPORTANCES)
    rare = {what: (name, seed, (kind,)) for what, (name, seed, kind) in RARE.get(qtype.name, {}).items()}
    return {name: (name, 0, kinds) for name in FILLS} | rare


def golden_inputs(qtype: QType, case: str, n: int) -> tuple[dict[str, tuple[F32, F32 | None]], str]:
    """n rows of a golden case: by kind of importance, (rows, importance); and the hash of all."""
    name, seed, kinds = golden_cases(qtype)[case]
    rows = fill(name, n, qtype.max_abs, seed)
    inputs: dict[str, tuple[F32, F32 | None]] = {}
    sha256 = hashlib.sha256(rows)
    for kind in kinds:
        columns = None if kind == "none" else importance(kind, GOLDEN_COLUMNS, seed)
        inputs[kind] = (rows if columns is None else rows.reshape(-1, GOLDEN_COLUMNS)), columns
        sha256.update(b"" if columns is None else columns.tobytes())
    return inputs, sha256.hexdigest()


def assert_same_bytes(found: U8, expected: U8, qtype: QType, what: str) -> None:
    """Equal arrays; else a failure that names the first block that differs, and where in it."""
    assert found.shape == expected.shape
    if np.array_equal(found, expected):
        return
    found, expected = (array.reshape(-1, qtype.block_bytes) for array in (found, expected))
    blocks, places = np.nonzero(found != expected)
    first = blocks[0]
    pytest.fail(
        f"{what}: {len(np.unique(blocks))} of {len(found)} blocks differ, first block {first} at bytes "
        f"{places[blocks == first].tolist()}\nfound    {found[first].tobytes().hex()}\n"
        f"expected {expected[first].tobytes().hex()}"
    )


def between_canaries(nbytes: int, offset: int = 64) -> tuple[U8, U8]:
    """A buffer full of canaries, and the nbytes from offset in it; 64 bytes follow those."""
    buffer = np.full(offset + nbytes + 64, CANARY, np.uint8)
    return buffer, buffer[offset : offset + nbytes]


def assert_canaries(buffer: U8, inside: U8) -> None:
    """Nothing but the bytes inside was written."""
    start = inside.ctypes.data - buffer.ctypes.data
    outside = np.concatenate([buffer[:start], buffer[start + inside.nbytes :]])
    assert (outside == CANARY).all(), "bytes outside the output were written"


def text_of(qtype: QType) -> str:
    """The name that a type's texts, test and golden file share, such as q4_k."""
    return NUMPY_TEXTS[qtype.name][0].__module__.rpartition(".")[2]


def call_native(native: ModuleType, qtype: QType, rows: F32, columns: F32 | None) -> tuple[U8, F32]:
    """Encode and decode without quantkit.kernels around it: no Python between the mode and the call."""
    n, k = rows.shape
    packed = np.empty((n, qtype.row_bytes(k)), np.uint8)
    values = np.empty_like(rows)
    assert native.encode(qtype.id, rows, n, k, columns, qtype.max_abs, packed) < 0
    native.decode(qtype.id, packed, n, k, values)
    return packed, values


class Contract:
    """Checks that any type passes; a subclass names the type."""

    qtype: QType
    tolerance: float  # error of a block at max_abs, in max_abs

    def packed(self, n_rows: int, offset: int = 64) -> tuple[U8, U8]:
        """A canary buffer, and the place in it of n_rows packed rows of ROW weights."""
        row_bytes = self.qtype.row_bytes(ROW)
        buffer, inside = between_canaries(n_rows * row_bytes, offset)
        return buffer, inside.reshape(n_rows, row_bytes)

    def test_golden(self, candidate: Candidate) -> None:
        golden = json.loads((GOLDEN / f"{text_of(self.qtype)}.json").read_text())[self.qtype.name]
        assert list(golden) == list(golden_cases(self.qtype))
        for case, entry in golden.items():
            nbytes = sum(map(len, next(iter(entry["packed"].values())))) // 2  # two digits a byte
            inputs, sha256 = golden_inputs(self.qtype, case, nbytes // self.qtype.row_bytes(ROW))
            assert sha256 == entry["inputs_sha256"], f"the inputs of {case} are others, not a kernel"
            assert list(entry["packed"]) == list(inputs)
            for kind, (rows, columns) in inputs.items():
                expected = np.array([list(bytes.fromhex(row)) for row in entry["packed"][kind]], np.uint8)
                found = candidate.encode(rows, self.qtype, columns)
                assert_same_bytes(found, expected, self.qtype, f"{case}, importance {kind}")

    @needs_oracle
    def test_equals_reference(self, candidate: Candidate) -> None:
        for name in FILLS:
            rows, expected = reference(self.qtype, name)
            assert_same_bytes(candidate.encode(rows, self.qtype), expected, self.qtype, name)

    @needs_oracle
    def test_equals_reference_with_importance(self, candidate: Candidate) -> None:
        for what, rows, columns, expected in weighted_references(self.qtype):
            assert_same_bytes(candidate.encode(rows, self.qtype, columns), expected, self.qtype, what)

    def test_importance_counts(self, candidate: Candidate) -> None:
        """Where the format heeds it at all."""
        rows = fill("bell", 2, self.qtype.max_abs)
        without = candidate.encode(rows, self.qtype)
        skewed = candidate.encode(rows, self.qtype, importance("skewed", ROW))
        assert np.array_equal(without, skewed) == (self.qtype.name in UNWEIGHTED)

    @needs_oracle
    @pytest.mark.skipif(not NATIVE_NAMES, reason="no C kernels in this installation")
    @pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
    def test_a_million_blocks(self, weighted: bool) -> None:
        """What happens once in 150,000 blocks happens here; every C variant packs them."""
        if not wanted(self.qtype, weighted):
            pytest.skip("minutes in all: `make test-isa` packs a million of every type")
        assert N_BLOCKS >= 1_000_000
        assert mismatches(self.qtype, weighted, NATIVE_NAMES, cpu_count()) == []

    def test_decode_is_the_formula(self, candidate: Candidate) -> None:
        """On any bytes, NaN and infinite scales included."""
        blocks = Source(1).halfwords(1 << 12, self.qtype.row_bytes(ROW) // 2).view(np.uint8)
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType(self.qtype.id))
        found = candidate.decode(blocks, self.qtype)
        assert found.shape == (len(blocks), ROW)
        assert np.array_equal(found.view(np.uint32), expected.astype(np.float32).view(np.uint32).reshape(-1, ROW))

    def test_lengths(self, candidate: Candidate) -> None:
        """None, one, and around every number of lanes: in a row, and a block in each row; nothing else is written."""
        weights, nbytes = self.qtype.block_weights, self.qtype.block_bytes
        rows = np.concatenate([fill(name, 6, self.qtype.max_abs) for name in FILLS])
        values = rows.reshape(-1, weights)
        expected = np.concatenate([candidate.encode(row[None], self.qtype) for row in rows]).reshape(-1, nbytes)
        decoded = candidate.decode(expected, self.qtype)
        for n in range(2 * MAX_LANES + 2):
            for shape in ((1, n), (n, 1)):
                buffer, inside = between_canaries(n * nbytes)
                out = inside.reshape(shape[0], shape[1] * nbytes)
                x = values[:n].reshape(shape[0], shape[1] * weights)
                assert candidate.encode(x, self.qtype, out=out) is out
                assert_same_bytes(out, expected[:n].reshape(out.shape), self.qtype, f"{shape} blocks")
                assert_canaries(buffer, inside)

                buffer, inside = between_canaries(n * weights * 4)
                y = inside.view(np.float32).reshape(x.shape)
                assert candidate.decode(out, self.qtype, out=y) is y
                assert np.array_equal(y.view(np.uint32), decoded[:n].view(np.uint32).reshape(y.shape))
                assert_canaries(buffer, inside)

    def test_rows_stand_alone(self, candidate: Candidate) -> None:
        """With importance too, a row's bytes do not depend on the rows beside it, nor on how many there are."""
        k = 9 * self.qtype.block_weights  # rows begin anywhere in a chunk
        columns = importance("skewed", -(-k // 32) * 32)[:k]
        weights = np.concatenate([fill(name, 9, self.qtype.max_abs) for name in FILLS]).reshape(-1)
        rows = weights[: 3 * (MAX_LANES + 1) * k].reshape(-1, k)
        expected = np.concatenate([candidate.encode(row[None], self.qtype, columns) for row in rows])
        for n in (0, 1, MAX_LANES - 1, MAX_LANES, MAX_LANES + 1, len(rows)):
            buffer, inside = between_canaries(n * expected.shape[1])
            out = inside.reshape(n, expected.shape[1])
            assert candidate.encode(rows[:n], self.qtype, columns, out=out) is out
            assert_same_bytes(out, expected[:n], self.qtype, f"{n} rows")
            assert_canaries(buffer, inside)

    def test_unaligned(self, candidate: Candidate) -> None:
        """Blocks at any address, floats at any multiple of 4."""
        rows = fill("bell", MAX_LANES + 1, self.qtype.max_abs)
        columns = importance("skewed", ROW)
        expected = candidate.encode(rows, self.qtype, columns)
        decoded = candidate.decode(expected, self.qtype)
        for shift in range(1, 8):
            buffer, inside = between_canaries(rows.nbytes, offset=64 + 4 * shift)
            shifted = inside.view(np.float32).reshape(rows.shape)
            shifted[:] = rows
            packed_buffer, packed = self.packed(len(rows), offset=64 + shift)
            shifted_columns = between_canaries(columns.nbytes, offset=64 + 4 * shift)[1].view(np.float32)
            shifted_columns[:] = columns
            candidate.encode(shifted, self.qtype, shifted_columns, out=packed)
            assert_same_bytes(packed, expected, self.qtype, f"shifted by {shift}")
            shifted[:] = 0
            candidate.decode(packed, self.qtype, out=shifted)
            assert np.array_equal(shifted, decoded)
            assert_canaries(buffer, inside)
            assert_canaries(packed_buffer, packed)

    @pytest.mark.parametrize("place", [(0, 0), (1, 131), (2, ROW - 1)], ids=["first", "middle", "last"])
    @pytest.mark.parametrize("sign", [1, -1], ids=["plus", "minus"])
    @pytest.mark.parametrize("kind", ["nan", "inf", "beyond"])
    def test_refuses(self, candidate: Candidate, kind: str, sign: int, place: tuple[int, int]) -> None:
        with np.errstate(over="ignore"):  # beyond F32's largest is infinity
            beyond = np.nextafter(np.float32(self.qtype.max_abs), np.float32(np.inf))
        value = np.copysign({"nan": np.float32(np.nan), "inf": np.float32(np.inf), "beyond": beyond}[kind], sign)
        rows = fill("bell", 3, self.qtype.max_abs)
        rows[-1, -1] = np.nan  # a later one, which is not the one to name
        rows[place] = value
        buffer, out = self.packed(len(rows))
        with pytest.raises(MagnitudeError if np.isfinite(value) else NotFiniteError) as caught:
            candidate.encode(rows, self.qtype, out=out)
        assert (caught.value.details["row"], caught.value.details["column"]) == place
        np.testing.assert_equal(caught.value.details["found"], float(value))
        assert_canaries(buffer, out)

    def test_the_limit_is_safe(self, candidate: Candidate) -> None:
        """Weights of exactly max_abs are taken, and come back about as large, whatever stands beside them."""
        limit = np.float32(self.qtype.max_abs)
        n = 1 << 10
        rows = np.concatenate([np.full((2, ROW), limit), fill("two_values", 2, limit), fill("huge", n, limit)])
        rows[1] = -limit
        rows[2:4] = np.copysign(limit, rows[2:4])
        shaped = np.concatenate([fill(name, 64, 1.0) for name in ("bell", "one_outlier", "loud_run", "many_scales")])
        with np.errstate(over="ignore"):
            shaped = (shaped / np.abs(shaped).max(axis=1, keepdims=True) * limit).clip(-limit, limit)
        rows = np.ascontiguousarray(np.concatenate([rows, shaped]))
        rows[4:, 0] = limit
        decoded = candidate.decode(candidate.encode(rows, self.qtype), self.qtype)
        assert np.isfinite(decoded).all()
        worst = np.abs(decoded.astype(np.float64) - rows).max() / self.qtype.max_abs
        assert worst <= self.tolerance
        for kind in ("skewed", "zero_runs", "zeros", "ones"):  # what does not count may come back as anything finite
            decoded = candidate.decode(candidate.encode(rows, self.qtype, importance(kind, ROW)), self.qtype)
            assert np.isfinite(decoded).all(), kind

    def test_threads(self, candidate: Candidate) -> None:
        """The same rows in many threads at once: the same bytes in all."""
        rows = np.concatenate([fill(name, 64, self.qtype.max_abs) for name in FILLS])
        columns = importance("skewed", ROW)
        expected = candidate.encode(rows, self.qtype, columns)
        start = threading.Barrier(N_THREADS)

        def work(_: int) -> tuple[U8, F32]:
            start.wait()
            packed = candidate.encode(rows, self.qtype, columns)
            return packed, candidate.decode(packed, self.qtype)

        with ThreadPoolExecutor(N_THREADS) as pool:
            results = list(pool.map(work, range(N_THREADS)))
        decoded = candidate.decode(expected, self.qtype)
        for packed, values in results:
            assert_same_bytes(packed, expected, self.qtype, "one of the threads")
            assert np.array_equal(values, decoded)

    @pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="the layout of fenv_t is that of glibc's x86-64",
    )
    @pytest.mark.parametrize("columns", [None, importance("skewed", ROW)], ids=["plain", "importance"])
    @pytest.mark.parametrize("isa", NATIVE_NAMES)
    def test_float_environment(self, isa: str, columns: F32 | None) -> None:
        """A call's result does not depend on the caller's floating-point mode, and leaves it alone."""
        assert NATIVE is not None
        rows = np.concatenate([fill(name, 32, self.qtype.max_abs) for name in FILLS])
        NATIVE.use(isa)
        try:
            expected, expected_values = call_native(NATIVE, self.qtype, rows, columns)
            for mode, bits in MODES.items():
                with float_mode(bits):
                    packed, values = call_native(NATIVE, self.qtype, rows, columns)
                    kept = read_mxcsr() & MODE_MASK
                assert kept == bits, f"{mode}: the caller's mode was changed"
                assert_same_bytes(packed, expected, self.qtype, mode)
                assert np.array_equal(values.view(np.uint32), expected_values.view(np.uint32)), mode
        finally:
            NATIVE.use(None)

    def test_shapes(self, candidate: Candidate) -> None:
        rows = fill("bell", 2, self.qtype.max_abs)
        packed = candidate.encode(rows, self.qtype)
        wrong_rows = {
            "one dimension": rows[0],
            "three dimensions": rows[None],
            "float64": rows.astype(np.float64),
            "columns first": np.asfortranarray(rows),
            "every second column": np.hstack([rows, rows])[:, ::2],
        }
        wrong_packed = {
            "one dimension": packed[0],
            "int8": packed.view(np.int8),
            "columns first": np.asfortranarray(packed),
        }
        if self.qtype.block_weights > 1:
            wrong_rows["part of a block"] = np.ascontiguousarray(rows[:, :-1])
        if self.qtype.block_bytes > 1:
            wrong_packed["part of a block"] = np.ascontiguousarray(packed[:, :-1])
        for what, array in wrong_rows.items():
            with pytest.raises(ShapeError):
                candidate.encode(array, self.qtype)
                pytest.fail(f"encode took rows: {what}")
        columns = importance("ones", ROW)
        for what, wrong in {"short": columns[1:], "matrix": columns[None], "type": columns.view(np.int32)}.items():
            with pytest.raises(ShapeError):
                candidate.encode(rows, self.qtype, wrong)
                pytest.fail(f"encode took importance: {what}")
        for what, array in wrong_packed.items():
            with pytest.raises(ShapeError):
                candidate.decode(array, self.qtype)
                pytest.fail(f"decode took blocks: {what}")
        for call, array, out in ((candidate.encode, rows, packed), (candidate.decode, packed, rows)):
            for what, wrong in {"short": out[:1], "wide": np.hstack([out, out]), "type": out.view(np.int8)}.items():
                with pytest.raises(ShapeError):
                    call(array, self.qtype, out=wrong)
                    pytest.fail(f"{call.__name__} took out: {what}")


class BlockContract(Contract):
    """Checks of a type whose NumPy text has pack and unpack under a picture of the bits."""

    text: ModuleType
    picture: tuple[PictureLine, ...]

    def test_pack_inverts_unpack(self) -> None:
        """On any bytes: no field is lost, none overlaps another."""
        blocks = Source(2).halfwords(1 << 12, self.qtype.block_bytes // 2).view(np.uint8)
        assert_same_bytes(self.repack(self.text.unpack(blocks)), blocks, self.qtype, "pack(unpack(b))")

    def test_picture(self) -> None:
        """Each line of the picture above pack: one field that is not zero lands on the bytes that the line says."""
        for line in self.picture:
            unpacked = self.text.unpack(np.zeros((1, self.qtype.block_bytes), np.uint8))
            field = self.fields(unpacked)[line.field]
            place = (0,) if line.index is None else (0, line.index)
            field.view(f"u{field.itemsize}")[place] = line.value
            block = self.repack(unpacked)[0]
            assert {int(i): int(block[i]) for i in np.flatnonzero(block)} == line.bytes, line

    def repack(self, unpacked: Any) -> U8:
        """pack of what unpack returned."""
        packed: U8 = self.text.pack(*unpacked) if isinstance(unpacked, tuple) else self.text.pack(unpacked)
        return packed

    def fields(self, unpacked: Any) -> dict[str, Any]:
        """What unpack returned, by name: a Block, or the arguments of pack."""
        if isinstance(unpacked, tuple):
            return dict(zip(inspect.signature(self.text.pack).parameters, unpacked, strict=True))
        return vars(unpacked)
