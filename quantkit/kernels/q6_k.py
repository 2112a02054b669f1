"""Q6_K: 256 weights in 16 runs of 16, x = d * scale[r] * (q - 32), q 0..63.

byte  0..127     q[128 h + 32 p + i] bits 0..3 | q[128 h + 64 + 32 p + i] bits 0..3 << 4
                 h = 0..1, p = 0..1, i = 0..31: byte 64 h + 32 p + i
      128..191   bits 4..5 of q[128 h + 32 p + i] << 2 p, p = 0..3: byte 128 + 32 h + i
      192..207   scale[r]   int8, r = 0..15
      208..209   d          float16
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.kernels.fit import RUN_EPSILON, fit_scale
from quantkit.kernels.lanes import F32Array, U8Array, from_lanes, nearest, to_lanes

RUN, RUNS = 16, 16
HALF = 32
PAIR_BITS = np.array([[0], [2], [4], [6]], np.uint8)


@dataclass
class Block:
    """The fields of n blocks: q uint8 (n, 256), 6 bits; scale int8 (n, 16); d float16 (n,)."""

    q: U8Array
    scale: np.ndarray
    d: np.ndarray


def encode(x: F32Array) -> U8Array:
    """float32 (n, 256) -> uint8 (n, 210)."""
    lanes = to_lanes(x, RUN)
    fit = fit_scale(lanes, lanes * lanes, HALF)

    scales = fit.scale.reshape(-1, RUNS)
    peak = scales[np.arange(len(scales)), np.abs(scales).argmax(axis=1)]
    inverse = np.float32(-128) / peak
    d = (np.float32(1) / inverse).astype(np.float16)  # not peak / -128: that rounds otherwise once in 150,000
    # int8 wraps below -128, as ggml's conversion does
    scale = np.minimum(nearest(inverse[:, None] * scales), 127).astype(np.int8)
    step = (d.astype(np.float32)[:, None] * scale).reshape(-1)

    again = nearest(lanes / step).clip(-HALF, HALF - 1) + HALF
    own = nearest(fit.inverse * lanes).clip(-HALF, HALF - 1) + HALF  # stand where the packed scale is 0
    q = np.where(step == 0, np.where(fit.empty, 0, own), again)
    blocks = pack(Block(from_lanes(q, RUN * RUNS), scale, d))
    blocks[np.abs(peak) < RUN_EPSILON] = 0
    return blocks


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 210) -> float32 (n, 256)."""
    b = unpack(blocks)
    step = b.d.astype(np.float32)[:, None] * b.scale
    q = b.q.reshape(-1, RUNS, RUN).astype(np.float32) - np.float32(HALF)
    values: F32Array = step[..., None] * q
    return values.reshape(-1, RUNS * RUN)


def pack(b: Block) -> U8Array:
    """Fields to bytes, as in the picture above."""
    q = b.q.reshape(-1, 2, 4, 32)
    low = q[:, :, :2] & 15 | (q[:, :, 2:] & 15) << 4
    high = np.bitwise_or.reduce(q >> 4 << PAIR_BITS, axis=2)
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), b.scale.view(np.uint8), b.d[:, None].view(np.uint8)]
    return np.concatenate(parts, axis=1)


def unpack(blocks: U8Array) -> Block:
    """The inverse of pack."""
    nibbles = blocks[:, :128].reshape(-1, 2, 2, 32)
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> PAIR_BITS & 3
    scale = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    d = np.ascontiguousarray(blocks[:, 208:]).view(np.float16)[:, 0]
    q: U8Array = low | high << 4
    return Block(q.reshape(-1, 256), scale, d)
