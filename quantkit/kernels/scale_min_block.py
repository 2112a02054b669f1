"""What Q2_K, Q4_K and Q5_K share: 256 weights in runs, x = d * scale[r] * q - dmin * min[r].

Three stages, as in csrc/scale_min_block.h: every run is fitted, each block's scales and minima are made codes of one
float16 unit each, and every run is coded against its packed scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantkit.kernels.fit import WEIGHTED, ScaleMinSearch, fit_positive, fit_scale_min
from quantkit.kernels.lanes import (
    F16Array,
    F32Array,
    Importance,
    U8Array,
    from_lanes,
    nearest,
    ordered_sum,
    to_lanes,
)

BLOCK = 256


@dataclass(frozen=True)
class Kind:
    """How a type fills the form.

    run         weights in a run
    max_code    largest q
    max_scale   largest scale and min
    saturates   whether larger codes of scales become max_scale, without and with importance; else their bits run into
                each other in pack_scales
    rms         whether a weight without importance counts by its run's rms + |x|, not |x| alone
    plain       the search without importance; with it every type's is WEIGHTED
    energy      with importance it counts by importance * sqrt(energy * mean square of the block + x^2)
    pack_scales, unpack_scales
                scale and min, uint8 (n, runs) each, to their bytes uint8 (n, m) and back
    """

    run: int
    max_code: int
    max_scale: int
    saturates: tuple[bool, bool]
    rms: bool
    plain: ScaleMinSearch
    energy: float
    pack_scales: Callable[[U8Array, U8Array], U8Array]
    unpack_scales: Callable[[U8Array], tuple[U8Array, U8Array]]


@dataclass
class Block:
    """The fields of n blocks: d, dmin float16 (n,); scale, min uint8 (n, runs); q uint8 (n, 256)."""

    d: F16Array
    dmin: F16Array
    scale: U8Array
    min: U8Array
    q: U8Array


def fit_block(x: F32Array, kind: Kind, importance: Importance | None) -> Block:
    """The fields that float32 (n, 256) is packed into."""
    runs = BLOCK // kind.run
    lanes = to_lanes(x, kind.run)
    if importance:
        energy = np.float32(kind.energy) * ordered_sum(to_lanes(x, BLOCK) ** 2) / np.float32(BLOCK)
        w = to_lanes(importance.columns, kind.run) * np.sqrt(np.repeat(energy, runs) + lanes * lanes)
        fit = fit_scale_min(lanes, w, kind.max_code, WEIGHTED)
        sum_w = to_lanes(ordered_sum(w).reshape(-1, runs), runs)
        d, scale = _fitted_codes(fit.scale, sum_w, kind.max_scale)
        dmin, min = _fitted_codes(fit.minimum, sum_w, kind.max_scale)
    else:
        w = np.abs(lanes)
        if kind.rms:
            w = np.sqrt(ordered_sum(lanes * lanes) / np.float32(kind.run)) + w
        fit = fit_scale_min(lanes, w, kind.max_code, kind.plain)
        d, scale = _plain_codes(fit.scale.reshape(-1, runs), kind.max_scale)
        dmin, min = _plain_codes(fit.minimum.reshape(-1, runs), kind.max_scale)

    if kind.saturates[importance is not None]:
        scale, min = np.minimum(scale, np.uint8(kind.max_scale)), np.minimum(min, np.uint8(kind.max_scale))
    scale, min = kind.unpack_scales(kind.pack_scales(scale, min))
    step = (d.astype(np.float32)[:, None] * scale).reshape(-1)
    offset = (dmin.astype(np.float32)[:, None] * min).reshape(-1)
    again = nearest((lanes + offset) / step).clip(0, kind.max_code)
    q = np.where(step == 0, fit.codes, again)
    return Block(d, dmin, scale, min, from_lanes(q, BLOCK))


def values(b: Block) -> F32Array:
    """What the fields mean: float32 (n, 256)."""
    step = b.d.astype(np.float32)[:, None] * b.scale
    offset = b.dmin.astype(np.float32)[:, None] * b.min
    q = b.q.reshape(*b.scale.shape, -1).astype(np.float32)
    found: F32Array = step[..., None] * q - offset[..., None]
    return found.reshape(-1, BLOCK)


def _plain_codes(values: F32Array, max_code: int) -> tuple[F16Array, U8Array]:
    """float32 (n, runs) -> a float16 (n,) unit and the values as multiples of it; the largest becomes max_code.

    Codes are bytes: what is out of range wraps, as ggml's conversion does.
    """
    largest = np.fmax.reduce(values, axis=1, initial=np.float32(0))
    largest = np.where(largest > 0, largest, np.float32(0))  # never -0, whose sign would be stored
    inverse = np.where(largest > 0, np.float32(max_code) / largest, np.float32(0))
    codes = nearest(inverse[:, None] * values) & 255
    return (largest / np.float32(max_code)).astype(np.float16), codes.astype(np.uint8)


def _fitted_codes(values: F32Array, sum_w: F32Array, max_code: int) -> tuple[F16Array, U8Array]:
    """The same, fitted to the runs' summed weights float32 (runs, n)."""
    runs = len(sum_w)
    unit, codes = fit_positive(to_lanes(values.reshape(-1, runs), runs), sum_w, max_code)
    return unit.astype(np.float16), from_lanes(codes, runs)


def pack_six_bits(scale: U8Array, min: U8Array) -> U8Array:
    """Two uint8 (n, 8) of 6 bits -> the bytes 4..15 of Q4_K and Q5_K, uint8 (n, 12).

    byte  0..3     scale[r] bits 0..5 | scale[r + 4] bits 4..5 << 6      r = 0..3
          4..7     min[r]   bits 0..5 | min[r + 4]   bits 4..5 << 6
          8..11    scale[r + 4] bits 0..3 | min[r + 4] bits 0..3 << 4
    """
    return np.concatenate(
        [
            scale[:, :4] | scale[:, 4:] >> 4 << 6,
            min[:, :4] | min[:, 4:] >> 4 << 6,
            scale[:, 4:] & 15 | min[:, 4:] << 4,
        ],
        axis=1,
    )


def unpack_six_bits(packed: U8Array) -> tuple[U8Array, U8Array]:
    """The inverse of pack_six_bits."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    min = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scale, min


def pack_head(b: Block) -> U8Array:
    """The first 16 bytes of Q4_K and Q5_K: d, dmin float16, and pack_six_bits."""
    halves = np.stack([b.d, b.dmin], axis=1).view(np.uint8)
    return np.concatenate([halves, pack_six_bits(b.scale, b.min)], axis=1)


def unpack_head(blocks: U8Array, q: U8Array) -> Block:
    """The inverse of pack_head, completed with the codes q."""
    halves = np.ascontiguousarray(blocks[:, :4]).view(np.float16)
    return Block(halves[:, 0], halves[:, 1], *unpack_six_bits(blocks[:, 4:16]), q)
