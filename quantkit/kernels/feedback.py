"""Blocks whose codes make good for each other, column by column, and the factor that says how.

What a row of weights loses is e H e^T: H the second moments of what it is multiplied by, e = weight - value.  With
H = M D M^T, M unit upper triangular and D diagonal, that is

    sum_j D_j (corrected_j - value_j)^2,      corrected_j = weight_j + sum_{i < j} e_i M_ij,

so columns are rounded one after another, each as near as its block allows to what the errors before it make of it
(LDLQ: Chee et al. 2023, https://arxiv.org/abs/2307.13304; the same as GPTQ: Frantar et al. 2022,
https://arxiv.org/abs/2210.17323).  The columns of a panel of PANEL are then rounded again in the same order, each as
near to what makes the panel's part of the sum least while the others stay:

    value_i + sum_{j >= i} D_j miss_j M_ij / C_ii,      miss = corrected - value,      C = M D M^T of the panel.

The scales of a panel are found just before it, by the type's own encoder from its corrected weights, and then
ROUNDS - 1 times anew from what its columns were last asked to be; each row keeps the round with the least sum.  Scales
stay while columns are rounded, so these may come in any order, and M is in that order.

csrc/feedback.h, factor.h and product.h say the same in C.  Every sum begins with what is added to and goes on term by
term in float32, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

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
ROUNDS = 3  # times that the scales of a panel are found
GROUP = 8  # columns whose sums are found together when they are rounded again
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

    block    weights in a block of the type
    the rest as of kernels.encode_feedback
    returns  the flat index of a corrected weight beyond limit, or -1
    """
    k = rows.shape[1]
    weights = rows[:, order + np.arange(k) // PANEL * PANEL]
    corrected = weights.copy()
    for first in range(0, k, PANEL):
        at = slice(first, min(first + PANEL, k))
        unfit = ~(np.abs(corrected[:, at]) <= np.float32(limit))
        if unfit.any():
            row, column = np.unravel_index(unfit.argmax(), unfit.shape)
            return int(row * k + first + order[at][column])
        panel = _Panel(coding, block, order[at], factor[at, at], importance[at], weights[:, at], corrected[:, at])
        best = panel.pack(corrected[:, at])
        asked = best.asked
        for _ in range(ROUNDS - 1):
            found = panel.pack(_clamped(asked, -limit, limit))
            asked = found.asked
            best = found.where(found.loss < best.loss, best)
        start = first // block * (out.shape[1] // (k // block))
        out[:, start : start + best.packed.shape[1]] = best.packed
        for i, error in enumerate(best.error.T, first):
            corrected[:, at.stop :] += error[:, None] * factor[i, at.stop :]
    return -1


@dataclass(frozen=True)
class _Packed:
    """A panel of n rows, packed once.

    packed        uint8 (n, m)
    asked, error  what each column was asked to be when it was last rounded, and weight - value: float32 (n, width), in
                  the order of rounding
    loss          float32 (n,): the panel's part of the sum
    """

    packed: U8Array
    asked: F32Array
    error: F32Array
    loss: F32Array

    def where(self, rows: npt.NDArray[np.bool_], other: _Packed) -> _Packed:
        """These rows, and the other's else."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Packed(*(np.where(rows if mine.ndim == 1 else rows[:, None], mine, its) for mine, its in pairs))


@dataclass(frozen=True)
class _Coded:
    """Columns while they are coded, in the order of rounding: all float32 (n, width).

    step, offset  of the run of each: its value is step * level - offset
    asked         what it was asked to be when it was last rounded
    level         its code, the code of 0 being level 0
    miss          corrected - value
    """

    step: F32Array
    offset: F32Array
    asked: F32Array
    level: F32Array
    miss: F32Array

    @property
    def value(self) -> F32Array:
        return self.step * self.level - self.offset


@dataclass(frozen=True)
class _Panel:
    """Columns that are fitted together; weights and corrected are in the order of rounding, importance is not."""

    coding: Coding
    block: int
    order: U8Array
    factor: F32Array
    importance: F32Array
    weights: F32Array
    corrected: F32Array

    def pack(self, like: F32Array) -> _Packed:
        """Pack with the scales that like gets, float32 (n, width) in the order of rounding."""
        n, width = like.shape
        own_order = np.empty_like(like)
        own_order[:, self.order] = like
        columns = np.tile(self.importance, n).reshape(-1, self.block)
        known = Importance(columns, np.repeat(mean_squares(own_order), width // self.block))
        b = self.coding.text.unpack(self.coding.text.encode(own_order.reshape(-1, self.block), known))
        step, offset = (
            np.repeat(values, self.block // values.shape[1], axis=1).reshape(n, width)
            for values in self.coding.scales(b)
        )
        coded = self._rounded(step[:, self.order], offset[:, self.order])
        self._round_again(coded)
        b.q.reshape(n, width)[:, self.order] = coded.level + self.coding.zero
        loss = np.zeros(n, np.float32)
        for d, miss in zip(self.factor.diagonal(), coded.miss.T, strict=True):
            loss += d * (miss * miss)
        return _Packed(self.coding.text.pack(b).reshape(n, -1), coded.asked, self.weights - coded.value, loss)

    def _rounded(self, step: F32Array, offset: F32Array) -> _Coded:
        """Each column as near as its block allows to what it is asked to be."""
        coded = _Coded(step, offset, self.corrected.copy(), np.empty_like(step), np.empty_like(step))
        for i in range(step.shape[1]):
            level = self._nearest_level((coded.asked[:, i] + offset[:, i]) / step[:, i])
            coded.level[:, i] = np.where(step[:, i] == 0, 0, level)  # any code means the same; it passes for that of 0
            value = coded.value[:, i]
            coded.miss[:, i] = coded.asked[:, i] - value
            coded.asked[:, i + 1 :] += (self.weights[:, i] - value)[:, None] * self.factor[i, i + 1 :]
        return coded

    def _round_again(self, coded: _Coded) -> None:
        """Each column while the others stay."""
        d = self.factor.diagonal()
        for first in range(0, len(self.order), GROUP):
            group = slice(first, first + GROUP)
            rows, step = self._unit_factor[group], coded.step[:, group]
            sums = np.zeros_like(step)
            for j in range(first, len(self.order)):
                sums += (d[j] * coded.miss[:, j])[:, None] * rows[:, j]
            for i, curvature in enumerate(self._curvature[group]):
                inverse = 1 / curvature[i] if curvature[i] > 0 else np.float32(0)
                level = coded.level[:, first + i]
                coded.asked[:, first + i] = coded.value[:, first + i] + sums[:, i] * inverse
                rate = np.where(step[:, i] == 0, np.float32(0), inverse / step[:, i])  # levels for a unit of the sum
                better = self._nearest_level(level + sums[:, i] * rate)
                moved = step[:, i] * (better - level)
                coded.level[:, first + i] = better
                sums[:, i + 1 :] -= moved[:, None] * curvature[i + 1 :]
                coded.miss[:, first:] -= moved[:, None] * rows[i, first:]

    def _nearest_level(self, x: F32Array) -> F32Array:
        """The level nearest to x that the type has, the code of 0 being level 0."""
        return nearest(_clamped(x, -self.coding.zero, self.coding.max_code - self.coding.zero)).astype(np.float32)

    @cached_property
    def _unit_factor(self) -> F32Array:
        """M, float32 (width, width)."""
        return np.triu(self.factor, 1) + np.eye(len(self.factor), dtype=np.float32)

    @cached_property
    def _curvature(self) -> F32Array:
        """Of each column and those of its group their part of C, float32 (width, GROUP)."""
        found = np.zeros((len(self.factor), GROUP), np.float32)
        for first in range(0, len(found), GROUP):
            group = slice(first, first + GROUP)
            for d, column in zip(self.factor.diagonal()[first:], self._unit_factor[group, first:].T, strict=True):
                found[group] += (d * column)[:, None] * column
        return found


def _clamped(x: F32Array, low: float, high: float) -> F32Array:
    """x within low..high; NaN becomes low."""
    above = np.where(x > np.float32(low), x, np.float32(low))
    return np.where(above < np.float32(high), above, np.float32(high))


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
