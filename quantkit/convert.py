"""Fill planned outputs in one pass over the weights: slab by slab, on all processors, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from quantkit import __version__, kernels
from quantkit.checkpoint import Weights
from quantkit.digests import Abandoned, FailTogether, OrderedDigest
from quantkit.errors import (
    BusyError,
    DiskError,
    Interrupted,
    MagnitudeError,
    NotFiniteError,
    OutputError,
    Paused,
    UsageError,
)
from quantkit.journal import Done, Journal
from quantkit.osio import AtomicFile, allocated_bytes, cpu_count, free_space, refuse_replacing
from quantkit.plan import Job, OutputFile, Plan, shard_digests
from quantkit.qtypes import QType

SLAB_WEIGHTS = 1 << 20  # 4 MiB of float32: large beside a system call, small beside the memory of any machine
SECONDS_BETWEEN_RECORDS = 5.0  # what a kill can cost
PROCESS_BYTES = 128 << 20  # the interpreter, NumPy, a vocabulary of 200,000 tokens


def convert(
    weights: Weights,
    plan: Plan,
    paths: Sequence[Path],
    *,
    threads: int | None = None,
    resume: bool = True,
    progress: Callable[[int], None] = lambda source_bytes: None,
) -> None:
    """Write the planned files.  Each appears under its name whole, after all of them are; on any error none does.

    paths     where each of plan.files goes
    threads   slabs worked on at once; None for one a processor.  The bytes written do not depend on it.
    resume    go on from what a stopped run of the same plan left
    progress  called with the source bytes of each finished slab, from the calling thread
    raises    NotFiniteError, MagnitudeError   a weight that cannot be packed (names tensor, row, column)
              OutputError, DiskError           the files cannot be created or written
              BusyError                        another run writes one of them (names its process)
              Paused, Interrupted              KeyboardInterrupt came, with and without something to go on from
    """
    _check_paths(weights, plan, paths)
    with ExitStack() as stack:
        parts: list[_Part] = []
        try:
            for path, (file, digest) in zip(paths, _plan_digests(weights, plan), strict=True):
                parts.append(stack.enter_context(_Part(path, file, digest, resume)))
            for part in parts:
                part.begin()
            _fill(weights, plan, parts, threads or cpu_count(), progress)
            _finish(weights, parts)
        except KeyboardInterrupt:
            kept = [part.keep() for part in parts]
            if any(kept):
                raise Paused("stopped", hint="the same command goes on from what is done") from None
            raise Interrupted("stopped; nothing was written under a final name") from None
        except (DiskError, OutputError):
            for part in parts:
                part.keep()
            raise


def _finish(weights: Weights, parts: Sequence[_Part]) -> None:
    """Write the final headers, and put each file under its name; raises DiskError, OutputError."""
    sources = {name: digest for part in parts for done in part.done.values() for name, digest in done.sources.items()}
    digests = shard_digests(weights, sources)
    for part in parts:
        part.file.write(part.planned.finished_header(digests), 0)
    for part in reversed(parts):  # of a split file the first shard comes last: it is the one that gets loaded
        part.file.publish()
        part.journal.remove()


def memory_bytes(threads: int | None = None) -> int:
    """About how much memory a conversion holds, whatever the model: what a thread keeps of a slab, and the process."""
    widest = 4 + 4 + 4  # bytes of a weight as read, as float32 and as packed
    return PROCESS_BYTES + (threads or cpu_count()) * SLAB_WEIGHTS * widest


def _plan_digests(weights: Weights, plan: Plan) -> Iterator[tuple[OutputFile, str]]:
    """Each file with what must be the same for its part to be gone on with.

    That is the code, the sources, and all that was planned: a file's own header, and the first shard's, which names the
    recipe and the importance matrix.
    """
    stats = [(shard.name, status.st_size, status.st_mtime_ns) for shard in weights.shards for status in [shard.stat()]]
    tensors = [(t.name, t.dtype.name, t.shape, t.file.name, t.offset) for t in weights.tensors.values()]
    values = [(job.name, job.values) for job in plan.jobs if job.values]
    for output in plan.outputs:
        for file in output.files:
            headers = [hashlib.sha256(shard.header).hexdigest() for shard in (output.files[0], file)]
            facts = [__version__, headers, stats, tensors, values]
            yield file, hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class _Part:
    """A file that is being filled, and the record of what is certain in it.

    done   the tensors that are complete, recorded or not
    """

    def __init__(self, path: Path, planned: OutputFile, plan_digest: str, resume: bool) -> None:
        try:
            self.file = AtomicFile(path, go_on=resume)
        except BusyError as error:
            owner = Journal.owner(path.with_name(path.name + ".part"))
            raise BusyError(error.message, hint=error.hint, **error.details | {"found": f"process {owner}"}) from None
        self.planned = planned
        self.journal = Journal.beside(self.file.part_path, plan_digest)
        self.done: dict[str, Done] = {}

    def begin(self) -> None:
        """Find out what the part holds already, and give it its size and header; raises DiskError, OutputError."""
        planned = self.planned
        for tensor in planned.tensors:
            done = self.journal.tensors.get(tensor.name)
            if done and self._holds(done, len(planned.header) + tensor.offset, tensor.nbytes):
                self.done[tensor.name] = done
        if not self.done:
            self.file.resize(0)
        self.file.resize(planned.nbytes)  # padding is zeros, and stays so
        self.file.write(planned.header, 0)
        self.journal.tensors = dict(self.done)
        self.journal.write()

    def _holds(self, done: Done, offset: int, nbytes: int) -> bool:
        """Whether the part has these bytes there."""
        if offset + nbytes > self.file.size:
            return False
        digest, piece = hashlib.sha256(), memoryview(bytearray(1 << 22))
        for start in range(offset, offset + nbytes, len(piece)):
            some = piece[: min(len(piece), offset + nbytes - start)]
            self.file.read_into(some, start)
            digest.update(some)
        return digest.hexdigest() == done.sha256

    def record(self) -> None:
        """Make what is done certain."""
        if any(name not in self.journal.tensors for name in self.done):
            self.file.sync()
            self.journal.tensors = dict(self.done)
            self.journal.write()

    def keep(self) -> bool:
        """Leave the part for a later run, if it holds anything; whether it does."""
        with suppress(DiskError, OutputError):  # the disk may be what is wrong; what was recorded before still is
            self.record()
        if not self.journal.tensors:
            return False
        self.file.keep()
        return True

    def __enter__(self) -> _Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and self.journal.tensors:
            self.file.keep()  # a second signal while the first was being answered
        elif self.file.discard():
            self.journal.remove()


@dataclass(frozen=True)
class Slab:
    """Rows start to stop of a job's tensor."""

    job: Job
    start: int
    stop: int
    last: bool

    @property
    def source_bytes(self) -> int:
        return sum((stop - start) * source.row_bytes for source, start, stop in self.job.rows(self.start, self.stop))


