"""What the kernels are given here: the fills of tests/kernels, importance and arbitrary blocks; and NaN in answers."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from fills import FILLS, ROW, Source, fill

from quantkit.kernels.feedback import CODINGS
from quantkit.qtypes import by_name

__all__ = ["FILLS", "ROW", "arbitrary_bytes", "feedback_calls", "fill", "importance", "low_rank_calls", "plain_nan"]

# Rows around a tile, columns around each number of lanes and tiles of them, ranks from none.
_LOW_RANK_SHAPES = tuple(itertools.product((0, 1, 3, 4, 5, 16, 33), (1, 7, 16, 31, 64, 80, 129, 256), (0, 1, 5, 16)))


def importance(seed: int, n_columns: int) -> NDArray[np.float32]:
    """A row of weights of columns, float32 (n_columns,): many scales, and about one run of 32 in eight all 0."""
    source = Source(2, seed)
    n_runs = -(-n_columns // 32)
    weights = (source.fraction(n_runs, 32) + np.float32(0.5)) * source.scales(n_runs * 32, -12, 4).reshape(n_runs, 32)
    weights[source.below(8, n_runs) == 0] = 0
    return weights.reshape(-1)[:n_columns]


def arbitrary_bytes(seed: int, nbytes: int) -> bytes:
    """What a damaged file may hold: scales that are NaN or infinite come with it."""
    return Source(3, seed).halfwords(-(-nbytes // 2)).tobytes()[:nbytes]


def low_rank_calls() -> Iterator[tuple[str, tuple[str, ...], bytes]]:
    """What adapters change: a name, the arguments of pack after the instruction set, stdin."""
    pool = np.concatenate([fill(name, 4, 1e15) for name in FILLS]).reshape(-1)
    for n, k, rank in _LOW_RANK_SHAPES:
        values = np.resize(np.roll(pool, n + 7 * k + 31 * rank), n * k + n * rank + rank * k)
        yield f"low rank {n} x {k}, {rank}", ("low-rank", str(n), str(k), str(rank)), values.tobytes()


def feedback_calls() -> Iterator[tuple[str, tuple[str, ...], bytes]]:
    """Every type with error feedback: one panel, one and a narrow one, or two; rows around a group and its lanes."""
    for name in CODINGS:
        qtype = by_name(name)
        for n, k in ((1, 32), (len(FILLS), 256), (17, 256 + 96), (131, 256), (5, 512)):
            if qtype.divides(k):
                rng = np.random.default_rng([n, k])
                x = rng.standard_normal((2 * k, k)) @ (np.eye(k) + rng.standard_normal((k, k)) / np.sqrt(k))
                moments = (x.T @ x / len(x)).astype(np.float32)
                order = np.concatenate([rng.permutation(min(256, k - first)) for first in range(0, k, 256)])
                rows = np.concatenate([fill(one, 1 + n * k // 256 // len(FILLS), 1e3, n) for one in FILLS]).reshape(-1)
                given = (moments, importance(k, k), order.astype(np.uint8), rows[: n * k])
                arguments = ("feedback", str(qtype.id), str(n), str(k))
                yield f"{qtype} {n} x {k}, feedback", arguments, b"".join(one.tobytes() for one in given)


def plain_nan(floats: bytes) -> bytes:
    """float32 with every NaN the same. Nothing is promised of the sign of infinity times zero, in which processors
    differ, nor of which of two NaN a sum keeps, in which compilers do."""
    values = np.frombuffer(floats, np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), values).tobytes()
