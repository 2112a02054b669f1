"""One tensor's journey, slab by slab, on all processors, in bounded memory: read, widen, merge, pack, and hand on.

Who writes the packed rows, or compares them with those of a file, is not this module's business.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantkit import kernels
from quantkit.checkpoint import Weights
from quantkit.digests import Abandoned, FailTogether, OrderedDigest
from quantkit.errors import MagnitudeError, NotFiniteError
from quantkit.osio import cpu_count
from quantkit.plan import Job
from quantkit.qtypes import QType
from quantkit.strategy import Encode, Matrix, Strategy

SLAB_WEIGHTS = 1 << 20  # 4 MiB of float32: large beside a system call, small beside the memory of any machine
PROCESS_BYTES = 128 << 20  # the interpreter, NumPy, a vocabulary of 200,000 tokens


def memory_bytes(threads: int | None = None) -> int:
    """About how much memory a run holds, whatever the model: what a thread keeps of a slab, and the process."""
    widest = 4 + 4 + 4  # bytes of a weight as read, as float32 and as packed
    return PROCESS_BYTES + (threads or cpu_count()) * SLAB_WEIGHTS * widest


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
class Work:
    """One job in progress.

    results  by type, a digest for `put` to add what it was handed to; those who wait for their turn at it give up if a
             slab fails
    sources  the digest of each tensor that the rows come from, by name
    """

    job: Job
    results: Mapping[QType, OrderedDigest]
    sources: dict[str, OrderedDigest] = field(init=False)

    def __post_init__(self) -> None:
        self.sources = {source.name: OrderedDigest() for source in self.job.sources}


Put = Callable[[Slab, Work, QType, memoryview], None]


def run(
    weights: Weights,
    works: Iterable[Work],
    put: Put,
    *,
    threads: int,
    strategy: Strategy,
    done: Callable[[Work], None],
    progress: Callable[[int], None],
) -> None:
    """Take the rows of every job through their journey, packed once for each distinct type among its targets.

    works     in the order they are begun; a job without targets is passed over
    put       (slab, work, type, bytes of its packed rows), from any thread; the bytes are only lent
    threads   slabs worked on at once
    strategy  how the codes of matrices are found
    done      called with each work whose last slab is put, in order, from the calling thread
    progress  called with the source bytes of each finished slab, in order, from the calling thread
    raises    NotFiniteError, MagnitudeError   a weight that cannot be packed (names tensor, row, column)
              DiskError                        reading fails
              and whatever put raises, and the strategy's inputs
    """
    scratch = threading.local()

    def finish(slab: Slab, work: Work, future: Future[None]) -> None:
        future.result()
        if slab.last:
            done(work)
        progress(slab.source_bytes)

    running: deque[tuple[Slab, Work, Future[None]]] = deque()

    def begin(work: Work) -> None:
        """Its slabs hold what was prepared for it, and nothing else does: a factor goes with the last of them."""
        job = work.job
        matrix = Matrix(job.name, job.n_rows, job.n_columns, work.results.keys(), job.importance)
        prepared = strategy.prepare(matrix, pool, threads)
        for slab in _cut(job, prepared.least_rows):
            running.append((slab, work, pool.submit(_journey, weights, slab, work, prepared.encode, put, scratch)))
            if len(running) > 2 * threads:
                finish(*running.popleft())

    with ThreadPoolExecutor(threads) as pool:
        try:
            for work in works:
                job, types = work.job, work.results.keys()
                if not types:
                    progress(sum(source.nbytes for source in job.sources))
                    continue
                while running and strategy.is_large(job.name, types):
                    finish(*running.popleft())
                begin(work)
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


def _cut(job: Job, least_rows: int) -> Iterator[Slab]:
    """The tensor's rows in pieces of about SLAB_WEIGHTS, but of least_rows if there are as many."""
    step = max(least_rows, SLAB_WEIGHTS // job.n_columns)
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


def _journey(weights: Weights, slab: Slab, work: Work, encode: Encode, put: Put, local: threading.local) -> None:
    """Read a slab, widen it, merge adapters, pack it once for each distinct type, and hand it on."""
    if not hasattr(local, "scratch"):
        local.scratch = _Scratch()
    scratch: _Scratch = local.scratch
    job, n_rows = slab.job, slab.stop - slab.start
    with FailTogether(*work.sources.values(), *work.results.values()):
        rows = scratch.array("rows", np.float32, (n_rows, job.n_columns))
        _read(weights, slab, work, rows, scratch)
        for qtype in work.results:
            packed = scratch.array("packed", np.uint8, (n_rows, qtype.row_bytes(job.n_columns)))
            _encode(encode, rows, qtype, packed, slab)
            put(slab, work, qtype, packed.data.cast("B"))


def _read(weights: Weights, slab: Slab, work: Work, rows: Any, scratch: _Scratch) -> None:
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
    weights.transform(slab.job.name, slab.start, rows)


def _encode(encode: Encode, rows: Any, qtype: QType, out: Any, slab: Slab) -> None:
    """encode, with the file, tensor and true row of a weight that it refuses."""
    try:
        encode(rows, slab.start, qtype, out)
    except (NotFiniteError, MagnitudeError) as error:
        source, row = slab.job.source_of(slab.start + error.details["row"])
        place = {"file": source.file, "tensor": source.name, "row": row}
        hint = "the checkpoint is damaged or training diverged; a wider type holds larger weights"
        raise type(error)(error.message, hint=hint, **error.details | place) from None
