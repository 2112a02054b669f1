"""Amounts as people read and write them."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1024 and named so."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"
