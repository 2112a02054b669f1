"""Q2_K: the contract, its picture, and a scale out of range."""

from __future__ import annotations

import numpy as np
from contract import BlockContract, Candidate, PictureLine

from quantkit.kernels import q2_k
from quantkit.qtypes import Q2_K


class TestQ2K(BlockContract):
    qtype = Q2_K
    tolerance = 2 / 5
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

    def test_a_negative_scale_runs_into_its_neighbour(self, candidate: Candidate) -> None:
        """A fit that importance makes nearly singular may have a scale below 0; its byte wraps, and no bit is cut off.

        The bytes are those of llama.cpp b11434's quantizer.
        """
        rows, importance = np.zeros((1, 256), np.float32), np.zeros(256, np.float32)
        rows[0, :16:2] = -0.05
        rows[0, 16:32] = (
            *(-0.32343933, -0.027664, -0.194736, -0.328772, -0.311727, -0.024745954, -0.11522645, -0.06536),
            *(-0.04591639, -0.098174, -0.336053, -0.05682, -0.8500262, -0.21719, -0.241615, -0.17491),
        )
        counted = {0: 200, 2: 84e6, 5: 1446099968, 7: 120200, 8: 14625626112, 9: 2000, 15: 303500001280}
        importance[[16 + i for i in counted]] = list(counted.values())
        block = candidate.encode(rows, Q2_K, importance)[0]
        assert {int(i): int(block[i]) for i in np.flatnonzero(block)} == {0: 0xFF, 1: 0xCB, 80: 0x6F, 81: 0x14}
