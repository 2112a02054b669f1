"""What Q4_K and Q5_K share: 256 weights in 8 runs of 32, x = d * scale[r] * q - dmin * min[r].

scale and min are 6-bit, and a block begins with
byte  0..1      d      float16
      2..3      dmin   float16
      4..7      scale[r] bits 0..5 | scale[r + 4] bits 4..5 << 6      r = 0..3
      8..11     min[r]   bits 0..5 | min[r + 4]   bits 4..5 << 6
      12..15    scale[r + 4] bits 0..3 | min[r + 4] bits 0..3 << 4
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.kernels.fit import code, fit_scale_min
from quantkit.kernels.lanes import F32Array, U8Array, from_lanes, nearest, ordered_sum, to_lanes

RUN, RUNS = 32, 8
SCALES_BYTES = 16


@dataclass
class Block:
    """The fields of n blocks: d, dmin float16 (n,); scale, min uint8 (n, 8), 6 bits; q uint8 (n, 256)."""

    d: np.ndarray
    dmin: np.ndarray
    scale: U8Array
    min: U8Array
    q: U8Array


def fit_block(x: F32Array, max_code: int, first: float, step: float, last: int) -> Block:
    """Fit every run of float32 (n, 256), pack its scale, and code it against the packed scale.

    first, step, last   the candidates of the search, as in fit.fit_scale_min
    """
    lanes = to_lanes(x, RUN)
    rms = np.sqrt(ordered_sum(lanes * lanes) / np.float32(RUN))
    fit = fit_scale_min(lanes, rms + np.abs(lanes), max_code, first, step, last)

    d, scale = six_bits(fit.scale.reshape(-1, RUNS))
    dmin, min = six_bits(fit.minimum.reshape(-1, RUNS))
    packed_scale = (d.astype(np.float32)[:, None] * scale).reshape(-1)
    packed_min = (dmin.astype(np.float32)[:, None] * min).reshape(-1)
    again = nearest((lanes + packed_min) / packed_scale).clip(0, max_code)
    own = code(lanes, fit.inverse, fit.origin, max_code)  # stand where the packed scale is 0
    q = np.where(packed_scale == 0, own, again)
    return Block(d, dmin, scale, min, from_lanes(q, RUN * RUNS))


def values(b: Block) -> F32Array:
    """What the fields mean: float32 (n, 256)."""
    step = b.d.astype(np.float32)[:, None] * b.scale
    offset = b.dmin.astype(np.float32)[:, None] * b.min
    q = b.q.reshape(-1, RUNS, RUN).astype(np.float32)
    return (step[..., None] * q - offset[..., None]).reshape(-1, RUNS * RUN)


def six_bits(values: F32Array) -> tuple[np.ndarray, U8Array]:
    """float32 (n, 8) -> a float16 (n,) unit and the values as 6-bit multiples of it, uint8 (n, 8).

    The largest becomes 63.  What is out of range wraps like ggml's conversion to uint8, then saturates.
    """
    largest = np.fmax.reduce(values, axis=1, initial=np.float32(0))
    inverse = np.where(largest > 0, np.float32(63) / largest, np.float32(0))
    codes = np.minimum(nearest(inverse[:, None] * values) & 255, 63)
    return (largest / np.float32(63)).astype(np.float16), codes.astype(np.uint8)


def pack_scales(b: Block) -> U8Array:
    """The first 16 bytes of each block, uint8 (n, 16), as in the picture above."""
    return np.concatenate(
        [
            np.stack([b.d, b.dmin], axis=1).view(np.uint8),
            b.scale[:, :4] | b.scale[:, 4:] >> 4 << 6,
            b.min[:, :4] | b.min[:, 4:] >> 4 << 6,
            b.scale[:, 4:] & 15 | b.min[:, 4:] << 4,
        ],
        axis=1,
    )


def unpack_scales(blocks: U8Array, q: U8Array) -> Block:
    """The inverse of pack_scales, completed with the codes q."""
    halves = np.ascontiguousarray(blocks[:, :4]).view(np.float16)
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    min = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return Block(halves[:, 0], halves[:, 1], scale, min, q)
