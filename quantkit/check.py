"""Look through all weights for those that cannot be packed, and name every tensor that has some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantkit import kernels
from quantkit.checkpoint import TensorInfo, Weights
from quantkit.errors import MagnitudeError, NotFiniteError
from quantkit.plan import Job, Plan
from quantkit.slabs import SLAB_WEIGHTS


@dataclass(frozen=True)
class Finding:
    """A tensor with weights that cannot be packed.

    file, tensor   the source's
    row, column    of the first of them
    value          of that one
    n_not_finite   how many are NaN or infinite
    n_too_large    how many are finite and larger than `limit`
    limit          what the narrowest of its planned types surely holds
    """

    file: str
    tensor: str
    row: int
    column: int
    value: float
    n_not_finite: int
    n_too_large: int
    limit: float

    def error(self) -> NotFiniteError | MagnitudeError:
        """The finding as an error, of the graver kind."""
        kind = NotFiniteError if self.n_not_finite else MagnitudeError
        message = f"{self.n_not_finite} weights are not finite and {self.n_too_large} too large for their type"
        return kind(
            message,
            file=self.file,
            tensor=self.tensor,
            row=self.row,
            column=self.column,
            expected=f"at most {self.limit:g}",
            found=self.value,
        )

    def __str__(self) -> str:
        return str(self.error())


def check(weights: Weights, plan: Plan, progress: Callable[[int], None]) -> list[Finding]:
    """Every tensor of the plan with weights that its types cannot hold, in the order of the outputs' bytes.

    progress   called with the source bytes of each finished piece
    raises     DiskError
    """
    findings = []
    for job in plan.jobs:
        limit = min(target.qtype.max_abs for target in job.targets)
        first = 0
        for source in job.sources:
            finding = _check_tensor(weights, job, source, first, limit, progress)
            if finding:
                findings.append(finding)
            first += source.n_rows
    return findings


def _check_tensor(
    weights: Weights, job: Job, source: TensorInfo, first: int, limit: float, progress: Callable[[int], None]
) -> Finding | None:
    """The finding of a source of the job, whose first row is row first of the job's tensor."""
    found: tuple[int, int, float] | None = None
    n_not_finite = n_too_large = 0
    step = max(1, SLAB_WEIGHTS // job.n_columns)
    for start in range(0, source.n_rows, step):
        stop = min(start + step, source.n_rows)
        raw = np.empty((stop - start, source.row_bytes), np.uint8)
        weights.read_rows(source, start, stop, raw)
        rows = kernels.decode(raw, source.dtype)
        weights.transform(job.name, first + start, rows)
        bad = ~(np.abs(rows) <= np.float32(limit))
        if bad.any():
            not_finite = ~np.isfinite(rows)
            n_not_finite += int(not_finite.sum())
            n_too_large += int((bad & ~not_finite).sum())
            if found is None:
                row, column = divmod(int(bad.argmax()), job.n_columns)
                found = (start + row, column, float(rows[row, column]))
        progress(raw.nbytes)
    if found is None:
        return None
    row, column, value = found
    return Finding(str(source.file), source.name, row, column, value, n_not_finite, n_too_large, limit)
