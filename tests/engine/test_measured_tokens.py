"""The tokens that `eval` measures are those that llama.cpp makes of the same file and text, markup being text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import small_gguf
from engine import Engine
from small_gguf import Model, edited
from test_tokenize import SPLIT_AT_MARKS, differences
from texts import texts

from quantkit.evaluate.tokens import Tokenizer
from quantkit.gguf_io import read_gguf
from quantkit.tokenizer import TokenType

Converted = Callable[[Path], dict[str, Path]]


@pytest.mark.parametrize(("checkpoint", "apart"), [("phi4_tiny", set()), ("phi4_mini_tiny", SPLIT_AT_MARKS)])
def test_of_whole_vocabularies(
    request: pytest.FixtureRequest, engine: Engine, converted: Converted, checkpoint: str, apart: set[str]
) -> None:
    path = converted(request.getfixturevalue(checkpoint))["Q8_0"]
    tokenizer = Tokenizer(read_gguf(path).fields, path)
    engine.load(path)
    expected = {name: engine.tokenize(text, special=False) for name, text in texts().items()}
    found = {name: tokenizer.encode(text).tolist() for name, text in texts().items()}
    assert {line.partition(":")[0] for line in differences(expected, found)} == apart


OVERLAPPING = ("ab", "bcd", "aa", "é€x")
TEXTS = ("abcd", "ababcdab", "xaaa aaaa", "é€x é€ x<|im_end|>", "the ab the", "a", "bcdbcd\n")


def test_tokens_matched_in_the_text(engine: Engine, tmp_path: Path) -> None:
    def edit(model: Model) -> None:
        for key, values in (
            ("tokenizer.ggml.tokens", OVERLAPPING),
            ("tokenizer.ggml.token_type", [int(TokenType.USER_DEFINED)] * len(OVERLAPPING)),
        ):
            field = model.fields[key]
            model.fields[key] = replace(field, value=[*field.value[: -len(values) - 1], *values, field.value[-1]])

    path = edited(small_gguf.make(tmp_path), tmp_path / "a.gguf", edit)
    tokenizer = Tokenizer(read_gguf(path).fields, path)
    engine.load(path)
    matched = set()
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == engine.tokenize(text, special=False), text
        matched |= set(tokenizer.encode(text).tolist())
    assert matched >= {258, 259, 260, 261}
