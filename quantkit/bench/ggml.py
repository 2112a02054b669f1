"""ggml's own kernels, from the package libggml-python where that is installed: what ours are compared with.

It is no dependency. Its library is found and called here, and its Python code does not run.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.qtypes import QType

PACKAGE = "libggml-python"
# Elsewhere compilers fuse its multiplications and additions, and the bytes are those of its build.
BYTES_ARE_OURS = platform.machine() in ("x86_64", "AMD64")
_LIBRARIES = ("libggml-base.so", "libggml-base.dylib")  # what the systems call it, in a folder lib or lib64


class _Traits(ctypes.Structure):
    """The first fields of ggml_type_traits (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class Ggml:
    """ggml's library: encode and decode as quantkit.kernels has them, without its checks.

    raises  UnsupportedError  it is not installed, or cannot be loaded here
    """

    def __init__(self) -> None:
        hint = f"pip install --no-deps {PACKAGE}"
        spec = importlib.util.find_spec("libggml")
        if spec is None or spec.origin is None:
            raise UnsupportedError(f"{PACKAGE} is not installed", hint=hint)
        found = [path for name in _LIBRARIES for path in Path(spec.origin).parent.glob(f"lib*/{name}")]
        if not found:
            raise UnsupportedError(f"{PACKAGE} has no library for this system", hint=hint)
        self.version = importlib.metadata.version(PACKAGE)
        try:
            library = ctypes.CDLL(str(found[0]))
            self._quantize_chunk, self._type_traits = library.ggml_quantize_chunk, library.ggml_get_type_traits
        except (OSError, AttributeError) as error:
            raise UnsupportedError(f"{PACKAGE} {self.version} cannot be used: {error}", hint=hint) from error
        # type, rows, blocks, first weight, rows and columns, importance
        counts = (ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        self._quantize_chunk.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *counts, ctypes.c_void_p)
        self._quantize_chunk.restype = ctypes.c_size_t
        self._type_traits.argtypes = (ctypes.c_int,)
        self._type_traits.restype = ctypes.POINTER(_Traits)

    def encode(self, rows: Any, qtype: QType, importance: Any, out: Any) -> None:
        """Pack rows float32 (n, k) into out uint8 (n, row_bytes); importance float32 (k,) or None."""
        weights = None if importance is None else importance.ctypes.data
        self._quantize_chunk(qtype.id, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights)

    def decode(self, blocks: Any, qtype: QType, out: Any) -> None:
        """Unpack blocks uint8 (n, row_bytes) into out float32 (n, k)."""
        to_float: Callable[[int, int, int], None] = self._type_traits(qtype.id).contents.to_float
        to_float(blocks.ctypes.data, out.ctypes.data, out.size)
