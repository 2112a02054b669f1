"""Error feedback: the same bytes from every backend, ggml's own where nothing is fed back, and a smaller loss where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contract import Candidate, assert_same_bytes
from fills import FILLS, fill
from numpy.typing import NDArray

from quantkit import kernels, qtypes
from quantkit.errors import MagnitudeError, NotFiniteError, ShapeError, UnsupportedError
from quantkit.kernels import feedback
from quantkit.kernels.feedback import CODINGS, PANEL, STRIP
from quantkit.qtypes import QType

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
TYPES = [qtypes.by_name(name) for name in CODINGS]
K_TYPES = [qtype for qtype in TYPES if qtype.block_weights == PANEL]
FED = {qtype.name for qtype in qtypes.ALL} - {"F32", "F16", "BF16", "Q8_0"}


def moments(k: int, seed: int = 0) -> F32:
    """Second moments of k columns that move together and differ in size."""
    rng = np.random.default_rng([k, seed])
    mixed = rng.standard_normal((2 * k, k)) @ (np.eye(k) + rng.standard_normal((k, k)) / np.sqrt(k))
    x = mixed * np.exp(rng.standard_normal(k) / 2)
    return (x.T @ x / len(x)).astype(np.float32)


def order_of(h: F32) -> U8:
    """The columns of each panel, those of greatest moment first."""
    own = h.diagonal()
    parts = [np.argsort(-own[first : first + PANEL], kind="stable") for first in range(0, len(h), PANEL)]
    return np.concatenate(parts).astype(np.uint8)


def factor_of(h: F32, order: U8) -> F32:
    """M of h = M D M^T in that order, by LAPACK, with D on its diagonal."""
    at = order + np.arange(len(h)) // PANEL * PANEL
    reverse = np.linalg.cholesky(h[np.ix_(at, at)].astype(np.float64)[::-1, ::-1])[::-1, ::-1]
    factor = np.ascontiguousarray(reverse / reverse.diagonal()).astype(np.float32)
    np.fill_diagonal(factor, reverse.diagonal() ** 2)
    return factor


def importance_of(h: F32) -> F32:
    return np.ascontiguousarray(h.diagonal())


def loss(error: F32, h: F32) -> NDArray[np.float64]:
    """e H e^T of each row."""
    return np.einsum("ri,ij,rj->r", error.astype(np.float64), h.astype(np.float64), error.astype(np.float64))


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[tuple[Any, ...], U8]]:
    """What the NumPy text packs: every fill, and weights of a usual kind in two panels."""
    made = {}
    with kernels.using("numpy"):
        for qtype in TYPES:
            second = PANEL if qtype in K_TYPES else 96  # columns of a second panel
            fills = np.concatenate([fill(name, 1, qtype.max_abs / 2) for name in FILLS])
            for rows in (fills, fill("bell", 6, 1.0).reshape(3, -1)[:, : PANEL + second].copy()):
                h = moments(rows.shape[1])
                order = order_of(h)
                inputs = rows, qtype, order, factor_of(h, order), importance_of(h)
                made[f"{qtype} {rows.shape}"] = inputs, kernels.encode_feedback(*inputs)
    return made


def test_every_type_with_codes_is_fed_back() -> None:
    assert CODINGS.keys() == FED


def test_equals_the_numpy_text(candidate: Candidate, expected: dict[str, tuple[tuple[Any, ...], U8]]) -> None:
    for what, (inputs, blocks) in expected.items():
        assert_same_bytes(kernels.encode_feedback(*inputs), blocks, inputs[1], what)


@pytest.mark.parametrize("qtype", K_TYPES, ids=str)
def test_without_errors_to_feed_it_is_ggmls(candidate: Candidate, qtype: QType) -> None:
    """A factor of nothing, and any order: ggml's K-quants too take the codes nearest to their packed scales."""
    k = 2 * PANEL
    order = np.random.default_rng(1).permuted(np.tile(np.arange(PANEL, dtype=np.uint8), (2, 1)), axis=1).reshape(-1)
    columns = importance_of(moments(k))
    rows = fill("bell", 2 * 33, qtype.max_abs).reshape(33, k)
    found = kernels.encode_feedback(rows, qtype, order, np.zeros((k, k), np.float32), columns)
    assert_same_bytes(found, kernels.encode(rows, qtype, columns), qtype, "no feedback")


@pytest.mark.parametrize("qtype", TYPES, ids=str)
def test_it_loses_less(candidate: Candidate, qtype: QType) -> None:
    """Than with the importance of the columns alone."""
    h = moments(PANEL)
    order, columns = order_of(h), importance_of(h)
    rows = fill("bell", 24, qtype.max_abs)
    damped = h + np.eye(PANEL, dtype=np.float32) * columns.mean() / 10

    def lost(blocks: U8) -> float:
        return float((loss(rows - kernels.decode(blocks, qtype), h) / loss(rows, h)).mean())

    ours = lost(kernels.encode_feedback(rows, qtype, order, factor_of(damped, order), columns))
    assert ours < 0.8 * lost(kernels.encode(rows, qtype, columns))


def test_what_is_fed_back_is_the_error_of_what_is_decoded(candidate: Candidate) -> None:
    """The scratch array of the kernel holds the errors, in the order of rounding."""
    if candidate.name == "numpy":
        return  # the text has no such array
    h = moments(2 * PANEL)
    order = order_of(h)
    rows = fill("bell", 40, 1.0).reshape(20, -1)
    for qtype in K_TYPES:
        errors, out = np.empty_like(rows), np.empty((20, qtype.row_bytes(2 * PANEL)), np.uint8)
        arguments = (order, factor_of(h, order), importance_of(h), qtype.max_abs, errors, out)
        native = kernels._native()
        assert native is not None
        assert native.encode_feedback(qtype.id, rows, 20, 2 * PANEL, *arguments) == -1
        at = order + np.arange(2 * PANEL) // PANEL * PANEL
        assert np.array_equal(errors, (rows - kernels.decode(out, qtype))[:, at])


