"""How a matrix's codes are found: by ggml's own search, or column by column with the errors before in view.

A strategy prepares a matrix once, and what it gives then packs any rows of it.

    reference   the bytes of llama.cpp
    feedback    kernels/feedback.py, for the matrices of layers; all others, and types without codes, as reference
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantkit import kernels
from quantkit.errors import FormatError, TensorError, UsageError
from quantkit.gguf_io import Field, Kind
from quantkit.kernels.feedback import CODINGS, PANEL, STRIP
from quantkit.moments import Moments, Packed, has_moments, read_moments, read_record, types_sha256
from quantkit.qtypes import QType

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]
Encode = Callable[[F32Array, int, QType, U8Array], object]  # (rows, number of the first, type, out): fills out

# Added to the mean square of each column, as a part of that of all columns: no column is then so unimportant that it
# has to make good for all others.
DAMPING = 0.03
STRATEGY_KEY, COVARIANCE_KEY, _COVARIANCE = "quantkit.strategy", "quantkit.covariance.sha256", "quantkit.covariance."
FEEDBACK_ROWS = 128  # of a slab: for as many rows the C kernel reads the factor once


@dataclass(frozen=True, eq=False)
class Matrix:
    """What a strategy has to know of a matrix before its rows come.

    name        in GGUF
    types       that it will be packed into
    importance  of its columns, float32 (n_columns,), or None
    """

    name: str
    n_rows: int
    n_columns: int
    types: Collection[QType]
    importance: F32Array | None


@dataclass(frozen=True)
class Prepared:
    """A matrix that is ready to be packed.

    encode      fills blocks from rows of it
    least_rows  that should be packed at once
    """

    encode: Encode
    least_rows: int = 1


class Strategy(Protocol):
    """What stands in STRATEGIES.

    name       as in the files' key quantkit.strategy
    arguments  of a command line that chooses it
    """

    name: str
    arguments: Sequence[str]

    def check(
        self, columns: Mapping[str, int], types: Sequence[Mapping[str, QType]], warn: Callable[[str], None]
    ) -> tuple[Field, ...]:
        """Look at all inputs before anything is written.

        columns  of each matrix, by GGUF name
        types    of each matrix in each file, by GGUF name
        returns  what the files say of the inputs
        raises   InputError in its kinds
        """

    def is_large(self, name: str, types: Collection[QType]) -> bool:
        """Whether what is prepared for a matrix is so large that there should be one at a time."""

    def prepare(self, matrix: Matrix, pool: Executor, threads: int) -> Prepared:
        """Get a matrix ready.

        pool    of so many threads, for whatever takes long
        raises  InputError in its kinds, DiskError
        """


class Reference:
    """ggml's search, with the importance of the columns where there is one."""

    name = "reference"
    arguments: Sequence[str] = ()

    def check(
        self, columns: Mapping[str, int], types: Sequence[Mapping[str, QType]], warn: Callable[[str], None]
    ) -> tuple[Field, ...]:
        return ()

    def is_large(self, name: str, types: Collection[QType]) -> bool:
        return False

    def prepare(self, matrix: Matrix, pool: Executor, threads: int) -> Prepared:
        return Prepared(lambda rows, first, qtype, out: kernels.encode(rows, qtype, matrix.importance, out=out))


