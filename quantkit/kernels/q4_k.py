"""Q4_K: 256 weights in 8 runs of 32, x = d * scale[r] * q - dmin * min[r], q 0..15, scale and min 0..63.

byte  0..15     d, dmin, scale, min: see scale_min_block.pack_head
      16..143   q[64 p + i] | q[64 p + 32 + i] << 4      p = 0..3, i = 0..31: byte 16 + 32 p + i
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
    max_code=15,
    max_scale=63,
    saturates=(True, False),
    rms=True,
    plain=ScaleMinSearch(-1.0, 0.1, 20),
    energy=2,
    pack_scales=pack_six_bits,
    unpack_scales=unpack_six_bits,
)


def encode(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 256) -> uint8 (n, 144)."""
    return pack(fit_block(x, KIND, importance))


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 144) -> float32 (n, 256)."""
    return values(unpack(blocks))


def pack(b: Block) -> U8Array:
    """Fields to bytes, as in the picture above."""
    q = b.q.reshape(-1, 4, 2, 32)
    nibbles = q[:, :, 0] | q[:, :, 1] << 4
    return np.concatenate([pack_head(b), nibbles.reshape(-1, 128)], axis=1)


def unpack(blocks: U8Array) -> Block:
    """The inverse of pack."""
    nibbles = blocks[:, 16:].reshape(-1, 4, 1, 32)
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
    return unpack_head(blocks, q.reshape(-1, 256))
