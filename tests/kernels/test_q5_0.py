"""Q5_0: the contract and its picture."""

from __future__ import annotations

from contract import BlockContract, PictureLine

from quantkit.kernels import q5_0
from quantkit.qtypes import Q5_0


class TestQ5_0(BlockContract):
    qtype = Q5_0
    tolerance = 1 / 16
    text = q5_0
    picture = (
        PictureLine("d", None, 0x7BFF, {0: 0xFF, 1: 0x7B}),
        PictureLine("q", 3, 0b10000, {2: 1 << 3}),
        PictureLine("q", 31, 0b10000, {2 + 3: 1 << 7}),
        PictureLine("q", 7, 0b01111, {6 + 7: 0b1111}),
        PictureLine("q", 16 + 15, 0b01111, {6 + 15: 0b1111_0000}),
    )
