"""Q5_0: the contract, its picture, and the sign of a scale that vanishes."""

from __future__ import annotations

import numpy as np
from contract import BlockContract, Candidate, PictureLine

from quantkit.kernels import q5_0
from quantkit.qtypes import Q5_0


class TestQ5_0(BlockContract):
    qtype = Q5_0
    tolerance = 1 / 15
    text = q5_0
    picture = (
        PictureLine("d", None, 0x7BFF, {0: 0xFF, 1: 0x7B}),
        PictureLine("q", 3, 0b10000, {2: 1 << 3}),
        PictureLine("q", 31, 0b10000, {2 + 3: 1 << 7}),
        PictureLine("q", 7, 0b01111, {6 + 7: 0b1111}),
        PictureLine("q", 16 + 15, 0b01111, {6 + 15: 0b1111_0000}),
    )

    def test_sums_that_vanish_give_no_negative_scale(self, candidate: Candidate) -> None:
        """Importance so small that each product with a weight underflows to -0, and 0 and those make 0."""
        rows = np.full((1, 32), 2e-15, np.float32)
        assert candidate.encode(rows, Q5_0, np.full(32, 2.0**-80, np.float32))[0, :2].tolist() == [0, 0]
