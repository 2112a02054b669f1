"""`quantkit bench` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from quantkit import bench, kernels
from quantkit.bench import GGML, MEMCPY, NUMPY_THREADED
from quantkit.cli import main
from quantkit.errors import BugError

QUICK = ("bench", "-t", "q8_0", "-t", "BF16", "--seconds", "0")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small = bench.bench
    monkeypatch.setattr(bench, "MIN_TURNS", 1)
    monkeypatch.setattr(bench, "bench", lambda types, **options: small(types, shape=(4, 512), **options))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main([*QUICK, *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def without_ggml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libggml", None)


def test_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    without_ggml(monkeypatch)
    code, out, err = run(capsys)
    assert (code, err) == (0, "comparing bytes\ntiming\n")
    assert kernels.backend() in out
    assert "libggml-python is not installed; to have them: pip install --no-deps libggml-python" in out
    tables = [block.splitlines() for block in out.split("\n\n")[1:]]
    assert [lines[0].partition("  ")[0] for lines in tables] == [
        "encode",
        "encode with importance",
        "decode",
        "bytes moved",
    ]
    for title, *lines in tables[:3]:
        isas = [name.removeprefix("native/") for name in kernels.backends()[1:]]
        assert title.split()[-len(isas) - 4 :] == [*isas, "numpy", "numpy,", "2", "threads"]
        assert [line.split()[0] for line in lines] == ["Q8_0", "BF16"]
        assert not any("x" in line for line in lines)
    assert tables[3][1].startswith("BF16") and "GB/s" in tables[3][1]


def test_ratios_stand_beside_ours_and_not_beside_ggmls(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = bench.Report(
        "a processor",
        "native/avx2",
        (512, 5120),
        128,
        "1.2.3",
        None,
        [bench.Speed(bench.qtypes.Q4_K, mode, {GGML: 20e6, "native/avx2": 150e6, "numpy": 5e6}) for mode in bench.Mode],
    )
    monkeypatch.setattr(bench, "bench", lambda *_, **__: report)
    _, out, _ = run(capsys)
    assert "libggml-python 1.2.3" in out
    assert [line.split() for line in out.splitlines() if line.startswith("Q4_K")] == [
        ["Q4_K", "20", "150", "7.5x", "5", "0.25x"]
    ] * 3


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--json", "-q")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["schema"] == {"name": "quantkit.bench", "version": 1}
    assert report["backend"] == kernels.backend()
    assert (report["rows"], report["columns"], report["numpy_rows"]) == (4, 512, 4)
    assert [(speed["type"], speed["mode"]) for speed in report["speeds"]] == [
        (name, mode.value) for name in ("Q8_0", "BF16") for mode in bench.Mode
    ]
    ours = {*kernels.backends(), NUMPY_THREADED}
    for speed in report["speeds"]:
        assert ours <= speed["weights_per_second"].keys() <= ours | {GGML, MEMCPY}
        assert all(isinstance(rate, int) for rate in speed["weights_per_second"].values())
        assert speed["ratio_to_ggml"].keys() == (ours if report["libggml_python"] else set())
        is_copied = (speed["type"], speed["mode"]) == ("BF16", "decode")
        assert speed["share_of_memcpy"].keys() == (ours if is_copied else set())


def test_bytes_that_differ_end_it_with_70_and_no_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(*_: object) -> None:
        raise BugError("numpy and native/avx2 differ in Q8_0", hint="report it")

    monkeypatch.setattr(bench, "_compare", find)
    code, out, err = run(capsys)
    assert (code, out) == (70, "")
    assert err.splitlines()[-2:] == ["quantkit: error: numpy and native/avx2 differ in Q8_0", "hint: report it"]


@pytest.mark.parametrize("arguments", (["-t", "Q9_K"], ["-t", "F32"], ["--seconds", "-1"]))
def test_what_makes_no_sense(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err


def test_as_a_process() -> None:
    command = [sys.executable, "-m", "quantkit", *QUICK]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "Q8_0" in result.stdout
