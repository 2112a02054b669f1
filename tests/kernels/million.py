"""A million blocks against ggml's own encoder, on every processor: what is rare is seen."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from fills import FILLS, ROW, WEIGHTS, fill, importance

from quantkit.qtypes import QType

N_BLOCKS = 1 << 20
MIN_ROWS = 1 << 17  # where a block is one weight, a million of them are little
PIECE_ROWS = 9 << 11  # 18 MiB of float32
HARD_ROWS = 99  # of a piece, from each fill that is not like weights; those like weights share the rest
# With importance a row is this wide, and no chunk of 4, 8 or 16 blocks ends where a row does.
WIDE_ROW = 9 * ROW
KINDS = ("skewed", "zero_columns", "zero_runs", "spread")  # of importance, in one piece after another

# (type, with importance) of which a million are packed in every run: the rest takes minutes, and `make test-isa`
# sets QUANTKIT_MILLION=all for it.
ALWAYS = {
    *((name, False) for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")),
    *((name, True) for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1")),
}


def wanted(qtype: QType, weighted: bool) -> bool:
    """Whether this run packs a million blocks of qtype, without or with importance."""
    return (qtype.name, weighted) in ALWAYS or os.environ.get("QUANTKIT_MILLION") == "all"


def mismatches(qtype: QType, weighted: bool, isas: Sequence[str], n_processes: int) -> list[str]:
    """Where the C kernels' bytes differ from ggml's among N_BLOCKS blocks or more: a line per piece and variant."""
    n_pieces = -(-max(N_BLOCKS * qtype.block_weights // ROW, MIN_ROWS) // PIECE_ROWS)
    arguments = [(qtype, weighted, isas, piece) for piece in range(n_pieces)]
    return [line for lines in _pool(n_processes).map(_check_piece, *zip(*arguments, strict=True)) for line in lines]


@functools.cache
def _pool(n_processes: int) -> ProcessPoolExecutor:
    """Processes and no threads: libgguf keeps the GIL, and a chosen instruction set is the whole process's."""
    return ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"))


def _check_piece(qtype: QType, weighted: bool, isas: Sequence[str], piece: int) -> list[str]:
    import libgguf

    from quantkit import _native

    names, rows = zip(*_parts(qtype, piece), strict=True)
    width = WIDE_ROW if weighted else ROW
    kind = KINDS[piece % len(KINDS)]
    columns = importance(kind, width, 1 + piece) if weighted else None
    x = np.concatenate(rows).reshape(-1, width)
    starts = np.cumsum([0, *map(len, rows)]) * ROW // width
    shape = (len(x), qtype.row_bytes(width))
    expected = np.asarray(libgguf.quantize_rows(x, qtype.id, columns)).view(np.uint8).reshape(shape)
    found = np.empty(shape, np.uint8)
    lines = []
    for isa in isas:
        _native.use(isa)
        unfit = _native.encode(qtype.id, x, len(x), width, columns, qtype.max_abs, found)
        assert unfit < 0, f"a fill went beyond the limit, flat index {unfit}"
        if not np.array_equal(found, expected):
            differ = np.flatnonzero((found != expected).any(axis=1))
            part = int(np.searchsorted(starts, differ[0], "right")) - 1
            first = f"first {names[part]} row {differ[0] - starts[part]}" + (f", importance {kind}" if weighted else "")
            lines.append(f"{qtype} {isa} piece {piece}: {len(differ)} rows differ, {first}")
    return lines


def _parts(qtype: QType, piece: int) -> Iterator[tuple[str, np.ndarray]]:
    """The fills of a piece and their rows, PIECE_ROWS in all."""
    hard = [name for name in FILLS if name not in WEIGHTS]
    share = (PIECE_ROWS - HARD_ROWS * len(hard)) // len(WEIGHTS)
    counts = dict.fromkeys(WEIGHTS, share) | dict.fromkeys(hard, HARD_ROWS)
    assert sum(counts.values()) == PIECE_ROWS and all(n * ROW % WIDE_ROW == 0 for n in counts.values())
    for name, n in counts.items():
        yield name, fill(name, n, qtype.max_abs, 1 + piece)
