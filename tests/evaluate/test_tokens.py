"""Tokens from the keys of a GGUF file: those of the checkpoint's own tokenizer, and nothing of a text is lost."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from unittest import mock

import numpy as np
import pytest
import small
import tiktoken
import tokenizers
from texts import texts
from tiktoken_ext import openai_public

from quantkit.errors import FormatError, QuantkitError, UnsupportedError, UsageError, VocabularyError
from quantkit.evaluate.tokens import Tokenizer, fingerprint, windows_of
from quantkit.gguf_io import Field, Kind, header, read_gguf
from quantkit.source import open_source, read_source
from quantkit.tokenizer import TokenType
from quantkit.tokenizer.byte_level import CHAR_OF

Fields = dict[str, Field]
FILE = Path("model.gguf")
PREFIX = "tokenizer.ggml."


def keys_of(checkpoint: Path, gguf: Path) -> Fields:
    """The keys that the checkpoint's GGUF file has, written to one and read back."""
    with open_source(checkpoint) as weights:
        source = read_source(weights, name=None, fix_special_tokens=False, chat_template=None, warn=pytest.fail)
        gguf.write_bytes(header(list(source.fields(0)), []))
    return read_gguf(gguf).fields


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Fields:
    """The keys of the small checkpoint: bytes, "he" 256, "the" 257, five control tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    return keys_of(small.write(folder / "small"), folder / "small.gguf")


def changed(fields: Fields, **values: Any) -> Fields:
    """Keys with other values; None takes one away.  A new key is a bool, or else a U32."""
    result = dict(fields)
    for name, value in values.items():
        key = PREFIX + name
        if value is None:
            del result[key]
        elif key in result:
            result[key] = replace(result[key], value=value)
        else:
            result[key] = Field(key, Kind.BOOL if isinstance(value, bool) else Kind.U32, value)
    return result


def with_tokens(fields: Fields, *added: str) -> Fields:
    """The vocabulary with these tokens behind it, to be matched in the text."""
    tokens, types = fields[PREFIX + "tokens"].value, fields[PREFIX + "token_type"].value
    return changed(fields, tokens=[*tokens, *added], token_type=[*types, *[int(TokenType.USER_DEFINED)] * len(added)])


def spelled(fields: Fields, text: str) -> list[str]:
    """The texts of a text's tokens."""
    return [fields[PREFIX + "tokens"].value[i] for i in Tokenizer(fields, FILE).encode(text)]


# ---- the same ids as the checkpoint's own tokenizer

VARIED = {
    **texts(),
    "nothing": "",
    "half a megabyte of documentation": "\n\n".join(topics[key] for key in sorted(topics)),
    "every character of the first plane": "".join(chr(n) for n in range(0x10000) if not 0xD800 <= n < 0xE000),
}


# Bytes that SmolLM's vocabulary has no token for: its own tokenizer leaves them out and says nothing.
BYTES_WITHOUT_TOKENS = {
    "real_small": "04061314161dc0c1f1f2f5f6f7f8f9fafbfcfdfeff",
    "phi4_tiny": "",
    "phi4_mini_tiny": "",
}


@pytest.mark.parametrize("checkpoint", BYTES_WITHOUT_TOKENS)
def test_as_the_checkpoints_own_tokenizer(request: pytest.FixtureRequest, tmp_path: Path, checkpoint: str) -> None:
    folder: Path = request.getfixturevalue(checkpoint)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True  # markup is text to it
    fields = keys_of(folder, tmp_path / "a.gguf")
    tokens = set(fields[PREFIX + "tokens"].value)
    missing = {byte for byte, character in CHAR_OF.items() if character not in tokens}
    assert missing == set(bytes.fromhex(BYTES_WITHOUT_TOKENS[checkpoint]))
    ours = Tokenizer(fields, FILE)
    assert ours.bos is None
    for name, text in VARIED.items():
        left = "".join(character for character in text if missing.isdisjoint(character.encode()))
        found = ours.encode(left)
        assert found.dtype == np.int64
        assert found.tolist() == theirs.encode(text, add_special_tokens=False).ids, name
        if left != text:
            with pytest.raises(VocabularyError):
                ours.encode(text)
    assert theirs.encode("<|im_end|>").ids == ours.encode("<|im_end|>").tolist()
    assert len(ours.encode("<|im_end|>")) > 1


