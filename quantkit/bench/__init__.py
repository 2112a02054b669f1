"""How fast the kernels are on this machine, every backend and ggml's own, once their bytes have been compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit import kernels, qtypes
from quantkit.bench.ggml import BYTES_ARE_OURS, Ggml
from quantkit.errors import BugError, UnsupportedError, UsageError
from quantkit.osio import cpu_name
from quantkit.qtypes import QType

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

TYPES = tuple(qtype for qtype in qtypes.ALL if qtype is not qtypes.F32)
SHAPE = (512, 5120)  # rows of the width of Phi-4's
NUMPY_ROWS = 128  # of those, for NumPy: it is slow, and 64 rows a thread are still five times what it takes at once
NUMPY_THREADS = 2
GGML, MEMCPY, NUMPY, NUMPY_THREADED = "ggml", "memcpy", "numpy", f"numpy, {NUMPY_THREADS} threads"

MIN_TURNS = 3
TURN_SECONDS = 0.02  # that a quick call is repeated for in a turn: many calls, so that one is not disturbed


class Mode(StrEnum):
    """What is done with the rows."""

    ENCODE = "encode"
    WEIGHTED = "encode with importance"
    DECODE = "decode"


@dataclass(frozen=True)
class Speed:
    """One type in one mode: the weights a second of each runner, by name (a backend, or one of those above)."""

    qtype: QType
    mode: Mode
    weights_per_second: Mapping[str, float]

    def ratio(self, name: str) -> float | None:
        """How many times ggml's speed a runner has, or None where ggml is not here."""
        ggml = self.weights_per_second.get(GGML)
        return self.weights_per_second[name] / ggml if ggml else None

    def memcpy_share(self, name: str) -> float | None:
        """The bytes that a runner reads and writes in a second, as a share of memcpy's; None where it did not run."""
        memcpy = self.weights_per_second.get(MEMCPY)
        bytes_moved = self.qtype.bits_per_weight / 8 + 4
        return self.weights_per_second[name] * bytes_moved / (memcpy * 8) if memcpy else None


@dataclass(frozen=True)
class Report:
    """What was measured, on what.

    processor      its model
    backend        what the other commands use here
    shape          rows and columns that the runners were given, numpy_rows of them NumPy
    ggml           the version of libggml-python, or None
    without_ggml   why there is none, or None
    speeds         a type after another, of each the modes
    """

    processor: str
    backend: str
    shape: tuple[int, int]
    numpy_rows: int
    ggml: str | None
    without_ggml: UnsupportedError | None
    speeds: Sequence[Speed]


@dataclass(frozen=True)
class _Runner:
    """One way to do it: functions like those of kernels, and what has to be entered before they are called."""

    name: str
    n_rows: int
    encode: Callable[[F32Array, QType, F32Array | None, U8Array], Any]
    decode: Callable[[U8Array, QType, F32Array], Any]
    ready: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class _Task:
    """One type in one mode: rows float32 (n, k), importance float32 (k,) or None, the rows' blocks uint8 (n, m)."""

    qtype: QType
    mode: Mode
    rows: F32Array
    importance: F32Array | None
    blocks: U8Array

    def call(self, runner: _Runner) -> tuple[Callable[[], Any], npt.NDArray[Any]]:
        """A function that lets the runner do its rows of this, and the array it fills."""
        n = runner.n_rows
        if self.mode is Mode.DECODE:
            values = np.zeros_like(self.rows[:n])
            return partial(runner.decode, self.blocks[:n], self.qtype, values), values
        blocks = np.zeros_like(self.blocks[:n])
        return partial(runner.encode, self.rows[:n], self.qtype, self.importance, blocks), blocks


