"""Q4_K: 256 weights in 8 runs of 32, x = d * scale[r] * q - dmin * min[r].

byte  0..1      d      float16
      2..3      dmin   float16
      4..7      scale[r] low 6 bits | scale[r + 4] bits 4..5 << 6      r = 0..3
      8..11     min[r]   low 6 bits | min[r + 4]   bits 4..5 << 6
      12..15    scale[r + 4] bits 0..3 | min[r + 4] bits 0..3 << 4
      16..143   q[64 p + i] | q[64 p + 32 + i] << 4                    p = 0..3, i = 0..31: byte 16 + 32 p + i
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.kernels.fit import code, fit_scale_min
from quantkit.kernels.lanes import F32Array, U8Array, from_lanes, nearest, ordered_sum, to_lanes

RUN, RUNS = 32, 8
MAX_CODE = 15


@dataclass
class Block:
    """The fields of n blocks: d, dmin float16 (n,); scale, min uint8 (n, 8), 6 bits; q uint8 (n, 256), 4 bits."""

    d: np.ndarray
    dmin: np.ndarray
    scale: U8Array
    min: U8Array
    q: U8Array


def encode(x: F32Array) -> U8Array:
    """float32 (n, 256) -> uint8 (n, 144)."""
    lanes = to_lanes(x, RUN)
    rms = np.sqrt(ordered_sum(lanes * lanes) / np.float32(RUN))
    fit = fit_scale_min(lanes, rms + np.abs(lanes), MAX_CODE, -1.0, 0.1, 20)

    d, scale = six_bits(fit.scale.reshape(-1, RUNS))
    dmin, min = six_bits(fit.minimum.reshape(-1, RUNS))
    step = (d.astype(np.float32)[:, None] * scale).reshape(-1)
    offset = (dmin.astype(np.float32)[:, None] * min).reshape(-1)
    again = nearest((lanes + offset) / step).clip(0, MAX_CODE)
    own = code(lanes, fit.inverse, fit.origin, MAX_CODE)  # stand where the packed scale is 0
    q = np.where(step == 0, own, again)
    return pack(Block(d, dmin, scale, min, from_lanes(q, RUN * RUNS)))


def six_bits(values: F32Array) -> tuple[np.ndarray, U8Array]:
    """float32 (n, 8) -> a float16 (n,) unit and the values as 6-bit multiples of it, uint8 (n, 8).

    The largest becomes 63.  What is out of range wraps like ggml's conversion to uint8, then saturates.
    """
    largest = np.fmax.reduce(values, axis=1, initial=np.float32(0))
    inverse = np.where(largest > 0, np.float32(63) / largest, np.float32(0))
    codes = np.minimum(nearest(inverse[:, None] * values) & 255, 63)
    return (largest / np.float32(63)).astype(np.float16), codes.astype(np.uint8)


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 144) -> float32 (n, 256)."""
    b = unpack(blocks)
    step = b.d.astype(np.float32)[:, None] * b.scale
    offset = b.dmin.astype(np.float32)[:, None] * b.min
    q = b.q.reshape(-1, RUNS, RUN).astype(np.float32)
    return (step[..., None] * q - offset[..., None]).reshape(-1, RUNS * RUN)


def pack(b: Block) -> U8Array:
    """Fields to bytes, as in the picture above."""
    halves = np.stack([b.d, b.dmin], axis=1).view(np.uint8)
    q = b.q.reshape(-1, 4, 2, RUN)
    nibbles = (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([halves, pack_six_bits(b.scale, b.min), nibbles], axis=1)


def unpack(blocks: U8Array) -> Block:
    """The inverse of pack."""
    halves = np.ascontiguousarray(blocks[:, :4]).view(np.float16)
    scale, min = unpack_six_bits(blocks[:, 4:16])
    nibbles = blocks[:, 16:].reshape(-1, 4, 1, RUN)
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 256)
    return Block(halves[:, 0], halves[:, 1], scale, min, q)


def pack_six_bits(scale: U8Array, min: U8Array) -> U8Array:
    """Two uint8 (n, 8) of 6 bits -> uint8 (n, 12), bytes 4..15 of the picture."""
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
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    min = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scale, min
