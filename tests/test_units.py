"""Sizes as people read them."""

from __future__ import annotations

import pytest

from quantkit.units import size

SIZES = {
    0: "0 B",
    1023: "1023 B",
    1024: "1.0 KiB",
    200 << 20: "200.0 MiB",
    (1 << 30) - 1: "1024.0 MiB",
    1 << 30: "1.00 GiB",
    3 << 40: "3072.00 GiB",
}


@pytest.mark.parametrize("nbytes", SIZES)
def test_sizes(nbytes: int) -> None:
    assert size(nbytes) == SIZES[nbytes]
