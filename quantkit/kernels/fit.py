"""The searches for a run's scale that several types share; csrc/fit.h says the same in C.

They repeat ggml's sequence of float32 operations (ggml-quants.c of llama.cpp b11434; its name for each search stands
beside ours), for their results must be equal to the last bit.  x and w are float32 (run, lanes): a lane is a column.

Codes are computed anew once the scale is packed.  Only where the packed scale is 0 do the search's own codes stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.kernels.lanes import F32Array, I32Array, nearest, ordered_sum

RUN_EPSILON = np.float32(1e-15)  # a run of smaller magnitudes is empty
f32 = np.float32


@dataclass(frozen=True)
class ScaleMinSearch:
    """Candidates: inverse scales (first + step * k + max_code) / (max - min), k = 0..last.

    absolute   the error is sum w |diff|, not sum w diff^2
    guarded    candidates' codes are clamped before they are rounded, not after
    """

    first: float
    step: float
    last: int
    absolute: bool = False
    guarded: bool = False


WEIGHTED = ScaleMinSearch(-0.9, 0.05, 36, guarded=True)  # of every type, where there is importance


@dataclass
class ScaleMinFit:
    """x ~ scale * code - minimum, with the search's own codes int32 (run, lanes)."""

    scale: F32Array
    minimum: F32Array
    codes: I32Array


@dataclass
class ScaleFit:
    """x ~ scale * (code - half), with the search's own codes int32 (run, lanes), 0..2 half - 1; 0 in an empty run."""

    scale: F32Array
    codes: I32Array


def fit_scale_min(x: F32Array, w: F32Array, max_code: int, search: ScaleMinSearch) -> ScaleMinFit:
    """make_qkx2_quants, make_qkx3_quants: minimise sum_i w_i (scale * code_i - minimum - x_i)^2 in every lane.

    For each candidate the codes are fixed first, then scale and minimum solve the two normal equations, with the
    minimum held at >= 0.  The running best minimum is what codes count from and what the candidates' range ends at:
    each better candidate moves it for those that follow.
    """
    low: F32Array = x[0].copy()
    high: F32Array = x[0].copy()
    for row in x[1:]:
        low = np.where(row < low, row, low)
        high = np.where(row > high, row, high)
    sum_w, sum_x = ordered_sum(w), ordered_sum(w * x)
    low = np.where(low > 0, f32(0), low)  # not minimum(): the sign of -0 is stored

    def error_of(scale: F32Array, minimum: F32Array, levels: F32Array) -> F32Array:
        diff = scale * levels + minimum - x
        return ordered_sum(w * (np.abs(diff) if search.absolute else diff * diff))

    inverse = f32(max_code) / (high - low)
    scale = f32(1) / inverse
    best_codes = nearest(inverse * (x - low)).clip(0, max_code)
    best_scale, best_error = scale, error_of(scale, low, best_codes.astype(f32))

    for k in range(search.last + 1):
        inverse = (f32(search.first) + f32(search.step) * f32(k) + f32(max_code)) / (high - low)
        v = inverse * (x - low)
        if search.guarded:
            codes = nearest(np.where(v > 0, np.where(v < max_code, v, f32(max_code)), f32(0)))
        else:
            codes = nearest(v).clip(0, max_code)
        levels = codes.astype(f32)
        wl = w * levels
        sum_l, sum_l2, sum_xl = ordered_sum(wl), ordered_sum(wl * levels), ordered_sum(wl * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        scale = np.divide(sum_w * sum_xl - sum_x * sum_l, det)
        minimum: F32Array = np.divide(sum_l2 * sum_x - sum_l * sum_xl, det)
        positive = minimum > 0
        scale = np.where(positive, sum_xl / sum_l2, scale)
        minimum = np.where(positive, f32(0), minimum)
        error = error_of(scale, minimum, levels)
        better = (det > 0) & (error < best_error)
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        np.copyto(best_codes, codes, where=better)
        low = np.where(better, minimum, low)
    return ScaleMinFit(best_scale, -low, best_codes)


def find_peak(x: F32Array) -> tuple[F32Array, npt.NDArray[np.bool_]]:
    """The first value of largest magnitude in each lane, and whether that magnitude is below RUN_EPSILON."""
    peak, largest = np.zeros_like(x[0]), np.zeros_like(x[0])
    for row in x:
        larger = np.abs(row) > largest
        largest = np.where(larger, np.abs(row), largest)
        peak = np.where(larger, row, peak)
    return peak, largest < RUN_EPSILON


def fit_scale(x: F32Array, w: F32Array, half: int) -> ScaleFit:
    """make_qx_quants: minimise sum_i w_i (scale * level_i - x_i)^2 in every lane, level = code - half.

    For given levels that means scale = sum_lx / sum_l2 and the largest sum_lx^2 / sum_l2.  The candidates' inverse
    scales are -(half + k / 10) / (value of largest magnitude), k = 0 first, then -9..-1 and 1..9.
    """
    peak, empty = find_peak(x)
    wx = w * x

    def levels_of(inverse: F32Array) -> I32Array:
        return nearest(inverse * x).clip(-half, half - 1)

    def sums(inverse: F32Array) -> tuple[F32Array, F32Array]:
        levels = levels_of(inverse).astype(f32)
        return ordered_sum(wx * levels), ordered_sum(w * levels * levels)

    best_inverse = f32(-half) / peak
    sum_lx, sum_l2 = sums(best_inverse)
    best_scale = np.where(sum_l2 == 0, f32(0), sum_lx / sum_l2)
    best_score = best_scale * sum_lx
    for k in (*range(-9, 0), *range(1, 10)):
        inverse = -(f32(half) + f32(0.1) * f32(k)) / peak
        sum_lx, sum_l2 = sums(inverse)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best_score * sum_l2)
        best_scale = np.where(better, sum_lx / sum_l2, best_scale)
        best_inverse = np.where(better, inverse, best_inverse)
        best_score = np.where(better, best_scale * sum_lx, best_score)
    codes = np.where(empty, np.int32(0), levels_of(best_inverse) + half)
    return ScaleFit(np.where(empty, f32(0), best_scale), codes)


