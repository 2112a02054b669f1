"""Fill planned outputs in one pass over the weights: slab by slab, on all processors, in bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import kernels
from quantkit.checkpoint import Checkpoint
from quantkit.errors import MagnitudeError, NotFiniteError, OutputError, UsageError
from quantkit.osio import AtomicFile, cpu_count, free_space
from quantkit.plan import Job, Plan
from quantkit.qtypes import QType

SLAB_WEIGHTS = 1 << 20  # 4 MiB of float32: large beside a system call, small beside the memory of any machine


@dataclass(frozen=True)
class Slab:
    """Rows start to stop of a job's tensor."""

    job: Job
    start: int
    stop: int

    @property
    def source_bytes(self) -> int:
        return sum((stop - start) * source.row_bytes for source, start, stop in self.job.rows(self.start, self.stop))


def convert(
    checkpoint: Checkpoint,
    plan: Plan,
    paths: Sequence[Path],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda source_bytes: None,
) -> None:
    """Write the planned files.  Each appears under its name whole, after all of them are; on any error none does.

    paths     where each output goes
    threads   slabs worked on at once; None for one a processor.  The bytes written do not depend on it.
    progress  called with the source bytes of each finished slab, from the calling thread
    raises    NotFiniteError, MagnitudeError  a weight that cannot be packed (names tensor, row, column)
              OutputError, DiskError          the files cannot be created or written
    """
    _check_paths(plan, paths)
    threads = threads or cpu_count()
    with ExitStack() as stack:
        files = [stack.enter_context(AtomicFile(path)) for path in paths]
        for file, output in zip(files, plan.outputs, strict=True):
            file.write(b"\0", output.file_bytes - 1)  # gives the file its size, and padding its zeros
            file.write(output.header, 0)
        scratch = threading.local()
        with ThreadPoolExecutor(threads) as pool:
            try:
                running: deque[Future[int]] = deque()
                for slab in slabs(plan):
                    running.append(pool.submit(_write_slab, checkpoint, slab, files, scratch))
                    if len(running) > 2 * threads:
                        progress(running.popleft().result())
                while running:
                    progress(running.popleft().result())
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for file in files:
            file.publish()


def slabs(plan: Plan) -> Iterator[Slab]:
    """The work in the order of the outputs' bytes."""
    for job in plan.jobs:
        step = max(1, SLAB_WEIGHTS // job.n_columns)
        for start in range(0, job.n_rows, step):
            yield Slab(job, start, min(start + step, job.n_rows))


class _Scratch:
    """Arrays that one thread uses again and again; each grows to the largest size asked for."""

    def __init__(self) -> None:
        self._buffers: dict[str, Any] = {}

    def array(self, name: str, dtype: Any, shape: tuple[int, int]) -> Any:
        nbytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
        if name not in self._buffers or self._buffers[name].nbytes < nbytes:
            self._buffers[name] = np.empty(nbytes, np.uint8)
        return self._buffers[name][:nbytes].view(dtype).reshape(shape)


def _write_slab(checkpoint: Checkpoint, slab: Slab, files: Sequence[AtomicFile], local: threading.local) -> int:
    """Read a slab, widen it, pack it once for each distinct type, and put it in its places; its source bytes."""
    if not hasattr(local, "scratch"):
        local.scratch = _Scratch()
    scratch: _Scratch = local.scratch
    job, n_rows = slab.job, slab.stop - slab.start
    rows = scratch.array("rows", np.float32, (n_rows, job.n_columns))
    _read(checkpoint, slab, rows, scratch)
    for qtype in dict.fromkeys(target.qtype for target in job.targets):
        row_bytes = qtype.row_bytes(job.n_columns)
        packed = scratch.array("packed", np.uint8, (n_rows, row_bytes))
        _encode(rows, qtype, packed, slab)
        for target in job.targets:
            if target.qtype is qtype:
                files[target.output].write(packed.data.cast("B"), target.offset + slab.start * row_bytes)
    return slab.source_bytes


def _read(checkpoint: Checkpoint, slab: Slab, rows: Any, scratch: _Scratch) -> None:
    """Fill rows float32 (n, k) with the slab's weights."""
    if slab.job.values:
        rows[:] = np.array(slab.job.values, np.float32).reshape(slab.job.n_rows, -1)[slab.start : slab.stop]
    first = 0
    for source, start, stop in slab.job.rows(slab.start, slab.stop):
        raw = scratch.array("raw", np.uint8, (stop - start, source.row_bytes))
        checkpoint.read_rows(source, start, stop, raw)
        kernels.decode(raw, source.dtype, out=rows[first : first + stop - start])
        first += stop - start


def _encode(rows: Any, qtype: QType, out: Any, slab: Slab) -> None:
    """kernels.encode, with the file, tensor and true row of a weight that it refuses."""
    try:
        kernels.encode(rows, qtype, out=out)
    except (NotFiniteError, MagnitudeError) as error:
        source, row = slab.job.source_of(slab.start + error.details["row"])
        place = {"file": source.file, "tensor": source.name, "row": row}
        hint = "the checkpoint is damaged or training diverged; a wider type holds larger weights"
        raise type(error)(error.message, hint=hint, **error.details | place) from None


def _check_paths(plan: Plan, paths: Sequence[Path]) -> None:
    """The outputs differ and their disks have room, as far as can be seen now."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("two outputs have the same name", hint="put {type} into the name given with -o")
    needed: dict[Path, int] = {}
    for path, output in zip(paths, plan.outputs, strict=True):
        needed[path.parent] = needed.get(path.parent, 0) + output.file_bytes
    for folder, nbytes in needed.items():
        free = free_space(folder)
        if free < nbytes:
            raise OutputError(
                "the disk has too little room", file=folder, expected=f"{nbytes} bytes free", found=f"{free}"
            )