class Feedback:
    """Error feedback through the second moments in a folder.

    For a matrix (n, k) it holds 4 k^2 bytes, and 2 n k where the folder has a correction.

    any_types   allow for other types than those that corrections were made for
    """

    name = "feedback"

    def __init__(self, folder: Path, any_types: bool = False) -> None:
        self._folder, self._any_types = folder, any_types
        self.arguments: Sequence[str] = ("--strategy", self.name, "--covariance", str(folder))

    def check(
        self, columns: Mapping[str, int], types: Sequence[Mapping[str, QType]], warn: Callable[[str], None]
    ) -> tuple[Field, ...]:
        records = {name: read_record(self._folder, name, k) for name, k in columns.items() if has_moments(name)}
        runs = {record.run.sha256: record.run for record in records.values()}
        if len(runs) != 1:
            raise TensorError(
                "the second moments are not of one run",
                hint="collect all of them in one run of quantkit imatrix --covariance",
                file=self._folder,
                found=f"{len(runs)} runs: other models, texts, windows or recipes",
            )
        (run,) = runs.values()
        if run.packed is not None and not self._any_types:
            self._check_types(run.packed, columns, types)
        widest = max(columns[name] for name in records)
        if run.count < widest:
            warn(
                f"the second moments are of {run.count:,} tokens, and of up to {widest:,} columns: with fewer tokens "
                "than columns they say little of any other text"
            )
        tensors = sorted((name, sha256) for record in records.values() for name, sha256 in record.sha256.items())
        lines = [f"{sha256}  {name}\n" for name, sha256 in tensors]
        lines += [f"{record.kept}  {name}\n" for name, record in sorted(records.items())]
        return (
            Field(COVARIANCE_KEY, Kind.STRING, hashlib.sha256("".join(lines).encode()).hexdigest()),
            Field("quantkit.covariance.text_sha256", Kind.STRING, run.text_sha256),
            Field("quantkit.covariance.tokens", Kind.U64, run.count),
            Field(
                "quantkit.covariance.mean_kept",
                Kind.F32,
                math.fsum(record.kept for record in records.values()) / len(records),
            ),
            Field("quantkit.covariance.damping", Kind.F32, DAMPING),
        )

    def is_large(self, name: str, types: Collection[QType]) -> bool:
        return has_moments(name) and any(qtype.name in CODINGS for qtype in types)

    def prepare(self, matrix: Matrix, pool: Executor, threads: int) -> Prepared:
        if not self.is_large(matrix.name, matrix.types):
            return REFERENCE.prepare(matrix, pool, threads)
        moments = read_moments(self._folder, matrix.name, (matrix.n_rows, matrix.n_columns))
        try:
            return with_feedback(moments, matrix, pool, threads)
        except FormatError as error:
            details = error.details | {"file": self._folder, "tensor": matrix.name}
            raise FormatError(error.message, hint=error.hint, **details) from None

    def _check_types(self, packed: Packed, columns: Mapping[str, int], types: Sequence[Mapping[str, QType]]) -> None:
        """Raise TensorError where a file will not be packed by what the corrections were made for."""
        for one in types:
            found = types_sha256({name: one[name] for name in columns})
            if found != packed.types_sha256:
                raise TensorError(
                    "the second moments were collected behind matrices of other types",
                    hint="those of --sequential are for that recipe alone, converted with an importance matrix",
                    file=self._folder,
                    expected=f"the types of {packed.recipe}, sha256 {packed.types_sha256[:16]}",
                    found=f"sha256 {found[:16]}",
                )


def with_feedback(moments: Moments, matrix: Matrix, pool: Executor, threads: int) -> Prepared:
    """A matrix ready to be packed with error feedback, and in types without codes as by Reference.

    moments  of what it is multiplied by; the sums are overwritten
    raises   FormatError  as factorize() does
    """
    otherwise = REFERENCE.prepare(matrix, pool, threads)
    factor = factorize(moments.sums, moments.count, moments.kept, pool, threads)

    def encode(rows: F32Array, first: int, qtype: QType, out: U8Array) -> None:
        if qtype.name not in CODINGS:
            otherwise.encode(rows, first, qtype, out)
            return
        if moments.correction is not None:
            rows = rows + moments.correction[first : first + len(rows)]
        kernels.encode_feedback(rows, qtype, factor.order, factor.matrix, factor.importance, out=out)

    return Prepared(encode, FEEDBACK_ROWS)


REFERENCE = Reference()
STRATEGIES = {kind.name: kind for kind in (Reference, Feedback)}