def descend_scale(x: F32Array, half: int) -> ScaleFit:
    """make_q3_quants: the same objective with w_i = x_i^2, from the plain inverse scale on, one code moved at a time.

    At most five times through the run; a lane in which nothing changed once will not change again.
    """
    peak, empty = find_peak(x)
    levels = nearest(f32(-half) / peak * x).clip(-half, half - 1).astype(f32)
    w = x * x
    wx = w * x
    sum_lx, sum_l2 = ordered_sum(wx * levels), ordered_sum(w * levels * levels)
    lanes = np.arange(x.shape[1])
    for _ in range(5):
        state = levels[:, lanes], sum_lx[lanes], sum_l2[lanes]
        changed = _move_codes(x[:, lanes], w[:, lanes], wx[:, lanes], half, *state)
        levels[:, lanes], sum_lx[lanes], sum_l2[lanes] = state
        lanes = lanes[changed]
        if not lanes.size:
            break
    codes = np.where(empty, np.int32(0), levels.astype(np.int32) + half)
    return ScaleFit(np.where(empty | ~(sum_l2 > 0), f32(0), sum_lx / sum_l2), codes)


def _move_codes(
    x: F32Array, w: F32Array, wx: F32Array, half: int, levels: F32Array, sum_lx: F32Array, sum_l2: F32Array
) -> npt.NDArray[np.bool_]:
    """One round of descend_scale, in place on levels and the two sums; the lanes in which something changed."""
    changed = np.zeros(x.shape[1], bool)
    for i in range(len(x)):
        rest_lx = sum_lx - wx[i] * levels[i]
        rest_l2 = sum_l2 - w[i] * levels[i] * levels[i]
        moved = nearest(x[i] * rest_l2 / rest_lx).clip(-half, half - 1).astype(f32)
        lx, l2 = rest_lx + wx[i] * moved, rest_l2 + w[i] * moved * moved
        better = (rest_lx > 0) & (l2 > 0) & (moved != levels[i]) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2)
        np.copyto(levels[i], moved, where=better)
        np.copyto(sum_lx, lx, where=better)
        np.copyto(sum_l2, l2, where=better)
        changed |= better
    return changed


def fit_positive(x: F32Array, w: F32Array, max_code: int) -> tuple[F32Array, I32Array]:
    """make_qp_quants: x ~ unit * code, for the scales or minima of one block in each lane; (unit, codes).

    First the inverse scale (max_code + k / 10) / max, k = 0, then -4..-1, 1..4, with the least
    sum w (x - scale code)^2, then one code moved at a time as above.  Codes are bytes: what is negative wraps, as
    ggml's do.
    """
    largest = np.fmax.reduce(x, axis=0, initial=f32(0))
    empty = largest < RUN_EPSILON

    def error_of(inverse: F32Array, codes: I32Array) -> F32Array:
        diff = x - f32(1) / inverse * codes.astype(f32)
        return ordered_sum(w * diff * diff)

    best_inverse = f32(max_code) / largest
    best_error = error_of(best_inverse, nearest(best_inverse * x) & 255)
    for k in (*range(-4, 0), *range(1, 5)):
        inverse = (f32(0.1) * f32(k) + f32(max_code)) / largest
        error = error_of(inverse, np.minimum(nearest(inverse * x), max_code))
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_inverse = np.where(better, inverse, best_inverse)

    first = np.minimum(nearest(best_inverse * x), max_code)
    codes = first & 255
    wx = w * x
    levels = first.astype(f32)
    sum_lx, sum_l2 = ordered_sum(wx * levels), ordered_sum(w * levels * levels)
    for _ in range(5):
        changed = False
        for i in range(len(x)):
            level = codes[i].astype(f32)
            rest_lx, rest_l2 = sum_lx - wx[i] * level, sum_l2 - w[i] * level * level
            moved = np.minimum(nearest(x[i] * rest_l2 / rest_lx), max_code)
            step = moved.astype(f32)
            lx, l2 = rest_lx + wx[i] * step, rest_l2 + w[i] * step * step
            better = (rest_lx > 0) & (rest_l2 > 0) & (moved != codes[i]) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2)
            codes[i] = np.where(better, moved & 255, codes[i])
            sum_lx = np.where(better, lx, sum_lx)
            sum_l2 = np.where(better, l2, sum_l2)
            changed |= bool(better.any())
        if not changed:
            break
    return np.where(empty | ~(sum_l2 > 0), f32(0), sum_lx / sum_l2), np.where(empty, np.int32(0), codes)
