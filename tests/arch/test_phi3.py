"""What config.json means for Phi-4 and its relatives, and what is refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import published
import pytest
import small

from quantkit.arch import MappedTensor, Network, find_family
from quantkit.errors import ConfigError, UnsupportedError

FILE = Path("config.json")
PHI4 = small.config() | published.PHI4
LONGROPE = {"type": "longrope", "long_factor": [*range(1, 49)], "short_factor": [1.0] * 48}
PHI4_MINI = PHI4 | {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 200064,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rope_scaling": LONGROPE,
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
}


def network_of(config: dict[str, Any]) -> Network:
    return find_family(config, FILE).read_network(config, FILE)


def tensors_of(config: dict[str, Any]) -> dict[str, MappedTensor]:
    return {tensor.gguf: tensor for tensor in find_family(config, FILE).map_tensors(network_of(config))}


def keys_of(config: dict[str, Any]) -> dict[str, Any]:
    family, network = find_family(config, FILE), network_of(config)
    return {
        field.key: field.value
        for field in (*family.early_keys(network), *family.keys(config, network, FILE, file_type=15))
    }


def test_phi4_has_243_tensors_and_14_659_507_200_weights() -> None:
    tensors = tensors_of(PHI4)
    assert len(tensors) == 243
    assert sum(math.prod(tensor.shape) for tensor in tensors.values()) == 14_659_507_200
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes["blk.39.attn_qkv.weight"] == (7680, 5120)
    assert shapes["blk.0.ffn_up.weight"] == (35840, 5120)
    assert shapes["blk.0.ffn_down.weight"] == (5120, 17920)
    assert shapes["output.weight"] == shapes["token_embd.weight"] == (100352, 5120)
    assert network_of(PHI4).n_gqa == 4


def test_phi4_mini_has_196_tensors_two_of_them_from_its_config() -> None:
    tensors = tensors_of(PHI4_MINI)
    assert len(tensors) == 196
    assert "output.weight" not in tensors
    for name, key in (("rope_factors_long.weight", "long_factor"), ("rope_factors_short.weight", "short_factor")):
        assert tensors[name] == MappedTensor(name, (48,), (), tuple(LONGROPE[key]))
    network = network_of(PHI4_MINI)
    assert (network.n_gqa, network.tied, network.rope.rotary) == (3, True, 96)


def test_keys_of_phi4_mini() -> None:
    keys = keys_of(PHI4_MINI)
    assert next(iter(keys)) == "phi3.rope.scaling.attn_factor"
    assert keys["phi3.rope.scaling.attn_factor"] == pytest.approx(1.190238, abs=1e-6)
    assert keys["phi3.rope.dimension_count"] == 96
    assert keys["phi3.attention.sliding_window"] == 262144


def test_phi4_reasoning_is_phi4_with_32k() -> None:
    keys = keys_of(PHI4 | dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), 32768))
    assert keys["phi3.context_length"] == keys["phi3.rope.scaling.original_context_length"] == 32768
    assert keys["phi3.attention.sliding_window"] == 0
    assert "phi3.rope.scaling.attn_factor" not in keys


# From the formulas of conversion/phi.py, for a context of 32 times the original 4096.
ATTENTION_FACTORS = {
    "longrope": (LONGROPE, 1.190238),
    "its first name": (LONGROPE | {"type": "su"}, 1.190238),
    "its later key": ({"rope_type": "longrope", **{k: v for k, v in LONGROPE.items() if k != "type"}}, 1.190238),
    "yarn": (LONGROPE | {"type": "yarn"}, 1.346574),
}


@pytest.mark.parametrize("name", ATTENTION_FACTORS)
def test_attention_factor(name: str) -> None:
    scaling, expected = ATTENTION_FACTORS[name]
    rope = network_of(PHI4_MINI | {"rope_scaling": scaling}).rope
    assert rope.attention_factor == pytest.approx(expected, abs=1e-6)


def test_attention_factor_of_an_unscaled_context_is_one() -> None:
    assert network_of(PHI4_MINI | {"max_position_embeddings": 4096}).rope.attention_factor == 1.0


def test_one_object_says_what_the_top_level_said() -> None:
    """transformers 5 moves the keys into rope_parameters; where both are, that counts."""
    moved = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    others = {key: value for key, value in PHI4_MINI.items() if key not in (*moved, "rope_scaling")}
    parameters = LONGROPE | {key: PHI4_MINI[key] for key in moved} | {"rope_type": "longrope"}
    expected = network_of(PHI4_MINI).rope
    assert network_of(others | {"rope_parameters": parameters}).rope == expected
    assert (
        network_of(others | {"rope_parameters": parameters, "rope_theta": 7.0, "rope_scaling": None}).rope == expected
    )


ROPE_REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too few factors": ({"long_factor": [1.0] * 47}, ConfigError, "key long_factor: must have a factor for each"),
    "too many factors": ({"short_factor": [1.0] * 49}, ConfigError, "key short_factor: must have a factor"),
    "no short factors": ({"short_factor": None}, ConfigError, "key short_factor: a value has the wrong type"),
    "a factor of zero": ({"long_factor": [0.0] + [1.0] * 47}, ConfigError, "no positive number"),
    "a factor of text": ({"long_factor": ["1"] * 48}, ConfigError, "no positive number"),
    "a true factor": ({"long_factor": [True] * 48}, ConfigError, "no positive number"),
    "factors in one number": ({"long_factor": 1.0}, ConfigError, "a list"),
    "an unknown kind with factors": ({"type": "ntk"}, UnsupportedError, "key rope_scaling.type"),
    "factors without a kind": ({"type": "default"}, UnsupportedError, "'default'"),
    "a kind without factors": ({"long_factor": None}, UnsupportedError, "'longrope'"),
    "a kind of no text": ({"type": [1]}, UnsupportedError, "key rope_scaling.type"),
    "a factor of its own": ({"attention_factor": 1.2}, UnsupportedError, "key rope_scaling.attention_factor"),
    "by kind of layer": ({"full_attention": {"rope_theta": 1.0}}, UnsupportedError, "rope_scaling.full_attention"),
    "all of it rotated and more": ({"partial_rotary_factor": 1.5}, ConfigError, "impossible part of a head"),
    "nothing rotated": ({"partial_rotary_factor": 0.0}, ConfigError, "impossible part of a head"),
    "an odd part rotated": ({"partial_rotary_factor": 0.5 + 1 / 128}, ConfigError, "impossible part of a head"),
    "an original context of one": ({"original_max_position_embeddings": 1}, ConfigError, "no length to scale from"),
    "no original context": ({"original_max_position_embeddings": 0}, ConfigError, "an impossible length"),
    "theta is text": ({"rope_theta": "10000"}, ConfigError, "key rope_theta"),
}


@pytest.mark.parametrize("name", ROPE_REFUSED)
def test_impossible_rotary_embeddings_are_refused(name: str) -> None:
    change, error, words = ROPE_REFUSED[name]
    with pytest.raises(error) as caught:
        network_of(PHI4_MINI | {"rope_scaling": LONGROPE | change})
    assert type(caught.value) is error and words in str(caught.value)


@pytest.mark.parametrize("value", [-1, 2**31, "1", 1.5, True])
def test_impossible_sliding_windows_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="sliding_window"):
        keys_of(PHI4 | {"sliding_window": value})


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["Phi4ForCausalLMV"]},
        {"architectures": ["MistralForCausalLM"]},
        {"architectures": ["Phi3ForCausalLM", "LlamaForCausalLM"]},
        {"architectures": []},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"lm_head_bias": True},
        {"head_dim": 64},
        {"hidden_act": "gelu"},
    ],
    ids=lambda change: "-".join(change),
)
def test_relatives_are_refused_with_what_is_supported(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        network_of(PHI4 | change)
    assert caught.value.details["key"] in change
    assert caught.value.hint is not None and "supported today" in caught.value.hint


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
@pytest.mark.parametrize("value", [None, "12", 0, -1, 2**40, 12.5, True])
def test_impossible_sizes_are_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        network_of(PHI4 | {key: value})
    assert caught.value.details["key"] == key


@pytest.mark.parametrize("key", ["num_attention_heads", "num_key_value_heads"])
def test_heads_that_do_not_divide_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="divide"):
        network_of(PHI4 | {key: 7})


@pytest.mark.parametrize(
    "key", ["max_position_embeddings", "original_max_position_embeddings", "rms_norm_eps", "rope_theta"]
)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match="missing") as caught:
        keys_of({name: value for name, value in PHI4.items() if name != key})
    assert caught.value.details["key"] == key
