"""Files that were never written: a model whose matrices are packed and unpacked again when they are asked for.

    base rows -> encode -> the bytes that `convert` would write -> decode -> what `eval` would read of the file

Models that go through a network side by side share one Base.  Of the half layer that is being computed, and of the
slab of the head, it keeps the base's rows, the factors of error feedback and the packed rows of each type; unpacked
ones are made for one model at a time.  What belonged to the half before goes when the first matrix of the next is asked
for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from quantkit import kernels
from quantkit.arch import EMBEDDING
from quantkit.errors import MagnitudeError, NotFiniteError
from quantkit.evaluate import Model
from quantkit.osio import cpu_count
from quantkit.qtypes import QType
from quantkit.strategy import REFERENCE, Matrix, Prepared, Strategy

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

Importance = Mapping[str, F32Array | None]  # of the columns of each matrix, float32 (k,), None for none; by GGUF name

SLAB_WEIGHTS = 1 << 20


class _Weights:
    """What every model of a sweep has in common with the source."""

    def __init__(self, model: Model) -> None:
        self.path, self.network = model.path, model.network
        self.epsilon, self.rotation = model.epsilon, model.rotation
        self.head = model.head


class Base(_Weights):
    """The source itself, read once for all that are made of it."""

    def __init__(self, model: Model, importance: Importance, strategy: Strategy = REFERENCE) -> None:
        super().__init__(model)
        self._model, self._importance, self._strategy = model, importance, strategy
        self._now: object = None
        self._prepared: dict[tuple[str, bool], Prepared] = {}
        self._rows: dict[str, F32Array] = {}
        self._blocks: dict[tuple[str, QType], U8Array] = {}

    def qtype(self, name: str) -> QType:
        return self._model.qtype(name)

    def matrix(self, name: str, start: int = 0, stop: int | None = None) -> F32Array:
        """As Model.matrix; what is returned is kept, and may not be changed."""
        self._turn_to((_half(name), start, stop))
        return self._known(name, lambda: self._model.matrix(name, start, stop))

    def embed(self, ids: npt.NDArray[np.int64]) -> F32Array:
        distinct, place = np.unique(ids, return_inverse=True)
        return self._embedding(distinct)[place.reshape(-1)]

    def packed(self, name: str, qtype: QType, start: int, stop: int | None) -> U8Array:
        """Rows start to stop of a tensor as a file in that type has them: uint8 (n, row_bytes).

        raises  NotFiniteError, MagnitudeError  a weight that cannot be packed (names the tensor and its row)
        """
        return self._packed(name, qtype, self.matrix(name, start, stop), lambda row: start + row)

    def packed_embedding(self, ids: npt.NDArray[np.int64], qtype: QType) -> U8Array:
        """The rows of these tokens as a file in that type has them: uint8 (n, row_bytes) of distinct int64 (n,)."""
        return self._packed(EMBEDDING, qtype, self._embedding(ids), lambda row: int(ids[row]))

    def _embedding(self, ids: npt.NDArray[np.int64]) -> F32Array:
        self._turn_to(ids.tobytes())
        return self._known(EMBEDDING, lambda: self._model.embed(ids))

    def _turn_to(self, what: object) -> None:
        """Forget all that was kept for something else."""
        if what != self._now:
            self._now = what
            self._rows, self._blocks, self._prepared = {}, {}, {}

    def _known(self, name: str, read: Callable[[], F32Array]) -> F32Array:
        if name not in self._rows:
            self._rows[name] = read()
        return self._rows[name]

    def _packed(self, name: str, qtype: QType, rows: F32Array, place: Callable[[int], int]) -> U8Array:
        if (name, qtype) not in self._blocks:
            blocks = np.empty((len(rows), qtype.row_bytes(rows.shape[1])), np.uint8)
            prepared = self._prepare(name, qtype)

            def encode(some: slice) -> None:
                try:
                    prepared.encode(rows[some], place(some.start), qtype, blocks[some])
                except (NotFiniteError, MagnitudeError) as error:
                    row = place(some.start + error.details["row"])
                    found = error.details | {"file": self.path, "tensor": name, "row": row}
                    raise type(error)(error.message, hint="a wider type holds larger weights", **found) from None

            _by_slab(encode, rows.shape, prepared.least_rows)
            self._blocks[name, qtype] = blocks
        return self._blocks[name, qtype]

    def _prepare(self, name: str, qtype: QType) -> Prepared:
        """A matrix ready to be packed into a type: a factor is made once for all types that need one."""
        kind = name, self._strategy.is_large(name, [qtype])
        if kind not in self._prepared:
            threads = cpu_count()
            *n_rows, n_columns = self._model.tensors[name]
            matrix = Matrix(name, math.prod(n_rows), n_columns, [qtype], self._importance.get(name))
            with ThreadPoolExecutor(threads) as pool:
                self._prepared[kind] = self._strategy.prepare(matrix, pool, threads)
        return self._prepared[kind]


class Candidate(_Weights):
    """The base as it would be read back from a file with other types.

    types  of every tensor of that file, by GGUF name
    """

    def __init__(self, base: Base, model: Model, types: Mapping[str, QType]) -> None:
        super().__init__(model)
        self._base, self._types = base, types

    def qtype(self, name: str) -> QType:
        return self._types[name]

    def matrix(self, name: str, start: int = 0, stop: int | None = None) -> F32Array:
        """Rows start to stop of a tensor, float32 (n, k), as evaluate's Model has them of the file."""
        qtype = self._types[name]
        return _unpacked(self._base.packed(name, qtype, start, stop), qtype)

    def embed(self, ids: npt.NDArray[np.int64]) -> F32Array:
        """The embeddings of tokens: float32 (n, hidden) of int64 (n,).  No other rows are packed than theirs."""
        distinct, place = np.unique(ids, return_inverse=True)
        qtype = self._types[EMBEDDING]
        return _unpacked(self._base.packed_embedding(distinct, qtype), qtype)[place.reshape(-1)]


