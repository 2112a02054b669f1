"""Write the golden data of the kernels from ggml's own library; run by hand, never by a test.

    python tests/golden/make_kernels.py LIBGGML_BASE

LIBGGML_BASE is libggml-base.so of llama.cpp b11434, built for x86-64.  kernels/<text>.json, for each type of that text
and each of contract.golden_cases, which are the fills of tests/kernels/fills.py and what is rare:
    inputs_sha256   of the rows, and of the importances: where it differs they have changed, not a kernel
    packed          the bytes of each row, in hexadecimal: of rows of 256 weights without importance ("none"), and of
                    the same weights in rows of 512 with importance, by its name in fills.py
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from contract import (
    F32,
    GOLDEN,
    GOLDEN_COLUMNS,
    GOLDEN_IMPORTANCES,
    U8,
    UNWEIGHTED,
    golden_cases,
    golden_inputs,
    text_of,
)
from fills import FILLS, ROW

from quantkit import qtypes

BYTES_OF_A_FILL = 2000  # about, in one file: it stays below 100 kB
ROWS_IN_ONE = GOLDEN_COLUMNS // ROW  # of those without importance in one with it


def main() -> None:
    ggml = ctypes.CDLL(sys.argv[1])
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    files: dict[str, list[qtypes.QType]] = {}
    for qtype in qtypes.ALL:
        files.setdefault(text_of(qtype), []).append(qtype)
    GOLDEN.mkdir(exist_ok=True)
    for text, types in files.items():
        nbytes = BYTES_OF_A_FILL // len(types)
        entries = {
            qtype.name: {case: golden(ggml, qtype, case, nbytes) for case in golden_cases(qtype)} for qtype in types
        }
        (GOLDEN / f"{text}.json").write_text(json.dumps(entries, indent=1) + "\n")


def golden(ggml: ctypes.CDLL, qtype: qtypes.QType, case: str, nbytes: int) -> dict[str, object]:
    """One entry, of as many rows as nbytes hold for each importance; what is rare is one row with importance."""
    n_rows = max(1, nbytes // qtype.row_bytes(ROW))
    if case not in FILLS:
        n_rows = ROWS_IN_ONE
    elif qtype.name not in UNWEIGHTED:
        n_rows = max(1, n_rows // (1 + len(GOLDEN_IMPORTANCES)) // ROWS_IN_ONE) * ROWS_IN_ONE
    inputs, sha256 = golden_inputs(qtype, case, n_rows)
    packed = {kind: hexadecimal(packed_by(ggml, rows, qtype, columns)) for kind, (rows, columns) in inputs.items()}
    return {"inputs_sha256": sha256, "packed": packed}


def packed_by(ggml: ctypes.CDLL, rows: F32, qtype: qtypes.QType, columns: F32 | None) -> U8:
    """What ggml packs rows into, columns being their importance."""
    n, k = rows.shape
    packed = np.empty((n, qtype.row_bytes(k)), np.uint8)
    pointer = ctypes.c_void_p
    nbytes = ggml.ggml_quantize_chunk(
        qtype.id,
        pointer(rows.ctypes.data),
        pointer(packed.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(n),
        ctypes.c_int64(k),
        pointer(None if columns is None else columns.ctypes.data),
    )
    assert nbytes == packed.nbytes
    return packed


def hexadecimal(packed: U8) -> list[str]:
    """A string for each row."""
    return [row.tobytes().hex() for row in packed]


if __name__ == "__main__":
    main()
