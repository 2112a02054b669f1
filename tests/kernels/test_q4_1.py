"""Q4_1: the contract and its picture."""

from __future__ import annotations

from contract import BlockContract, PictureLine

from quantkit.kernels import q4_1
from quantkit.qtypes import Q4_1


class TestQ4_1(BlockContract):
    qtype = Q4_1
    tolerance = 1 / 16
    text = q4_1
    picture = (
        PictureLine("d", None, 0x7BFF, {0: 0xFF, 1: 0x7B}),
        PictureLine("m", None, 0x7BFF, {2: 0xFF, 3: 0x7B}),
        PictureLine("q", 7, 0b1111, {4 + 7: 0b1111}),
        PictureLine("q", 16 + 15, 0b1111, {4 + 15: 0b1111_0000}),
    )
