"""Weights that are no numbers, and tensors that are nothing: looked for in every block of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from quantkit import kernels
from quantkit.checkpoint import TensorInfo, Weights
from quantkit.doctor.finding import Finding, failed, ok
from quantkit.osio import cpu_count
from quantkit.slabs import SLAB_WEIGHTS

_CURE = "convert it again; `quantkit convert SOURCE --check-only` looks for such weights in the checkpoint"


@dataclass(frozen=True)
class _Seen:
    """Of some rows: the (row, column) of the first weight that is not finite, and whether any is not zero."""

    not_finite: tuple[int, int] | None
    something: bool


def check_weights(weights: Weights, progress: Callable[[int], None]) -> Finding:
    """Decode every tensor, on all processors, a slab at a time; raises DiskError."""
    not_finite: list[str] = []
    empty: list[str] = []
    with ThreadPoolExecutor(cpu_count()) as pool:
        for tensor in weights.tensors.values():
            seen = []
            for nbytes, slab in pool.map(partial(_look, weights, tensor), _slabs(tensor)):
                seen.append(slab)
                progress(nbytes)
            first = next((slab.not_finite for slab in seen if slab.not_finite), None)
            if first is not None:
                not_finite.append(f"{tensor.name}, row {first[0]}, column {first[1]}")
            elif not any(slab.something for slab in seen):
                empty.append(tensor.name)
    if not_finite:
        return failed(f"{len(not_finite)} tensors hold weights that are not finite: {not_finite[0]}", _CURE)
    if empty:
        return failed(f"{len(empty)} tensors hold nothing but zeros: {empty[0]}", _CURE)
    return ok(f"every weight of {len(weights.tensors)} tensors is finite, and no tensor is all zeros")


def _slabs(tensor: TensorInfo) -> Iterator[tuple[int, int]]:
    step = max(1, SLAB_WEIGHTS // tensor.shape[-1])
    for start in range(0, tensor.n_rows, step):
        yield start, min(start + step, tensor.n_rows)


def _look(weights: Weights, tensor: TensorInfo, span: tuple[int, int]) -> tuple[int, _Seen]:
    """Bytes read, and what was seen in them."""
    start, stop = span
    raw = np.empty((stop - start, tensor.row_bytes), np.uint8)
    weights.read_rows(tensor, start, stop, raw)
    rows = kernels.decode(raw, tensor.dtype)
    low, high = float(rows.min()), float(rows.max())  # NaN if any weight is
    if np.isfinite(low) and np.isfinite(high):
        return raw.nbytes, _Seen(None, low != 0 or high != 0)
    row, column = divmod(int((~np.isfinite(rows)).argmax()), rows.shape[1])
    return raw.nbytes, _Seen((start + row, column), True)
