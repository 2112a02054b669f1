"""Write a checkpoint with Phi-4-mini's traits on a tiny network of random weights, and the start of its vocabulary.

Traits: heads / kv_heads = 3, three quarters of each head rotated, longrope factors, a sliding window as wide as two
contexts, the embedding as output too, and o200k's tokens with Phi-4-mini's own behind them.  As there, the ids have
holes: one below <|endoftext|>, 18 below <|endofprompt|>; the tokens added later follow the highest.  The vocabulary is
the first 4094 tokens of the real o200k_base of the package bpe-openai (MIT); the ids are Phi-4-mini's less 195904.
eos is <|end|>, with which the chat template ends a turn, as in the fine-tunes that repaired it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Bf16, gaussian, merges_from_ranks, read_ranks, show, to_bf16, write_json, write_shards
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

LAYERS, HIDDEN, HEADS, KV_HEADS, FEED_FORWARD = 2, 768, 6, 2, 1024
N_RANKS, VOCABULARY = 4094, 4160
CONTEXT, ORIGINAL_CONTEXT = 131072, 4096
ROTARY_PAIRS = 48
LONG_FACTORS = [1 + 40 * (pair / 47) ** 2 for pair in range(ROTARY_PAIRS)]
SHORT_FACTORS = [1 + pair / 64 for pair in range(ROTARY_PAIRS)]

BASE_SPECIAL = {"<|endoftext|>": 4095, "<|endofprompt|>": 4114}  # among the model's own tokens
ADDED = (
    *("<|assistant|>", "<|end|>", "<|user|>", "<|system|>", "<|tool|>", "<|/tool|>", "<|tool_call|>"),
    *("<|/tool_call|>", "<|tool_response|>", "<|tag|>"),
)
ROLES = {"bos": "<|endoftext|>", "eos": "<|end|>", "pad": "<|endoftext|>"}

O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def special_ids() -> dict[str, int]:
    """Every special token with its id."""
    first = max(BASE_SPECIAL.values()) + 1
    return BASE_SPECIAL | {text: first + n for n, text in enumerate(ADDED)}


def write(out: Path, *, seed: int = 1) -> int:
    """Write the checkpoint into the folder out (made if absent).

    seed     of the weights
    returns  bytes of all weights
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", _config())
    _write_vocabulary(out)
    return write_shards(out, _shards(seed), LAYERS + 1)


def _shards(seed: int) -> Iterator[dict[str, Bf16]]:
    head_width = HIDDEN // HEADS
    matrices = {
        "self_attn.qkv_proj.weight": ((HEADS + 2 * KV_HEADS) * head_width, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_up_proj.weight": (2 * FEED_FORWARD, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
    }
    ones = to_bf16(np.ones(HIDDEN, np.float32))
    embedding = "model.embed_tokens.weight"
    yield {embedding: gaussian(embedding, (VOCABULARY, HIDDEN), seed), "model.norm.weight": ones}
    for layer in range(LAYERS):
        module = f"model.layers.{layer}."
        norms = (module + norm for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"))
        weights = {module + name: gaussian(module + name, shape, seed) for name, shape in matrices.items()}
        yield weights | dict.fromkeys(norms, ones)


def _config() -> dict[str, Any]:
    ids = special_ids()
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids[ROLES["bos"]],
        "embd_pdrop": 0.0,
        "eos_token_id": ids[ROLES["eos"]],
        "full_attn_mod": 1,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FEED_FORWARD,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": False,
        "model_type": "phi3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "pad_token_id": ids[ROLES["pad"]],
        "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"long_factor": LONG_FACTORS, "short_factor": SHORT_FACTORS, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def _write_vocabulary(out: Path) -> None:
    """tokenizer.json with the ids stated: the `tokenizers` library of today would give the added tokens lower ones."""
    ranks = {token: rank for token, rank in read_ranks("o200k_base").items() if rank < N_RANKS}
    vocab = {show(token): rank for token, rank in ranks.items()} | BASE_SPECIAL
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges_from_ranks(ranks)))
    split = pre_tokenizers.Split(Regex(O200K_PATTERN), behavior="removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": token_id, "content": text} | flags for text, token_id in special_ids().items()]
    write_json(out / "tokenizer.json", json.loads(tokenizer.to_str()) | {"added_tokens": added})
    settings = {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token_id): {"content": text} | flags for text, token_id in special_ids().items()},
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
    }
    write_json(out / "tokenizer_config.json", settings | {f"{role}_token": text for role, text in ROLES.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; its name becomes the model's")
    parser.add_argument("--seed", type=int, default=1, help="of the weights (default 1)")
    args = parser.parse_args()
    nbytes = write(args.out, seed=args.seed)
    print(f"{args.out}: Phi-4-mini's traits, hidden {HIDDEN}, {LAYERS} layers, {nbytes:,} bytes of weights")


if __name__ == "__main__":
    main()
