"""Q6_K: the contract and its picture."""

from __future__ import annotations

from contract import BlockContract, PictureLine

from quantkit.kernels import q6_k
from quantkit.qtypes import Q6_K


class TestQ6K(BlockContract):
    qtype = Q6_K
    tolerance = 1 / 24
    text = q6_k
    picture = (
        PictureLine("q", 128 * 0 + 32 * 1 + 5, 0b001111, {64 * 0 + 32 * 1 + 5: 0b1111}),
        PictureLine("q", 128 * 1 + 64 + 32 * 1 + 31, 0b001111, {64 * 1 + 32 * 1 + 31: 0b1111_0000}),
        PictureLine("q", 128 * 0 + 32 * 0 + 5, 0b110000, {128 + 32 * 0 + 5: 0b11 << 0}),
        PictureLine("q", 128 * 0 + 32 * 1 + 5, 0b110000, {128 + 32 * 0 + 5: 0b11 << 2}),
        PictureLine("q", 128 * 1 + 32 * 2 + 9, 0b110000, {128 + 32 * 1 + 9: 0b11 << 4}),
        PictureLine("q", 128 * 1 + 32 * 3 + 31, 0b110000, {128 + 32 * 1 + 31: 0b11 << 6}),
        PictureLine("scale", 0, 0x80, {192: 0x80}),
        PictureLine("scale", 15, 0x7F, {207: 0x7F}),
        PictureLine("d", None, 0x7BFF, {208: 0xFF, 209: 0x7B}),
    )
