"""Q4_K: the contract and its picture."""

from __future__ import annotations

from contract import SCALE_MIN_PICTURE, BlockContract, PictureLine

from quantkit.kernels import q4_k
from quantkit.qtypes import Q4_K


class TestQ4K(BlockContract):
    qtype = Q4_K
    tolerance = 1 / 8
    text = q4_k
    picture = (
        *SCALE_MIN_PICTURE,
        PictureLine("q", 64 * 1 + 7, 0b1111, {16 + 32 * 1 + 7: 0b1111}),
        PictureLine("q", 64 * 3 + 32 + 31, 0b1111, {16 + 32 * 3 + 31: 0b1111_0000}),
    )
