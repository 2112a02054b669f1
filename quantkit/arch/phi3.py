"""Phi3ForCausalLM as Phi-4 has it: fused q|k|v and gate|up, full rotary embedding without scaling, an untied head.

Rows of qkv_proj are q, k, v and those of gate_up_proj gate, up, in the checkpoint as in GGUF; nothing is permuted.
Keys and names: llama.cpp b11434, conversion/phi.py and gguf-py/gguf/tensor_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.arch.family import Family, Network, TensorMap
from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import shown
from quantkit.errors import ConfigError, UnsupportedError
from quantkit.gguf_io import Field, Kind

# What this converts, key by key: the values that mean "as Phi-4", the first being that of a config without the key.
AS_PHI4: dict[str, tuple[Any, ...]] = {
    "rope_scaling": (None,),
    "partial_rotary_factor": (1.0,),
    "tie_word_embeddings": (False,),
    "attention_bias": (False,),
    "hidden_act": ("silu",),
    "sliding_window": (None,),
}


def read_network(config: Mapping[str, Any], file: Path) -> Network:
    """The sizes in config; raises ConfigError, and UnsupportedError for a Phi-3 that is not built as Phi-4 is."""
    for key, supported in AS_PHI4.items():
        if config.get(key, supported[0]) not in supported:
            raise UnsupportedError(
                "this variant of Phi3ForCausalLM is not supported yet",
                hint="supported today: Phi-4 and its fine-tunes (no longrope, partial rotary embedding or tied head)",
                file=file,
                key=key,
                expected=shown(supported[0]),
                found=shown(config[key]),
            )

    def size(key: str) -> int:
        value = require(config, key, int, file)
        if not 0 < value < 1 << 31:
            raise ConfigError("an impossible size", file=file, key=key, expected="1 to 2147483647", found=value)
        return value

    hidden, heads, kv_heads = size("hidden_size"), size("num_attention_heads"), size("num_key_value_heads")
    for key, value, whole in (("num_attention_heads", heads, hidden), ("num_key_value_heads", kv_heads, heads)):
        if whole % value:
            raise ConfigError(
                "does not divide what it splits", file=file, key=key, expected=f"a divisor of {whole}", found=value
            )
    head_width = hidden // heads
    return Network(
        layers=size("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        feed_forward=size("intermediate_size"),
        vocabulary=size("vocab_size"),
    )


def keys(config: Mapping[str, Any], network: Network, file: Path, file_type: int) -> list[Field]:
    """The fields that describe the network, in the converter's order; raises ConfigError."""

    def count(key: str, value: int) -> Field:
        return Field(f"phi3.{key}", Kind.U32, value)

    def real(key: str, name: str) -> Field:
        return Field(f"phi3.{key}", Kind.F32, require(config, name, float, file))

    return [
        count("context_length", require(config, "max_position_embeddings", int, file)),
        count("rope.scaling.original_context_length", require(config, "original_max_position_embeddings", int, file)),
        count("embedding_length", network.hidden),
        count("feed_forward_length", network.feed_forward),
        count("block_count", network.layers),
        count("attention.head_count", network.heads),
        count("attention.head_count_kv", network.kv_heads),
        real("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        count("rope.dimension_count", network.head_width),
        real("rope.freq_base", "rope_theta"),
        Field("general.file_type", Kind.U32, file_type),
        count("attention.sliding_window", 0),  # llama.cpp tells Phi-4 from older Phi-3 by this 0
    ]


FAMILY = Family(
    architectures=("Phi3ForCausalLM",),
    gguf_name="phi3",
    tensors=(
        TensorMap("token_embd.weight", ("model.embed_tokens.weight",), ("vocabulary", "hidden")),
        TensorMap("output_norm.weight", ("model.norm.weight",), ("hidden",)),
        TensorMap("output.weight", ("lm_head.weight",), ("vocabulary", "hidden")),
    ),
    layer_tensors=(
        TensorMap("blk.{i}.attn_norm.weight", ("model.layers.{i}.input_layernorm.weight",), ("hidden",)),
        TensorMap("blk.{i}.attn_qkv.weight", ("model.layers.{i}.self_attn.qkv_proj.weight",), ("qkv_rows", "hidden")),
        TensorMap(
            "blk.{i}.attn_output.weight", ("model.layers.{i}.self_attn.o_proj.weight",), ("hidden", "attention_rows")
        ),
        TensorMap("blk.{i}.ffn_norm.weight", ("model.layers.{i}.post_attention_layernorm.weight",), ("hidden",)),
        TensorMap("blk.{i}.ffn_up.weight", ("model.layers.{i}.mlp.gate_up_proj.weight",), ("gate_up_rows", "hidden")),
        TensorMap("blk.{i}.ffn_down.weight", ("model.layers.{i}.mlp.down_proj.weight",), ("hidden", "feed_forward")),
    ),
    read_network=read_network,
    keys=keys,
)
