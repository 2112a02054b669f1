"""Blocks whose codes make good for each other, column by column, and the factor that says how.

What a row of weights loses is e H e^T: H the second moments of what it is multiplied by, e = weight - value.  With
H = M D M^T, M unit upper triangular and D diagonal, that is

    sum_j D_j (corrected_j - value_j)^2,      corrected_j = weight_j + sum_{i < j} e_i M_ij,

so columns are rounded one after another, each as near as its block allows to what the errors before it make of it
(LDLQ: Chee et al. 2023, https://arxiv.org/abs/2307.13304; the same as GPTQ: Frantar et al. 2022,
https://arxiv.org/abs/2210.17323).  The scales of a panel of PANEL columns are found just before it, by the type's own
encoder from its corrected weights, and stay; so its columns may come in any order, and M is in that order.

csrc/feedback.h, factor.h and product.h say the same in C.  Every sum begins with what is added to and goes on term by
term in float32, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.kernels import (
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    run_block,
    scale_block,
    scale_min_block,
)
from quantkit.kernels.lanes import F32Array, Importance, U8Array, mean_squares, nearest

PANEL = 256  # columns that are fitted together
STRIP = 64  # columns of a factor that are found together
Runs = tuple[F32Array, F32Array]


@dataclass(frozen=True)
class Coding:
    """How a type's codes are told apart from its scales: weight = step * (code - zero) - offset.

    text      the type's module: encode, unpack, pack
    scales    of n unpacked blocks: step and offset of each run, float32 (n, runs)
    max_code  largest code
    zero      the code of 0
    """

    text: Any
    scales: Callable[[Any], Runs]
    max_code: int
    zero: int = 0


def _of_scales_and_minima(b: scale_min_block.Block) -> Runs:
    return b.d.astype(np.float32)[:, None] * b.scale, b.dmin.astype(np.float32)[:, None] * b.min


def _of_scales(b: scale_block.Block) -> Runs:
    step = b.d.astype(np.float32)[:, None] * b.scale
    return step, np.zeros_like(step)


def _of_symmetric(b: run_block.Block) -> Runs:
    step = b.d.astype(np.float32)[:, None]
    return step, np.zeros_like(step)


def _of_range(b: run_block.RangeBlock) -> Runs:
    return b.d.astype(np.float32)[:, None], -b.m.astype(np.float32)[:, None]


CODINGS = {
    "Q4_0": Coding(q4_0, _of_symmetric, 15, q4_0.HALF),
    "Q4_1": Coding(q4_1, _of_range, q4_1.MAX_CODE),
    "Q5_0": Coding(q5_0, _of_symmetric, 31, q5_0.HALF),
    "Q5_1": Coding(q5_1, _of_range, q5_1.MAX_CODE),
    "Q2_K": Coding(q2_k, _of_scales_and_minima, 3),
    "Q3_K": Coding(q3_k, _of_scales, 7, q3_k.HALF),
    "Q4_K": Coding(q4_k, _of_scales_and_minima, 15),
    "Q5_K": Coding(q5_k, _of_scales_and_minima, 31),
    "Q6_K": Coding(q6_k, _of_scales, 63, q6_k.HALF),
}


def is_order(order: U8Array) -> bool:
    """Whether order has each column of each panel once."""
    panels = (order[first : first + PANEL] for first in range(0, len(order), PANEL))
    return all(np.array_equal(np.sort(panel), np.arange(len(panel))) for panel in panels)


def encode(
    rows: F32Array,
    coding: Coding,
    block: int,
    order: U8Array,
    factor: F32Array,
    importance: F32Array,
    limit: float,
    out: U8Array,
) -> int:
    """Pack float32 (n, k) into out, uint8 (n, row_bytes), column by column.

    block   weights in a block of the type
    the rest as of kernels.encode_feedback
    returns  the flat index of a corrected weight beyond limit, or -1
    """
    n, k = rows.shape
    columns = order + np.arange(k) // PANEL * PANEL
    corrected = rows[:, columns]
    for first in range(0, k, PANEL):
        panel = slice(first, min(first + PANEL, k))
        x = np.empty((n, panel.stop - first), np.float32)
        x[:, order[panel]] = corrected[:, panel]
        unfit = ~(np.abs(x) <= np.float32(limit))
        if unfit.any():
            row, column = np.unravel_index(unfit.argmax(), x.shape)
            return int(row * k + first + column)
        known = Importance(
            np.tile(importance[panel], n).reshape(-1, block), np.repeat(mean_squares(x), x.shape[1] // block)
        )
        b = coding.text.unpack(coding.text.encode(x.reshape(-1, block), known))
        runs = coding.scales(b)
        step, offset = (np.repeat(values, block // values.shape[1], axis=1).reshape(x.shape) for values in runs)
        codes = b.q.reshape(x.shape)
        for i in range(first, panel.stop):
            at = int(order[i])
            level = nearest(_within((corrected[:, i] + offset[:, at]) / step[:, at], coding))
            level = np.where(step[:, at] == 0, 0, level)  # any code means the same; it passes for that of 0
            codes[:, at] = level + coding.zero
            error = rows[:, first + at] - (step[:, at] * level.astype(np.float32) - offset[:, at])
            corrected[:, i + 1 :] += error[:, None] * factor[i, i + 1 :]
        packed = coding.text.pack(b).reshape(n, -1)
        start = first // block * (packed.shape[1] // (x.shape[1] // block))
        out[:, start : start + packed.shape[1]] = packed
    return -1


def _within(level: F32Array, coding: Coding) -> F32Array:
    """level held within the codes; NaN becomes the least."""
    least, most = np.float32(-coding.zero), np.float32(coding.max_code - coding.zero)
    above = np.where(level > least, level, least)
    return np.where(above < most, above, most)


def factor_rows(h: F32Array, first: int, row: int, n_rows: int, least: float) -> int:
    """A step of H = G G^T, G upper triangular, in place in the upper triangle of float32 (n, n).

    Strips of STRIP columns are done from the last to the first: the strip's own rows, row = first, then those above it:

        G_ij = (H_ij - sum_{p > j} G_ip G_jp) / G_jj,   i < j,        G_jj = sqrt(H_jj - sum_{p > j} G_jp^2),

    with rising p beyond the strip and then falling p within it.

    returns  the column of a pivot that is not above least, or -1
    """
    strip = h[first : first + STRIP]
    own = slice(first, first + len(strip))
    s = h[row : row + n_rows, own]
    for p in range(first + len(strip), len(h)):
        s -= h[row : row + n_rows, p, None] * strip[:, p]
    for j in range(len(strip) - 1, -1, -1):
        if row == first:
            if not s[j, j] > np.float32(least):
                return first + j
            s[j, j] = np.sqrt(s[j, j])
            s[:j, j] /= s[j, j]
            s[:j, :j] -= s[:j, j, None] * s[:j, j]
        else:
            s[:, j] /= strip[j, first + j]
            s[:, :j] -= s[:, j, None] * strip[:j, first + j]
    return -1
