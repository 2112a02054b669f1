"""Merging is PEFT's merge_and_unload: on a float32 model but for the order of sums, on a BF16 one to its last bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import adapters
import numpy as np
import pytest
import torch
from adapters import TRAINED
from numpy.typing import NDArray

from quantkit.checkpoint import Lora
from quantkit.evaluate import Model
from quantkit.source import open_source, read_source

F32Array = NDArray[np.float32]
Peft = Callable[[str, torch.dtype], dict[str, F32Array]]
OTHER_BASES = {"fused": ("split", "gguf"), "split": ("fused", "gguf")}
CASES = [(name, base) for name, (base, _) in TRAINED.items() if base == "tied"] + [
    (name, base)
    for name, (own, _) in TRAINED.items()
    if own != "tied"
    for base in (own, *(OTHER_BASES[own] if name in ("fused", "split", "dora split") else ()))
]


def ours(base: Path, *lora: Lora, warn: Callable[[str], None] = lambda text: None) -> dict[str, F32Array]:
    """Every tensor of the merged model, by GGUF name."""
    with open_source(base, lora=lora) as weights:
        model = Model(read_source(weights, name=None, fix_special_tokens=False, chat_template=None, warn=warn))
        return {name: model.matrix(name) for name in model.tensors}


def by_gguf_name(theirs: dict[str, F32Array]) -> dict[str, F32Array]:
    """transformers' tensors, put together as in GGUF, a vector as one row."""

    def stacked(layer: str, *names: str) -> F32Array:
        return np.concatenate([theirs[f"{layer}.{name}.weight"] for name in names])

    found = {
        "token_embd.weight": theirs["model.embed_tokens.weight"],
        "output_norm.weight": theirs["model.norm.weight"],
    }
    found["output.weight"] = theirs["lm_head.weight"]
    for i in range(2):
        layer, block = f"model.layers.{i}", f"blk.{i}"
        split = f"{layer}.self_attn.q_proj.weight" in theirs
        qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") if split else ("self_attn.qkv_proj",)
        gate_up = ("mlp.gate_proj", "mlp.up_proj") if split else ("mlp.gate_up_proj",)
        found |= {
            f"{block}.attn_norm.weight": stacked(layer, "input_layernorm"),
            f"{block}.attn_qkv.weight": stacked(layer, *qkv),
            f"{block}.attn_output.weight": stacked(layer, "self_attn.o_proj"),
            f"{block}.ffn_norm.weight": stacked(layer, "post_attention_layernorm"),
            f"{block}.ffn_up.weight": stacked(layer, *gate_up),
            f"{block}.ffn_down.weight": stacked(layer, "mlp.down_proj"),
        }
    return {name: np.atleast_2d(values) for name, values in found.items()}


@pytest.fixture(scope="module")
def peft(bases: dict[str, Path], trained: Callable[[str], Path]) -> Peft:
    """A function from a name in TRAINED to what PEFT makes of the adapter and the base it was trained on."""

    @functools.cache
    def merged(name: str, dtype: torch.dtype) -> dict[str, F32Array]:
        base, config = TRAINED[name]
        untie = name in ("tied head", "tied embedding", "tied whole")
        n_tokens = config.get("n_tokens")
        return by_gguf_name(adapters.merged(bases[base], trained(name), dtype=dtype, n_tokens=n_tokens, untie=untie))

    return merged


def ulps(found: F32Array, theirs: F32Array, before: F32Array) -> NDArray[np.float64]:
    """How far found, rounded to BF16, is from theirs, in BF16 ulps of the largest of the terms and of their sum.

    Where weight and change nearly cancel out, the last bits of the result are those of the order of sums.
    """
    bits = found.view(np.uint32)
    rounded = ((bits + (0x7FFF + (bits >> 16 & 1))) & 0xFFFF0000).view(np.float32)
    largest = np.maximum.reduce([np.abs(before), np.abs(theirs), np.abs(theirs - before)])
    ulp = np.ldexp(1.0, np.frexp(largest)[1] - 8)
    distance: NDArray[np.float64] = np.abs(rounded.astype(np.float64) - theirs) / ulp
    return distance


@pytest.mark.parametrize(("name", "base"), CASES)
def test_merging_is_pefts(
    bases: dict[str, Path], trained: Callable[[str], Path], peft: Peft, name: str, base: str
) -> None:
    adapter = trained(name)
    raw, found = ours(bases[base]), ours(bases[base], Lora(adapter))
    exact, rounded = (dict(peft(name, dtype)) for dtype in (torch.float32, torch.bfloat16))
    if "output.weight" not in found:
        assert name in ("tied", "tied resized")
        assert np.array_equal(exact.pop("output.weight"), exact["token_embd.weight"])
    assert found.keys() == exact.keys()
    for tensor, values in found.items():
        np.testing.assert_allclose(values, exact[tensor], rtol=1e-6, atol=3e-8, err_msg=tensor)
        before = raw[tensor][: len(values)] if tensor in raw else values
        distance = ulps(values[: len(before)], rounded[tensor][: len(before)], before)
        assert distance.max() <= 1, tensor
        if "embedding" not in name:  # whose change PEFT rounds to BF16 by itself
            assert (distance > 0).mean() < 1e-4, tensor


def test_the_adapters_change_something(bases: dict[str, Path], trained: Callable[[str], Path]) -> None:
    """Else all of the above would hold of code that does nothing."""
    before = ours(bases["fused"])
    for name, (_, config) in TRAINED.items():
        if TRAINED[name][0] != "fused" or "n_tokens" in config:
            continue
        after = ours(bases["fused"], Lora(trained(name)))
        changed = {tensor for tensor in before if not np.array_equal(before[tensor], after[tensor])}
        assert changed, name