def test_phi4s_vocabulary_as_tiktoken(phi4_tiny: Path, tmp_path: Path) -> None:
    ranks = gzip.decompress((resources.files("bpe_openai") / "data" / "cl100k_base.tiktoken.gz").read_bytes())
    table = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in ranks.splitlines())}
    with mock.patch.object(openai_public, "load_tiktoken_bpe", return_value=table):
        theirs = tiktoken.Encoding(**openai_public.cl100k_base())
    ours = Tokenizer(keys_of(phi4_tiny, tmp_path / "a.gguf"), FILE)
    for name, text in VARIED.items():
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text), name


def test_a_very_long_word_and_a_very_long_space(tiny: Fields) -> None:
    """Half a megabyte that no pattern divides."""
    tokenizer = Tokenizer(tiny, FILE)
    for character in ("h", " ", "\n", "é", "🚀"):
        text = character * (500_000 // len(character.encode()))
        assert len(tokenizer.encode(text)) == len(text.encode())


# ---- tokens that are matched in the text


def test_user_defined_tokens_are_matched_and_control_tokens_are_not(tiny: Fields) -> None:
    fields = with_tokens(tiny, "<b>", " é\n")
    assert spelled(fields, "the<b>the é\n<|im_end|>")[:4] == ["the", "<b>", "the", " é\n"]
    assert "<|im_end|>" not in spelled(fields, "the<b>the é\n<|im_end|>")
    assert spelled(fields, "<b><b>") == ["<b>", "<b>"]
    assert spelled(fields, "t<b>he") == ["t", "<b>", "he"]


def test_the_longest_token_is_matched_first(tiny: Fields) -> None:
    """Even where a shorter one begins before it, as in llama.cpp; by bytes, not by characters."""
    assert spelled(with_tokens(tiny, "ab", "bcd"), "abcd") == ["a", "bcd"]
    assert spelled(with_tokens(tiny, "abc", "cé€"), "abcé€") == ["a", "b", "cé€"]
    assert spelled(with_tokens(tiny, "aa"), "aaa") == ["aa", "a"]


def test_tokens_that_only_look_like_others_in_the_file(tiny: Fields) -> None:
    """A token that is matched is not spelled in the byte alphabet: this is the capital G with a dot, and no space."""
    fields = with_tokens(tiny, CHAR_OF[ord(" ")] + "x")
    assert spelled(fields, " x") == [CHAR_OF[ord(" ")], "x"]
    assert spelled(fields, CHAR_OF[ord(" ")] + "x") == [CHAR_OF[ord(" ")] + "x"]


def test_merges_may_make_a_token_that_is_matched_too(tiny: Fields) -> None:
    """It then spells something else than where it is matched."""
    space = CHAR_OF[ord(" ")]
    fields = changed(with_tokens(tiny, space + "x"), merges=[f"{space} x"])
    assert spelled(fields, " x") == spelled(fields, space + "x") == [space + "x"]


# ---- bos


def test_bos(tiny: Fields) -> None:
    ids = Tokenizer(tiny, FILE).encode("the end")
    assert Tokenizer(tiny, FILE).bos is None
    assert Tokenizer(changed(tiny, add_bos_token=False), FILE).bos is None
    with_bos = Tokenizer(changed(tiny, add_bos_token=True), FILE)
    assert with_bos.bos == 258
    assert with_bos.encode("the end").tolist() == [258, *ids]
    assert Tokenizer(changed(tiny, add_eos_token=False), FILE).encode("the end").tolist() == ids.tolist()


# ---- refusals


@pytest.mark.parametrize(
    ("byte", "text", "character", "at"),
    [
        (0x7A, "the\nzz z", "'z' (U+007A)", 4),
        (0xA9, "aé è é", "'é' (U+00E9)", 1),
        (0x9F, "e🚀", "'🚀' (U+1F680)", 1),
        (0x0A, "the\n", "'\\n' (U+000A)", 3),
    ],
)
def test_a_character_without_tokens_is_named(tiny: Fields, byte: int, text: str, character: str, at: int) -> None:
    tokens = list(tiny[PREFIX + "tokens"].value)
    tokens[tokens.index(CHAR_OF[byte])] = "[gone]"
    with pytest.raises(VocabularyError, match="no tokens for a character") as caught:
        Tokenizer(changed(tiny, tokens=tokens), FILE).encode(text)
    assert caught.value.details == {"file": FILE, "found": f"{character} at byte {at} of the text"}


def replaced(name: str, at: int, value: Any) -> Callable[[Fields], Fields]:
    def edit(fields: Fields) -> Fields:
        items = list(fields[PREFIX + name].value)
        items[at] = value
        return changed(fields, **{name: items})

    return edit


def of_kind(name: str, kind: Kind, item_kind: Kind | None = None) -> Callable[[Fields], Fields]:
    return lambda fields: fields | {PREFIX + name: Field(PREFIX + name, kind, 1, item_kind)}


def setting(**values: Any) -> Callable[[Fields], Fields]:
    return lambda fields: changed(fields, **values)


BAD: dict[str, tuple[Callable[[Fields], Fields], type[QuantkitError], str, str]] = {
    **{f"no {name}": (setting(**{name: None}), FormatError, "missing", name)
       for name in ("model", "pre", "tokens", "token_type", "merges")},
    **{f"{name} as a number": (of_kind(name, Kind.U32), FormatError, "wrong type", name)
       for name in ("model", "pre", "tokens", "token_type", "merges", "add_bos_token", "add_eos_token")},
    "tokens as numbers": (of_kind("tokens", Kind.ARRAY, Kind.I32), FormatError, "wrong type", "tokens"),
    "types as text": (of_kind("token_type", Kind.ARRAY, Kind.STRING), FormatError, "wrong type", "token_type"),
    "SentencePiece": (setting(model="llama"), UnsupportedError, "byte-level BPE", "model"),
    "another splitting": (setting(pre="deepseek-llm"), UnsupportedError, "way to split", "pre"),
    "a token behind each text": (setting(add_eos_token=True), UnsupportedError, "behind each text", "add_eos_token"),
    "bos beyond the tokens": (
        setting(add_bos_token=True, bos_token_id=263), VocabularyError, "no token has this id", "bos_token_id"
    ),
    "no bos": (setting(add_bos_token=True, bos_token_id=None), FormatError, "missing", "bos_token_id"),
    "a text twice": (replaced("tokens", 261, "<|im_end|>"), VocabularyError, "same text", "tokens"),
    "a merge of one": (replaced("merges", 1, "the"), VocabularyError, "one token of two", "merges[1]"),
    "a merge of three": (replaced("merges", 1, "t h e"), VocabularyError, "one token of two", "merges[1]"),
    "a merge of nothing": (replaced("merges", 1, "t "), VocabularyError, "one token of two", "merges[1]"),
    "a merge to nothing": (replaced("merges", 1, "t x"), VocabularyError, "one token of two", "merges[1]"),
    "a type less": (lambda fields: changed(fields, token_type=[1] * 262), VocabularyError, "a type", "token_type"),
    "an empty token to match": (lambda fields: with_tokens(fields, ""), VocabularyError, "has no text", "tokens"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "error", "words", "key"), BAD.values(), ids=BAD.keys())
def test_refused(
    tiny: Fields, edit: Callable[[Fields], Fields], error: type[QuantkitError], words: str, key: str
) -> None:
    for read in (Tokenizer, fingerprint):
        with pytest.raises(error, match=words) as caught:
            read(edit(tiny), FILE)
        assert caught.value.details["key"] == PREFIX + key
        assert caught.value.details["file"] == FILE


def test_the_unedited_keys_are_not_refused(tiny: Fields) -> None:
    assert spelled(tiny, "the") == ["the"]


def test_a_merge_twice_counts_once(tiny: Fields) -> None:
    """The first: that is its rank in llama.cpp."""
    merges = tiny[PREFIX + "merges"].value
    assert merges == ["h e", "t he"]
    tokens = replaced("tokens", 262, "th")(tiny)
    first = changed(tokens, merges=["t h", "h e", "t he"])
    assert spelled(first, "the") == ["th", "e"]
    assert spelled(changed(tokens, merges=["h e", "t h", "t he", "h e"]), "the") == ["the"]
    assert spelled(changed(tokens, merges=["t h", "h e", "t h", "t he"]), "the") == ["th", "e"]
    assert spelled(changed(tokens, merges=["h e", "t h", "t he", "h e", "t h"]), "xthe") == ["x", "the"]


# ---- fingerprints


def test_a_file_and_its_checkpoint_have_one_fingerprint(tmp_path: Path) -> None:
    checkpoint = small.write(tmp_path / "small")
    from_file = keys_of(checkpoint, tmp_path / "small.gguf")
    with open_source(checkpoint) as weights:
        source = read_source(weights, name="x", fix_special_tokens=False, chat_template="x", warn=lambda text: None)
        from_checkpoint: Mapping[str, Field] = {field.key: field for field in source.fields(15)}
    assert fingerprint(from_file) == fingerprint(from_checkpoint)
    assert json.loads(f'"{fingerprint(from_file)}"').isalnum() and len(fingerprint(from_file)) == 64


DIFFERENT: dict[str, Callable[[Fields], Fields]] = {
    "a token": replaced("tokens", 262, "<|dummy_86|>"),
    "a merge less": setting(merges=["h e"]),
    "merges in another order": setting(merges=["t he", "h e"]),
    "another splitting": setting(pre="smollm"),
    "a token that is matched": replaced("token_type", 262, int(TokenType.USER_DEFINED)),
    "bos in front": setting(add_bos_token=True),
    "another bos": setting(add_bos_token=True, bos_token_id=260),
}
SAME: dict[str, Callable[[Fields], Fields]] = {
    "a bos that is not put": setting(bos_token_id=260),
    "another eos": setting(eos_token_id=258),
    "a control token that is a normal one": replaced("token_type", 262, int(TokenType.NORMAL)),
    "the same splitting by another name": setting(pre="smaug-bpe"),
}


def test_fingerprints(tiny: Fields) -> None:
    prints = {name: fingerprint(edit(tiny)) for name, edit in DIFFERENT.items()}
    assert len({fingerprint(tiny), *prints.values()}) == 1 + len(DIFFERENT)
    assert {name: fingerprint(edit(tiny)) for name, edit in SAME.items()} == dict.fromkeys(SAME, fingerprint(tiny))


# ---- windows


def test_windows() -> None:
    ids = np.arange(100, 111)
    assert windows_of(ids, 4, None).tolist() == [[100, 101, 102, 103], [104, 105, 106, 107]]
    assert windows_of(ids, 4, 7).tolist() == [[7, 101, 102, 103], [7, 105, 106, 107]]
    assert windows_of(ids, 2, None, 3).tolist() == [[100, 101], [102, 103], [104, 105]]
    assert windows_of(ids, 2, None, 9).shape == (5, 2)
    assert windows_of(ids, 5, None).dtype == np.int64
    assert ids.tolist() == list(range(100, 111)), "the tokens themselves are left alone"


def test_two_windows_are_needed() -> None:
    assert windows_of(np.arange(8), 4, None).shape == (2, 4)
    with pytest.raises(UsageError, match="too short") as caught:
        windows_of(np.arange(7), 4, None)
    assert caught.value.details == {"expected": "at least 8 tokens, two windows of 4", "found": 7}
    assert caught.value.hint
