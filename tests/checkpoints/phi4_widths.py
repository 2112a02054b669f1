"""Write a checkpoint with Phi-4's widths, vocabulary and file layout, few layers and random weights.

For speed, memory and the vocabulary; it says nothing about quality.  Weights are Gaussian with standard deviation
0.02, as a fresh network's.  The vocabulary is the real cl100k_base of the package bpe-openai (MIT) with Phi-4's special
tokens on ids 100256 to 100351.  --tiny keeps the whole vocabulary on a network of hidden size 256 with one layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from common import (
    Bf16,
    gaussian,
    merges_from_ranks,
    read_ranks,
    show,
    to_bf16,
    write_json,
    write_shards,
    write_tokenizer,
)
from tokenizers import Regex, pre_tokenizers

VOCAB_SIZE, CONTEXT = 100352, 16384

# Special tokens of Phi-4; the other ids from the first special one to the end of the vocabulary are <|dummy_0|>, ...
FIRST_SPECIAL_ID = 100256
NAMED_SPECIAL = {
    100257: "<|endoftext|>",
    100258: "<|fim_prefix|>",
    100259: "<|fim_middle|>",
    100260: "<|fim_suffix|>",
    100264: "<|im_start|>",
    100265: "<|im_end|>",
    100266: "<|im_sep|>",
    100276: "<|endofprompt|>",
}
ROLES = {"bos": 100257, "eos": 100265, "pad": 100349}
FIRST_RELEASE_ROLES = {"bos": 100257, "eos": 100257, "pad": 100257}

CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _turn(role: str) -> str:
    return "{{'<|im_start|>" + role + "<|im_sep|>' + message['content'] + '<|im_end|>'}}"


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}" + _turn("system")
    + "{% elif message['role'] == 'user' %}" + _turn("user")
    + "{% elif message['role'] == 'assistant' %}" + _turn("assistant")
    + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant<|im_sep|>'}}{% endif %}"
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """The numbers of config.json that decide the shapes; heads are hidden / heads wide."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int


PHI4 = Network(layers=2, hidden=5120, heads=40, kv_heads=10, feed_forward=17920)
TINY = Network(layers=1, hidden=256, heads=4, kv_heads=1, feed_forward=768)


def write(out: Path, network: Network = PHI4, *, first_release: bool = False, seed: int = 1) -> int:
    """Write the checkpoint into the folder out (made if absent); one shard is in memory at a time.

    network        its size
    first_release  bos = eos = pad = <|endoftext|>, as in the files Phi-4 was first published with
    seed           of the weights
    returns        bytes of all weights
    """
    out.mkdir(parents=True, exist_ok=True)
    roles = FIRST_RELEASE_ROLES if first_release else ROLES
    nbytes = write_shards(out, _shards(network, seed), network.layers + 2)
    write_json(out / "config.json", _config(network, roles))
    write_vocabulary(out, roles)
    return nbytes


def _shards(network: Network, seed: int) -> Iterator[dict[str, Bf16]]:
    hidden = network.hidden
    qkv = hidden + 2 * network.kv_heads * (hidden // network.heads)
    matrices = {
        "self_attn.qkv_proj.weight": (qkv, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_up_proj.weight": (2 * network.feed_forward, hidden),
        "mlp.down_proj.weight": (hidden, network.feed_forward),
    }
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
    ones = to_bf16(np.ones(hidden, np.float32))

    def random(shapes: dict[str, tuple[int, int]]) -> dict[str, Bf16]:
        return {name: gaussian(name, shape, seed) for name, shape in shapes.items()}

    yield random({"model.embed_tokens.weight": (VOCAB_SIZE, hidden)})
    for layer in range(network.layers):
        module = f"model.layers.{layer}."
        layer_matrices = {module + name: shape for name, shape in matrices.items()}
        yield random(layer_matrices) | {module + name: ones for name in norms}
    yield random({"lm_head.weight": (VOCAB_SIZE, hidden)}) | {"model.norm.weight": ones}


def _config(network: Network, roles: dict[str, int]) -> dict[str, object]:
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": roles["bos"],
        "embd_pdrop": 0.0,
        "eos_token_id": roles["eos"],
        "hidden_act": "silu",
        "hidden_size": network.hidden,
        "initializer_range": 0.02,
        "intermediate_size": network.feed_forward,
        "max_position_embeddings": CONTEXT,
        "model_type": "phi3",
        "num_attention_heads": network.heads,
        "num_hidden_layers": network.layers,
        "num_key_value_heads": network.kv_heads,
        "original_max_position_embeddings": CONTEXT,
        "pad_token_id": roles["pad"],
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 250000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }


def _special_tokens() -> dict[int, str]:
    ids = range(FIRST_SPECIAL_ID, VOCAB_SIZE)
    dummies = (id for id in ids if id not in NAMED_SPECIAL)
    special = NAMED_SPECIAL | {id: f"<|dummy_{n}|>" for n, id in enumerate(dummies)}
    return {id: special[id] for id in ids}


def write_vocabulary(out: Path, roles: dict[str, int]) -> None:
    """Write the tokenizer's files alone."""
    ranks = read_ranks("cl100k_base")
    special = _special_tokens()
    write_tokenizer(
        out,
        tokens={show(token): rank for token, rank in ranks.items()},
        merges=merges_from_ranks(ranks),
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(CL100K_PATTERN), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        special=special,
        strip=True,
        config={
            "add_prefix_space": False,
            "bos_token": special[roles["bos"]],
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": special[roles["eos"]],
            "model_max_length": CONTEXT,
            "pad_token": special[roles["pad"]],
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; its name becomes the model's")
    parser.add_argument("--tiny", action="store_true", help="start from the tiny network instead of Phi-4's widths")
    for field in fields(Network):
        default = f"{getattr(PHI4, field.name)}, tiny {getattr(TINY, field.name)}"
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=int, metavar="N", default=argparse.SUPPRESS, help=f"(default {default})")
    parser.add_argument("--first-release", action="store_true", help="bos = eos = pad, as Phi-4 was first published")
    parser.add_argument("--seed", type=int, default=1, help="of the weights (default 1)")
    args = parser.parse_args()
    given = {field.name: getattr(args, field.name) for field in fields(Network) if field.name in args}
    network = replace(TINY if args.tiny else PHI4, **given)
    nbytes = write(args.out, network, first_release=args.first_release, seed=args.seed)
    size = f"hidden {network.hidden}, {network.layers} layers, {nbytes:,} bytes of weights"
    print(f"{args.out}: Phi-4's vocabulary, {size}")


if __name__ == "__main__":
    main()
