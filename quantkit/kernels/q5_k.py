"""Q5_K: 256 weights, x = d * scale[r] * q - dmin * min[r], q 0..31.

byte  0..15     d, dmin, scale, min: see scale_min_block
      16..47    bit 4 of q[32 r + i] << r                                  r = 0..7, i = 0..31: byte 16 + i
      48..175   q[64 p + i] bits 0..3 | q[64 p + 32 + i] bits 0..3 << 4    p = 0..3: byte 48 + 32 p + i
"""

from __future__ import annotations

import numpy as np

from quantkit.kernels.lanes import F32Array, U8Array
from quantkit.kernels.scale_min_block import SCALES_BYTES, Block, fit_block, pack_scales, unpack_scales, values

RUN_BITS = np.arange(8, dtype=np.uint8)[:, None]
HIGH_BYTES = 32


def encode(x: F32Array) -> U8Array:
    """float32 (n, 256) -> uint8 (n, 176)."""
    return pack(fit_block(x, 31, -0.5, 0.1, 15))


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 176) -> float32 (n, 256)."""
    return values(unpack(blocks))


def pack(b: Block) -> U8Array:
    """Fields to bytes, as in the picture above."""
    high = np.bitwise_or.reduce(b.q.reshape(-1, 8, 32) >> 4 << RUN_BITS, axis=1)
    q = b.q.reshape(-1, 4, 2, 32) & 15
    nibbles = q[:, :, 0] | q[:, :, 1] << 4
    return np.concatenate([pack_scales(b), high, nibbles.reshape(-1, 128)], axis=1)


def unpack(blocks: U8Array) -> Block:
    """The inverse of pack."""
    high = blocks[:, SCALES_BYTES : SCALES_BYTES + HIGH_BYTES].reshape(-1, 1, 32) >> RUN_BITS & 1
    nibbles = blocks[:, SCALES_BYTES + HIGH_BYTES :].reshape(-1, 4, 1, 32)
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
    return unpack_scales(blocks, high.reshape(-1, 256) << 4 | low.reshape(-1, 256))
