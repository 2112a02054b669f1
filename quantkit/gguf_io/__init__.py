"""GGUF files: fields and tensors to a header's bytes, and a strict reader back."""

from __future__ import annotations

from quantkit.gguf_io.fields import Field, Kind, overridden
from quantkit.gguf_io.layout import TensorEntry, data_bytes, header, place
from quantkit.gguf_io.reader import GGUFFile, read_gguf, read_open_gguf

__all__ = [
    "ALIGNMENT_KEY",
    "MAGIC",
    "OURS",
    "Field",
    "GGUFFile",
    "Kind",
    "TensorEntry",
    "data_bytes",
    "header",
    "overridden",
    "place",
    "read_gguf",
    "read_open_gguf",
]
