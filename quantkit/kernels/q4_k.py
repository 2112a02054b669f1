"""Q4_K: 256 weights, x = d * scale[r] * q - dmin * min[r], q 0..15.

byte  0..15     d, dmin, scale, min: see scale_min_block
      16..143   q[64 p + i] | q[64 p + 32 + i] << 4      p = 0..3, i = 0..31: byte 16 + 32 p + i
"""

from __future__ import annotations

import numpy as np

from quantkit.kernels.lanes import F32Array, U8Array
from quantkit.kernels.scale_min_block import SCALES_BYTES, Block, fit_block, pack_scales, unpack_scales, values


def encode(x: F32Array) -> U8Array:
    """float32 (n, 256) -> uint8 (n, 144)."""
    return pack(fit_block(x, 15, -1.0, 0.1, 20))


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 144) -> float32 (n, 256)."""
    return values(unpack(blocks))


def pack(b: Block) -> U8Array:
    """Fields to bytes, as in the picture above."""
    q = b.q.reshape(-1, 4, 2, 32)
    nibbles = q[:, :, 0] | q[:, :, 1] << 4
    return np.concatenate([pack_scales(b), nibbles.reshape(-1, 128)], axis=1)


def unpack(blocks: U8Array) -> Block:
    """The inverse of pack."""
    nibbles = blocks[:, SCALES_BYTES:].reshape(-1, 4, 1, 32)
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
    return unpack_scales(blocks, q.reshape(-1, 256))
