"""The operating system's border: complete reads and writes, files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import osio
from quantkit.errors import DiskError, InputError, OutputError, UsageError
from quantkit.osio import AtomicFile, InputFile, file_sha256, reading, writing

CONTENT = bytes(range(256)) * 40


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own, with arguments in sys.argv[1:]."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


# ---- reading


@pytest.fixture(params=["_pread_vector", "_pread_seek"])
def pread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, memoryview, int], int]:
    """Each way of reading in turn, also the one for systems without pread."""
    one: Callable[[int, memoryview, int], int] = getattr(reading, request.param)
    monkeypatch.setattr(reading, "_pread", one)
    return one


@pytest.mark.parametrize("most", [1, 7, 4096, 1 << 30])
def test_read_in_pieces(
    most: int, file: Path, pread: Callable[[int, memoryview, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system call may return less than was asked for."""
    monkeypatch.setattr(reading, "_pread", lambda fd, out, offset: pread(fd, out[:most], offset))
    with InputFile(file) as opened:
        assert opened.size == len(CONTENT)
        assert opened.read(5000, 300) == CONTENT[300:5300]
        assert opened.read(0, 300) == b""


@pytest.mark.usefixtures("pread")
def test_read_by_many_threads(file: Path) -> None:
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            offset = rng.randrange(len(CONTENT))
            nbytes = rng.randint(0, len(CONTENT) - offset)
            if opened.read(nbytes, offset) != CONTENT[offset : offset + nbytes]:
                wrong.append(offset)

    with InputFile(file) as opened:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.usefixtures("pread")
def test_read_past_the_end(file: Path) -> None:
    with InputFile(file) as opened, pytest.raises(DiskError, match="ends too early") as caught:
        opened.read(20, len(CONTENT) - 5)
    assert caught.value.exit_code == 74
    assert caught.value.details["file"] == file
    assert caught.value.details["offset"] == len(CONTENT)
    assert caught.value.details["expected"] == "15 more bytes"


def test_read_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_pread", raising(errno.EIO))
    with InputFile(file) as opened, pytest.raises(DiskError, match="Input/output error") as caught:
        opened.read(20, 7)
    assert caught.value.details["offset"] == 7


@pytest.mark.parametrize("name", ["absent", "folder", "fifo", "content/below", "n" * 300, "a\0b"])
def test_what_cannot_be_opened(name: str, file: Path) -> None:
    """The FIFO has no writer: opening it must not wait for one."""
    (file.parent / "folder").mkdir()
    os.mkfifo(file.parent / "fifo")
    descriptors = sorted(Path("/dev/fd").iterdir())
    with pytest.raises(InputError) as caught:
        InputFile(file.parent / name)
    assert sorted(Path("/dev/fd").iterdir()) == descriptors
    assert caught.value.exit_code == 65
    assert caught.value.details["file"] == file.parent / name


def test_kind_of_path(file: Path) -> None:
    link = file.parent / "link"
    link.symlink_to(file)
    assert osio.is_file(link)
    assert not osio.is_folder(link)
    assert osio.is_folder(file.parent)
    for nothing in (file.parent / "absent", file / "below"):
        assert not osio.is_file(nothing)
        assert not osio.is_folder(nothing)
    with pytest.raises(InputError, match="too long"):
        osio.is_file(file.parent / ("n" * 300))


# ---- writing


def raising(code: int) -> Callable[..., Any]:
    """A system call that fails with the error number code."""

    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("name", ["pwrite", "_pwrite_seek"])
