"""Make a file again, slab by slab, and hold every byte against what it has; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint import Weights
from quantkit.digests import OrderedDigest
from quantkit.gguf_io import COUNT_KEY, TensorEntry, data_bytes, split_fields
from quantkit.osio import cpu_count
from quantkit.plan import ORIGIN_KEYS, shard_digests
from quantkit.qtypes import QType
from quantkit.slabs import Slab, Work, run
from quantkit.verify.differences import Difference, compare_keys, compare_spelling, compare_tables, differs
from quantkit.verify.recorded import VERSION_KEY, Recorded, Remaking

_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    differences    of types, weights and keys; none means that every byte compared is equal
    subjects       the SHA-256 of each file by its name; empty where the tables alone differ
    sources        the digest of each shard of the source by its name, as plan.shard_digests has it; likewise
    n_tensors      compared
    """

    differences: tuple[Difference, ...]
    subjects: Mapping[str, str]
    sources: Mapping[str, str]
    n_tensors: int


def compare(
    weights: Weights,
    recorded: Recorded,
    remaking: Remaking,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda source_bytes: None,
) -> Verification:
    """Make the file again and compare: keys, table, every block of every tensor, padding and size.

    threads   slabs worked on at once; None for one a processor
    progress  called with the source bytes of each finished slab, from the calling thread
    raises    NotFiniteError, MagnitudeError   a weight of the source that cannot be packed
              DiskError                        reading fails
    """
    table = [(recorded.headers[number].path, tensor) for number, tensor in recorded.tensors()]
    structure, types = compare_tables(remaking.output.tensors, table, ours=recorded.maker is not None)
    if structure:
        return Verification(tuple(structure), {}, {}, 0)
    blocks = _Blocks(recorded)
    tensors: dict[str, str] = {}

    def done(work: Work) -> None:
        tensors.update({name: digest.hexdigest() for name, digest in work.sources.items()})

    works = (Work(job, {target.qtype: blocks.digests[target.file]}) for job in remaking.jobs for target in job.targets)
    run(
        weights,
        works,
        blocks.put,
        threads=threads or cpu_count(),
        strategy=remaking.strategy,
        done=done,
        progress=progress,
    )
    blocks.finish()
    sources = shard_digests(weights, tensors)
    return Verification(
        (*types, *blocks.differences(), *_compare_headers(recorded, remaking, sources)),
        {file.path.name: digest.hexdigest() for file, digest in zip(recorded.files, blocks.digests, strict=True)},
        sources,
        len(remaking.jobs),
    )


def _compare_headers(recorded: Recorded, remaking: Remaking, sources: Mapping[str, str]) -> list[Difference]:
    """The keys of each shard, and the spelling of its header."""
    fields = remaking.output.files[0].finished_fields(sources)
    known = {field.key for field in fields}
    one_sided = (key for key in ORIGIN_KEYS if (key in known) != (key in recorded.fields))  # the digests stand for it
    claims = {VERSION_KEY, *one_sided}
    count, n_tensors = len(recorded.headers), sum(len(header.tensors) for header in recorded.headers)
    differences: list[Difference] = []
    for number, (file, header) in enumerate(zip(recorded.files, recorded.headers, strict=True)):
        split = split_fields(number, count, n_tensors) if COUNT_KEY in header.fields else ()
        expected = (*(fields if number == 0 else ()), *split)
        differences += compare_keys(expected, header, ours=recorded.maker is not None, claims=claims)
        differences += compare_spelling(file, header)
    return differences


@dataclass(frozen=True)
class _Unequal:
    """Blocks of one slab that differ: how many, and the first byte that does, with the block it is in.

    row, column  of the block's first weight
    offset       of the byte in the file
    """

    row: int
    column: int
    n_blocks: int
    offset: int
    expected: int
    found: int


