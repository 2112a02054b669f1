"""Q2_K: 256 weights in 16 runs of 16, x = d * scale[r] * q - dmin * min[r], q 0..3, scale and min 0..15.

byte  0..15    scale[r] | min[r] << 4                 r = 0..15
      16..79   q[128 h + 32 p + i] << 2 p             h = 0..1, p = 0..3, i = 0..31: byte 16 + 32 h + i
      80..81   d      float16
      82..83   dmin   float16
"""

from __future__ import annotations

import numpy as np

from quantkit.kernels.fit import ScaleMinSearch
from quantkit.kernels.lanes import F32Array, Importance, U8Array
from quantkit.kernels.scale_min_block import Block, Kind, fit_block, values

PAIR_BITS = np.array([[0], [2], [4], [6]], np.uint8)
PAIR, NIBBLE = np.uint8(3), np.uint8(15)


def pack_nibbles(scale: U8Array, min: U8Array) -> U8Array:
    """Scales and minima to bytes; a code beyond 15, as a negative scale gives, runs into its neighbour, as in ggml."""
    return scale | min << np.uint8(4)


def unpack_nibbles(packed: U8Array) -> tuple[U8Array, U8Array]:
    """The inverse of pack_nibbles."""
    return packed & NIBBLE, packed >> np.uint8(4)


KIND = Kind(
    run=16,
    max_code=3,
    max_scale=15,
    saturates=(False, False),
    rms=False,
    plain=ScaleMinSearch(-0.5, 0.1, 15, absolute=True),
    energy=1,
    pack_scales=pack_nibbles,
    unpack_scales=unpack_nibbles,
)


def encode(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 256) -> uint8 (n, 84)."""
    return pack(fit_block(x, KIND, importance))


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 84) -> float32 (n, 256)."""
    return values(unpack(blocks))


def pack(b: Block) -> U8Array:
    """Fields to bytes, as in the picture above."""
    halves = np.stack([b.d, b.dmin], axis=1).view(np.uint8)
    return np.concatenate([pack_nibbles(b.scale, b.min), pack_two_bits(b.q), halves], axis=1)


def unpack(blocks: U8Array) -> Block:
    """The inverse of pack."""
    halves = np.ascontiguousarray(blocks[:, 80:]).view(np.float16)
    return Block(halves[:, 0], halves[:, 1], *unpack_nibbles(blocks[:, :16]), unpack_two_bits(blocks[:, 16:80]))


def pack_two_bits(q: U8Array) -> U8Array:
    """Codes 0..3, uint8 (n, 256) -> (n, 64): four in a byte, 32 weights apart; Q3_K's low bits too."""
    packed: U8Array = np.bitwise_or.reduce(q.reshape(-1, 2, 4, 32) << PAIR_BITS, axis=2)
    return packed.reshape(-1, 64)


def unpack_two_bits(packed: U8Array) -> U8Array:
    """The inverse of pack_two_bits."""
    return (packed.reshape(-1, 2, 1, 32) >> PAIR_BITS & PAIR).reshape(-1, 256)
