"""Is a GGUF file what its source gives?  Made again in memory and compared to the last byte; nothing is written.

with Recorded(path) as recorded, open_source(source) as weights:
    found = compare(weights, recorded, remake(weights, recorded, warn=print))
"""

from __future__ import annotations

from quantkit.verify.compare import Verification, compare
from quantkit.verify.differences import Difference
from quantkit.verify.recorded import Recorded, Remaking, remake
from quantkit.verify.statement import check_statement, read_statement, state, write_statement

__all__ = [
    "Difference",
    "Recorded",
    "Remaking",
    "Verification",
    "check_statement",
    "compare",
    "read_statement",
    "remake",
    "state",
    "write_statement",
]
