"""Every compiler, level and instruction set within reach packs and unpacks the same bytes: `make test-isa`.

AArch64 is emulated, so NEON is compared on any machine. A line for each type, with and without importance, and build;
what could not be compared is a line that says so. Ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from builds import HERE, INSTRUCTION_SETS, Build
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from fills import FILLS, ROW, Source, fill

from quantkit import qtypes
from quantkit.qtypes import QType

ARM = {"machine": "aarch64", "runner": ("qemu-aarch64",), "isas": INSTRUCTION_SETS["aarch64"]}
CROSS_CLANG = ("clang", "--target=aarch64-linux-gnu")
# The first is what all others are compared with. Of each machine and compiler the level that is shipped comes first.
BUILDS = (
    Build("gcc", ("gcc",)),
    Build("gcc -O2", ("gcc",), ("-O2",)),
    Build("gcc without vectors", ("gcc",), ("-DQK_NO_VECTOR_EXTENSIONS",), isas=("scalar",)),
    Build("clang", ("clang",)),
    Build("clang -O2", ("clang",), ("-O2",)),
    Build("aarch64 gcc", ("aarch64-linux-gnu-gcc",), ("-static",), **ARM),
    Build("aarch64 gcc -O2", ("aarch64-linux-gnu-gcc",), ("-static", "-O2"), **ARM),
    Build("aarch64 clang", CROSS_CLANG, ("-static",), **ARM),
)

ROWS_OF_A_FILL = 40  # in a piece; a whole number of the widest rows
WIDTHS = (ROW, 5 * ROW, 20 * ROW)  # columns of the rows in one piece after another
PIECE_WEIGHTS = ROWS_OF_A_FILL * len(FILLS) * ROW

F32 = NDArray[np.float32]
Variant = tuple[Build, str]  # a build, and an instruction set of its


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=1 << 14, help="at least so many of each type (default %(default)s)")
    parser.add_argument("--types", default=",".join(t.name for t in qtypes.ALL), help="such as Q4_K,Q8_0; default: all")
    parser.add_argument("--builds", default="", help="only builds whose name contains this, and the first")
    options = parser.parse_args()
    variants = list(_variants([b for b in BUILDS if options.builds in b.name or b is BUILDS[0]]))
    print(f"\nall compared with {variants[0][0].name} {variants[0][1]}")
    n_different = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name, weighted in itertools.product(options.types.split(","), (False, True)):
            qtype = qtypes.by_name(name)
            n_pieces = -(-options.blocks * qtype.block_weights // PIECE_WEIGHTS)
            arguments = [(qtype, weighted, piece, variants) for piece in range(n_pieces)]
            results = list(pool.map(_check_piece, *zip(*arguments, strict=True)))
            n_different += _report(qtype, weighted, variants, results)
    print(f"{n_different} variants differ" if n_different else "equal")
    return 1 if n_different else 0


def _variants(builds: list[Build]) -> Iterator[Variant]:
    """What can be compared here; the rest is printed with its reason."""
    for build in builds:
        if tool := build.missing_tool():
            print(f"skipped  {build.name}: {tool} is not here")
            continue
        build.make()
        present = build.present_isas()
        for isa in build.isas:
            if isa in present:
                yield build, isa
            else:
                print(f"skipped  {build.name} {isa}: this {build.machine} processor cannot run it")
    if HERE != "x86_64":
        print(f"skipped  {', '.join(INSTRUCTION_SETS['x86_64'][1:])}: this machine is {HERE}")


def _check_piece(qtype: QType, weighted: bool, piece: int, variants: list[Variant]) -> dict[Variant, tuple[str, float]]:
    """What is wrong with a variant's answers on one piece, "" where nothing is, and the seconds that it took."""
    width = WIDTHS[piece % len(WIDTHS)]
    rows = np.concatenate([fill(name, ROWS_OF_A_FILL, qtype.max_abs, 1 + piece) for name in FILLS]).reshape(-1, width)
    given = (_importance(piece, width).tobytes() if weighted else b"") + rows.tobytes()
    n_bytes = len(rows) * qtype.row_bytes(width)
    arbitrary = Source(3, piece).halfwords(-(-n_bytes // 2)).tobytes()[:n_bytes]
    results: dict[Variant, tuple[str, float]] = {}
    expected = None
    for build, isa in variants:
        start = time.monotonic()
        arguments = (isa, str(qtype.id), str(len(rows)), str(width))
        try:
            packed = build.call((*arguments, "-i") if weighted else arguments, given)
            decoded = np.frombuffer(build.call((*arguments, "-d"), arbitrary), np.float32)
        except subprocess.CalledProcessError as error:
            results[build, isa] = (f"ended with {error.returncode}: {error.stderr.decode().strip()}", 0.0)
            continue
        seconds = time.monotonic() - start
        found = (packed[:n_bytes], packed[n_bytes:], _plain_nan(decoded))
        expected = expected or found
        wrong = [_difference(*pair, qtype) for pair in zip(found, expected, strict=True)]
        words = ("blocks", "their floats", "floats of arbitrary blocks")
        text = "; ".join(f"{what} {how}" for what, how in zip(words, wrong, strict=True) if how)
        results[build, isa] = (text and f"piece {piece}, width {width}: {text}", seconds)
    return results


def _importance(piece: int, width: int) -> F32:
    """A row of weights of columns, float32 (width,): many scales, and runs of 32 that do not count at all."""
    source = Source(2, piece)
    weights = (source.fraction(width) + np.float32(0.5)) * source.scales(width, -12, 4)[:, 0]
    weights.reshape(-1, 32)[source.below(8, width // 32) == 0] = 0
    return weights


def _plain_nan(values: F32) -> bytes:
    """Processors differ in the sign and payload of the NaN that infinity times zero is; nothing is said of those."""
    return np.where(np.isnan(values), np.float32(np.nan), values).tobytes()


def _difference(found: bytes, expected: bytes, qtype: QType) -> str:
    """Where two answers differ, or nothing."""
    if found == expected:
        return ""
    if len(found) != len(expected):
        return f"are {len(found)} bytes, not {len(expected)}"
    places = np.flatnonzero(np.frombuffer(found, np.uint8) != np.frombuffer(expected, np.uint8))
    return f"differ in {len(places)} bytes of {len(found)}, first {places[0]} (blocks have {qtype.block_bytes})"


def _report(
    qtype: QType, weighted: bool, variants: list[Variant], results: list[dict[Variant, tuple[str, float]]]
) -> int:
    """Print a line for each build; returns how many variants differ."""
    n_blocks = len(results) * PIECE_WEIGHTS // qtype.block_weights
    n_different = 0
    seconds: Counter[str] = Counter()
    for build, group in itertools.groupby(variants, lambda variant: variant[0]):
        words = []
        for variant in group:
            wrong = [result[variant][0] for result in results if result[variant][0]]
            seconds[build.name] += sum(result[variant][1] for result in results)
            words.append(f"{variant[1]} {f'DIFFERS in {len(wrong)} pieces, {wrong[0]}' if wrong else 'equal'}")
            n_different += bool(wrong)
        kind = "importance" if weighted else "plain"
        print(
            f"{qtype.name:5} {kind:10} {n_blocks:9,} blocks  {build.name:20} {', '.join(words)}"
            f"  ({seconds[build.name]:.1f} s)",
            flush=True,
        )
    return n_different


if __name__ == "__main__":
    sys.exit(main())
