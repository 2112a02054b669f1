"""GGUF files: fields and tensors to a header's bytes, and a strict reader back."""

from __future__ import annotations

from quantkit.gguf_io.fields import OURS, Field, Kind, overridden
from quantkit.gguf_io.layout import MAGIC, TensorEntry, data_bytes, header, place, spelled
from quantkit.gguf_io.reader import GGUFFile, read_gguf
from quantkit.gguf_io.split import COUNT_KEY, open_shards, shard_name, split_fields

__all__ = [
    "COUNT_KEY",
    "MAGIC",
    "OURS",
    "Field",
    "GGUFFile",
    "Kind",
    "TensorEntry",
    "data_bytes",
    "header",
    "open_shards",
    "overridden",
    "place",
    "read_gguf",
    "shard_name",
    "spelled",
    "split_fields",
]
