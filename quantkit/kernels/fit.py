"""The searches for a run's scale that several types share; csrc/fit.h says the same in C.

They repeat ggml's sequence of float32 operations (make_qkx2_quants and make_qx_quants in ggml-quants.c of llama.cpp
b11434), for their results must be equal to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.kernels.lanes import F32Array, I32Array, nearest, ordered_sum

RUN_EPSILON = np.float32(1e-15)  # a run of smaller magnitudes is empty


@dataclass
class ScaleMinFit:
    """x ~ scale * code - minimum; the search's codes are code(x, inverse, origin).  Each float32 (lanes,)."""

    scale: F32Array
    minimum: F32Array
    inverse: F32Array
    origin: F32Array


@dataclass
class ScaleFit:
    """x ~ scale * code; the search's codes are nearest(inverse * x).  Each (lanes,); empty is bool."""

    scale: F32Array
    inverse: F32Array
    empty: np.ndarray


def code(x: F32Array, inverse: F32Array, origin: F32Array, max_code: int) -> I32Array:
    """The codes 0..max_code of x (run, lanes) for one inverse scale and origin a lane."""
    return nearest(inverse * (x - origin)).clip(0, max_code)


def fit_scale_min(x: F32Array, w: F32Array, max_code: int, first: float, step: float, last: int) -> ScaleMinFit:
    """Minimise sum_i w_i (scale * code_i - minimum - x_i)^2 in every lane.

    x, w      float32 (run, lanes)
    first, step, last
              the candidates' inverse scales are (first + step * k + max_code) / (max - min), k = 0..last

    For each candidate the codes are fixed first, then scale and minimum solve the two normal equations, with the
    minimum held at >= 0.  The running best minimum is what codes count from and what the candidates' range ends at:
    each better candidate moves it for those that follow.
    """
    f32 = np.float32
    low: F32Array = x[0].copy()
    high: F32Array = x[0].copy()
    for row in x[1:]:
        low = np.where(row < low, row, low)
        high = np.where(row > high, row, high)
    sum_w, sum_x = ordered_sum(w), ordered_sum(w * x)
    low = np.minimum(low, f32(0))

    def error_of(scale: F32Array, minimum: F32Array, codes: F32Array) -> F32Array:
        diff = scale * codes + minimum - x
        return ordered_sum(w * (diff * diff))

    inverse = f32(max_code) / (high - low)
    scale = f32(1) / inverse
    best = ScaleMinFit(scale, -low, inverse, low)
    best_error = error_of(scale, low, code(x, inverse, low, max_code).astype(f32))

    for k in range(last + 1):
        inverse = (f32(first) + f32(step) * f32(k) + f32(max_code)) / (high - low)
        codes = code(x, inverse, low, max_code).astype(f32)
        wl = w * codes
        sum_l, sum_l2, sum_xl = ordered_sum(wl), ordered_sum(wl * codes), ordered_sum(wl * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        scale = np.divide(sum_w * sum_xl - sum_x * sum_l, det)
        minimum: F32Array = np.divide(sum_l2 * sum_x - sum_l * sum_xl, det)
        positive = minimum > 0
        scale = np.where(positive, sum_xl / sum_l2, scale)
        minimum = np.where(positive, f32(0), minimum)
        error = error_of(scale, minimum, codes)
        better = (det > 0) & (error < best_error)
        best_error = np.where(better, error, best_error)
        best.scale = np.where(better, scale, best.scale)
        best.inverse = np.where(better, inverse, best.inverse)
        best.origin = np.where(better, low, best.origin)
        low = np.where(better, minimum, low)
    best.minimum = -low
    return best


def fit_scale(x: F32Array, w: F32Array, half: int) -> ScaleFit:
    """Minimise sum_i w_i (scale * code_i - x_i)^2 in every lane, code -half..half - 1.

    x, w   float32 (run, lanes)

    For given codes that means scale = sum_lx / sum_l2 and the largest sum_lx^2 / sum_l2.  The candidates' inverse
    scales are -(half + k / 10) / (value of largest magnitude), k = 0 first, then -9..-1 and 1..9.
    """
    f32 = np.float32
    peak, largest = np.zeros_like(x[0]), np.zeros_like(x[0])
    for row in x:
        larger = np.abs(row) > largest
        largest = np.where(larger, np.abs(row), largest)
        peak = np.where(larger, row, peak)
    wx = w * x

    def sums(inverse: F32Array) -> tuple[F32Array, F32Array]:
        codes = nearest(inverse * x).clip(-half, half - 1).astype(f32)
        return ordered_sum(wx * codes), ordered_sum(w * codes * codes)

    inverse = f32(-half) / peak
    sum_lx, sum_l2 = sums(inverse)
    best = ScaleFit(np.where(sum_l2 == 0, f32(0), sum_lx / sum_l2), inverse, largest < RUN_EPSILON)
    best_score = best.scale * sum_lx
    for k in (*range(-9, 0), *range(1, 10)):
        inverse = -(f32(half) + f32(0.1) * f32(k)) / peak
        sum_lx, sum_l2 = sums(inverse)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best_score * sum_l2)
        best.scale = np.where(better, sum_lx / sum_l2, best.scale)
        best.inverse = np.where(better, inverse, best.inverse)
        best_score = np.where(better, best.scale * sum_lx, best_score)
    best.scale = np.where(best.empty, f32(0), best.scale)
    return best
