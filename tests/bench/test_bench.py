"""`quantkit.bench`: what is compared and timed, in which order. How long anything takes decides nothing here."""

from __future__ import annotations

import importlib.util
import math
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from quantkit import bench, kernels, qtypes
from quantkit.bench import GGML, MEMCPY, NUMPY, NUMPY_THREADED, Mode, Speed
from quantkit.bench import ggml as ggml_module
from quantkit.errors import BugError, UnsupportedError, UsageError

ENCODE, DECODE = kernels.encode, kernels.decode  # whatever a test puts in their place
TYPES = (qtypes.BF16, qtypes.Q8_0, qtypes.Q4_K)
SHAPE = (5, 512)


class OurGgml:
    """Stands in for ggml's library: the same bytes, but for the one of `wrong_mode` that it gets wrong."""

    version = "1.2.3"
    wrong_mode: Mode | None = None

    def encode(self, rows: Any, qtype: qtypes.QType, importance: Any, out: Any) -> None:
        ENCODE(rows, qtype, importance, out=out)
        if self.wrong_mode is (Mode.ENCODE if importance is None else Mode.WEIGHTED):
            out[-1, -1] ^= 1

    def decode(self, blocks: Any, qtype: qtypes.QType, out: Any) -> None:
        DECODE(blocks, qtype, out=out)
        if self.wrong_mode is Mode.DECODE:
            out[-1, -1] += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MIN_TURNS", 1)
    monkeypatch.setattr(bench, "TURN_SECONDS", 0)
    monkeypatch.setattr(bench, "BYTES_ARE_OURS", True)
    monkeypatch.setattr(bench, "Ggml", OurGgml)


def run(**options: Any) -> bench.Report:
    return bench.bench(TYPES, seconds=0, shape=SHAPE, **options)


def test_every_runner_is_timed_for_every_type_and_mode() -> None:
    report = run()
    assert [(speed.qtype, speed.mode) for speed in report.speeds] == [(t, mode) for t in TYPES for mode in Mode]
    for speed in report.speeds:
        copied = {MEMCPY} if speed.mode is Mode.DECODE and speed.qtype is qtypes.BF16 else set()
        assert speed.weights_per_second.keys() == {GGML, *kernels.backends(), NUMPY_THREADED} | copied
        assert all(0 < rate < math.inf for rate in speed.weights_per_second.values())
    assert (report.shape, report.numpy_rows) == (SHAPE, SHAPE[0])
    assert (report.ggml, report.without_ggml) == ("1.2.3", None)
    assert report.backend == kernels.backend()
    assert report.processor


def test_everything_is_compared_before_anything_is_timed() -> None:
    steps: list[str] = []
    run(progress=steps.append)
    stages = [step.partition(":")[0] for step in steps]
    assert stages == ["comparing bytes"] * 9 + ["timing"] * 9
    assert steps[4] == "comparing bytes: Q8_0 encode with importance"


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_time", lambda *_: pytest.fail("timed, though the bytes differ"))


def spoilt(encode: Callable[..., Any], when: Callable[[qtypes.QType, Any], bool]) -> Callable[..., Any]:
    """kernels.encode or decode, one bit of the answer's last row flipped where `when` says so."""

    def wrong(given: Any, qtype: qtypes.QType, importance: Any = None, *, out: Any = None) -> Any:
        extra = () if importance is None else (importance,)
        out = encode(given, qtype, *extra, out=out)
        if when(qtype, importance):
            out[-1].view(np.uint8)[-1] ^= 1
        return out

    return wrong


@pytest.mark.usefixtures("no_timing")
@pytest.mark.parametrize("backend", kernels.backends())
@pytest.mark.parametrize("mode", Mode)
def test_a_wrong_byte_of_any_backend_is_a_bug(monkeypatch: pytest.MonkeyPatch, backend: str, mode: Mode) -> None:
    def when(qtype: qtypes.QType, importance: Any) -> bool:
        right_mode = (importance is not None) == (mode is Mode.WEIGHTED)
        return right_mode and qtype is qtypes.Q4_K and kernels.backend() == backend

    name = "decode" if mode is Mode.DECODE else "encode"
    monkeypatch.setattr(kernels, name, spoilt(getattr(kernels, name), when))
    with pytest.raises(BugError, match=f"differ in Q4_K, {mode}, at byte") as caught:
        run()
    assert caught.value.message.count(backend) == 1
    assert caught.value.details["row"] == SHAPE[0] - 1
    assert caught.value.details["expected"] != caught.value.details["found"]
    assert caught.value.hint


