"""What a family of networks is, as data: which tensors it has, where they come from, which keys describe it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.gguf_io import Field


@dataclass(frozen=True)
class Network:
    """The sizes of one network, read from its config.json and checked.

    qkv_rows = (heads + 2 * kv_heads) * head_width, attention_rows = heads * head_width, gate_up_rows = 2 * feed_forward
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    vocabulary: int

    @property
    def qkv_rows(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_width

    @property
    def attention_rows(self) -> int:
        return self.heads * self.head_width

    @property
    def gate_up_rows(self) -> int:
        return 2 * self.feed_forward


@dataclass(frozen=True)
class TensorMap:
    """One tensor of the network.

    gguf      its name in GGUF; "{i}" stands for the layer
    sources   the checkpoint's tensors whose rows it has, one after another; likewise
    shape     NumPy order, each dimension an attribute of Network
    rows      of each source, attributes of Network, where there are several sources
    """

    gguf: str
    sources: tuple[str, ...]
    shape: tuple[str, ...]
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class MappedTensor:
    """A TensorMap with its layer and sizes filled in; or values that no tensor of the checkpoint holds.

    sources   name and shape of each tensor whose rows it has
    values    the whole tensor, float32, where there are no sources
    """

    gguf: str
    shape: tuple[int, ...]
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Family:
    """One family of networks.

    architectures  the names in config.json's `architectures` that belong to it
    gguf_name      llama.cpp's name for it
    tensors        of the whole network, then of each layer
    read_network   (config, file) -> Network; refuses by a typed error what quantkit does not convert
    keys           (config, network, file, file_type) -> the fields `<gguf_name>.*`, in the converter's order and with
                   general.file_type at its place among them
    """

    architectures: tuple[str, ...]
    gguf_name: str
    tensors: tuple[TensorMap, ...]
    layer_tensors: tuple[TensorMap, ...]
    read_network: Callable[[Mapping[str, Any], Path], Network]
    keys: Callable[[Mapping[str, Any], Network, Path, int], list[Field]]

    def map_tensors(self, network: Network) -> list[MappedTensor]:
        """Every tensor a network of these sizes has."""

        def filled(tensor: TensorMap, layer: int | str) -> MappedTensor:
            shape = tuple(getattr(network, dimension) for dimension in tensor.shape)
            rows = [getattr(network, dimension) for dimension in tensor.rows] or [shape[0]]
            sources = tuple(
                (source.format(i=layer), (n_rows, *shape[1:]))
                for source, n_rows in zip(tensor.sources, rows, strict=True)
            )
            return MappedTensor(tensor.gguf.format(i=layer), shape, sources)

        per_layer = [filled(tensor, i) for i in range(network.layers) for tensor in self.layer_tensors]
        return [filled(tensor, "") for tensor in self.tensors] + per_layer
