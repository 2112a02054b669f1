"""What Q3_K and Q6_K share: 256 weights in 16 runs of 16, x = d * scale[r] * (q - half), q 0..2 half - 1.

The stages are those of scale_min_block, without minima; csrc/scale_block.h says the same in C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.kernels.fit import ScaleFit
from quantkit.kernels.lanes import F16Array, F32Array, I8Array, U8Array, from_lanes, nearest

BLOCK, RUN, RUNS = 256, 16, 16


@dataclass
class Block:
    """The fields of n blocks: d float16 (n,); scale int8 (n, 16); q uint8 (n, 256)."""

    d: F16Array
    scale: I8Array
    q: U8Array


def magnitudes(scales: F32Array) -> F32Array:
    """|scales|, and 0 for the NaN of a fit whose sums overflowed: ggml's comparisons pass over those."""
    return np.where(np.isnan(scales), np.float32(0), np.abs(scales))


def peak_codes(scales: F32Array, limit: int, least: float, absent: int) -> tuple[F16Array, I8Array]:
    """float32 (n, 16) -> a float16 (n,) unit and the values as multiples -limit..limit - 1 of it.

    The value of largest magnitude becomes -limit; where that magnitude is 0 or below least, the unit is 0 and every
    code absent.
    """
    magnitude = magnitudes(scales)
    peak = scales[np.arange(len(scales)), magnitude.argmax(axis=1)]
    largest = magnitude.max(axis=1)
    some = (largest > 0) & (largest >= np.float32(least))
    inverse = np.float32(-limit) / peak
    codes = np.minimum(nearest(inverse[:, None] * scales), limit - 1).astype(np.int8)
    # not peak / -limit: that rounds otherwise once in 100,000 blocks
    unit = np.where(some, np.float32(1) / inverse, np.float32(0)).astype(np.float16)
    return unit, np.where(some[:, None], codes, np.int8(absent))


def code_block(lanes: F32Array, fit: ScaleFit, d: F16Array, scale: I8Array, half: int) -> Block:
    """Code float32 (16, lanes) against the packed scales; where one is 0 the search's own codes stand."""
    step = (d.astype(np.float32)[:, None] * scale).reshape(-1)
    again = nearest(lanes / step).clip(-half, half - 1) + half
    return Block(d, scale, from_lanes(np.where(step == 0, fit.codes, again), BLOCK))


def values(b: Block, half: int) -> F32Array:
    """What the fields mean: float32 (n, 256)."""
    step = b.d.astype(np.float32)[:, None] * b.scale
    found: F32Array = step[..., None] * (b.q.reshape(-1, RUNS, RUN).astype(np.float32) - np.float32(half))
    return found.reshape(-1, BLOCK)
