"""llama.cpp splits text into the tokens that the checkpoint's own tokenizer and tiktoken split it into."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from unittest import mock

import phi4_mini_tiny as phi4_mini_tiny_maker
import pytest
import tiktoken
from common import read_ranks
from engine import Engine
from texts import N_TEXTS, texts
from tiktoken_ext import openai_public
from tokenizers import Tokenizer

Converted = Callable[[Path], dict[str, Path]]

# Where tokenizers and tiktoken disagree, and why.  Both llama.cpp's converter and quantkit leave this out of the file,
# as GGUF has no key for it; llama.cpp then does as tiktoken does.
DISAGREEING = {
    "tokenizers drops white space beside a special token, whose lstrip and rstrip are set; tiktoken keeps it": {
        *(f"chat markup and white space {n}" for n in range(1, 13)),
        "json 5 | white space 28",
        "south asia 12 | chat markup 19",
        "runs 16 | emoji 8",
        "numbers 6 | chat markup and white space 3",
        "chat markup and white space 10 | numbers 13",
        "east asia 11 | chat markup 6",
        "numbers 7 | chat markup and white space 4",
        "chat markup and white space 11 | numbers 14",
        "white space 9 | code 34",
        "east asia 12 | chat markup 7",
        "numbers 8 | chat markup and white space 5",
        "chat markup and white space 12 | numbers 15",
        "south asia 1 | chat markup 8",
        "numbers 9 | chat markup and white space 6",
        "chat markup 2 | east asia 7",
    },
}


def cl100k(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """tiktoken's own cl100k_base, pattern included, with the special tokens of a checkpoint.

    The ranks come from bpe-openai, as tiktoken's would come from the network; they are the same bytes.
    """
    ranks = gzip.decompress((resources.files("bpe_openai") / "data" / "cl100k_base.tiktoken.gz").read_bytes())
    pairs = (line.split() for line in ranks.splitlines())
    table = {base64.b64decode(token): int(rank) for token, rank in pairs}
    with mock.patch.object(openai_public, "load_tiktoken_bpe", return_value=table) as load:
        definition = openai_public.cl100k_base()
    assert load.call_args.kwargs["expected_hash"] == hashlib.sha256(ranks).hexdigest()
    special = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    return tiktoken.Encoding(**definition | {"special_tokens": special})


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def differences(expected: dict[str, list[int]], found: dict[str, list[int]]) -> list[str]:
    """A line for each text whose ids differ, from the first id that does."""
    lines = []
    for name, ids in expected.items():
        if found[name] != ids:
            pairs = zip(ids, found[name], strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(found[name])))
            lines.append(f"{name}: expected ...{ids[at : at + 5]}, found ...{found[name][at : at + 5]}")
    return lines


def test_texts_differ() -> None:
    assert len(set(texts().values())) == N_TEXTS


def test_whole_cl100k_vocabulary(
    engine: Engine, converted: Converted, phi4_tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.from_file(str(phi4_tiny / "tokenizer.json"))
    encoding = cl100k(tokenizer)
    engine.load(converted(phi4_tiny)["Q8_0"])
    by_llama = {name: engine.tokenize(text) for name, text in texts().items()}
    by_tokenizers = {name: encode(tokenizer, text) for name, text in texts().items()}
    by_tiktoken = {name: encoding.encode(text, allowed_special="all") for name, text in texts().items()}

    assert differences(by_tiktoken, by_llama) == []
    disagreeing = {name for name in texts() if by_tokenizers[name] != by_tiktoken[name]}
    with capsys.disabled():
        for reason, names in DISAGREEING.items():
            print(f"\n{len(names)} of {N_TEXTS} texts on which tokenizers and tiktoken disagree: {reason}")
            print("".join(f"  {name}: {texts()[name]!r:.100}\n" for name in sorted(names)))
    assert disagreeing == set().union(*DISAGREEING.values())


def test_markup_as_plain_text(engine: Engine, converted: Converted, phi4_tiny: Path) -> None:
    """Where special tokens are not allowed, none may come of a text: their type in the file is right."""
    encoding = cl100k(Tokenizer.from_file(str(phi4_tiny / "tokenizer.json")))
    engine.load(converted(phi4_tiny)["Q8_0"])
    by_llama = {name: engine.tokenize(text, special=False) for name, text in texts().items()}
    assert differences({name: encoding.encode_ordinary(text) for name, text in texts().items()}, by_llama) == []


# llama.cpp's expression for o200k has letters where tiktoken's has letters and marks (src/llama-vocab.cpp), so a mark
# within a word begins another piece.  No key of a file changes that.
SPLIT_AT_MARKS = {"south asia 1", "south asia 4", "south asia 1 | chat markup 8"}


def test_start_of_the_o200k_vocabulary(engine: Engine, converted: Converted, phi4_mini_tiny: Path) -> None:
    ranks = {token: rank for token, rank in read_ranks("o200k_base").items() if rank < phi4_mini_tiny_maker.N_RANKS}
    with mock.patch.object(openai_public, "load_tiktoken_bpe", return_value=ranks):
        definition = openai_public.o200k_base()
    encoding = tiktoken.Encoding(**definition | {"special_tokens": phi4_mini_tiny_maker.special_ids()})
    marked = {
        name: text.replace("<|im_start|>", "<|user|>").replace("<|im_end|>", "<|end|>")
        for name, text in texts().items()
    }
    engine.load(converted(phi4_mini_tiny)["Q8_0"])
    by_llama = {name: engine.tokenize(text) for name, text in marked.items()}
    by_tiktoken = {name: encoding.encode(text, allowed_special="all") for name, text in marked.items()}
    assert {name for name in marked if by_llama[name] != by_tiktoken[name]} == SPLIT_AT_MARKS
    assert any(4116 in ids for ids in by_llama.values()), "<|end|> occurs"


def test_real_smollm_vocabulary(engine: Engine, converted: Converted, real_small: Path) -> None:
    tokenizer = Tokenizer.from_file(str(real_small / "tokenizer.json"))
    engine.load(converted(real_small)["Q8_0"])
    by_llama = {name: engine.tokenize(text) for name, text in texts().items()}
    assert differences({name: encode(tokenizer, text) for name, text in texts().items()}, by_llama) == []
