"""Q5_K: 256 weights in 8 runs of 32, x = d * scale[r] * q - dmin * min[r], q 0..31, scale and min 0..63.

byte  0..15     d, dmin, scale, min: see scale_min_block.pack_head
      16..47    bit 4 of q[32 r + i] << r                                  r = 0..7, i = 0..31: byte 16 + i
      48..175   q[64 p + i] bits 0..3 | q[64 p + 32 + i] bits 0..3 << 4    p = 0..3: byte 48 + 32 p + i
"""

from __future__ import annotations

import numpy as np

from quantkit.kernels.fit import ScaleMinSearch
from quantkit.kernels.lanes import F32Array, Importance, U8Array
from quantkit.kernels.scale_min_block import (
    Block,
    Kind,
    fit_block,
    pack_head,
    pack_six_bits,
    unpack_head,
    unpack_six_bits,
    values,
)

KIND = Kind(
    run=32,
    max_code=31,
    max_scale=63,
    saturates=(True, True),
    rms=True,
    plain=ScaleMinSearch(-0.5, 0.1, 15),
    energy=2,
    pack_scales=pack_six_bits,
    unpack_scales=unpack_six_bits,
)
RUN_BITS = np.arange(8, dtype=np.uint8)[:, None]


def encode(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 256) -> uint8 (n, 176)."""
    return pack(fit_block(x, KIND, importance))


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 176) -> float32 (n, 256)."""
    return values(unpack(blocks))


def pack(b: Block) -> U8Array:
    """Fields to bytes, as in the picture above."""
    high = np.bitwise_or.reduce(b.q.reshape(-1, 8, 32) >> 4 << RUN_BITS, axis=1)
    q = b.q.reshape(-1, 4, 2, 32) & 15
    nibbles = q[:, :, 0] | q[:, :, 1] << 4
    return np.concatenate([pack_head(b), high, nibbles.reshape(-1, 128)], axis=1)


def unpack(blocks: U8Array) -> Block:
    """The inverse of pack."""
    high = blocks[:, 16:48].reshape(-1, 1, 32) >> RUN_BITS & 1
    nibbles = blocks[:, 48:].reshape(-1, 4, 1, 32)
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
    return unpack_head(blocks, high.reshape(-1, 256) << 4 | low.reshape(-1, 256))
