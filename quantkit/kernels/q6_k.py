"""Q6_K: 256 weights in 16 runs of 16, x = d * scale[r] * (q - 32), q 0..63.

byte  0..127     q[128 h + 32 p + i] bits 0..3 | q[128 h + 64 + 32 p + i] bits 0..3 << 4
                 h = 0..1, p = 0..1, i = 0..31: byte 64 h + 32 p + i
      128..191   bits 4..5 of q[128 h + 32 p + i] << 2 p, p = 0..3: byte 128 + 32 h + i
      192..207   scale[r]   int8, r = 0..15
      208..209   d          float16
"""

from __future__ import annotations

import numpy as np

from quantkit.kernels.fit import RUN_EPSILON, fit_scale
from quantkit.kernels.lanes import F32Array, Importance, U8Array, to_lanes
from quantkit.kernels.q2_k import PAIR_BITS
from quantkit.kernels.scale_block import RUN, RUNS, Block, code_block, magnitudes, peak_codes, values

HALF = 32


def encode(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 256) -> uint8 (n, 210)."""
    lanes = to_lanes(x, RUN)
    fit = fit_scale(lanes, to_lanes(importance.columns, RUN) if importance else lanes * lanes, HALF)
    scales = fit.scale.reshape(-1, RUNS)
    blocks = pack(code_block(lanes, fit, *peak_codes(scales, 128, float(RUN_EPSILON), absent=0), HALF))
    blocks[magnitudes(scales).max(axis=1) < RUN_EPSILON] = 0
    return blocks


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 210) -> float32 (n, 256)."""
    return values(unpack(blocks), HALF)


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
    return Block(d, scale, q.reshape(-1, 256))
