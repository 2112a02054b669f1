"""Q4_1: the contract, its picture, and the sign of a zero minimum."""

from __future__ import annotations

import numpy as np
from contract import BlockContract, Candidate, PictureLine

from quantkit.kernels import q4_1
from quantkit.qtypes import Q4_1


class TestQ4_1(BlockContract):
    qtype = Q4_1
    tolerance = 1 / 14
    text = q4_1
    picture = (
        PictureLine("d", None, 0x7BFF, {0: 0xFF, 1: 0x7B}),
        PictureLine("m", None, 0x7BFF, {2: 0xFF, 3: 0x7B}),
        PictureLine("q", 7, 0b1111, {4 + 7: 0b1111}),
        PictureLine("q", 16 + 15, 0b1111, {4 + 15: 0b1111_0000}),
    )

    def test_the_first_zero_gives_m_its_sign(self, candidate: Candidate) -> None:
        """0 and -0 are equal, so whichever stands first is the least."""
        zeros = np.zeros((2, 32), np.float32)
        zeros[0, 0] = zeros[1, 1:] = -0.0
        for importance in (None, np.ones(32, np.float32)):
            m = candidate.encode(zeros, Q4_1, importance)[:, 2:4]
            assert m.view("<u2")[:, 0].tolist() == [0x8000, 0]
