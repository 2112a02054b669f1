"""Q4_0: the contract and its picture."""

from __future__ import annotations

from contract import BlockContract, PictureLine

from quantkit.kernels import q4_0
from quantkit.qtypes import Q4_0


class TestQ4_0(BlockContract):
    qtype = Q4_0
    tolerance = 1 / 16
    text = q4_0
    picture = (
        PictureLine("d", None, 0x7BFF, {0: 0xFF, 1: 0x7B}),
        PictureLine("q", 7, 0b1111, {2 + 7: 0b1111}),
        PictureLine("q", 16 + 15, 0b1111, {2 + 15: 0b1111_0000}),
    )
