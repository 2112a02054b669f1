"""Q5_1: the contract, its picture, and the sign of a zero minimum."""

from __future__ import annotations

import numpy as np
from contract import BlockContract, Candidate, PictureLine

from quantkit.kernels import q5_1
from quantkit.qtypes import Q5_1


class TestQ5_1(BlockContract):
    qtype = Q5_1
    tolerance = 1 / 30
    text = q5_1
    picture = (
        PictureLine("d", None, 0x7BFF, {0: 0xFF, 1: 0x7B}),
        PictureLine("m", None, 0x7BFF, {2: 0xFF, 3: 0x7B}),
        PictureLine("q", 3, 0b10000, {4: 1 << 3}),
        PictureLine("q", 31, 0b10000, {4 + 3: 1 << 7}),
        PictureLine("q", 7, 0b01111, {8 + 7: 0b1111}),
        PictureLine("q", 16 + 15, 0b01111, {8 + 15: 0b1111_0000}),
    )

    def test_the_first_zero_gives_m_its_sign(self, candidate: Candidate) -> None:
        """0 and -0 are equal, so whichever stands first is the least."""
        zeros = np.zeros((2, 32), np.float32)
        zeros[0, 0] = zeros[1, 1:] = -0.0
        for importance in (None, np.ones(32, np.float32)):
            m = candidate.encode(zeros, Q5_1, importance)[:, 2:4]
            assert m.view("<u2")[:, 0].tolist() == [0x8000, 0]
