"""What this processor can run did run, what it cannot is a skip that says so; and who chooses, by the environment."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small

from quantkit import kernels, qtypes

try:
    from quantkit import _native
except ImportError:
    _native = None

NAMES = _native.isas() if _native else ()
X86_64, AARCH64 = {"x86_64", "AMD64"}, {"aarch64", "arm64"}
# instruction set: (machines, what the processor must list)
NEEDS = {
    "scalar": (X86_64 | AARCH64, set()),
    "baseline": (X86_64, set()),
    "avx2": (X86_64, {"avx2", "f16c"}),
    "avx512": (X86_64, {"avx512f", "avx512bw", "avx512dq", "avx512vl", "f16c"}),
    "neon": (AARCH64, set()),
}
WITHOUT_C = "import sys; sys.modules['quantkit._native'] = None; from quantkit.cli import main; main()"

needs_c = pytest.mark.skipif(_native is None, reason="no C kernels in this installation: NumPy alone was tested")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("variants") / "small")


def run(source: Path, out: Path, *, c: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """`quantkit convert` with these QUANTKIT_ variables and no others."""
    start = ["-m", "quantkit"] if c else ["-c", WITHOUT_C]
    arguments = ["convert", str(source), "-t", "Q4_K_M", "-t", "Q8_0", "-o", str(out / "{type}.gguf"), "--json", "-q"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QUANTKIT_")}
    command = [sys.executable, *start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean | environment, timeout=60)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files' hashes with the NumPy kernels."""
    out = tmp_path_factory.mktemp("numpy")
    result = run(source, out, QUANTKIT_BACKEND="numpy")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["backend"] == "numpy"
    assert len(digests(out)) == 2
    return digests(out)


def test_the_table_knows_every_instruction_set() -> None:
    assert set(NAMES) <= NEEDS.keys()
    assert len(set(NAMES)) == len(NAMES)


@needs_c
@pytest.mark.parametrize("name", NEEDS)
def test_instruction_set_ran(name: str) -> None:
    """tests/kernels takes its candidates from the list that is checked here."""
    machines, flags = NEEDS[name]
    cpuinfo = Path("/proc/cpuinfo")
    if flags and not cpuinfo.exists():
        pytest.skip("this system has no /proc/cpuinfo to tell whether the processor can")
    has = set(cpuinfo.read_text().split()) if flags else set()
    if platform.machine() not in machines:
        pytest.skip(f"{name} is not of {platform.machine()}: not tested here")
    if not flags <= has:
        pytest.skip(f"this processor has no {' '.join(sorted(flags - has))}: {name} was not tested")
    assert name in NAMES
    rows = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
    packed = np.zeros((2, 144), np.uint8)
    try:
        _native.use(name)
        assert _native.isa() == name
        assert _native.encode(qtypes.Q4_K.id, rows, 2, 256, None, 1.0, packed) == -1
    finally:
        _native.use(None)
    assert np.array_equal(packed, kernels.encode(rows, qtypes.Q4_K))


@needs_c
def test_the_fastest_runs_by_itself(source: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    result = run(source, tmp_path)
    assert json.loads(result.stdout)["backend"] == f"native/{NAMES[-1]}"
    assert result.stderr == ""
    assert digests(tmp_path) == expected


@pytest.mark.parametrize("name", NAMES)
def test_an_instruction_set_can_be_forced(name: str, source: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    result = run(source, tmp_path, QUANTKIT_BACKEND="native", QUANTKIT_ISA=name)
    assert json.loads(result.stdout)["backend"] == f"native/{name}"
    assert digests(tmp_path) == expected


def test_without_c_one_line_says_so(source: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    result = run(source, tmp_path, c=False)
    assert result.returncode == 0
    assert json.loads(result.stdout)["backend"] == "numpy"
    assert result.stderr == "quantkit: no C kernels in this installation; the slower NumPy ones give the same bytes\n"
    assert digests(tmp_path) == expected


def test_without_c_one_line_however_many_threads() -> None:
    """The line is still being written when the other threads come."""
    code = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
sys.modules["quantkit._native"] = None
from quantkit import kernels

class Slow:
    flush = sys.__stderr__.flush
    def write(self, text):
        time.sleep(0.2)
        return sys.__stderr__.write(text)

sys.stderr = Slow()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: kernels.backend(), range(4)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.count("no C kernels") == 1


def test_without_c_it_cannot_be_forced(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path, c=False, QUANTKIT_BACKEND="native")
    refused(result, tmp_path, "QUANTKIT_BACKEND=native", "no C kernels")


def test_unknown_backend(source: Path, tmp_path: Path) -> None:
    refused(run(source, tmp_path, QUANTKIT_BACKEND="cuda"), tmp_path, "QUANTKIT_BACKEND=cuda", "native or numpy")


@needs_c
@pytest.mark.parametrize("name", ["sse9", *sorted(NEEDS.keys() - set(NAMES))])
def test_unknown_or_absent_instruction_set(name: str, source: Path, tmp_path: Path) -> None:
    refused(run(source, tmp_path, QUANTKIT_ISA=name), tmp_path, f"QUANTKIT_ISA={name} ", ", ".join(NAMES))


def refused(result: subprocess.CompletedProcess[str], out: Path, *sentences: str) -> None:
    """A usage error that says why, and no file."""
    assert result.returncode == 2
    assert result.stdout == ""
    assert all(sentence in result.stderr for sentence in sentences), result.stderr
    assert "Traceback" not in result.stderr
    assert list(out.iterdir()) == []
