"""Q3_K: 256 weights in 16 runs of 16, x = d * scale[r] * (q - 4), q 0..7, scale -32..31, stored as s = scale + 32.

byte  0..31      bit 2 of q[32 p + i] << p                   p = 0..7, i = 0..31: byte i
      32..95     bits 0..1 of q[128 h + 32 p + i] << 2 p     h = 0..1, p = 0..3: byte 32 + 32 h + i
      96..103    s[r] bits 0..3 | s[r + 8] bits 0..3 << 4    r = 0..7
      104..107   bits 4..5 of s[4 p + r] << 2 p              p = 0..3, r = 0..3: byte 104 + r
      108..109   d   float16
"""

from __future__ import annotations

import numpy as np

from quantkit.kernels.fit import ScaleFit, descend_scale, fit_scale
from quantkit.kernels.lanes import F16Array, F32Array, I8Array, Importance, U8Array, ordered_sum, to_lanes
from quantkit.kernels.q2_k import PAIR, PAIR_BITS, pack_two_bits, unpack_two_bits
from quantkit.kernels.scale_block import BLOCK, RUN, RUNS, Block, code_block, peak_codes, values

HALF = 4
BITS = np.arange(8, dtype=np.uint8)[:, None]


def encode(x: F32Array, importance: Importance | None) -> U8Array:
    """float32 (n, 256) -> uint8 (n, 110)."""
    lanes = to_lanes(x, RUN)
    if importance:
        fit, d, scale = _fit_weighted(x, lanes, importance)
    else:
        fit = descend_scale(lanes, HALF)
        d, scale = peak_codes(fit.scale.reshape(-1, RUNS), 32, 0, absent=-32)  # ggml leaves s at 0 in a block of zeros
    return pack(code_block(lanes, fit, d, scale, HALF))


def _fit_weighted(x: F32Array, lanes: F32Array, importance: Importance) -> tuple[ScaleFit, F16Array, I8Array]:
    """Each run by search, and the block's scales by the same search over them."""
    energy = np.float32(2) * ordered_sum(to_lanes(x, BLOCK) ** 2) / np.float32(BLOCK)
    w = to_lanes(importance.columns, RUN) * np.sqrt(np.repeat(energy, RUNS) + lanes * lanes)
    fit = fit_scale(lanes, w, HALF)
    sum_w = ordered_sum(w)
    of_scales = fit_scale(to_lanes(fit.scale.reshape(-1, RUNS), RUNS), to_lanes(sum_w.reshape(-1, RUNS), RUNS), 32)
    return fit, of_scales.scale.astype(np.float16), (of_scales.codes.T - 32).astype(np.int8)


def decode(blocks: U8Array) -> F32Array:
    """uint8 (n, 110) -> float32 (n, 256)."""
    return values(unpack(blocks), HALF)


def pack(b: Block) -> U8Array:
    """Fields to bytes, as in the picture above."""
    high = np.bitwise_or.reduce(b.q.reshape(-1, 8, 32) >> 2 << BITS, axis=1)
    s = (b.scale + np.int8(32)).view(np.uint8)
    low_s = s[:, :8] & 15 | s[:, 8:] << 4
    high_s = np.bitwise_or.reduce(s.reshape(-1, 4, 4) >> 4 << PAIR_BITS, axis=1)
    return np.concatenate([high, pack_two_bits(b.q & PAIR), low_s, high_s, b.d[:, None].view(np.uint8)], axis=1)


def unpack(blocks: U8Array) -> Block:
    """The inverse of pack."""
    high = (blocks[:, None, :32] >> BITS & np.uint8(1)).reshape(-1, 256)
    low_s = np.concatenate([blocks[:, 96:104] & 15, blocks[:, 96:104] >> 4], axis=1)
    high_s = (blocks[:, None, 104:108] >> PAIR_BITS & 3).reshape(-1, 16)
    scale = (low_s | high_s << 4).view(np.int8) - np.int8(32)
    d = np.ascontiguousarray(blocks[:, 108:]).view(np.float16)[:, 0]
    return Block(d, scale, high << np.uint8(2) | unpack_two_bits(blocks[:, 32:96]))
