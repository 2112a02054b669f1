"""What Phi-4's config.json means, and which relatives are refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import small

from quantkit.arch import find_family
from quantkit.errors import ConfigError, UnsupportedError

FILE = Path("config.json")
PHI4 = small.config() | {
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "vocab_size": 100352,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
}


def test_phi4_has_243_tensors_and_14_659_507_200_weights() -> None:
    family = find_family(PHI4, FILE)
    tensors = family.map_tensors(family.read_network(PHI4, FILE))
    assert len(tensors) == 243
    assert sum(math.prod(tensor.shape) for tensor in tensors) == 14_659_507_200
    shapes = {tensor.gguf: tensor.shape for tensor in tensors}
    assert shapes["blk.39.attn_qkv.weight"] == (7680, 5120)
    assert shapes["blk.0.ffn_up.weight"] == (35840, 5120)
    assert shapes["blk.0.ffn_down.weight"] == (5120, 17920)
    assert shapes["output.weight"] == shapes["token_embd.weight"] == (100352, 5120)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["Phi4ForCausalLMV"]},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["Phi3ForCausalLM", "LlamaForCausalLM"]},
        {"architectures": []},
        {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
        {"partial_rotary_factor": 0.75},
        {"tie_word_embeddings": True},
        {"sliding_window": 2047},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
    ],
    ids=lambda change: "-".join(change),
)
def test_relatives_are_refused_with_what_is_supported(change: dict[str, Any]) -> None:
    config = PHI4 | change
    with pytest.raises(UnsupportedError) as caught:
        find_family(config, FILE).read_network(config, FILE)
    assert caught.value.details["key"] in change
    assert caught.value.hint is not None and "supported today" in caught.value.hint


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
@pytest.mark.parametrize("value", [None, "12", 0, -1, 2**40, 12.5, True])
def test_impossible_sizes_are_refused_by_key(key: str, value: object) -> None:
    config = PHI4 | {key: value}
    with pytest.raises(ConfigError) as caught:
        find_family(config, FILE).read_network(config, FILE)
    assert caught.value.details["key"] == key


@pytest.mark.parametrize("key", ["num_attention_heads", "num_key_value_heads"])
def test_heads_that_do_not_divide_are_refused(key: str) -> None:
    config = PHI4 | {key: 7}
    with pytest.raises(ConfigError, match="divide"):
        find_family(config, FILE).read_network(config, FILE)


@pytest.mark.parametrize(
    "key", ["max_position_embeddings", "original_max_position_embeddings", "rms_norm_eps", "rope_theta"]
)
def test_a_missing_key_is_named(key: str) -> None:
    config = {name: value for name, value in PHI4.items() if name != key}
    family = find_family(config, FILE)
    network = family.read_network(config, FILE)
    with pytest.raises(ConfigError, match="missing") as caught:
        family.keys(config, network, FILE, 15)
    assert caught.value.details["key"] == key
