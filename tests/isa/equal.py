"""Every compiler, level and instruction set within reach packs and unpacks the same bytes: `make test-isa`.

AArch64 is emulated, so NEON is compared on any machine. A line for each type, with and without importance, and build;
what could not be compared is a line that says so. Ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from builds import INSTRUCTION_SETS, Build, Variant, variants
from inputs import FILLS, ROW, arbitrary_bytes, feedback_calls, fill, importance, low_rank_calls, plain_nan

from quantkit import qtypes
from quantkit.osio import cpu_count
from quantkit.qtypes import QType

ARM_ISAS, QEMU = INSTRUCTION_SETS["aarch64"], ("qemu-aarch64",)
ARM_GCC, ARM_CLANG = "aarch64-linux-gnu-gcc", ("clang", "--target=aarch64-linux-gnu")
# The first is what all others are compared with. Without an -O flag of its own a build has the one that is shipped.
BUILDS = (
    Build("gcc", ("gcc",)),
    Build("gcc -O2", ("gcc",), ("-O2",)),
    Build("gcc without vectors", ("gcc",), ("-DQK_NO_VECTOR_EXTENSIONS",), isas=("scalar",)),
    Build("clang", ("clang",)),
    Build("clang -O2", ("clang",), ("-O2",)),
    Build("aarch64 gcc", (ARM_GCC,), ("-static",), "aarch64", ARM_ISAS, QEMU),
    Build("aarch64 gcc -O2", (ARM_GCC,), ("-static", "-O2"), "aarch64", ARM_ISAS, QEMU),
    Build("aarch64 clang", ARM_CLANG, ("-static",), "aarch64", ARM_ISAS, QEMU),
)

ROWS_OF_A_FILL = 40  # in a piece; a whole number of the widest rows
WIDTHS = (ROW, 5 * ROW, 20 * ROW)  # columns of the rows in one piece after another
PIECE_ROWS = ROWS_OF_A_FILL * len(FILLS)


@dataclass(frozen=True)
class Result:
    """What is wrong with a variant's answers on one piece, "" where nothing is, and the seconds that it took."""

    wrong: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=1 << 13, help=f"rows of {ROW} weights of each type, at least (default %(default)s)"
    )
    parser.add_argument("--types", help="such as Q4_K,Q8_0; else all")
    parser.add_argument("--builds", help=f"some of {','.join(b.name for b in BUILDS)}; else all; the first always")
    options = parser.parse_args()
    types = [qtypes.by_name(name) for name in options.types.split(",")] if options.types else qtypes.ALL
    wanted = options.builds.split(",") if options.builds else [b.name for b in BUILDS]
    compared = variants(b for b in BUILDS if b.name in wanted or b is BUILDS[0])
    if not compared:
        return 0
    print(f"all are compared with {compared[0][0].name} {compared[0][1]}", flush=True)
    n_pieces = -(-options.rows // PIECE_ROWS)
    n_different = 0
    with ThreadPoolExecutor(cpu_count()) as pool:
        for qtype, weighted in itertools.product(types, (False, True)):
            arguments = [(qtype, weighted, piece, compared) for piece in range(n_pieces)]
            results = list(pool.map(_check_piece, *zip(*arguments, strict=True)))
            n_different += _report(qtype, weighted, results)
        for what, calls in (("low rank", low_rank_calls()), ("feedback", feedback_calls())):
            n_different += _compare(what, list(calls), compared)
    print(f"{n_different} times a variant DIFFERS" if n_different else "all equal")
    return 1 if n_different else 0


def _compare(what: str, calls: list[tuple[str, tuple[str, ...], bytes]], compared: list[Variant]) -> int:
    """Print a line for other kernels than those of the types; returns how many variants differ from the first."""
    answers = [
        b"".join(build.call((isa, *arguments), given) for _, arguments, given in calls) for build, isa in compared
    ]
    different = [variant for variant, answer in zip(compared, answers, strict=True) if answer != answers[0]]
    state = ", ".join(f"{build.name} {isa} DIFFERS" for build, isa in different) or f"{len(compared)} variants equal"
    print(f"{what}, {len(calls)} shapes: {state}", flush=True)
    return len(different)


def _check_piece(qtype: QType, weighted: bool, piece: int, compared: list[Variant]) -> dict[Variant, Result]:
    width = WIDTHS[piece % len(WIDTHS)]
    rows = np.concatenate([fill(name, ROWS_OF_A_FILL, qtype.max_abs, 1 + piece) for name in FILLS]).reshape(-1, width)
    given = (importance(piece, width).tobytes() if weighted else b"") + rows.tobytes()
    nbytes = len(rows) * qtype.row_bytes(width)
    blocks = arbitrary_bytes(piece, nbytes)
    shape = (str(qtype.id), str(len(rows)), str(width))
    results = {}
    expected: tuple[bytes, ...] = ()
    for build, isa in compared:
        start = time.monotonic()
        try:
            packed = build.call((isa, *shape, *(["-i"] if weighted else [])), given)
            decoded = build.call((isa, *shape, "-d"), blocks)
        except subprocess.CalledProcessError as error:
            results[build, isa] = Result(f"ended with {error.returncode}: {error.stderr.decode().strip()}", 0)
            continue
        found = (packed[:nbytes], packed[nbytes:], plain_nan(decoded))
        expected = expected or found
        words = ("blocks", "floats", "floats of arbitrary blocks")
        wrong = [_difference(*three) for three in zip(words, found, expected, strict=True)]
        where = f"first piece {piece}, rows of {width}: " if any(wrong) else ""
        results[build, isa] = Result(where + "; ".join(filter(None, wrong)), time.monotonic() - start)
    return results


def _difference(what: str, found: bytes, expected: bytes) -> str:
    """Where two answers differ, or nothing."""
    if found == expected:
        return ""
    if len(found) != len(expected):
        return f"{what} are {len(found)} bytes, not {len(expected)}"
    places = np.flatnonzero(np.frombuffer(found, np.uint8) != np.frombuffer(expected, np.uint8))
    return f"{what} differ in {len(places)} bytes of {len(found)}, first {places[0]}"


def _report(qtype: QType, weighted: bool, results: list[dict[Variant, Result]]) -> int:
    """Print a line for each build; returns how many variants differ."""
    n_blocks = len(results) * PIECE_ROWS * ROW // qtype.block_weights
    n_different = 0
    for build, group in itertools.groupby(results[0], lambda variant: variant[0]):
        words, seconds = [], 0.0
        for variant in group:
            wrong = [result[variant].wrong for result in results if result[variant].wrong]
            words.append(f"{variant[1]} " + (f"DIFFERS in {len(wrong)} pieces, {wrong[0]}" if wrong else "equal"))
            seconds += sum(result[variant].seconds for result in results)
            n_different += bool(wrong)
        kind = "importance" if weighted else "plain"
        print(
            f"{qtype.name:5} {kind:10} {n_blocks:10,} blocks  {build.name:20} {seconds:7.1f} s  {', '.join(words)}",
            flush=True,
        )
    return n_different


if __name__ == "__main__":
    sys.exit(main())
