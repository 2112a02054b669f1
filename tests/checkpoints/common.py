"""What the makers of test checkpoints share: BF16 weights, shards with an index, a byte-level BPE tokenizer.

Everything here gives the same bytes on any machine: elementwise float32 and integers only, no sums, no BLAS.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Bf16 = NDArray[np.uint16]

# GPT-2's way to show a byte as one visible character: itself where it prints, else the next one from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_TO_CHAR = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + n) for n, byte in enumerate(_OTHERS)}


def to_bf16(values: NDArray[np.float32]) -> Bf16:
    """The bits of each finite value's nearest BF16, ties to even.

    values   float32, any shape, no NaN
    returns  uint16, the same shape
    """
    bits = values.view(np.uint32)
    lowest_kept_bit = (bits >> 16) & 1
    return ((bits + 0x7FFF + lowest_kept_bit) >> 16).astype(np.uint16)


# The Gaussian as 65536 equally likely values: 16 raw bits of the generator choose one.  NumPy's own Gaussian calls libm
# and retries now and then, which another machine may decide differently; this is exact, and several times faster.
# Rounded to BF16 the body keeps its shape; the tails end at 4.3 deviations.
_NORMAL = NormalDist(0, 0.02)
_QUANTILES = to_bf16(np.array([_NORMAL.inv_cdf((n + 0.5) / 65536) for n in range(65536)], dtype=np.float32))
_PIECE_WEIGHTS = 1 << 20


def gaussian(name: str, shape: tuple[int, int], seed: int) -> Bf16:
    """Random BF16 bits (shape); seeded by the tensor's name, so they do not depend on how many layers there are."""
    generator = np.random.PCG64([seed, *name.encode()])
    bits = np.empty(shape[0] * shape[1], np.uint16)
    for start in range(0, len(bits), _PIECE_WEIGHTS):
        piece = bits[start : start + _PIECE_WEIGHTS]
        raw = generator.random_raw(-(-len(piece) // 4)).astype("<u8", copy=False)
        piece[:] = _QUANTILES[raw.view("<u2")[: len(piece)]]
    return bits.reshape(shape)


def write_json(path: Path, value: Any) -> None:
    """Write value as indented UTF-8 JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_shards(out: Path, shards: Iterable[Mapping[str, Bf16]], n_shards: int) -> int:
    """Write BF16 tensors as safetensors shards with their index; one shard is in memory at a time.

    shards   n_shards mappings of tensor name to uint16 bits, C order
    returns  bytes of all weights
    """
    weight_map: dict[str, str] = {}
    total_size = 0
    files = (f"model-{number:05d}-of-{n_shards:05d}.safetensors" for number in range(1, n_shards + 1))
    for shard in shards:
        file = next(files)
        specs = {
            name: TensorSpec(
                dtype="bfloat16", shape=bits.shape, data_ptr=_contiguous(bits).ctypes.data, data_len=bits.nbytes
            )
            for name, bits in shard.items()
        }
        serialize_file(specs, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        total_size += sum(bits.nbytes for bits in shard.values())
        del shard  # before the next one is made; zip or enumerate would keep it
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    write_json(out / "model.safetensors.index.json", index)
    return total_size


def _contiguous(bits: Bf16) -> Bf16:
    assert bits.flags.c_contiguous and bits.dtype == "<u2", "safetensors takes an address: little-endian, C order"
    return bits


def show(token: bytes) -> str:
    """The token's bytes as byte-level BPE files spell them."""
    return "".join(BYTE_TO_CHAR[byte] for byte in token)


def rank_file(encoding: str) -> bytes:
    """tiktoken's rank file of "cl100k_base" or "o200k_base", as the package bpe-openai has it."""
    return gzip.decompress((resources.files("bpe_openai") / "data" / f"{encoding}.tiktoken.gz").read_bytes())


def read_ranks(encoding: str) -> dict[bytes, int]:
    """The tokens of a rank file with their ranks."""
    lines = (line.split() for line in rank_file(encoding).splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def merges_from_ranks(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """The merge list that a table of token ranks stands for, lowest rank first.

    A token's merge joins the two parts that are left of its bytes when all merges of lower rank have been applied.
    ranks    every token with its rank, the 256 single bytes included
    returns  one pair per token of two bytes or more
    """
    return [_last_merge(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]


def _last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[str, str]:
    parts = [token[i : i + 1] for i in range(len(token))]
    never = len(ranks)
    while len(parts) > 2:
        joined_ranks = [ranks.get(left + right, never) for left, right in itertools.pairwise(parts)]
        lowest = min(joined_ranks)
        assert lowest < ranks[token], f"{token!r} is not reached by merges of lower rank"
        at = joined_ranks.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return show(parts[0]), show(parts[1])


def write_tokenizer(
    out: Path,
    *,
    tokens: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    special: Mapping[int, str],
    strip: bool,
    config: Mapping[str, Any],
) -> None:
    """Write tokenizer.json and tokenizer_config.json of a byte-level BPE.

    tokens         spelled token to id
    merges         pairs of spelled tokens, first merged first
    pre_tokenizer  splits text into the words that merges stay within
    special        id to text of each special token, ascending; ids beyond `tokens` follow it without a gap
    strip          whether special tokens swallow the white space around them
    config         the keys of tokenizer_config.json beside the added tokens
    """
    tokenizer = Tokenizer(models.BPE(vocab=dict(tokens), merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    flags = {"special": True, "normalized": False, "lstrip": strip, "rstrip": strip, "single_word": False}
    tokenizer.add_special_tokens([AddedToken(text, **flags) for text in special.values()])
    assert all(tokenizer.token_to_id(text) == id for id, text in special.items()), "special ids have a gap"
    tokenizer.save(str(out / "tokenizer.json"))
    added = {str(id): {"content": text} | flags for id, text in special.items()}
    write_json(out / "tokenizer_config.json", {"added_tokens_decoder": added} | dict(config))