@dataclass
class _Work:
    """One job in progress: the digests of its sources and of what it becomes, by type."""

    job: Job
    sources: dict[str, OrderedDigest] = field(default_factory=dict)
    packed: dict[QType, OrderedDigest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sources = {source.name: OrderedDigest() for source in self.job.sources}
        self.packed = {target.qtype: OrderedDigest() for target in self.job.targets}

    def done(self, qtype: QType) -> Done:
        return Done(self.packed[qtype].hexdigest(), {name: digest.hexdigest() for name, digest in self.sources.items()})


def _fill(weights: Weights, plan: Plan, parts: Sequence[_Part], threads: int, progress: Callable[[int], None]) -> None:
    """Work through all slabs of all jobs that are not done, and note each tensor when its last slab is."""
    files = [part.file for part in parts]
    scratch = threading.local()
    recorded = time.monotonic()

    def finish(slab: Slab, work: _Work, future: Future[None]) -> None:
        nonlocal recorded
        future.result()
        progress(slab.source_bytes)
        if slab.last:
            for target in slab.job.targets:
                parts[target.file].done[slab.job.name] = work.done(target.qtype)
        if time.monotonic() - recorded > SECONDS_BETWEEN_RECORDS:
            for part in parts:
                part.record()
            recorded = time.monotonic()

    with ThreadPoolExecutor(threads) as pool:
        running: deque[tuple[Slab, _Work, Future[None]]] = deque()
        try:
            for job in plan.jobs:
                left = tuple(target for target in job.targets if job.name not in parts[target.file].done)
                work = _Work(replace(job, targets=left))
                for slab in slabs(work.job):
                    if not left:
                        progress(slab.source_bytes)
                        continue
                    running.append((slab, work, pool.submit(_write_slab, weights, slab, work, files, scratch)))
                    if len(running) > 2 * threads:
                        finish(*running.popleft())
            while running:
                finish(*running.popleft())
        except BaseException as error:
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, Abandoned):  # a slab gave up because another failed: that one's error is the news
                for _, _, future in running:
                    if future.done() and not future.cancelled():
                        with suppress(Abandoned):
                            future.result()
            raise


