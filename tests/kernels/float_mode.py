"""The floating-point mode that a caller may be in, on Linux x86-64: rounding and the treatment of denormals."""

from __future__ import annotations

import ctypes
import ctypes.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager

# The bits of MXCSR that are a mode, and the modes a caller may have left it in.
MODE_MASK = 0x6000 | 0x8000 | 0x0040
MODES = {
    "downward": 0x2000,
    "upward": 0x4000,
    "toward zero": 0x6000,
    "flush to zero": 0x8000,
    "denormals are zero": 0x0040,
    "all of them": MODE_MASK,
}
FENV_BYTES, MXCSR_OFFSET = 32, 28  # of glibc's fenv_t on x86-64
LIBM = ctypes.CDLL(ctypes.util.find_library("m"))


@contextmanager
def float_mode(bits: int) -> Iterator[None]:
    """This thread's MXCSR with its mode set to bits, for a while."""
    before = ctypes.create_string_buffer(FENV_BYTES)
    LIBM.fegetenv(before)
    changed = ctypes.create_string_buffer(before.raw, FENV_BYTES)
    struct.pack_into("<I", changed, MXCSR_OFFSET, read_mxcsr() & ~MODE_MASK | bits)
    LIBM.fesetenv(changed)
    try:
        yield
    finally:
        LIBM.fesetenv(before)


def read_mxcsr() -> int:
    """This thread's MXCSR."""
    environment = ctypes.create_string_buffer(FENV_BYTES)
    LIBM.fegetenv(environment)
    value: int = struct.unpack_from("<I", environment, MXCSR_OFFSET)[0]
    return value
