"""F32, F16, BF16: the contract; and since F16 and BF16 are small, every value they have and every tie between two."""

from __future__ import annotations

import numpy as np
from contract import Candidate, Contract

from quantkit.qtypes import BF16, F16, F32


class TestF32(Contract):
    qtype = F32
    tolerance = 0.0

    def test_bytes_are_the_floats(self, candidate: Candidate) -> None:
        rows = np.array([[1.0, -0.0, 2.0**-149]], np.float32)
        assert candidate.encode(rows, F32).tobytes() == rows.astype("<f4").tobytes()


class SixteenBits(Contract):
    def values(self, candidate: Candidate) -> np.ndarray:
        """All finite values of the type from 0 up, float32 (1, n), and the infinity that ends them."""
        patterns = np.arange(1 << 15, dtype="<u2").view(np.uint8).reshape(1, -1)
        values = candidate.decode(patterns, self.qtype)
        n_finite = int(np.isfinite(values).sum())
        assert np.isposinf(values[0, n_finite])
        return values[:, : n_finite + 1]

    def patterns(self, candidate: Candidate, values: np.ndarray) -> list[int]:
        """The bits that float32 (n,) are encoded to."""
        return candidate.encode(values[None].astype(np.float32), self.qtype)[0].view("<u2").tolist()

    def test_every_value_comes_back(self, candidate: Candidate) -> None:
        values = self.values(candidate)[0, :-1]
        assert self.patterns(candidate, values) == list(range(len(values)))
        assert self.patterns(candidate, -values) == [0x8000 | i for i in range(len(values))]

    def test_every_tie_goes_to_even(self, candidate: Candidate) -> None:
        """And a hair beside a tie to the nearer value."""
        values = self.values(candidate)[0, :-1].astype(np.float64)
        tie = ((values[:-1] + values[1:]) / 2).astype(np.float32)  # exact: one bit more than the type has
        n = np.arange(len(tie))
        assert self.patterns(candidate, tie) == (n + n % 2).tolist()
        assert self.patterns(candidate, np.nextafter(tie, np.float32(0))) == n.tolist()
        assert self.patterns(candidate, np.nextafter(tie, np.float32(np.inf))) == (n + 1).tolist()


class TestF16(SixteenBits):
    qtype = F16
    tolerance = 2.0**-11


class TestBF16(SixteenBits):
    qtype = BF16
    tolerance = 2.0**-8
