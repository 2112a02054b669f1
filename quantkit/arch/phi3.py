"""Phi3ForCausalLM: Phi-4, Phi-4-mini, Phi-4-reasoning and their fine-tunes; and Phi-4 saved as LlamaForCausalLM.

Rows of qkv_proj are q, k, v and those of gate_up_proj gate, up, in the checkpoint as in GGUF; nothing is permuted.
A Phi-4 whose q, k, v, gate and up are tensors of their own, as some trainers rename it, is the same network: the rows
are put together again, and the file is the one its original would give.
Keys and names: llama.cpp b11434, conversion/phi.py and gguf-py/gguf/tensor_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.arch.family import EMBEDDING, HEAD, LAST_NORM, Family, Network, TensorMap
from quantkit.arch.rope import read_rope
from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import shown
from quantkit.errors import ConfigError, UnsupportedError
from quantkit.gguf_io import Field, Kind

MAX_LAYERS = 512  # llama.cpp's own limit, LLAMA_MAX_LAYERS
# What this converts, key by key: the values that mean "as Phi-4", the first being that of a config without the key.
AS_PHI4: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "hidden_act": ("silu",),
}


def read_network(config: Mapping[str, Any], file: Path) -> Network:
    """The network in config; raises ConfigError, and UnsupportedError for one that is not built as the Phi-4s are."""
    for key, supported in AS_PHI4.items():
        if config.get(key, supported[0]) not in supported:
            raise _unlike_phi4(key, supported[0], config, file)

    def size(key: str, most: int = (1 << 31) - 1) -> int:
        value = require(config, key, int, file)
        if not 0 < value <= most:
            raise ConfigError("an impossible size", file=file, key=key, expected=f"1 to {most}", found=value)
        return value

    hidden, heads, kv_heads = size("hidden_size"), size("num_attention_heads"), size("num_key_value_heads")
    for key, value, whole in (("num_attention_heads", heads, hidden), ("num_key_value_heads", kv_heads, heads)):
        if whole % value:
            raise ConfigError(
                "does not divide what it splits", file=file, key=key, expected=f"a divisor of {whole}", found=value
            )
    if config.get("head_dim") not in (None, hidden // heads):
        raise _unlike_phi4("head_dim", hidden // heads, config, file)
    return Network(
        layers=size("num_hidden_layers", MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_width=hidden // heads,
        feed_forward=size("intermediate_size"),
        vocabulary=size("vocab_size"),
        rope=read_rope(config, file, hidden=hidden, heads=heads),
        tied="tie_word_embeddings" in config and require(config, "tie_word_embeddings", bool, file),
    )


def read_split_network(config: Mapping[str, Any], file: Path) -> Network:
    """read_network of a LlamaForCausalLM: a Phi-4 if nothing in config is beyond Phi-4.

    That is: no biases, silu, heads as wide as hidden / heads, and no scaling of the rotary embedding.  A config that
    does not tell the original context has never been stretched.
    """
    complete = {"original_max_position_embeddings": config.get("max_position_embeddings"), **config}
    network = read_network(complete, file)
    if network.rope.long_factors:
        raise _unlike_phi4("rope_scaling", None, config, file)
    return network


def _unlike_phi4(key: str, expected: Any, config: Mapping[str, Any], file: Path) -> UnsupportedError:
    return UnsupportedError(
        f"this variant of {config['architectures'][0]} is not supported",
        hint="supported today: Phi-4, Phi-4-mini, Phi-4-reasoning and their fine-tunes",
        file=file,
        key=key,
        expected=shown(expected),
        found=shown(config.get(key)),
    )


def keys(config: Mapping[str, Any], network: Network, file: Path, file_type: int) -> list[Field]:
    """The fields that describe the network, in the converter's order; raises ConfigError."""

    def count(key: str, value: int) -> Field:
        return Field(f"phi3.{key}", Kind.U32, value)

    window = 0  # llama.cpp tells Phi-4 from older Phi-3 by this 0; it ignores any other value
    if config.get("sliding_window") is not None:
        window = require(config, "sliding_window", int, file)
        if not 0 <= window < 1 << 31:
            raise ConfigError("an impossible length", file=file, key="sliding_window", found=window)
    return [
        count("context_length", network.rope.context),
        count("rope.scaling.original_context_length", network.rope.original_context),
        count("embedding_length", network.hidden),
        count("feed_forward_length", network.feed_forward),
        count("block_count", network.layers),
        count("attention.head_count", network.heads),
        count("attention.head_count_kv", network.kv_heads),
        Field("phi3.attention.layer_norm_rms_epsilon", Kind.F32, require(config, "rms_norm_eps", float, file)),
        count("rope.dimension_count", network.rope.rotary),
        Field("phi3.rope.freq_base", Kind.F32, network.rope.theta),
        Field("general.file_type", Kind.U32, file_type),
        count("attention.sliding_window", window),
    ]


def _layer_tensors(qkv: TensorMap, gate_up: TensorMap) -> tuple[TensorMap, ...]:
    return (
        TensorMap("blk.{i}.attn_norm.weight", ("model.layers.{i}.input_layernorm.weight",), ("hidden",)),
        qkv,
        TensorMap(
            "blk.{i}.attn_output.weight", ("model.layers.{i}.self_attn.o_proj.weight",), ("hidden", "attention_rows")
        ),
        TensorMap("blk.{i}.ffn_norm.weight", ("model.layers.{i}.post_attention_layernorm.weight",), ("hidden",)),
        gate_up,
        TensorMap("blk.{i}.ffn_down.weight", ("model.layers.{i}.mlp.down_proj.weight",), ("hidden", "feed_forward")),
    )


FUSED = _layer_tensors(
    TensorMap("blk.{i}.attn_qkv.weight", ("model.layers.{i}.self_attn.qkv_proj.weight",), ("qkv_rows", "hidden")),
    TensorMap("blk.{i}.ffn_up.weight", ("model.layers.{i}.mlp.gate_up_proj.weight",), ("gate_up_rows", "hidden")),
)
SPLIT = _layer_tensors(
    TensorMap(
        "blk.{i}.attn_qkv.weight",
        tuple(f"model.layers.{{i}}.self_attn.{part}_proj.weight" for part in "qkv"),
        ("qkv_rows", "hidden"),
        rows=("attention_rows", "key_rows", "key_rows"),
    ),
    TensorMap(
        "blk.{i}.ffn_up.weight",
        tuple(f"model.layers.{{i}}.mlp.{part}_proj.weight" for part in ("gate", "up")),
        ("gate_up_rows", "hidden"),
        rows=("feed_forward", "feed_forward"),
    ),
)

FAMILY = Family(
    architectures=("Phi3ForCausalLM",),
    gguf_name="phi3",
    tensors=(
        TensorMap(EMBEDDING, ("model.embed_tokens.weight",), ("vocabulary", "hidden")),
        TensorMap(LAST_NORM, ("model.norm.weight",), ("hidden",)),
    ),
    head=TensorMap(HEAD, ("lm_head.weight",), ("vocabulary", "hidden")),
    layer_tensors=FUSED,
    read_network=read_network,
    keys=keys,
)
SPLIT_FAMILY = replace(
    FAMILY,
    architectures=("LlamaForCausalLM",),
    layer_tensors=SPLIT,
    read_network=read_split_network,
    pre_tokenizers=("dbrx", "gpt-4o"),
)
