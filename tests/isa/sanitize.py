"""The kernels under the address and undefined-behaviour sanitizers: `make test-san`.

Every type and instruction set: counts around every number of lanes and rows, the hard fills and the extremes of floats,
importance that is zero or huge, arbitrary bytes to decode; all between guard pages (csrc/check/pack.c). A report ends
the run with 1. All must agree here too.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from builds import Build, Variant, variants
from inputs import FILLS, arbitrary_bytes, feedback_calls, fill, importance, low_rank_calls, plain_nan
from numpy.typing import NDArray

from quantkit import qtypes
from quantkit.osio import cpu_count
from quantkit.qtypes import QType

# A float that does not fit the integer it is converted to is undefined, yet not part of "undefined".
SANITIZERS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-O1", "-g")
BUILDS = (Build("gcc sanitizers", ("gcc",), SANITIZERS), Build("clang sanitizers", ("clang",), SANITIZERS))

ROWS_OF_A_FILL = 4
WIDTHS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17)  # blocks in a row: around each number of lanes
COUNTS = (0, 1, 15, 16, 17, 33)  # rows: around what a kernel takes at once
LARGEST = np.finfo(np.float32).max
SMALLEST = np.float32(2.0**-149)

F32 = NDArray[np.float32]
Call = tuple[str, tuple[str, ...], bytes]  # what it is, arguments of pack after the instruction set, stdin


def main() -> int:
    found = variants(BUILDS)
    if not found:
        return 0
    print("\n".join(f"{build.name} {isa}" for build, isa in found))
    n_failed = 0
    with ThreadPoolExecutor(cpu_count()) as pool:
        others = (("merge", list(low_rank_calls())), ("feed", list(feedback_calls())))
        by_type = (
            (qtype.name, [call for rows in _shapes(qtype) for call in _calls(qtype, rows)]) for qtype in qtypes.ALL
        )
        for kind, calls in itertools.chain(others, by_type):
            wrong = [line for lines in pool.map(_check, calls, itertools.repeat(found)) for line in lines]
            n_failed += len(wrong)
            state = "\n".join(["FAILED", *wrong[:3]]) if wrong else "no report"
            print(f"{kind:5} {len(calls) * len(found):5,} calls: {state}", flush=True)
    return 1 if n_failed else 0


def _shapes(qtype: QType) -> Iterator[F32]:
    """Rows of every width from all fills, and each count of narrow rows from some."""
    pool = np.concatenate([_extremes(qtype.max_abs), *(fill(name, ROWS_OF_A_FILL, qtype.max_abs) for name in FILLS)])
    for width in WIDTHS:
        n_columns = width * qtype.block_weights
        n_rows = min(pool.size // n_columns, 200)
        yield pool.reshape(-1)[: n_rows * n_columns].reshape(n_rows, n_columns)
    blocks = pool.reshape(-1, qtype.block_weights)
    for count, shift in itertools.product(COUNTS, range(4)):
        yield blocks[np.linspace(shift, len(blocks) - 4 + shift, count).astype(np.intp)]


def _extremes(limit: float) -> F32:
    """Rows of zeros, of the largest and the smallest magnitudes, and of all three beside each other."""
    values = np.array([0, limit, -limit, SMALLEST, -SMALLEST, 2.0**-126, -(2.0**-126)], np.float32)
    rows = np.repeat(values, 256).reshape(-1, 256)
    mixed = values[np.arange(4 * 256) * 5 // 3 % len(values)].reshape(-1, 256)
    return np.concatenate([rows, mixed])


def _calls(qtype: QType, rows: F32) -> Iterator[Call]:
    """Pack rows, and unpack arbitrary blocks of their shape."""
    n, k = rows.shape
    shape = (str(qtype.id), str(n), str(k))
    name = f"{qtype} {n} x {k}"
    yield name, shape, rows.tobytes()
    weights = {"mixed": importance(k, k), "zero": np.zeros(k, np.float32), "huge": np.full(k, LARGEST)}
    for kind, row in weights.items():
        yield f"{name}, {kind} importance", (*shape, "-i"), row.astype(np.float32).tobytes() + rows.tobytes()
    nbytes = n * qtype.row_bytes(k)
    yield f"{name}, arbitrary blocks", (*shape, "-d"), arbitrary_bytes(n, nbytes)
    yield f"{name}, blocks of ones", (*shape, "-d"), b"\xff" * nbytes


def _check(call: Call, found: list[Variant]) -> list[str]:
    """What is wrong with a call: a report, a crash, or a variant that does not agree with the first."""
    name, arguments, given = call
    wrong, answers = [], []
    for build, isa in found:
        try:
            answer = build.call((isa, *arguments), given)
            answers.append(plain_nan(answer) if "-d" in arguments else answer)
        except subprocess.CalledProcessError as error:
            wrong.append(f"{name}, {build.name} {isa}: ended with {error.returncode}\n{error.stderr.decode()}")
    if len(set(answers)) > 1:
        wrong.append(f"{name}: the answers differ")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
