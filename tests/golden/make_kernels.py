"""Write the golden data of the kernels from libgguf, ggml's own encoders for Python; run by hand, never by a test.

kernels/<text>.json, for each type of that text and each fill of tests/kernels/fills.py:
    rows_sha256   of the rows, float32: where it differs the fill has changed, not a kernel
    packed        the bytes of each row, in hexadecimal
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import libgguf
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from contract import GOLDEN, text_of
from fills import FILLS, ROW, fill

from quantkit import qtypes

BYTES_OF_A_FILL = 2000  # about, in one file: it stays below 100 kB


def main() -> None:
    files: dict[str, list[qtypes.QType]] = {}
    for qtype in qtypes.ALL:
        files.setdefault(text_of(qtype), []).append(qtype)
    GOLDEN.mkdir(exist_ok=True)
    for text, types in files.items():
        nbytes = BYTES_OF_A_FILL // len(types)
        entries = {qtype.name: {name: golden(qtype, name, nbytes) for name in FILLS} for qtype in types}
        (GOLDEN / f"{text}.json").write_text(json.dumps(entries, indent=1) + "\n")


def golden(qtype: qtypes.QType, name: str, nbytes: int) -> dict[str, object]:
    """The entry of one fill: as many rows as nbytes hold, at least one."""
    rows = fill(name, max(1, nbytes // qtype.row_bytes(ROW)), qtype.max_abs)
    packed = np.asarray(libgguf.quantize_rows(rows, qtype.id)).view(np.uint8).reshape(len(rows), -1)
    return {"rows_sha256": hashlib.sha256(rows).hexdigest(), "packed": [row.tobytes().hex() for row in packed]}


if __name__ == "__main__":
    main()
