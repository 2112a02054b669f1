"""A checkpoint of a few hundred kilobytes with everything a Phi-4 has, made in milliseconds, and easy to spoil."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import BYTE_TO_CHAR, to_bf16, write_json, write_tokenizer
from numpy.typing import NDArray
from phi4_widths import CL100K_PATTERN
from safetensors import TensorSpec, serialize_file
from tokenizers import Regex, pre_tokenizers

HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, LAYERS = 256, 4, 2, 512, 2
MERGES = [("h", "e"), ("t", "he")]
SPECIAL = {258: "<|endoftext|>", 259: "<|im_start|>", 260: "<|im_end|>", 261: "<|im_sep|>", 262: "<|dummy_87|>"}
VOCABULARY = 256 + len(MERGES) + len(SPECIAL)
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + "
    "'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant<|im_sep|>'}}{% endif %}"
)
Tensors = dict[str, NDArray[np.float32]]


def config() -> dict[str, Any]:
    """Its config.json, with the keys that Phi-4's has."""
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 258,
        "eos_token_id": 260,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": 2048,
        "model_type": "phi3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "original_max_position_embeddings": 2048,
        "pad_token_id": 262,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 250000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
    }


def tensors() -> Tensors:
    """Its weights, Gaussian x 0.02 from a fixed seed, float32."""
    head_width = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (HIDDEN,),
            layer + "self_attn.qkv_proj.weight": ((HEADS + 2 * KV_HEADS) * head_width, HIDDEN),
            layer + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            layer + "post_attention_layernorm.weight": (HIDDEN,),
            layer + "mlp.gate_up_proj.weight": (2 * FEED_FORWARD, HIDDEN),
            layer + "mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    rng = np.random.default_rng(4)
    return {name: rng.standard_normal(shape, np.float32) * np.float32(0.02) for name, shape in shapes.items()}


def lively(tensors: Tensors) -> None:
    """An edit after which every tensor has its say in what the network predicts: larger matrices, norms about 1."""
    for values in tensors.values():
        values *= np.float32(4)
        if values.ndim == 1:
            values += np.float32(1)


def write(
    out: Path,
    *,
    dtype: str = "bfloat16",
    edit_config: Callable[[dict[str, Any]], object] = lambda config: None,
    edit_tensors: Callable[[Tensors], object] = lambda tensors: None,
) -> Path:
    """Write the checkpoint; the two edits may change what it consists of first.

    dtype    of the stored weights: bfloat16, float16 or float32
    returns  out
    """
    out.mkdir(parents=True, exist_ok=True)
    settings, weights = config(), tensors()
    edit_config(settings)
    edit_tensors(weights)
    write_json(out / "config.json", settings)
    stored = {
        name: to_bf16(values) if dtype == "bfloat16" else values.astype(dtype) for name, values in weights.items()
    }
    specs = {
        name: TensorSpec(dtype=dtype, shape=data.shape, data_ptr=data.ctypes.data, data_len=data.nbytes)
        for name, data in stored.items()
    }
    serialize_file(specs, out / "model.safetensors", metadata={"format": "pt"})
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Split(Regex(CL100K_PATTERN), behavior="removed", invert=True)
    write_tokenizer(
        out,
        tokens={char: byte for byte, char in BYTE_TO_CHAR.items()} | {"he": 256, "the": 257},
        merges=MERGES,
        pre_tokenizer=pre_tokenizers.Sequence([words, to_bytes]),
        special=SPECIAL,
        strip=False,
        config={
            "bos_token": SPECIAL[258],
            "eos_token": SPECIAL[260],
            "pad_token": SPECIAL[262],
            "unk_token": SPECIAL[258],
            "chat_template": TEMPLATE,
            "tokenizer_class": "GPT2Tokenizer",
        },
    )
    return out
