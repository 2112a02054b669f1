"""LoRA adapters for a checkpoint, trained by PEFT for a few steps and saved by it; and PEFT's own merge of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
SPLIT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name: (base, arguments of train); the bases are made in tests/adapters/conftest.py
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "fused": ("fused", {"r": 4, "lora_alpha": 8, "target_modules": FUSED}),
    "split": ("split", {"r": 8, "lora_alpha": 4, "target_modules": SPLIT}),
    "rslora": ("fused", {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["qkv_proj"]}),
    "patterns": (
        "fused",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": FUSED,
            # in this order also as PEFT sorts them when it saves: the first that matches counts
            "rank_pattern": {r"1\.mlp\.down_proj": 2, "[a-z]*.down_proj": 5, "o_proj": 3},
            "alpha_pattern": {"^model.layers.0.self_attn.qkv_proj": 31, "down_proj": 5, "proj": 7, "self_attn.*": 9},
        },
    ),
    "dora": ("fused", {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": FUSED}),
    "dora split": ("split", {"r": 2, "lora_alpha": 8, "use_dora": True, "target_modules": ["k_proj", "up_proj"]}),
    "whole": (
        "fused",
        {
            "r": 2,
            "target_modules": ["down_proj"],
            "modules_to_save": ["embed_tokens", "lm_head", "model.norm", "o_proj", "input_layernorm"],
        },
    ),
    "embedding": ("fused", {"r": 3, "lora_alpha": 9, "target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "fan_in_fan_out": ("fused", {"r": 2, "fan_in_fan_out": True, "target_modules": ["gate_up_proj"]}),
    "resized": ("fused", {"n_tokens": 270, "r": 2, "target_modules": ["qkv_proj"]}),
    "resized embedding": ("fused", {"n_tokens": 266, "r": 2, "target_modules": ["embed_tokens", "lm_head"]}),
    "tied": ("tied", {"r": 2, "target_modules": FUSED}),
    "tied head": ("tied", {"r": 2, "target_modules": ["lm_head"]}),
    "tied embedding": ("tied", {"r": 2, "target_modules": ["embed_tokens"]}),
    "tied whole": ("tied", {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied resized": ("tied", {"n_tokens": 270, "r": 2, "target_modules": ["o_proj"]}),
}


def train(
    base: Path,
    out: Path,
    *,
    steps: int = 2,
    rate: float = 1e-2,
    lesson: tuple[torch.Tensor, torch.Tensor] | None = None,
    n_tokens: int | None = None,
    **config: Any,
) -> Path:
    """Write an adapter for the checkpoint base into the folder out.

    steps     of AdamW
    rate      of learning
    lesson    token ids, and which of them are to be learned (the others are -100); else random ones
    n_tokens  of the embedding, which is resized; else it stays
    config    of LoraConfig
    """
    import peft

    with quiet():
        torch.manual_seed(3)
        model = load(base, n_tokens=n_tokens)
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
        if lesson is None:
            ids = torch.randint(0, model.config.vocab_size, (2, 24))
            lesson = (ids, ids)
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=rate)
        for _ in range(steps):
            adapted(input_ids=lesson[0], labels=lesson[1]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        adapted.save_pretrained(str(out))
    return out


def merged(
    base: Path, *adapters: Path, dtype: torch.dtype = torch.float32, n_tokens: int | None = None, untie: bool = False
) -> dict[str, NDArray[np.float32]]:
    """What `merged_model` has, by the tensors' names; BF16 is widened."""
    model = merged_model(base, *adapters, dtype=dtype, n_tokens=n_tokens, untie=untie)
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def merged_model(
    base: Path, *adapters: Path, dtype: torch.dtype = torch.float32, n_tokens: int | None = None, untie: bool = False
) -> PreTrainedModel:
    """What PEFT's merge_and_unload makes of the base with adapters.

    untie  the output matrix first, as PEFT asks for
    """
    import peft

    with quiet():
        model = load(base, dtype=dtype, n_tokens=n_tokens, untie=untie)
        for adapter in adapters:
            model = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model


def load(
    base: Path, *, dtype: torch.dtype = torch.float32, n_tokens: int | None = None, untie: bool = False
) -> PreTrainedModel:
    """The checkpoint in transformers."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if untie:
        model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
        model.config.tie_word_embeddings = False
    if n_tokens is not None:
        model.resize_token_embeddings(n_tokens)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of what these adapters are made to have, and asks the hub for nothing here that it could find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
