"""A stopped conversion goes on: the same bytes as an undisturbed one, and never with another plan's leftovers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small
import small_moments
import synthetic_imatrix

from quantkit.checkpoint import open_checkpoint
from quantkit.convert import _plan_digests
from quantkit.gguf_io import read_gguf
from quantkit.imatrix import read_imatrix
from quantkit.plan import make_plan
from quantkit.recipe import preset

# Every slab takes a moment and every tensor is recorded at once, so that a kill finds something to lose and to keep.
SLOWLY = """
import sys, time
from quantkit import convert, slabs
from quantkit.cli import main
write = slabs._journey
def slowly(*arguments):
    time.sleep(0.01)
    return write(*arguments)
slabs._journey = slowly
slabs.SLAB_WEIGHTS = 16384
convert.SECONDS_BETWEEN_RECORDS = 0.0
main(sys.argv[1:])
"""
TYPES = ("-t", "Q4_K_M", "-t", "Q8_0")
NAMES = ("Q4_K_M", "Q8_0")


def start(source: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOWLY, "convert", str(source), *TYPES, "-o", str(out / "{type}.gguf"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(source: Path, out: Path, *arguments: str) -> str:
    process = start(source, out, *arguments)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert {path.name for path in out.iterdir()} == {f"{name}.gguf" for name in NAMES}
    return said


def digests(out: Path) -> dict[str, str]:
    return {name: hashlib.sha256((out / f"{name}.gguf").read_bytes()).hexdigest() for name in NAMES}


def stop(
    source: Path, out: Path, *arguments: str, sent: signal.Signals = signal.SIGKILL, after: int = 3
) -> tuple[int, str]:
    """Run until at least `after` tensors of each file are recorded, then send a signal; exit code and stderr."""
    process = start(source, out, *arguments)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if all(len(recorded(out, name)) >= after for name in NAMES):
            break
        time.sleep(0.005)
    process.send_signal(sent)
    _, said = process.communicate(timeout=30)
    return process.returncode, said


def recorded(out: Path, name: str) -> dict[str, object]:
    path = out / f"{name}.gguf.part.json"
    tensors: dict[str, object] = json.loads(path.read_text())["tensors"] if path.exists() else {}
    return tensors


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("resume") / "small")


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    finish(source, out)
    return digests(out)


def test_killed_at_fifty_random_moments(source: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    rng = random.Random(11)
    kills = kept = 0
    while kills < 50:
        process = start(source, tmp_path)
        try:
            process.wait(timeout=rng.uniform(0.3, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        kept += any(recorded(tmp_path, name) for name in NAMES)
        if process.returncode == 0:
            assert digests(tmp_path) == undisturbed
        if all((tmp_path / f"{name}.gguf").exists() for name in NAMES):
            for name in NAMES:
                (tmp_path / f"{name}.gguf").unlink()
    finish(source, tmp_path)
    assert digests(tmp_path) == undisturbed
    assert kept > 10, "most kills came before anything was recorded, so nothing was shown"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_pauses_and_says_how_to_go_on(
    source: Path, tmp_path: Path, undisturbed: dict[str, str], sent: signal.Signals
) -> None:
    code, said = stop(source, tmp_path, sent=sent)
    assert code == 75
    assert "hint: the same command goes on" in said
    done = {name: recorded(tmp_path, name) for name in NAMES}
    assert all(done.values())
    finish(source, tmp_path)
    assert digests(tmp_path) == undisturbed


def test_what_is_done_is_not_done_again(source: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    stop(source, tmp_path)
    parts = {name: tmp_path / f"{name}.gguf.part" for name in NAMES}
    tensors = {name: dict(list(recorded(tmp_path, name).items())[:2]) for name in NAMES}
    inodes = {name: part.stat().st_ino for name, part in parts.items()}
    finish(source, tmp_path)
    assert all(tensors.values())
    assert {name: (tmp_path / f"{name}.gguf").stat().st_ino for name in NAMES} == inodes
    assert digests(tmp_path) == undisturbed


def test_error_feedback_goes_on_with_the_same_moments_alone(source: Path, tmp_path: Path) -> None:
    expected, out, moments, others = (tmp_path / name for name in ("expected", "out", "moments", "others"))
    for folder in (expected, out, moments, others):
        folder.mkdir()
    small_moments.write(moments)
    small_moments.write(others, seed=9)
    how = ("--strategy", "feedback", "--covariance")
    finish(source, expected, *how, str(moments))
    stop(source, out, *how, str(others))
    finish(source, out, *how, str(moments))
    assert digests(out) == digests(expected)
    for name in NAMES:
        (out / f"{name}.gguf").unlink()
    stop(source, out, *how, str(moments))
    inodes = {name: (out / f"{name}.gguf.part").stat().st_ino for name in NAMES}
    finish(source, out, *how, str(moments))
    assert {name: (out / f"{name}.gguf").stat().st_ino for name in NAMES} == inodes
    assert digests(out) == digests(expected)


def test_no_resume_starts_over(source: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    stop(source, tmp_path)
    finish(source, tmp_path, "--no-resume")
    assert digests(tmp_path) == undisturbed


def test_a_damaged_part_is_done_again(source: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    stop(source, tmp_path)
    for name in NAMES:
        part = tmp_path / f"{name}.gguf.part"
        data = bytearray(part.read_bytes())
        at = 40_000  # within output.weight, which is recorded first
        data[at] ^= 1
        part.write_bytes(data)
    finish(source, tmp_path)
    assert digests(tmp_path) == undisturbed


@pytest.mark.parametrize("spoil", [b"", b"{", b"[]", b'{"schema": 1}', b"\xff"])
def test_a_damaged_record_starts_over(source: Path, tmp_path: Path, undisturbed: dict[str, str], spoil: bytes) -> None:
    stop(source, tmp_path)
    for name in NAMES:
        (tmp_path / f"{name}.gguf.part.json").write_bytes(spoil)
    finish(source, tmp_path)
    assert digests(tmp_path) == undisturbed


def test_a_changed_source_starts_over(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small")
    out, expected = tmp_path / "out", tmp_path / "expected"
    out.mkdir()
    expected.mkdir()
    stop(source, out)
    old = source / "model.safetensors"
    time.sleep(0.01)
    # the first tensor that is made: its old bytes would stay if the part were gone on with
    small.write(source, edit_tensors=lambda tensors: tensors["lm_head.weight"].__imul__(np.float32(1.5)))
    assert old.stat().st_size
    finish(source, out)
    finish(source, expected)
    assert digests(out) == digests(expected)


def test_another_name_in_the_metadata_starts_over(source: Path, tmp_path: Path) -> None:
    stop(source, tmp_path)
    finish(source, tmp_path, "--name", "Another")
    assert read_gguf(tmp_path / "Q8_0.gguf").fields["general.name"].value == "Another"


@pytest.mark.parametrize("change", ["recipe", "imatrix"])
def test_another_recipe_or_imatrix_starts_over(source: Path, tmp_path: Path, change: str) -> None:
    layers = [(f"blk.{i}.{name}.weight", small.HIDDEN) for i in range(small.LAYERS) for name in ("attn_qkv", "ffn_up")]
    synthetic_imatrix.write(tmp_path / "imatrix.gguf", "gguf", layers)
    option = {"recipe": ("--recipe", "classic"), "imatrix": ("--imatrix", str(tmp_path / "imatrix.gguf"))}[change]
    out, expected = tmp_path / "out", tmp_path / "expected"
    out.mkdir()
    expected.mkdir()
    stop(source, out)
    finish(source, out, *option)
    finish(source, expected, *option)
    assert digests(out) == digests(expected)


def test_a_second_run_is_refused_with_the_pid_of_the_first(source: Path, tmp_path: Path) -> None:
    first = start(source, tmp_path)  # takes about a second
    deadline = time.monotonic() + 30
    while not (tmp_path / "Q8_0.gguf.part.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)  # however long the second takes to begin
    second = start(source, tmp_path)
    _, said = second.communicate(timeout=30)
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 73)
    assert f"process {first.pid}" in said


def test_source_digests_are_those_of_the_source_even_after_a_stop(source: Path, tmp_path: Path) -> None:
    stop(source, tmp_path)
    finish(source, tmp_path)
    fields = read_gguf(tmp_path / "Q8_0.gguf").fields
    lines = []
    with open_checkpoint(source) as checkpoint:
        for name in sorted(checkpoint.tensors):
            tensor = checkpoint.tensors[name]
            raw = np.empty(tensor.nbytes, np.uint8)
            checkpoint.read_rows(tensor, 0, tensor.n_rows, raw)
            lines.append(f"{hashlib.sha256(raw.tobytes()).hexdigest()}  {name}\n")
    assert fields["quantkit.source.0.name"].value == "model.safetensors"
    assert fields["quantkit.source.0.sha256"].value == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_full_disk_keeps_what_is_done(source: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    stop(source, tmp_path)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    command = [
        sys.executable,
        "-c",
        limit + SLOWLY,
        "convert",
        str(source),
        *TYPES,
        "-o",
        str(tmp_path / "{type}.gguf"),
    ]
    before = {name: recorded(tmp_path, name) for name in NAMES}
    failed = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60)
    assert failed.returncode == 74, failed.stderr
    for name in NAMES:
        assert before[name].items() <= recorded(tmp_path, name).items()
    finish(source, tmp_path)
    assert digests(tmp_path) == undisturbed


def test_a_shard_is_not_gone_on_with_for_another_imatrix(source: Path, tmp_path: Path) -> None:
    """Only the first shard's header names the matrix; the others must start over all the same."""
    layers = [(f"blk.{i}.{name}.weight", small.HIDDEN) for i in range(small.LAYERS) for name in ("attn_qkv", "ffn_up")]
    synthetic_imatrix.write(tmp_path / "imatrix.gguf", "gguf", layers)
    with open_checkpoint(source) as checkpoint:
        plans = [
            make_plan(checkpoint, [preset("Q4_K_M")], imatrix=imatrix, split_max_bytes=200_000, warn=str)
            for imatrix in (None, read_imatrix(tmp_path / "imatrix.gguf"))
        ]
        without, with_it = ([digest for _, digest in _plan_digests(checkpoint, plan)] for plan in plans)
    assert len(without) == len(with_it) > 2
    assert not set(without) & set(with_it)


def test_stopped_while_the_files_are_put_in_place(source: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    publish_slowly = SLOWLY.replace(
        "main(sys.argv[1:])",
        "def never(self):\n    print('publishing', flush=True)\n    time.sleep(60)\n"
        "convert.AtomicFile.publish, publish = never, convert.AtomicFile.publish\n"
        "from quantkit import journal\njournal.AtomicFile = type('A', (convert.AtomicFile,), {'publish': publish})\n"
        "main(sys.argv[1:])",
    )
    command = [
        sys.executable,
        "-c",
        publish_slowly,
        "convert",
        str(source),
        *TYPES,
        "-o",
        str(tmp_path / "{type}.gguf"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "publishing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75, said
    assert all(len(recorded(tmp_path, name)) == 3 + 6 * small.LAYERS for name in NAMES)
    finish(source, tmp_path)
    assert digests(tmp_path) == undisturbed
