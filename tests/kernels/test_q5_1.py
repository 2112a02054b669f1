"""Q5_1: the contract and its picture."""

from __future__ import annotations

from contract import BlockContract, PictureLine

from quantkit.kernels import q5_1
from quantkit.qtypes import Q5_1


class TestQ5_1(BlockContract):
    qtype = Q5_1
    tolerance = 1 / 16
    text = q5_1
    picture = (
        PictureLine("d", None, 0x7BFF, {0: 0xFF, 1: 0x7B}),
        PictureLine("m", None, 0x7BFF, {2: 0xFF, 3: 0x7B}),
        PictureLine("q", 3, 0b10000, {4: 1 << 3}),
        PictureLine("q", 31, 0b10000, {4 + 3: 1 << 7}),
        PictureLine("q", 7, 0b01111, {8 + 7: 0b1111}),
        PictureLine("q", 16 + 15, 0b01111, {8 + 15: 0b1111_0000}),
    )
