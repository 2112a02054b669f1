"""What adapters change: the same bits on every backend, the formula's value, and refusals by name."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit import kernels
from quantkit.errors import ShapeError

# Rows around the tile of 4, columns around each number of lanes and tiles of 2 and 4 of them; a rank of none too.
SHAPES = [(1, 1, 1), (3, 7, 2), (4, 8, 1), (5, 31, 3), (9, 33, 16), (16, 64, 4), (17, 144, 5), (33, 272, 8), (2, 48, 0)]
SCALE = 0.37


def arrays(n: int, k: int, rank: int) -> tuple[kernels.F32Array, kernels.F32Array, kernels.F32Array]:
    """Rows, coefficients and basis with numbers of many magnitudes, zeros of both signs and denormals among them."""
    rng = np.random.default_rng([n, k, rank])

    def some(*shape: int) -> kernels.F32Array:
        values = rng.standard_normal(shape, np.float32) * np.float32(10.0) ** rng.integers(-20, 3, shape)
        return np.where(rng.random(shape) < 0.1, np.float32(-0.0), values).astype(np.float32)

    return some(n, k), some(n, rank), some(rank, k)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_backend_gives_the_same_bits(shape: tuple[int, int, int]) -> None:
    rows, coefficients, basis = arrays(*shape)
    results = {}
    for name in kernels.backends():
        with kernels.using(name):
            merged = rows.copy()
            kernels.add_low_rank(merged, coefficients, basis, SCALE)
            results[name] = (merged.tobytes(), kernels.row_norms(merged).tobytes())
    assert set(results.values()) == {results["numpy"]}, list(results)


@pytest.mark.parametrize("name", kernels.backends())
def test_sums_are_taken_by_rank_and_nothing_is_fused(name: str) -> None:
    """One element after another in scalars of float32."""
    rows, coefficients, basis = arrays(5, 19, 6)
    expected = rows.copy()
    for r, c in np.ndindex(*rows.shape):
        total = np.float32(0)
        for i in range(6):
            total += coefficients[r, i] * basis[i, c]
        expected[r, c] += np.float32(SCALE) * total
    norms = np.zeros(len(expected), np.float32)
    for column in expected.T:
        norms += column * column
    with kernels.using(name):
        kernels.add_low_rank(rows, coefficients, basis, SCALE)
        assert rows.tobytes() == expected.tobytes()
        assert kernels.row_norms(rows).tobytes() == np.sqrt(norms).tobytes()


@pytest.mark.parametrize("name", kernels.backends())
def test_a_part_of_a_larger_array_is_all_that_changes(name: str) -> None:
    around = np.zeros((6, 40), np.float32)
    with kernels.using(name):
        kernels.add_low_rank(around[2:4], np.ones((2, 1), np.float32), np.ones((1, 40), np.float32), 2.0)
    assert (around[2:4] == 2).all()
    assert not around[[0, 1, 4, 5]].any()


@pytest.mark.parametrize("wrong", ["rows", "coefficients", "basis"])
def test_arrays_that_do_not_fit_are_refused(wrong: str) -> None:
    given = {"rows": np.zeros((2, 8), np.float32), "coefficients": np.zeros((2, 3), np.float32)}
    given["basis"] = np.zeros((3, 8), np.float32)
    for spoilt in (given[wrong][:, :-1], given[wrong].astype(np.float64), given[wrong][1:].copy()):
        if wrong == "rows" and spoilt.shape[1] == 7:
            spoilt = spoilt.copy()
        with pytest.raises(ShapeError):
            kernels.add_low_rank(**{**given, wrong: spoilt}, scale=1.0)
