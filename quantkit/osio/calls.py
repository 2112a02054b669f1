"""What reading and writing have in common."""

from __future__ import annotations

import os
import threading

PathLike = str | os.PathLike[str]

# One call moves at most this much: Linux stops short of 2 GiB, macOS refuses more than INT_MAX bytes outright.
MAX_CALL_BYTES = 1 << 30

# O_NONBLOCK, where it is added: opening a FIFO must not wait for its writer (no effect on files).
# O_BINARY: no line ends on Windows.
ALWAYS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

seek_lock = threading.Lock()  # where a system has no positioned calls, the file's position is shared


def as_bytes(data: bytes | bytearray | memoryview) -> memoryview:
    """A view of data byte by byte: of a matrix, len() and slices would count rows."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # a view with a 0 in its shape cannot be cast


def reason(error: Exception) -> str:
    """The system's own words for a failure."""
    return getattr(error, "strerror", None) or str(error)
