"""Fill planned outputs in one pass over the weights; what is done is certain, what is finished is whole."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from quantkit import __version__
from quantkit.checkpoint import Weights
from quantkit.digests import OrderedDigest
from quantkit.errors import (
    BusyError,
    DiskError,
    Interrupted,
    OutputError,
    Paused,
    UsageError,
)
from quantkit.journal import Done, Journal
from quantkit.osio import AtomicFile, allocated_bytes, cpu_count, free_space, refuse_replacing
from quantkit.plan import Job, OutputFile, Plan, shard_digests
from quantkit.qtypes import QType
from quantkit.slabs import Slab, Work, run

SECONDS_BETWEEN_RECORDS = 5.0  # what a kill can cost


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


def _plan_digests(weights: Weights, plan: Plan) -> Iterator[tuple[OutputFile, str]]:
    """Each file with what must be the same for its part to be gone on with.

    That is the code, the sources and adapters, and all that was planned: a file's own header, and the first shard's,
    which names the recipe, the importance matrix and the scales of the adapters.
    """
    stats = [(file.name, status.st_size, status.st_mtime_ns) for file in weights.files for status in [file.stat()]]
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


def _fill(weights: Weights, plan: Plan, parts: Sequence[_Part], threads: int, progress: Callable[[int], None]) -> None:
    """Take all tensors that are not done through their journey, and note each when it is."""
    recorded = time.monotonic()

    def left(job: Job) -> Work:
        targets = tuple(target for target in job.targets if job.name not in parts[target.file].done)
        return Work(replace(job, targets=targets), {target.qtype: OrderedDigest() for target in targets})

    def put(slab: Slab, work: Work, qtype: QType, packed: memoryview) -> None:
        start = slab.start * qtype.row_bytes(slab.job.n_columns)
        work.results[qtype].add(start, packed)
        for target in slab.job.targets:
            if target.qtype is qtype:
                parts[target.file].file.write(packed, target.offset + start)

    def done(work: Work) -> None:
        for target in work.job.targets:
            sources = {name: digest.hexdigest() for name, digest in work.sources.items()}
            parts[target.file].done[work.job.name] = Done(work.results[target.qtype].hexdigest(), sources)

    def advance(source_bytes: int) -> None:
        nonlocal recorded
        progress(source_bytes)
        if time.monotonic() - recorded > SECONDS_BETWEEN_RECORDS:
            for part in parts:
                part.record()
            recorded = time.monotonic()

    run(weights, map(left, plan.jobs), put, threads=threads, strategy=plan.strategy, done=done, progress=advance)


def _check_paths(weights: Weights, plan: Plan, paths: Sequence[Path]) -> None:
    """The outputs differ, none is a source, and their disks have room, as far as can be seen now."""
    places = {path.resolve() for path in paths}
    if len(places) < len(paths):
        raise UsageError("two outputs have the same name", hint="put {type} into the name given with -o")
    refuse_replacing(paths, weights.files)
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
