"""Q5_K: the contract and its picture."""

from __future__ import annotations

from contract import SCALE_MIN_PICTURE, BlockContract, PictureLine

from quantkit.kernels import q5_k
from quantkit.qtypes import Q5_K


class TestQ5K(BlockContract):
    qtype = Q5_K
    tolerance = 1 / 14
    text = q5_k
    picture = (
        *SCALE_MIN_PICTURE,
        PictureLine("q", 32 * 0 + 3, 0b10000, {16 + 3: 1 << 0}),
        PictureLine("q", 32 * 7 + 31, 0b10000, {16 + 31: 1 << 7}),
        PictureLine("q", 64 * 2 + 5, 0b1111, {48 + 32 * 2 + 5: 0b1111}),
        PictureLine("q", 64 * 3 + 32 + 31, 0b11111, {16 + 31: 1 << 7, 48 + 32 * 3 + 31: 0b1111_0000}),
    )