def recorded(fields: Iterable[Field]) -> dict[str, Any] | None:
    """What the fields of a planned file say of its strategy, by key; None for the reference's."""
    found = {field.key: field.value for field in fields if field.key.startswith((STRATEGY_KEY, _COVARIANCE))}
    return found if found[STRATEGY_KEY] != REFERENCE.name else None


def by_name(name: str, folder: Path | None, any_types: bool = False) -> Strategy:
    """The strategy of that name; raises UsageError if it is unknown, or a folder is missing or not wanted."""
    if name == Feedback.name and folder is not None:
        return Feedback(folder, any_types)
    if name == Reference.name and folder is None:
        return REFERENCE
    if name not in STRATEGIES:
        raise UsageError(f"no strategy {name}", hint=", ".join(STRATEGIES))
    if folder is None:
        raise UsageError(f"--strategy {name} needs --covariance DIR", hint="quantkit imatrix --covariance makes it")
    raise UsageError(f"--covariance is not for --strategy {name}", hint=f"--strategy {Feedback.name}")


@dataclass(frozen=True, eq=False)
class Factor:
    """What error feedback works with, from the second moments H of what a matrix of k columns is multiplied by.

    order       uint8 (k,): the columns of each panel in the order they are rounded, those that count most first, for
                those after them make good for their errors
    matrix      float32 (k, k): M of H = M D M^T in that order above the diagonal, and D on it
    importance  float32 (k,): the mean squares, in the order of the columns
    """

    order: U8Array
    matrix: F32Array
    importance: F32Array


def factorize(sums: F32Array, count: int, kept: float, pool: Executor, threads: int) -> Factor:
    """The factor of second moments, in their place, with DAMPING added and so much kept of what is beside the diagonal.

    Moments say less of a text that the model may meet next than of the one they were collected on.

    All is float32 in a fixed order (csrc/factor.h), so that the factor, like the blocks made with it, has the same bits
    on every machine and with any number of threads.

    sums     float32 (k, k), symmetric, finite; overwritten
    count    tokens that were added up
    kept     from 0 to 1
    raises   FormatError  they are no second moments: with all of this they are not positive definite (names the column)
    """
    k = len(sums)
    squares = sums.diagonal().copy()
    panels = [slice(first, min(first + PANEL, k)) for first in range(0, k, PANEL)]
    order = np.concatenate([np.argsort(-squares[panel], kind="stable") for panel in panels]).astype(np.uint8)
    columns = order + np.arange(k) // PANEL * PANEL
    damping = np.float32(DAMPING * math.fsum(squares.tolist()) / k)  # fsum: np.sum's order is each machine's own
    scale = np.sqrt(squares[columns] + (damping or np.float32(1)))

    def correlate(panel: slice) -> None:
        rows = sums[columns[panel]][:, columns]
        rows *= np.float32(kept)
        rows /= scale[panel, None]
        rows /= scale
        sums[panel] = rows

    _wait(pool.map(correlate, panels))
    np.fill_diagonal(sums, 1)
    least = (1 - kept) / 2  # no eigenvalue of what second moments may be is below 1 - kept, but for rounding
    for first in range((k - 1) // STRIP * STRIP, -1, -STRIP):
        column = kernels.factor_rows(sums, first, first, min(STRIP, k - first), least)
        if column >= 0:
            raise FormatError("no second moments are like this: not positive definite", column=int(columns[column]))
        step = max(1, -(-first // threads))

        def above(start: int, first: int = first, step: int = step) -> None:
            kernels.factor_rows(sums, first, start, min(step, first - start), least)

        _wait(pool.map(above, range(0, first, step)))
    pivots = sums.diagonal().copy()

    def unscale(panel: slice) -> None:
        sums[panel] /= pivots
        sums[panel] *= scale[panel, None]
        sums[panel] /= scale

    _wait(pool.map(unscale, panels))
    np.fill_diagonal(sums, pivots * pivots * scale * scale)
    return Factor(order, sums, squares / np.float32(count))


def _wait(results: Iterable[object]) -> None:
    """Until all are there; raises what one of them raised."""
    for _ in results:
        pass
