"""GGUF files: fields and tensors to a header's bytes, and a strict reader back."""

from __future__ import annotations

from quantkit.gguf_io.fields import OURS, Field, Kind, overridden
from quantkit.gguf_io.layout import MAGIC, TensorEntry, data_bytes, header, place
from quantkit.gguf_io.reader import GGUFFile, read_gguf, read_open_gguf
from quantkit.gguf_io.split import COUNT_KEY, check_shards, shard_name, shard_paths, split_fields

__all__ = [
    "COUNT_KEY",
    "MAGIC",
    "OURS",
    "Field",
    "GGUFFile",
    "Kind",
    "TensorEntry",
    "check_shards",
    "data_bytes",
    "header",
    "overridden",
    "place",
    "read_gguf",
    "read_open_gguf",
    "shard_name",
    "shard_paths",
    "split_fields",
]