def slabs(job: Job) -> Iterator[Slab]:
    """The tensor's rows in pieces of about SLAB_WEIGHTS."""
    step = max(1, SLAB_WEIGHTS // job.n_columns)
    for start in range(0, job.n_rows, step):
        yield Slab(job, start, min(start + step, job.n_rows), start + step >= job.n_rows)


class _Scratch:
    """Arrays that one thread uses again and again; each grows to the largest size asked for."""

    def __init__(self) -> None:
        self._buffers: dict[str, Any] = {}

    def array(self, name: str, dtype: Any, shape: tuple[int, int]) -> Any:
        nbytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
        if name not in self._buffers or self._buffers[name].nbytes < nbytes:
            self._buffers[name] = np.empty(nbytes, np.uint8)
        return self._buffers[name][:nbytes].view(dtype).reshape(shape)


def _write_slab(weights: Weights, slab: Slab, work: _Work, files: Sequence[AtomicFile], local: threading.local) -> None:
    """Read a slab, widen it, pack it once for each distinct type, and put it in its places."""
    if not hasattr(local, "scratch"):
        local.scratch = _Scratch()
    scratch: _Scratch = local.scratch
    job, n_rows = slab.job, slab.stop - slab.start
    with FailTogether(*work.sources.values(), *work.packed.values()):
        rows = scratch.array("rows", np.float32, (n_rows, job.n_columns))
        _read(weights, slab, work, rows, scratch)
        for qtype, digest in work.packed.items():
            row_bytes = qtype.row_bytes(job.n_columns)
            packed = scratch.array("packed", np.uint8, (n_rows, row_bytes))
            _encode(rows, qtype, packed, slab)
            digest.add(slab.start * row_bytes, packed.data)
            for target in job.targets:
                if target.qtype is qtype:
                    files[target.file].write(packed.data.cast("B"), target.offset + slab.start * row_bytes)


def _read(weights: Weights, slab: Slab, work: _Work, rows: Any, scratch: _Scratch) -> None:
    """Fill rows float32 (n, k) with the slab's weights."""
    if slab.job.values:
        rows[:] = np.array(slab.job.values, np.float32).reshape(slab.job.n_rows, -1)[slab.start : slab.stop]
    first = 0
    for source, start, stop in slab.job.rows(slab.start, slab.stop):
        raw = scratch.array("raw", np.uint8, (stop - start, source.row_bytes))
        weights.read_rows(source, start, stop, raw)
        work.sources[source.name].add(start * source.row_bytes, raw.data)
        kernels.decode(raw, source.dtype, out=rows[first : first + stop - start])
        first += stop - start


def _encode(rows: Any, qtype: QType, out: Any, slab: Slab) -> None:
    """kernels.encode, with the file, tensor and true row of a weight that it refuses."""
    try:
        kernels.encode(rows, qtype, slab.job.importance, out=out)
    except (NotFiniteError, MagnitudeError) as error:
        source, row = slab.job.source_of(slab.start + error.details["row"])
        place = {"file": source.file, "tensor": source.name, "row": row}
        hint = "the checkpoint is damaged or training diverged; a wider type holds larger weights"
        raise type(error)(error.message, hint=hint, **error.details | place) from None


def _check_paths(weights: Weights, plan: Plan, paths: Sequence[Path]) -> None:
    """The outputs differ, none is a source, and their disks have room, as far as can be seen now."""
    places = {path.resolve() for path in paths}
    if len(places) < len(paths):
        raise UsageError("two outputs have the same name", hint="put {type} into the name given with -o")
    refuse_replacing(paths, weights.shards)
    needed: dict[Path, int] = {}
    for path, file in zip(paths, plan.files, strict=True):
        held = allocated_bytes(path.with_name(path.name + ".part"))  # left by a stopped run
        needed[path.parent] = needed.get(path.parent, 0) + max(file.nbytes - held, 0)
    for folder, nbytes in needed.items():
        free = free_space(folder)
        if free < nbytes:
            raise OutputError(
                "the disk has too little room", file=folder, expected=f"{nbytes} bytes free", found=f"{free}"
            )
