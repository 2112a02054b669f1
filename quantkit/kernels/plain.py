"""F32, F16, BF16: one weight a block, no scale.  Rounding is to nearest, ties to even; importance does not matter."""

from __future__ import annotations

import numpy as np

from quantkit.kernels.lanes import F32Array, Importance, U8Array


def encode_f32(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 1) -> uint8 (n, 4)."""
    return x.view(np.uint8)


def decode_f32(blocks: U8Array) -> F32Array:
    """uint8 (n, 4) -> float32 (n, 1)."""
    return blocks.view(np.float32)


def encode_f16(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 1) -> uint8 (n, 2)."""
    return x.astype(np.float16).view(np.uint8)


def decode_f16(blocks: U8Array) -> F32Array:
    """uint8 (n, 2) -> float32 (n, 1)."""
    return blocks.view(np.float16).astype(np.float32)


def encode_bf16(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 1), finite -> uint8 (n, 2)."""
    bits = x.view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16).view(np.uint8)


def decode_bf16(blocks: U8Array) -> F32Array:
    """uint8 (n, 2) -> float32 (n, 1)."""
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
