"""The checks of an installation: each passes here, and fails where what it looks at is spoiled."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from quantkit import kernels
from quantkit.cli import main
from quantkit.doctor import Finding, findings, machine, machine_checks

CHECKS = {"python", "processor", "kernels", "memory", "disk", *(f"extra {name}" for name in machine._EXTRAS)}


def examine(folder: Path, *names: str) -> dict[str, Finding]:
    return dict(findings((name, check) for name, check in machine_checks(folder) if not names or name in names))


def test_this_machine_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The libraries themselves are another test's: importing all of them takes seconds."""
    monkeypatch.setattr(machine, "_extra_check", lambda name: lambda: machine.ok(name))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert ended.value.code == 0
    found = {check["name"]: check["verdict"] for check in json.loads(capsys.readouterr().out)["checks"]}
    isas = {f"kernels {backend}" for backend in kernels.backends() if backend != "numpy"}
    assert found.keys() == CHECKS | isas
    assert {name for name, verdict in found.items() if verdict != "ok"} <= {"kernels", "disk"}
    assert not list(tmp_path.iterdir())


def test_an_instruction_set_that_packs_wrongly_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = kernels.backends()[-1]
    if backend == "numpy":
        pytest.skip("there are no C kernels here")
    encode = kernels.encode

    def wrong(rows: Any, qtype: Any, importance: Any = None) -> Any:
        packed = encode(rows, qtype, importance)
        if qtype.name == "Q5_K" and importance is not None and kernels.backend() == backend:
            packed[1, 3] ^= 1
        return packed

    monkeypatch.setattr(machine.kernels, "encode", wrong)
    finding = examine(tmp_path, f"kernels {backend}")[f"kernels {backend}"]
    assert (finding.verdict, finding.found) == ("failed", "other bytes than NumPy's: Q5_K")
    assert finding.cure


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
    assert examine(tmp_path, "memory")["memory"].verdict == "failed"
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    assert examine(tmp_path, "memory")["memory"].verdict == "skipped"


def test_too_little_disk_and_a_folder_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_space", lambda folder: 1 << 20)
    assert "1.0 MiB are free" in examine(tmp_path, "disk")["disk"].found
    assert "nothing can be written" in examine(tmp_path / "missing", "disk")["disk"].found


def test_kernels_that_are_not_there_or_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.kernels, "backend", lambda: "numpy")
    monkeypatch.setattr(machine.kernels, "backends", lambda: ("numpy", "native/scalar"))
    assert examine(tmp_path, "kernels")["kernels"].cure == "unset QUANTKIT_BACKEND"
    monkeypatch.setattr(machine.kernels, "backends", lambda: ("numpy",))
    assert "no C kernels" in examine(tmp_path, "kernels")["kernels"].found


EXTRAS = {
    "sound": (("numpy",), "import numpy", "ok", metadata.version("numpy")),
    "missing": (("frobnicate",), "import frobnicate", "skipped", "no frobnicate: for nothing"),
    "broken": (("numpy",), "raise ImportError('libfrob.so: cannot open')", "failed", "libfrob.so: cannot open"),
    "killed": (("numpy",), "import os; os.kill(os.getpid(), 4)", "failed", "exit code -4"),
}


@pytest.mark.parametrize("case", EXTRAS)
def test_optional_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    libraries, program, verdict, words = EXTRAS[case]
    monkeypatch.setitem(machine._EXTRAS, "case", machine.Extra("nothing", libraries, program))
    finding = examine(tmp_path, "extra case")["extra case"]
    assert finding.verdict == verdict
    assert words in finding.found
    assert (finding.cure is None) == (verdict == "ok")
