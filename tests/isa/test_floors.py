"""The table of `make bench`: which figures are marked."""

from __future__ import annotations

import sys
from pathlib import Path

from quantkit import bench, qtypes
from quantkit.bench import GGML, Mode, Report, Speed

sys.path.insert(0, str(Path(__file__).parent))

from floors import AVX2, AVX512, COLUMNS, FLOORS, against_floors


def test_what_is_under_its_floor_is_marked_and_what_reaches_it_is_not() -> None:
    speeds = [
        Speed(qtypes.Q4_K, Mode.ENCODE, {GGML: 10.0, AVX512: 100.0, AVX2: 69.9}),
        Speed(qtypes.F16, Mode.ENCODE, {GGML: 10.0, AVX512: 1.0}),  # has no floor
    ]
    text = against_floors(Report("", "", (1, 1), 1, "1.2.3", None, speeds))
    (line,) = [line for line in text.splitlines() if line.startswith("Q4_K")]
    assert line.split() == ["Q4_K", "10.00/10", "6.99/7", "LOW"]
    assert text.endswith("\n1 of 2 figures are under their floor")


def test_floors_are_of_what_is_measured() -> None:
    assert FLOORS.keys() <= {qtype.name for qtype in bench.TYPES}
    assert {len(floors) for floors in FLOORS.values()} == {len(COLUMNS)}
