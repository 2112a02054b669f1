"""What an adapter changes of a matrix: a product of two thin matrices is added to it, and the norms of rows."""

from __future__ import annotations

import numpy as np

from quantkit.kernels.lanes import F32Array, ordered_sum


def add(rows: F32Array, coefficients: F32Array, basis: F32Array, scale: np.float32) -> None:
    """rows (n, k) += scale * (coefficients (n, rank) x basis (rank, k)), the products of an element added by rank."""
    total = np.zeros_like(rows)
    for i in range(len(basis)):
        total += coefficients[:, i : i + 1] * basis[i]
    rows += scale * total


def norms(rows: F32Array) -> F32Array:
    """The Euclidean norm of each row of (n, k), its squares added in index order: float32 (n,)."""
    return np.sqrt(ordered_sum(column * column for column in np.ascontiguousarray(rows.T)))