@pytest.mark.usefixtures("no_timing")
@pytest.mark.parametrize("mode", Mode)
def test_a_byte_that_is_not_ggmls_is_a_bug(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    monkeypatch.setattr(OurGgml, "wrong_mode", mode)
    with pytest.raises(BugError, match=f"^row 4: ggml and numpy differ in BF16, {mode}, "):
        run()


def test_where_ggmls_bytes_are_its_builds_own_they_are_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BYTES_ARE_OURS", False)
    monkeypatch.setattr(OurGgml, "wrong_mode", Mode.ENCODE)
    assert all(GGML in speed.weights_per_second for speed in run().speeds)


def test_without_ggml_there_are_no_ratios_but_the_way_to_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Ggml", ggml_module.Ggml)
    monkeypatch.setitem(sys.modules, "libggml", None)
    report = run()
    assert report.ggml is None
    assert report.without_ggml is not None
    assert report.without_ggml.hint == "pip install --no-deps libggml-python"
    for speed in report.speeds:
        assert GGML not in speed.weights_per_second
        assert speed.ratio(NUMPY) is None


def test_without_c_kernels_numpy_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ImportError

    monkeypatch.setattr(kernels, "_c_kernels", absent)
    for speed in run().speeds:
        assert speed.weights_per_second.keys() - {MEMCPY} == {GGML, NUMPY, NUMPY_THREADED}


def test_f32_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        bench.bench([qtypes.Q8_0, qtypes.F32], seconds=0, shape=SHAPE)


# ---- the figures


def test_ratio_and_share_of_memcpy() -> None:
    speed = Speed(qtypes.BF16, Mode.DECODE, {GGML: 100.0, MEMCPY: 300.0, NUMPY: 200.0})
    assert speed.ratio(NUMPY) == 2
    assert speed.memcpy_share(NUMPY) == 200 * (2 + 4) / (300 * (4 + 4))
    assert Speed(qtypes.BF16, Mode.ENCODE, {NUMPY: 1.0}).memcpy_share(NUMPY) is None


class Clock:
    """A clock that runners set forward by what they take, and who ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def runner(self, name: str, *seconds: float) -> bench._Runner:
        """One that takes these seconds in turn, and the last from then on."""
        left = list(seconds)

        def encode(*_: Any) -> None:
            self.ran.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return bench._Runner(name, SHAPE[0], encode, encode)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


def task() -> bench._Task:
    rows = np.ones(SHAPE, np.float32)
    return bench._Task(qtypes.Q8_0, Mode.ENCODE, rows, None, kernels.encode(rows, qtypes.Q8_0))


def test_runners_take_turns_and_the_best_counts(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(bench, "MIN_TURNS", 3)
    speed = bench._time(task(), [clock.runner("a", 4, 2, 8), clock.runner("b", 5)], 0)
    assert clock.ran == ["a", "b"] * 3
    n_weights = SHAPE[0] * SHAPE[1]
    assert speed.weights_per_second == {"a": n_weights / 2, "b": n_weights / 5}


def test_turns_go_on_until_the_seconds_are_over(clock: Clock) -> None:
    bench._time(task(), [clock.runner("a", 1), clock.runner("b", 1)], 9)
    assert clock.ran == ["a", "b"] * 5


def test_a_quick_call_is_repeated_within_its_turn(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(bench, "TURN_SECONDS", 2)
    bench._time(task(), [clock.runner("quick", 0.5), clock.runner("slow", 3)], 0)
    assert clock.ran == ["quick"] * 4 + ["slow"]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("n_rows", (1, 5))
def test_numpys_threads_do_a_slab_each(mode: Mode, n_rows: int) -> None:
    rows = np.linspace(-1, 1, n_rows * 512, dtype=np.float32).reshape(n_rows, 512)
    threads: set[int] = set()
    together = threading.Barrier(min(n_rows, bench.NUMPY_THREADS))

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> None:
            together.wait(timeout=10)
            threads.add(threading.get_ident())
            function(*arguments)

        return call

    one = bench._backend(NUMPY, n_rows)
    with bench.ThreadPoolExecutor(bench.NUMPY_THREADS) as pool:
        slow = bench._Runner(NUMPY, n_rows, noted(one.encode), noted(one.decode), one.ready)
        given = bench._Task(qtypes.Q4_K, mode, rows, None, kernels.encode(rows, qtypes.Q4_K))
        bench._compare(given, [one, bench._threaded(slow, pool)])
    assert len(threads) == together.parties


# ---- ggml


needs_ggml = pytest.mark.skipif(
    not importlib.util.find_spec("libggml"), reason="libggml-python is not here: `make bench` installs it"
)


@needs_ggml
@pytest.mark.skipif(not ggml_module.BYTES_ARE_OURS, reason="on this processor its bytes are its build's own")
@pytest.mark.parametrize("qtype", bench.TYPES, ids=str)
def test_ggml_gives_our_bytes_and_floats(qtype: qtypes.QType) -> None:
    library = ggml_module.Ggml()
    rows = np.random.default_rng(1).standard_normal((3, 768), np.float32)
    importance = np.linspace(0.5, 1.5, 768, dtype=np.float32)
    for weights in (None, importance):
        ours = kernels.encode(rows, qtype, weights)
        theirs = np.zeros_like(ours)
        library.encode(rows, qtype, weights, theirs)
        assert np.array_equal(ours, theirs)
    values = np.zeros_like(rows)
    library.decode(ours, qtype, values)
    assert np.array_equal(values.view(np.uint32), kernels.decode(ours, qtype).view(np.uint32))


@needs_ggml
def test_a_library_that_does_not_load_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError("wrong ELF class")

    monkeypatch.setattr(ggml_module.ctypes, "CDLL", refuse)
    with pytest.raises(UnsupportedError, match="cannot be used: wrong ELF class"):
        ggml_module.Ggml()
