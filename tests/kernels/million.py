"""A million blocks against ggml's own encoder, on every processor: what is rare is seen."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from fills import FILLS, ROW, WEIGHTS, fill

from quantkit.qtypes import QType

N_BLOCKS = 1 << 20
MIN_ROWS = 1 << 17  # where a block is one weight, a million of them are little
PIECE_ROWS = 1 << 14  # 16 MiB of float32
HARD_ROWS = 96  # of a piece, from each fill that is not like weights; those like weights share the rest


def mismatches(qtype: QType, isas: Sequence[str], n_processes: int) -> list[str]:
    """Where the C kernels' bytes differ from ggml's among N_BLOCKS blocks or more: a line per piece and variant."""
    n_pieces = max(N_BLOCKS * qtype.block_weights // ROW, MIN_ROWS) // PIECE_ROWS
    arguments = [(qtype, isas, piece) for piece in range(n_pieces)]
    return [line for lines in _pool(n_processes).map(_check_piece, *zip(*arguments, strict=True)) for line in lines]


@functools.cache
def _pool(n_processes: int) -> ProcessPoolExecutor:
    """Processes and no threads: libgguf keeps the GIL, and a chosen instruction set is the whole process's."""
    return ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"))


def _check_piece(qtype: QType, isas: Sequence[str], piece: int) -> list[str]:
    import libgguf

    from quantkit import _native

    names, rows = zip(*_parts(qtype, piece), strict=True)
    starts = np.cumsum([0, *map(len, rows)])
    x = np.concatenate(rows)
    shape = (len(x), qtype.row_bytes(ROW))
    expected = np.asarray(libgguf.quantize_rows(x, qtype.id)).view(np.uint8).reshape(shape)
    found = np.empty(shape, np.uint8)
    lines = []
    for isa in isas:
        _native.use(isa)
        unfit = _native.encode(qtype.id, x, len(x), ROW, None, qtype.max_abs, found)
        assert unfit < 0, f"a fill went beyond the limit, flat index {unfit}"
        if not np.array_equal(found, expected):
            differ = np.flatnonzero((found != expected).any(axis=1))
            part = int(np.searchsorted(starts, differ[0], "right")) - 1
            first = f"first {names[part]} row {differ[0] - starts[part]}"
            lines.append(f"{qtype} {isa} piece {piece}: {len(differ)} rows differ, {first}")
    return lines


def _parts(qtype: QType, piece: int) -> Iterator[tuple[str, np.ndarray]]:
    """The fills of a piece and their rows, PIECE_ROWS in all."""
    hard = [name for name in FILLS if name not in WEIGHTS]
    share, rest = divmod(PIECE_ROWS - HARD_ROWS * len(hard), len(WEIGHTS))
    counts = dict.fromkeys(WEIGHTS, share) | {WEIGHTS[0]: share + rest} | dict.fromkeys(hard, HARD_ROWS)
    for name, n in counts.items():
        yield name, fill(name, n, qtype.max_abs, 1 + piece)