@pytest.mark.parametrize("most", [1, 7, 1 << 30])
def test_write_in_pieces(name: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = getattr(writing, name, None) or getattr(os, name)
    monkeypatch.setattr(writing, "_pwrite", lambda fd, data, offset: one(fd, data[:most], offset))
    with AtomicFile(tmp_path / "out") as out:
        out.write(CONTENT[3000:], 3000)
        out.write(bytearray(CONTENT[:3000]), 0)
        out.publish()
    assert (tmp_path / "out").read_bytes() == CONTENT


@pytest.mark.parametrize(("offset", "nbytes"), [(0, None), (0, 0), (1, 999), (7, 1000), (300, 2001), (7, None)])
def test_sha256_of_a_stretch(offset: int, nbytes: int | None, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_HASHED_AT_ONCE", 1000)
    stop = None if nbytes is None else offset + nbytes
    with InputFile(file) as opened:
        assert opened.sha256(offset, nbytes) == hashlib.sha256(CONTENT[offset:stop]).hexdigest()
    assert file_sha256(file) == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("shape", [(5,), (5, 4), (2, 5, 2), (0, 5)])
def test_views_of_any_shape(shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """len() of a matrix counts rows, and its items need not be bytes."""
    read, write = reading._pread, writing._pwrite
    monkeypatch.setattr(reading, "_pread", lambda fd, out, offset: read(fd, out.cast("B")[:7], offset))
    monkeypatch.setattr(writing, "_pwrite", lambda fd, data, offset: write(fd, data.cast("B")[:7], offset))
    words = np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)
    with AtomicFile(tmp_path / "out") as out:
        out.write(words.data, 8)
        out.publish()
    assert (tmp_path / "out").read_bytes()[8:] == words.tobytes()
    back = np.empty(shape, np.uint32)
    with InputFile(tmp_path / "out") as file:
        file.read_into(back.data, 8)
    assert back.tobytes() == words.tobytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_write_to_a_full_disk() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(DiskError, match="No space left") as caught:
            osio.pwrite_all(fd, b"abc", 0, file="out")
    finally:
        os.close(fd)
    assert caught.value.exit_code == 74
    assert caught.value.hint == "free some space, or write to another disk"
    assert caught.value.details == {"file": "out", "offset": 0}


# ---- files that appear whole or not at all


@pytest.fixture(params=["new", "over an old file"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A final name in a folder of its own, with and without an old file there."""
    path = tmp_path / "folder" / "out.gguf"
    path.parent.mkdir()
    if request.param != "new":
        path.write_bytes(b"old")
    return path


def untouched(out: Path) -> bool:
    """Whether the folder is as the fixture made it."""
    names = [path.name for path in out.parent.iterdir()]
    return names == [] or (names == [out.name] and out.read_bytes() == b"old")


def test_publish(out: Path) -> None:
    with AtomicFile(out) as file:
        file.write(b"def", 3)
        file.write(b"abc", 0)
        assert file.part_path == out.with_name("out.gguf.part")
        file.publish()
    assert out.read_bytes() == b"abcdef"
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_empty_file(out: Path) -> None:
    with AtomicFile(out) as file:
        file.publish()
    assert out.read_bytes() == b""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, None])
def test_left_without_publish(error: type[BaseException] | None, out: Path) -> None:
    def use() -> None:
        with AtomicFile(out) as file:
            file.write(b"half", 0)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            use()
    else:
        use()
    assert untouched(out)


# Where a step of publish() fails, and whether the new file then has its name already.
STEPS = [("os.fsync", False), ("pathlib.Path.replace", False), ("quantkit.osio.writing._sync_folder", True)]


@pytest.mark.parametrize(("step", "in_place"), STEPS)
def test_publish_fails(step: str, in_place: bool, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail = raising(errno.EIO)
    if step == "quantkit.osio.writing._sync_folder":  # the second fsync is the folder's
        real, calls = os.fsync, [0]

        def fail_second(fd: int) -> None:
            calls[0] += 1
            (fail if calls[0] == 2 else real)(fd)

        monkeypatch.setattr("os.fsync", fail_second)
    else:
        monkeypatch.setattr(step, fail)
    with pytest.raises(DiskError) as caught, AtomicFile(out) as file:
        file.write(b"new", 0)
        file.publish()
    assert caught.value.exit_code == 74
    assert [path.name for path in out.parent.iterdir()] == [out.name] if in_place else untouched(out)
    assert not in_place or out.read_bytes() == b"new"


def test_order_of_publishing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes to disk, then the name, then the name to disk: a power cut finds the old file or the whole new one."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(fd: int) -> None:
        steps.append("fsync folder" if os.path.samestat(os.fstat(fd), out.parent.stat()) else "fsync file")
        fsync(fd)

    def note_replace(part: Path, final: Path) -> Path:
        steps.append("rename")
        return replace(part, final)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    with AtomicFile(out) as file:
        file.write(b"new", 0)
        file.publish()
    assert steps == ["fsync file", "rename", "fsync folder"]


def folder_in_place(path: Path) -> None:
    path.mkdir()


def fifo_in_place(path: Path) -> None:
    os.mkfifo(path)


def link_to_folder(path: Path) -> None:
    path.symlink_to(path.parent)


def no_parent(path: Path) -> None:
    path.parent.rmdir()


def parent_is_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_bytes(b"")


def part_is_folder(path: Path) -> None:
    path.with_name(path.name + ".part").mkdir()


def part_is_link(path: Path) -> None:
    """Somebody else's link to a file that must not be overwritten."""
    path.with_name(path.name + ".part").symlink_to(path.parent / "precious")


def part_is_fifo(path: Path) -> None:
    os.mkfifo(path.with_name(path.name + ".part"))


PLACES = [
    (folder_in_place, "a folder stands in its place"),
    (fifo_in_place, "not a regular file"),
    (link_to_folder, "a folder stands in its place"),
    (no_parent, "the folder does not exist"),
    (parent_is_file, "cannot be created"),
    (part_is_folder, "cannot be created"),
    (part_is_link, "cannot be created"),
    (part_is_fifo, "not a regular file"),
]


@pytest.mark.parametrize(("prepare", "words"), PLACES)
def test_what_cannot_be_created(prepare: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    out = tmp_path / "folder" / "out.gguf"
    prepare(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=words) as caught:
        AtomicFile(out)
    assert caught.value.exit_code == 73
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["", ".", "..", "/", "n" * 300, "a\0b", os.devnull])
def test_names_that_are_no_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError):
        AtomicFile(Path(name))
    assert not list(tmp_path.iterdir())


def test_name_too_long_for_its_part(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        AtomicFile(tmp_path / ("n" * 253))


def test_link_in_place_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "out").symlink_to("target")
    with AtomicFile(tmp_path / "out") as file:
        file.write(b"new", 0)
        file.publish()
    assert (tmp_path / "target").read_bytes() == b"old"
    assert (tmp_path / "out").read_bytes() == b"new"
    assert not (tmp_path / "out").is_symlink()


def test_no_permission() -> None:
    """As root nothing is forbidden, so root becomes another user first."""
    code = """
import os, sys
from quantkit.errors import OutputError
from quantkit.osio import AtomicFile
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    AtomicFile(sys.argv[1])
except OutputError as error:
    print(error.exit_code, error)
"""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        result = run(code, f"{folder}/out")
        assert result.stdout.startswith(f"73 {folder}/out.part: cannot be created: Permission denied")
        assert not list(Path(folder).iterdir())


def test_second_run_is_refused(out: Path) -> None:
    with AtomicFile(out) as file:
        file.write(b"first", 0)
        with pytest.raises(OutputError, match="another run is writing"):
            AtomicFile(out)
        file.publish()
    assert out.read_bytes() == b"first"
    with AtomicFile(out) as file:  # the lock is gone with the first run
        file.publish()


def test_part_that_vanishes_before_its_lock_is_taken_anew(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run may publish between our open and our lock: then our descriptor is its finished file."""
    lock = writing._lock

    def publish_meanwhile(fd: int, path: Path) -> None:
        if not moved:
            moved.append(path.replace(out))
            out.write_bytes(b"the other run's")
        lock(fd, path)

    moved: list[Path] = []
    monkeypatch.setattr(writing, "_lock", publish_meanwhile)
    with AtomicFile(out) as file:
        file.write(b"x", 0)
        assert moved
        assert out.read_bytes() == b"the other run's"


def test_file_size_limit_reached(out: Path) -> None:
    """The limit stands in for a full disk: writing fails half-way."""
    code = """
import json, resource, sys
from quantkit.errors import DiskError
from quantkit.osio import AtomicFile
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with AtomicFile(sys.argv[1]) as file:
        for i in range(4):
            file.write(bytes(400_000), i * 400_000)
        file.publish()
except DiskError as error:
    print(json.dumps([error.exit_code, error.hint, error.details["offset"]]))
"""
    result = json.loads(run(code, out).stdout)
    assert result == [74, "free some space, or write to another disk", 1 << 20]
    assert untouched(out)


def test_kill_half_way(out: Path) -> None:
    code = """
import sys, time
from quantkit.osio import AtomicFile
with AtomicFile(sys.argv[1]) as file:
    file.write(b"half", 0)
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.kill()
    part = out.with_name("out.gguf.part")
    assert part.read_bytes() == b"half"
    assert not out.exists() or out.read_bytes() == b"old"
    with AtomicFile(out) as file:  # the next run takes the part over and keeps nothing of it
        file.write(b"all", 0)
        file.publish()
    assert out.read_bytes() == b"all"
    assert not part.exists()


def test_kill_at_any_time(tmp_path: Path) -> None:
    """A child publishes one version after the other; whenever it dies, the file is one whole version."""
    code = """
import sys
from quantkit.osio import AtomicFile
for version in range(100_000):
    with AtomicFile(sys.argv[1]) as file:
        for i in range(8):
            file.write(bytes([version % 256]) * 20_000, i * 20_000)
        file.publish()
    print(version, flush=True)
"""
    out = tmp_path / "out"
    rng = random.Random(0)
    for _ in range(12):
        with subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.random() * 0.05)
            child.kill()
        content = out.read_bytes()
        assert content == content[:1] * 160_000


# ---- what an output must not replace

WRITTEN: dict[str, tuple[str, str]] = {  # the output, the input
    "itself": ("a", "a"),
    "by another way": ("folder/../a", "a"),
    "a link to it": ("link", "a"),
    "what a link is to": ("a", "link"),
    "its part": ("a", "a.part"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_an_output_that_is_an_input_is_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("a", "a.part", "b"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to("a")
    output, read = WRITTEN[case]
    with pytest.raises(UsageError, match="would replace an input") as caught:
        osio.refuse_replacing([tmp_path / "new", tmp_path / output], [tmp_path / "b", tmp_path / read])
    assert caught.value.details["file"] == tmp_path / read
    assert caught.value.hint


def test_other_outputs_are_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"")
    inputs = [tmp_path / "a", tmp_path / "none", tmp_path, Path("hub:a/b/c"), Path("\0")]
    osio.refuse_replacing([tmp_path / "b", tmp_path / "none", tmp_path / "\0"], inputs)


# ---- the machine


def test_free_space(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert abs(osio.free_space(tmp_path) - status.f_bavail * status.f_frsize) < 1 << 30
    with pytest.raises(OutputError, match="absent"):
        osio.free_space(tmp_path / "absent")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cpu_count() -> None:
    code = """
import os
import platform
from quantkit import osio
from quantkit.osio import cpu_count
print(cpu_count() == len(os.sched_getaffinity(0)))
osio.limit_cpus(1 << 20)
print(cpu_count() == len(os.sched_getaffinity(0)))
osio.limit_cpus(1)
print(cpu_count())
osio.limit_cpus(1 << 20)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(cpu_count())
"""
    assert run(code).stdout == "True\nTrue\n1\n1\n"


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "machine", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nmodel name\t: AMD EPYC\n", "x", "x86_64", "AMD EPYC"),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", "", "aarch64", "aarch64"),
        (None, "arm", "arm64", "arm"),
    ],
    ids=["x86-64 Linux", "AArch64 Linux", "macOS"],
)
def test_cpu_name(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, processor: str, machine: str, name: str
) -> None:
    def read_text(self: Path, *_: object, **__: object) -> str:
        assert str(self) == "/proc/cpuinfo"
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: processor)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert osio.cpu_name() == name