class Probe(_Weights):
    """The base but for one matrix, which is as it would be read back from a file that has it in another type."""

    def __init__(self, base: Base, model: Model, tensor: str, qtype: QType) -> None:
        super().__init__(model)
        self.tensor = tensor
        self._base, self._changed = base, Candidate(base, model, {tensor: qtype})

    def qtype(self, name: str) -> QType:
        return self._of(name).qtype(name)

    def matrix(self, name: str, start: int = 0, stop: int | None = None) -> F32Array:
        """As Candidate's."""
        return self._of(name).matrix(name, start, stop)

    def embed(self, ids: npt.NDArray[np.int64]) -> F32Array:
        """As Candidate's."""
        return self._of(EMBEDDING).embed(ids)

    def _of(self, name: str) -> Base | Candidate:
        return self._changed if name == self.tensor else self._base


def _half(name: str) -> str:
    """What the tensors of one half of a layer have in common: "blk.0.attn", "blk.0.ffn"."""
    return name.partition("_")[0] if name.startswith("blk.") else name


def _unpacked(blocks: U8Array, qtype: QType) -> F32Array:
    n_columns = blocks.shape[1] // qtype.block_bytes * qtype.block_weights
    rows = np.empty((len(blocks), n_columns), np.float32)

    def decode(some: slice) -> None:
        kernels.decode(blocks[some], qtype, out=rows[some])

    _by_slab(decode, rows.shape)
    return rows


def _by_slab(work: Callable[[slice], None], shape: tuple[int, ...], least_rows: int = 1) -> None:
    """Do work on a few rows of a matrix at a time, on all processors."""
    n_rows, n_columns = shape
    step = max(least_rows, SLAB_WEIGHTS // n_columns)
    with ThreadPoolExecutor(cpu_count()) as pool:
        for _ in pool.map(work, (slice(first, min(first + step, n_rows)) for first in range(0, n_rows, step))):
            pass
