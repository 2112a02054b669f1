"""Q3_K: the contract and its picture."""

from __future__ import annotations

from contract import BlockContract, PictureLine

from quantkit.kernels import q3_k
from quantkit.qtypes import Q3_K


def scale(s: int) -> int:
    """The field's bits for the scale that is stored as s."""
    return (s - 32) & 0xFF


class TestQ3K(BlockContract):
    qtype = Q3_K
    tolerance = 2 / 7
    text = q3_k
    picture = (
        PictureLine("q", 32 * 0 + 3, 0b100, {3: 1 << 0}),
        PictureLine("q", 32 * 7 + 31, 0b100, {31: 1 << 7}),
        PictureLine("q", 128 * 0 + 32 * 0 + 5, 0b011, {32 + 32 * 0 + 5: 0b11 << 0}),
        PictureLine("q", 128 * 0 + 32 * 1 + 5, 0b011, {32 + 32 * 0 + 5: 0b11 << 2}),
        PictureLine("q", 128 * 1 + 32 * 2 + 9, 0b011, {32 + 32 * 1 + 9: 0b11 << 4}),
        PictureLine("q", 128 * 1 + 32 * 3 + 31, 0b011, {32 + 32 * 1 + 31: 0b11 << 6}),
        PictureLine("scale", 2, scale(0b001111), {96 + 2: 0b1111}),
        PictureLine("scale", 8 + 7, scale(0b001111), {96 + 7: 0b1111_0000}),
        PictureLine("scale", 4 * 0 + 1, scale(0b110000), {104 + 1: 0b11 << 0}),
        PictureLine("scale", 4 * 1 + 1, scale(0b110000), {104 + 1: 0b11 << 2}),
        PictureLine("scale", 4 * 2 + 3, scale(0b110000), {104 + 3: 0b11 << 4}),
        PictureLine("scale", 4 * 3 + 3, scale(0b110000), {104 + 3: 0b11 << 6}),
        PictureLine("d", None, 0x7BFF, {108: 0xFF, 109: 0x7B}),
    )
