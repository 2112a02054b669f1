"""What Q4_0, Q4_1, Q5_0 and Q5_1 share: a block is one run of 32 weights with one scale, and one lane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.kernels.fit import WEIGHTED, find_peak, fit_scale, fit_scale_min
from quantkit.kernels.lanes import F16Array, F32Array, I32Array, Importance, U8Array, from_lanes, to_lanes

RUN = 32
NIBBLE, BIT, FOUR = np.uint8(15), np.uint8(1), np.uint8(4)
BITS = np.arange(8, dtype=np.uint8)


@dataclass
class Block:
    """The fields of n blocks x = d * (q - half): d float16 (n,), q uint8 (n, 32)."""

    d: F16Array
    q: U8Array


@dataclass
class RangeBlock:
    """The fields of n blocks x = d * q + m: d, m float16 (n,), q uint8 (n, 32)."""

    d: F16Array
    m: F16Array
    q: U8Array


def fit_symmetric(x: F32Array, half: int, importance: Importance | None) -> Block:
    """Fit x = d * (q - half) to float32 (n, 32); without importance the value of largest magnitude becomes -half."""
    lanes = to_lanes(x, RUN)
    if importance:
        fit = fit_scale(lanes, _weights(lanes, importance), half)
        return Block(fit.scale.astype(np.float16), from_lanes(fit.codes, RUN))
    d = find_peak(lanes)[0] / np.float32(-half)
    codes = np.minimum(_cut(lanes * _inverse(d) + np.float32(half + 0.5)), 2 * half - 1)
    return Block(d.astype(np.float16), from_lanes(codes, RUN))


def fit_range(x: F32Array, max_code: int, importance: Importance | None) -> RangeBlock:
    """Fit x = d * q + m to float32 (n, 32); without importance from the least to the greatest value."""
    lanes = to_lanes(x, RUN)
    if importance:
        fit = fit_scale_min(lanes, _weights(lanes, importance), max_code, WEIGHTED)
        m = -fit.minimum
        return RangeBlock(fit.scale.astype(np.float16), m.astype(np.float16), from_lanes(fit.codes, RUN))
    low, high = lanes[0].copy(), lanes[0].copy()
    for row in lanes[1:]:  # not min(): of 0 and -0 the first stays, and its sign is stored
        low = np.where(row < low, row, low)
        high = np.where(row > high, row, high)
    d = (high - low) / np.float32(max_code)
    codes = np.minimum(_cut((lanes - low) * _inverse(d) + np.float32(0.5)), max_code)
    return RangeBlock(d.astype(np.float16), low.astype(np.float16), from_lanes(codes, RUN))


def symmetric_values(b: Block, half: int) -> F32Array:
    """What the fields mean: float32 (n, 32)."""
    return (b.q.astype(np.float32) - np.float32(half)) * b.d.astype(np.float32)[:, None]


def range_values(b: RangeBlock) -> F32Array:
    """What the fields mean: float32 (n, 32)."""
    return b.q.astype(np.float32) * b.d.astype(np.float32)[:, None] + b.m.astype(np.float32)[:, None]


def _weights(lanes: F32Array, importance: Importance) -> F32Array:
    """importance * sqrt(mean square of the row + x^2)."""
    return to_lanes(importance.columns, RUN) * np.sqrt(importance.row_mean_square + lanes * lanes)


def _inverse(d: F32Array) -> F32Array:
    return np.where(d == 0, d, np.float32(1) / d)


def _cut(v: F32Array) -> I32Array:
    """The integer part of v in 0..255; anything else, which only a block of denormals gives, becomes 0."""
    return np.where((v < 256) & (v > -1), v, np.float32(0)).astype(np.int32)


def pack_low(q: U8Array) -> U8Array:
    """Bits 0..3 of the codes, uint8 (n, 32) -> (n, 16): q[i] | q[16 + i] << 4."""
    return q[:, :16] & NIBBLE | q[:, 16:] << FOUR


def unpack_low(packed: U8Array) -> U8Array:
    """The inverse of pack_low."""
    return np.concatenate([packed & NIBBLE, packed >> 4], axis=1)


def pack_high(q: U8Array) -> U8Array:
    """Bit 4 of the codes, uint8 (n, 32) -> (n, 4): bit 4 of q[i] << i of a little-endian 32-bit number."""
    packed: U8Array = np.bitwise_or.reduce(q.reshape(-1, 4, 8) >> 4 << BITS, axis=2)
    return packed


def unpack_high(packed: U8Array) -> U8Array:
    """The inverse of pack_high: 0 or 16."""
    return (packed[..., None] >> BITS & BIT).reshape(-1, 32) << FOUR


def as_bytes(numbers: F16Array) -> U8Array:
    """float16 (n,) -> uint8 (n, 2)."""
    return numbers[:, None].view(np.uint8)


def halves(packed: U8Array) -> F16Array:
    """uint8 (n, 2) -> float16 (n,)."""
    return np.ascontiguousarray(packed).view(np.float16)[:, 0]
