"""Q2_K: the contract and its picture."""

from __future__ import annotations

from contract import BlockContract, PictureLine

from quantkit.kernels import q2_k
from quantkit.qtypes import Q2_K


class TestQ2K(BlockContract):
    qtype = Q2_K
    tolerance = 1 / 16
    text = q2_k
    picture = (
        PictureLine("scale", 5, 0b1111, {5: 0b1111}),
        PictureLine("min", 15, 0b1111, {15: 0b1111_0000}),
        PictureLine("q", 128 * 0 + 32 * 0 + 5, 0b11, {16 + 32 * 0 + 5: 0b11 << 0}),
        PictureLine("q", 128 * 0 + 32 * 1 + 5, 0b11, {16 + 32 * 0 + 5: 0b11 << 2}),
        PictureLine("q", 128 * 1 + 32 * 2 + 9, 0b11, {16 + 32 * 1 + 9: 0b11 << 4}),
        PictureLine("q", 128 * 1 + 32 * 3 + 31, 0b11, {16 + 32 * 1 + 31: 0b11 << 6}),
        PictureLine("d", None, 0x7BFF, {80: 0xFF, 81: 0x7B}),
        PictureLine("dmin", None, 0x7BFF, {82: 0xFF, 83: 0x7B}),
    )
