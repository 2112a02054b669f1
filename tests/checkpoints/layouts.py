"""Turn a checkpoint folder into the layouts in which trainers leave one; each function changes the folder in place.

They were compared with what transformers 4.57.6 and 5.23.0 save of the same network and tokenizer: the same files but
for generation_config.json, and in them the same values of all keys that quantkit reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from common import Bf16, rank_file, write_json, write_shards
from safetensors import deserialize

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def transformers_4(folder: Path) -> None:
    """As saved by transformers 4: the tokenizer in every form it knows, and a chat template of its own file."""
    settings, document = _read(folder / "tokenizer_config.json"), _read(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(settings.pop("chat_template"), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings | {"extra_special_tokens": {}})
    write_json(folder / "added_tokens.json", {token["content"]: token["id"] for token in document["added_tokens"]})
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    roles = {role: {"content": settings[role]} | flags for role in ROLES}
    write_json(folder / "special_tokens_map.json", roles)
    write_json(folder / "vocab.json", document["model"]["vocab"])
    merges = ["#version: 0.2", *(" ".join(pair) for pair in document["model"]["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    config = _read(folder / "config.json")
    write_json(folder / "config.json", {"partial_rotary_factor": 1.0, "dtype": config.pop("torch_dtype")} | config)


def slow_tokenizer(folder: Path) -> None:
    """As transformers before 4.34 saved a tokenizer that is no fast one: vocab.json, merges.txt, added_tokens.json."""
    transformers_4(folder)
    (folder / "tokenizer.json").unlink()
    settings = _read(folder / "tokenizer_config.json")
    del settings["added_tokens_decoder"]
    write_json(folder / "tokenizer_config.json", settings)


def cl100k_ranks(folder: Path) -> None:
    """tiktoken's rank file in place of tokenizer.json, whose vocabulary must be cl100k_base's."""
    (folder / "tokenizer.json").unlink()
    (folder / "cl100k_base.tiktoken").write_bytes(rank_file("cl100k_base"))


def transformers_5(folder: Path) -> None:
    """As saved by transformers 5: one tokenizer.json with all tokens, one object for the rotary embedding."""
    settings, document = _read(folder / "tokenizer_config.json"), _read(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(settings["chat_template"], encoding="utf-8")
    kept = {key: settings[key] for key in (*ROLES, "add_bos_token", "add_eos_token") if key in settings}
    saved = {"backend": "tokenizers", "is_local": True, "tokenizer_class": "TokenizersBackend"}
    write_json(folder / "tokenizer_config.json", kept | saved)
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    nothing_around = {"type": "TemplateProcessing", "single": [first], "pair": [first, second], "special_tokens": {}}
    write_json(folder / "tokenizer.json", document | {"post_processor": nothing_around})

    config = _read(folder / "config.json")
    scaling = config.pop("rope_scaling") or {}
    rope = scaling | {
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
        "rope_theta": config.pop("rope_theta"),
        "rope_type": scaling.get("type", "default"),
    }
    if scaling:
        rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    write_json(folder / "config.json", {"rope_parameters": rope, "dtype": config.pop("torch_dtype")} | config)


def sharded(folder: Path) -> None:
    """Three tensors to a shard, with an index."""
    tensors = [*_take_tensors(folder).items()]
    shards = [dict(tensors[start : start + 3]) for start in range(0, len(tensors), 3)]
    write_shards(folder, shards, len(shards))


def llama(folder: Path) -> None:
    """q, k, v, gate and up as tensors of their own, under the name of LlamaForCausalLM."""
    config = _read(folder / "config.json")
    head_width = config["hidden_size"] // config["num_attention_heads"]
    queries, keys = config["hidden_size"], config["num_key_value_heads"] * head_width
    split: dict[str, Bf16] = {}
    for name, bits in _take_tensors(folder).items():
        if "qkv_proj" in name:
            parts, bounds = ("q_proj", "k_proj", "v_proj"), (queries, queries + keys)
        elif "gate_up_proj" in name:
            parts, bounds = ("gate_proj", "up_proj"), (config["intermediate_size"],)
        else:
            split[name] = bits
            continue
        fused = name.split(".")[-2]
        split |= {name.replace(fused, part): rows for part, rows in zip(parts, np.split(bits, bounds), strict=True)}
    write_shards(folder, [split], 1)
    for key in ("original_max_position_embeddings", "sliding_window"):
        del config[key]
    renamed = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False, "head_dim": head_width}
    write_json(folder / "config.json", config | renamed)


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return value


def _take_tensors(folder: Path) -> dict[str, Bf16]:
    """The BF16 tensors of the folder's safetensors files, which are removed."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {
            name: np.frombuffer(entry["data"], np.uint16).reshape(entry["shape"])
            for name, entry in deserialize(path.read_bytes())
        }
        path.unlink()
    return tensors