def bench(
    types: Sequence[QType] = TYPES,
    *,
    seconds: float = 1.0,
    shape: tuple[int, int] = SHAPE,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Compare the bytes of every backend with NumPy's and with ggml's, then time them all.

    types     which, in the order of the report
    seconds   for each type and mode, at least; every runner has three turns in any case
    shape     rows and columns, Gaussian with standard deviation 0.02
    progress  called with the name of every step before it
    raises    BugError    two that must agree do not; nothing was timed
              ShapeError  columns do not divide into blocks
              UsageError  F32 is among the types
    """
    if qtypes.F32 in types:
        raise UsageError("F32 is stored as it is: there is nothing to measure")
    ggml, without_ggml = _find_ggml()
    random = np.random.default_rng(0)
    rows = random.standard_normal(shape, np.float32) * np.float32(0.02)
    importance = random.random(shape[1], np.float32) + np.float32(0.5)
    tasks = [task for qtype in types for task in _tasks(qtype, rows, importance)]
    numpy_rows = min(NUMPY_ROWS, shape[0])
    with ThreadPoolExecutor(NUMPY_THREADS) as pool:
        numpy = _backend("numpy", numpy_rows)
        ours = [_backend(name, shape[0]) for name in kernels.backends() if name != NUMPY]
        theirs = [_Runner(GGML, shape[0], ggml.encode, ggml.decode)] if ggml else []
        for task in tasks:
            progress(f"comparing bytes: {task.qtype} {task.mode}")
            _compare(task, [numpy, *(theirs if BYTES_ARE_OURS else ()), *ours])
        speeds = []
        for task in tasks:
            progress(f"timing: {task.qtype} {task.mode}")
            memcpy = [_memcpy(task)] if task.mode is Mode.DECODE and task.qtype.block_weights == 1 else []
            speeds.append(_time(task, [*theirs, *memcpy, *ours, numpy, _threaded(numpy, pool)], seconds))
    version = ggml.version if ggml else None
    return Report(cpu_name(), kernels.backend(), shape, numpy_rows, version, without_ggml, speeds)


def _find_ggml() -> tuple[Ggml | None, UnsupportedError | None]:
    try:
        return Ggml(), None
    except UnsupportedError as error:
        return None, error


def _tasks(qtype: QType, rows: F32Array, importance: F32Array) -> Iterator[_Task]:
    blocks = kernels.encode(rows, qtype)
    for mode in Mode:
        yield _Task(qtype, mode, rows, importance if mode is Mode.WEIGHTED else None, blocks)


# ---- the runners


def _backend(name: str, n_rows: int) -> _Runner:
    return _Runner(
        name,
        n_rows,
        lambda rows, qtype, importance, blocks: kernels.encode(rows, qtype, importance, out=blocks),
        lambda blocks, qtype, values: kernels.decode(blocks, qtype, out=values),
        partial(kernels.using, name),
    )


def _threaded(one: _Runner, pool: ThreadPoolExecutor) -> _Runner:
    """NumPy as `convert` has it run: a slab of the rows to each thread."""
    slabs = [slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(one.n_rows), NUMPY_THREADS) if part.size]

    def encode(rows: F32Array, qtype: QType, importance: F32Array | None, blocks: U8Array) -> None:
        list(pool.map(lambda slab: one.encode(rows[slab], qtype, importance, blocks[slab]), slabs))

    def decode(blocks: U8Array, qtype: QType, values: F32Array) -> None:
        list(pool.map(lambda slab: one.decode(blocks[slab], qtype, values[slab]), slabs))

    return _Runner(NUMPY_THREADED, one.n_rows, encode, decode, one.ready)


def _memcpy(task: _Task) -> _Runner:
    """The rows copied: what reading and writing alone take."""

    def encode(rows: F32Array, qtype: QType, importance: F32Array | None, blocks: U8Array) -> None:
        raise AssertionError("only stands beside decoders")

    return _Runner(MEMCPY, len(task.rows), encode, lambda blocks, qtype, values: np.copyto(values, task.rows))


# ---- what is done with them


def _compare(task: _Task, runners: Sequence[_Runner]) -> None:
    """Hold every answer against the first, which is of some of the rows, and the first of all; raises BugError."""
    known: list[tuple[str, npt.NDArray[np.uint8]]] = []
    for runner in runners:
        call, answer = task.call(runner)
        with runner.ready():
            call()
        found = answer.view(np.uint8)
        for name, expected in known:
            n = min(len(found), len(expected))
            if not np.array_equal(found[:n], expected[:n]):
                raise _difference(task, (runner.name, found[:n]), (name, expected[:n]))
        if len(known) < 2:
            known.append((runner.name, found))


def _difference(task: _Task, found: tuple[str, U8Array], expected: tuple[str, U8Array]) -> BugError:
    row, byte = map(int, np.argwhere(found[1] != expected[1])[0])
    return BugError(
        f"{found[0]} and {expected[0]} differ in {task.qtype}, {task.mode}, at byte {byte} of the row",
        hint="nothing was timed; please report it with your processor, compiler and libggml-python's version if any",
        row=row,
        expected=f"{expected[1][row, byte]:#04x}",
        found=f"{found[1][row, byte]:#04x}",
    )


def _time(task: _Task, runners: Sequence[_Runner], seconds: float) -> Speed:
    """The best time of each runner; they take turns, so that what disturbs the machine meets all of them."""
    calls = [task.call(runner)[0] for runner in runners]
    best = [math.inf] * len(runners)
    end, turns = time.perf_counter() + seconds, 0
    while turns < MIN_TURNS or time.perf_counter() < end:
        for i, (runner, call) in enumerate(zip(runners, calls, strict=True)):
            with runner.ready():
                best[i] = min(best[i], _best_of_a_turn(call))
        turns += 1
    n_columns = task.rows.shape[1]
    speeds = {runner.name: runner.n_rows * n_columns / took for runner, took in zip(runners, best, strict=True)}
    return Speed(task.qtype, task.mode, speeds)


def _best_of_a_turn(call: Callable[[], Any]) -> float:
    best, begin = math.inf, time.perf_counter()
    while True:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        best = min(best, end - start)
        if end - begin >= TURN_SECONDS:
            return best
