"""Q5_1: 32 weights, x = d * q + m, q 0..31.

byte  0..1    d      float16
      2..3    m      float16
      4..7    high   see run_block.pack_high
      8..23   low    see run_block.pack_low
"""

from __future__ import annotations

import numpy as np

from quantkit.kernels.lanes import F32Array, Importance, U8Array
from quantkit.kernels.run_block import (
    RangeBlock,
    as_bytes,
    fit_range,
    halves,
    pack_high,
    pack_low,
    range_values,
    unpack_high,
    unpack_low,
)

MAX_CODE = 31


def encode(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 32) -> uint8 (n, 24)."""
    return pack(fit_range(x, MAX_CODE, importance))


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 24) -> float32 (n, 32)."""
    return range_values(unpack(blocks))


def pack(b: RangeBlock) -> U8Array:
    """Fields to bytes, as in the picture above."""
    return np.concatenate([as_bytes(b.d), as_bytes(b.m), pack_high(b.q), pack_low(b.q)], axis=1)


def unpack(blocks: U8Array) -> RangeBlock:
    """The inverse of pack."""
    return RangeBlock(
        halves(blocks[:, :2]), halves(blocks[:, 2:4]), unpack_high(blocks[:, 4:8]) | unpack_low(blocks[:, 8:])
    )