def test_columns_are_rounded_again_as_the_moments_say() -> None:
    """Each to what makes e H e^T least while the others stay, found here from H itself in float64; steps of 0 too."""
    h = moments(PANEL)
    order = order_of(h)
    ordered = h[np.ix_(order, order)].astype(np.float64)
    rows = fill("bell", 24, 1.0)[:, order]
    panel = feedback._Panel(CODINGS["Q3_K"], PANEL, order, factor_of(h, order), importance_of(h), rows, rows)
    step = np.repeat(np.linspace(0, rows.std(), 24, dtype=np.float32)[:, None], PANEL, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        coded = panel._rounded(step, np.zeros_like(step))
        levels = coded.level.copy()
        panel._round_again(coded)
    for i in range(PANEL):
        gain = (rows - step * levels) @ ordered[i] / ordered[i, i]
        levels[1:, i] = np.clip(np.rint(levels[1:, i] + gain[1:] / step[1:, i]), -4, 3)
    assert (levels == coded.level).mean() > 0.999
    sums = (panel.factor.diagonal() * coded.miss.astype(np.float64) ** 2).sum(1)
    assert np.allclose(sums, loss(rows - coded.value, ordered.astype(np.float32)), rtol=1e-4)


def test_rows_stand_alone(candidate: Candidate) -> None:
    h = moments(PANEL)
    order = order_of(h)
    rows = fill("bell", 130, 1.0)  # more than the rows of a group
    whole = kernels.encode_feedback(rows, qtypes.Q4_K, order, factor_of(h, order), importance_of(h))
    for some in (slice(0, 1), slice(3, 20), slice(100, 130)):
        part = kernels.encode_feedback(
            np.ascontiguousarray(rows[some]), qtypes.Q4_K, order, factor_of(h, order), importance_of(h)
        )
        assert_same_bytes(part, whole[some], qtypes.Q4_K, str(some))


def test_refusals(candidate: Candidate) -> None:
    k = PANEL
    rows, factor, columns = np.ones((2, k), np.float32), np.zeros((k, k), np.float32), np.ones(k, np.float32)
    order = np.arange(k, dtype=np.uint8)
    with pytest.raises(UnsupportedError, match="Q8_0"):
        kernels.encode_feedback(rows, qtypes.Q8_0, order, factor, columns)
    for wrong in ((order[:-1], factor, columns), (order, factor[:-1], columns), (order, factor, columns[:-1])):
        with pytest.raises(ShapeError):
            kernels.encode_feedback(rows, qtypes.Q4_K, *wrong)
    for spoilt in (np.zeros(k, np.uint8), np.roll(order, 1) // 2):
        with pytest.raises(ShapeError, match="order"):
            kernels.encode_feedback(rows, qtypes.Q4_K, spoilt, factor, columns)
    for value, error in ((np.nan, NotFiniteError), (np.inf, NotFiniteError), (3e38, MagnitudeError)):
        bad = rows.copy()
        bad[1, 7] = value
        with pytest.raises(error) as caught:
            kernels.encode_feedback(bad, qtypes.Q4_K, order, factor, columns)
        assert (caught.value.details["row"], caught.value.details["column"]) == (1, 7)


def test_errors_that_grow_beyond_the_type_are_refused(candidate: Candidate) -> None:
    k = 2 * PANEL
    rows = fill("bell", 2, 1.0).reshape(1, k)
    order = np.tile(np.arange(PANEL, dtype=np.uint8), 2)
    factor = np.full((k, k), 1e30, np.float32)
    with pytest.raises(MagnitudeError, match="errors before it") as caught:
        kernels.encode_feedback(rows, qtypes.Q4_K, order, factor, np.ones(k, np.float32))
    assert caught.value.details["column"] >= PANEL


# ---- the factor


def factored(h: F32, piece: int, factor_rows: Callable[..., int]) -> F32:
    """G of h = G G^T, rows above a strip in pieces."""
    g, n = h.copy(), len(h)
    for first in range((n - 1) // STRIP * STRIP, -1, -STRIP):
        assert factor_rows(g, first, first, min(STRIP, n - first), 0.0) == -1
        for row in range(0, first, piece):
            assert factor_rows(g, first, row, min(piece, first - row), 0.0) == -1
    return np.triu(g)


@pytest.mark.parametrize("n", [1, 32, 63, 64, 65, 200, 333])
def test_the_factor(candidate: Candidate, n: int) -> None:
    """It is one, with the same bits from every backend and in any pieces."""
    h = moments(n)
    found = factored(h, 1000, kernels.factor_rows)
    assert np.abs(found.astype(np.float64) @ found.T - h).max() < 2e-6 * np.abs(h).max()
    assert found.tobytes() == factored(h, 37, kernels.factor_rows).tobytes()
    assert found.tobytes() == factored(h, 1000, feedback.factor_rows).tobytes()


@pytest.mark.parametrize("at", [0, 63, 64, 130])
def test_a_pivot_that_is_too_small_is_named(candidate: Candidate, at: int) -> None:
    h = np.eye(131, dtype=np.float32)
    h[at, at] = 0.5
    first = at // STRIP * STRIP
    assert kernels.factor_rows(h.copy(), first, first, min(STRIP, 131 - first), 0.5) == at
    h[at, at] = np.nan
    assert kernels.factor_rows(h, first, first, min(STRIP, 131 - first), 0.5) == at