class _Blocks:
    """The data sections of a recorded file, read once: slabs are compared, and the files' digests taken on the way."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._unequal: dict[str, list[_Unequal]] = {}
        self._padding: list[Difference] = []
        self._gaps: dict[str, int] = {}  # bytes of padding behind each tensor but a file's last
        self.digests = [OrderedDigest() for _ in recorded.files]
        for digest, file, header in zip(self.digests, recorded.files, recorded.headers, strict=True):
            digest.add(0, memoryview(file.read(header.data_offset)))
            for tensor, following in pairwise(header.tensors.values()):
                self._gaps[tensor.name] = following.offset - tensor.offset - tensor.nbytes

    def put(self, slab: Slab, work: Work, qtype: QType, packed: memoryview) -> None:
        """Compare a slab with the file, and behind the last of a tensor what pads it."""
        (target,) = slab.job.targets
        row_bytes = qtype.row_bytes(slab.job.n_columns)
        offset = target.offset + slab.start * row_bytes
        gap = self._gaps.get(slab.job.name, 0) if slab.last else 0
        data = self._recorded.files[target.file].read(len(packed) + gap, offset)
        work.results[qtype].add(offset, memoryview(data))
        expected, found = np.frombuffer(packed, np.uint8), np.frombuffer(data, np.uint8)
        self._expect_zeros(target.file, found[len(packed) :], offset + len(packed))
        unequal = expected != found[: len(packed)]
        if not unequal.any():
            return
        at = int(unequal.argmax())
        row, byte = divmod(at, row_bytes)
        self._unequal.setdefault(slab.job.name, []).append(
            _Unequal(
                row=slab.start + row,
                column=byte // qtype.block_bytes * qtype.block_weights,
                n_blocks=int(unequal.reshape(-1, qtype.block_bytes).any(axis=1).sum()),
                offset=offset + at,
                expected=int(expected[at]),
                found=int(found[at]),
            )
        )

    def finish(self) -> None:
        """Read what stands behind each file's last tensor: zeros to the end of the data section, and nothing more."""
        for number, (file, header) in enumerate(zip(self._recorded.files, self._recorded.headers, strict=True)):
            tensors = list(header.tensors.values())
            start = header.data_offset + (tensors[-1].offset + tensors[-1].nbytes if tensors else 0)
            for offset in range(start, file.size, _READ_BYTES):
                data = file.read(min(_READ_BYTES, file.size - offset), offset)
                self.digests[number].add(offset, memoryview(data))
                self._expect_zeros(number, np.frombuffer(data, np.uint8), offset)
            end = header.data_offset + data_bytes(tensors)
            if file.size != end:
                message = "the file has another size"
                self._padding.append(differs(message, file=file.path, expected=f"{end} bytes", found=file.size))

    def differences(self) -> list[Difference]:
        """The tensors that differ, in the order of the file, and then what is wrong between and behind them."""
        unequal = [
            _difference(self._recorded.headers[number].path, tensor, self._unequal[tensor.name])
            for number, tensor in self._recorded.tensors()
            if tensor.name in self._unequal
        ]
        return [*unequal, *self._padding]

    def _expect_zeros(self, number: int, values: npt.NDArray[np.uint8], offset: int) -> None:
        if values.any():
            at = int((values != 0).argmax())
            file, byte = self._recorded.headers[number].path, f"byte {values[at]:#04x}"
            self._padding.append(differs("padding that is not zero", file=file, offset=offset + at, found=byte))


def _difference(path: Path, tensor: TensorEntry, slabs: Sequence[_Unequal]) -> Difference:
    first = min(slabs, key=lambda unequal: unequal.row)
    n_unequal, width = sum(unequal.n_blocks for unequal in slabs), tensor.qtype.block_weights
    of_all = f"{n_unequal:,} of {tensor.n_weights // width:,} {tensor.qtype}"
    columns = f"columns {first.column} to {first.column + width - 1}"
    return differs(
        f"{of_all} weights differ" if width == 1 else f"{of_all} blocks differ; of the first these are {columns}",
        file=path,
        tensor=tensor.name,
        row=first.row,
        column=first.column,
        offset=first.offset,
        expected=f"byte {first.expected:#04x}",
        found=f"byte {first.found:#04x}",
    )
