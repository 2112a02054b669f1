"""Q8_0: the contract, its picture, and rounding half away from zero."""

from __future__ import annotations

import numpy as np
from contract import BlockContract, Candidate, PictureLine

from quantkit.kernels import q8_0
from quantkit.qtypes import Q8_0


class TestQ8_0(BlockContract):
    qtype = Q8_0
    tolerance = 1 / 230
    text = q8_0
    picture = (
        PictureLine("d", None, 0x7BFF, {0: 0xFF, 1: 0x7B}),
        PictureLine("q", 0, 0x81, {2: 0x81}),
        PictureLine("q", 31, 0x7F, {33: 0x7F}),
    )

    def test_rounds_half_away_from_zero(self, candidate: Candidate) -> None:
        """And 0.49999997 to 0, which floor(x + 0.5) does not."""
        row = np.zeros((1, 32), np.float32)
        row[0, :8] = 127, 0.5, -0.5, 1.5, -2.5, np.nextafter(np.float32(0.5), np.float32(0)), 126.5, -126.5
        assert candidate.encode(row, Q8_0)[0, 2:10].view(np.int8).tolist() == [127, 1, -1, 2, -3, 0, 127, -127]
