"""Q5_0: 32 weights, x = d * (q - 16), q 0..31.

byte  0..1    d      float16
      2..5    high   see run_block.pack_high
      6..21   low    see run_block.pack_low
"""

from __future__ import annotations

import numpy as np

from quantkit.kernels.lanes import F32Array, Importance, U8Array
from quantkit.kernels.run_block import (
    Block,
    as_bytes,
    fit_symmetric,
    halves,
    pack_high,
    pack_low,
    symmetric_values,
    unpack_high,
    unpack_low,
)

HALF = 16


def encode(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 32) -> uint8 (n, 22)."""
    return pack(fit_symmetric(x, HALF, importance))


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 22) -> float32 (n, 32)."""
    return symmetric_values(unpack(blocks), HALF)


def pack(b: Block) -> U8Array:
    """Fields to bytes, as in the picture above."""
    return np.concatenate([as_bytes(b.d), pack_high(b.q), pack_low(b.q)], axis=1)


def unpack(blocks: U8Array) -> Block:
    """The inverse of pack."""
    return Block(halves(blocks[:, :2]), unpack_high(blocks[:, 2:6]) | unpack_low(blocks[:, 6:]))
