"""Q8_0: 32 weights, x = d * q.

byte  0..1    d      float16
      2..33   q[i]   int8, i = 0..31
"""

from __future__ import annotations

import numpy as np

from quantkit.kernels.lanes import F32Array, Importance, U8Array

BELOW_HALF = np.float32(float.fromhex("0x1.fffffep-2"))  # 0.5 itself would lift 0.49999997 to 1

SMALLEST = np.float32(2.0**-128)  # at and below it 1 / d is infinite, and the codes are 0


def encode(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 32) -> uint8 (n, 34); the same with and without importance, as ggml's."""
    d = np.abs(x).max(axis=1) / np.float32(127)
    inverse = np.where(d > SMALLEST, np.float32(1) / d, np.float32(0))
    scaled = x * inverse[:, None]
    q = np.trunc(scaled + np.copysign(BELOW_HALF, scaled))  # half away from zero, as C's roundf
    return pack(d.astype(np.float16), q.astype(np.int8))


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 34) -> float32 (n, 32)."""
    d, q = unpack(blocks)
    return q.astype(np.float32) * d.astype(np.float32)[:, None]


def pack(d: np.ndarray, q: np.ndarray) -> U8Array:
    """float16 (n,), int8 (n, 32) -> uint8 (n, 34)."""
    return np.concatenate([d[:, None].view(np.uint8), q.view(np.uint8)], axis=1)


def unpack(blocks: U8Array) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of pack."""
    return np.ascontiguousarray(blocks[:, :2]).view(np.float16)[:, 0], blocks[:, 2:].view(np.int8)
