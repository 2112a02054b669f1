"""What a family of networks is, as data: which tensors it has, where they come from, which keys describe it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.arch.rope import Rope
from quantkit.errors import UnsupportedError
from quantkit.gguf_io import Field, Kind

EMBEDDING, HEAD, LAST_NORM = "token_embd.weight", "output.weight", "output_norm.weight"  # of every family in GGUF


@dataclass(frozen=True)
class Network:
    """One network: what its config.json says of it, checked.

    head_width   of a query, key or value
    rope         how positions enter
    tied         the embedding is the output matrix too
    n_gqa = heads / kv_heads; attention_rows = heads * head_width, key_rows = kv_heads * head_width,
    qkv_rows = attention_rows + 2 * key_rows, gate_up_rows = 2 * feed_forward
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    vocabulary: int
    rope: Rope
    tied: bool

    @property
    def n_gqa(self) -> int:
        return self.heads // self.kv_heads

    @property
    def attention_rows(self) -> int:
        return self.heads * self.head_width

    @property
    def key_rows(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def qkv_rows(self) -> int:
        return self.attention_rows + 2 * self.key_rows

    @property
    def gate_up_rows(self) -> int:
        return 2 * self.feed_forward


@dataclass(frozen=True)
class TensorMap:
    """One tensor of the network that comes from the checkpoint.

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
    """One family of networks, as checkpoints of one layout hold it.

    architectures  the names in config.json's `architectures` that belong to it
    gguf_name      llama.cpp's name for it
    tensors        of the whole network
    head           the output matrix: of the whole network too, but not of a tied one
    layer_tensors  of each layer
    read_network   (config, file) -> Network; refuses by a typed error what quantkit does not convert
    keys           (config, network, file, file_type) -> the fields `<gguf_name>.*`, in the converter's order and with
                   general.file_type at its place among them
    pre_tokenizers llama.cpp's names of those that it is known by, where `architectures` does not tell; else none
    """

    architectures: tuple[str, ...]
    gguf_name: str
    tensors: tuple[TensorMap, ...]
    head: TensorMap
    layer_tensors: tuple[TensorMap, ...]
    read_network: Callable[[Mapping[str, Any], Path], Network]
    keys: Callable[[Mapping[str, Any], Network, Path, int], list[Field]]
    pre_tokenizers: tuple[str, ...] = ()

    def map_tensors(self, network: Network) -> list[MappedTensor]:
        """Every tensor a network of these sizes has."""

        def filled(tensor: TensorMap, layer: int | str = "") -> MappedTensor:
            shape = tuple(getattr(network, dimension) for dimension in tensor.shape)
            rows = [getattr(network, dimension) for dimension in tensor.rows] or [shape[0]]
            sources = tuple(
                (source.format(i=layer), (n_rows, *shape[1:]))
                for source, n_rows in zip(tensor.sources, rows, strict=True)
            )
            return MappedTensor(tensor.gguf.format(i=layer), shape, sources)

        whole = self.tensors if network.tied else (*self.tensors, self.head)
        per_layer = [filled(tensor, i) for i in range(network.layers) for tensor in self.layer_tensors]
        return [*map(filled, whole), *_rope_factors(network.rope), *per_layer]

    def early_keys(self, network: Network) -> list[Field]:
        """The fields that the converter writes before all others but general.architecture."""
        factor = network.rope.attention_factor
        return [] if factor is None else [Field(f"{self.gguf_name}.rope.scaling.attn_factor", Kind.F32, factor)]

    def check_pre_tokenizer(self, pre: str, file: Path) -> None:
        """That the vocabulary is of the kind which tells this family from others; raises UnsupportedError."""
        if self.pre_tokenizers and pre not in self.pre_tokenizers:
            raise UnsupportedError(
                f"this {self.architectures[0]} is not supported",
                hint=f"a Phi-4 saved as {self.architectures[0]} is known by its vocabulary, and this is another",
                file=file,
                key="pre_tokenizer",
                expected=" or ".join(self.pre_tokenizers),
                found=pre,
            )


def _rope_factors(rope: Rope) -> Iterator[MappedTensor]:
    for gguf, values in (
        ("rope_factors_long.weight", rope.long_factors),
        ("rope_factors_short.weight", rope.short_factors),
    ):
        if values:
            yield MappedTensor(gguf, (len(values),), (), values)
