"""`quantkit bench`, and its figures beside the floors we have set ourselves: the second half of `make bench`.

A floor is a ratio to ggml's speed on one thread. What is under it is marked; how this ends does not depend on it.
"""

from __future__ import annotations

import sys

from quantkit.bench import NUMPY_THREADED, Mode, Report, bench
from quantkit.cli.bench import shown
from quantkit.cli.talk import table

AVX512, AVX2 = "native/avx512", "native/avx2"
# title: what is held against the floor
COLUMNS = {
    "avx512": (Mode.ENCODE, AVX512),
    "avx2": (Mode.ENCODE, AVX2),
    "avx512, imp.": (Mode.WEIGHTED, AVX512),
    "avx2, imp.": (Mode.WEIGHTED, AVX2),
    "avx512, dec.": (Mode.DECODE, AVX512),
    "avx2, dec.": (Mode.DECODE, AVX2),
    "numpy": (Mode.ENCODE, NUMPY_THREADED),
    "numpy, imp.": (Mode.WEIGHTED, NUMPY_THREADED),
}
# type: a floor for each column, or None
FLOORS: dict[str, tuple[float | None, ...]] = {
    "Q4_0": (2, 2, 10, 6, 2, 2, None, None),
    "Q4_1": (2, 2, 10, 7, 2, 2, None, None),
    "Q5_0": (2, 2, 10, 6, 2, 2, None, None),
    "Q5_1": (2, 2, 10, 7, 2, 2, None, None),
    "Q8_0": (4, 3, 4, 3, 2, 2, None, None),
    "Q2_K": (10, 7, 10, 7, 2, 2, 0.25, 0.25),
    "Q3_K": (5, 3.5, 8, 5, 2, 2, 0.25, 0.25),
    "Q4_K": (10, 7, 10, 7, 2, 2, 0.25, 0.25),
    "Q5_K": (10, 7, 10, 7, 2, 2, 0.25, 0.25),
    "Q6_K": (10, 6, 10, 6, 2, 2, 0.25, 0.25),
}


def main() -> int:
    report = bench()
    print(shown(report))
    if report.ggml:
        print(f"\n{against_floors(report)}")
    return 0


def against_floors(report: Report) -> str:
    """A line for each type, a cell for each figure that has a floor and was measured: `11.30/10`, or `1.52/2 LOW`."""
    ratios = {
        (speed.qtype.name, speed.mode, name): speed.ratio(name)
        for speed in report.speeds
        for name in speed.weights_per_second
    }
    rows = [("x ggml/floor", *COLUMNS)]
    low = n = 0
    for qtype, floors in FLOORS.items():
        cells = []
        for what, floor in zip(COLUMNS.values(), floors, strict=True):
            ratio = ratios.get((qtype, *what))
            if floor is None or ratio is None:
                cells.append("")
                continue
            n, low = n + 1, low + (ratio < floor)
            cells.append(f"{ratio:5.2f}/{floor:g}{' LOW' if ratio < floor else ''}")
        rows.append((qtype, *cells))
    return f"{table(rows)}\n{low} of {n} figures are under their floor"


if __name__ == "__main__":
    sys.exit(main())
