"""tokenizer.json to tokens, types and merges; what is refused, by class and words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from quantkit.errors import ConfigError, FormatError, QuantkitError, UnsupportedError, VocabularyError
from quantkit.tokenizer import TokenType, load_vocabulary
from quantkit.tokenizer.byte_level import BYTE_OF

NORMAL, CONTROL, USER, UNUSED = TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED


def test_the_table_is_the_librarys_and_the_rest_is_padding(made: Any) -> None:
    document = made.document(made.token(262, "foo", special=False))
    vocabulary = made.load(document)
    library = Tokenizer.from_str(json.dumps(document))
    size = library.get_vocab_size()
    assert vocabulary.tokens[:size] == [library.id_to_token(i) for i in range(size)]
    assert vocabulary.tokens[size:] == [f"[PAD{i}]" for i in range(size, made.N_ROWS)]
    assert vocabulary.types == [NORMAL] * 260 + [CONTROL] * 2 + [USER] + [UNUSED] * (made.N_ROWS - size)
    assert (vocabulary.model, vocabulary.pre, vocabulary.scores) == ("gpt2", "dbrx", None)


def test_a_hole_between_ids_becomes_padding(made: Any) -> None:
    vocab = made.document()["model"]["vocab"] | {"hell": 280}
    vocabulary = made.load(made.document(model={"vocab": vocab}, added_tokens=[made.token(261, "<|end|>")]))
    assert vocabulary.tokens[260] == "[PAD260]" and vocabulary.types[260] == UNUSED
    assert vocabulary.tokens[280] == "hell" and vocabulary.types[280] == NORMAL


@pytest.mark.parametrize("merges", [[["h", "e"], ["he", "l"]], ["h e", "he l"]], ids=["pairs", "strings"])
def test_merges_are_strings(made: Any, merges: list[Any]) -> None:
    assert made.load(made.document(model={"merges": merges})).merges == ["h e", "he l"]


def test_a_space_within_a_merge_is_spelled_byte_level(made: Any) -> None:
    vocab = made.document()["model"]["vocab"] | {" ": 260, "h ": 261, "h h": 262}
    document = made.document(model={"vocab": vocab, "merges": [["h", " "], ["h ", "h"]]}, added_tokens=[])
    assert made.load(document).merges == ["h Ġ", "hĠ h"]


# Text as the file has it, its flags; text and type as llama.cpp's converter writes them.
ADDED: dict[str, tuple[str, bool, bool, str, TokenType]] = {
    "special": ("<s>", True, False, "<s>", CONTROL),
    "not special": ("foo", False, False, "foo", USER),
    "looks special": ("<|foo|>", False, True, "<|foo|>", CONTROL),
    "looks special, wide bars": ("<｜foo｜>", False, True, "<｜foo｜>", CONTROL),
    "looks unused": ("<unused7>", False, False, "<unused7>", CONTROL),
    "is called pad": ("<pad>", False, False, "<pad>", CONTROL),
    "half a bracket": ("<|foo", False, False, "<|foo", USER),
    "byte-level spelling": ("Ġfoo", False, False, " foo", USER),
    "byte-level spelling, normalized": ("Ġfoo", False, True, "Ġfoo", USER),
    "raw space": (" foo", False, False, " foo", USER),
    "invalid UTF-8": ("Ã", True, False, "\ufffd", CONTROL),
    "sentencepiece space": ("a▁b", False, False, "a b", USER),
    "sentencepiece space, control": ("a▁b", True, False, "a▁b", CONTROL),
}


@pytest.mark.parametrize("name", ADDED)
def test_added_tokens(made: Any, name: str) -> None:
    text, special, normalized, written, kind = ADDED[name]
    token_id = BYTE_OF.get(text, 262)  # a token that the base vocabulary has stays where it is
    vocabulary = made.load(made.document(made.token(token_id, text, special=special, normalized=normalized)))
    assert (vocabulary.tokens[token_id], vocabulary.types[token_id]) == (written, kind)


def test_the_unknown_token_of_phi_4_is_decoded_in_place(made: Any) -> None:
    document = made.document()
    document["added_tokens"].insert(0, made.token(259, "ï¿½"))
    vocabulary = made.load(document)
    assert (vocabulary.tokens[259], vocabulary.types[259]) == ("\ufffd", CONTROL)


def test_real_merges_in_any_size(made: Any) -> None:
    """A vocabulary of random merges, as the library saves it."""
    chance = random.Random(1)
    vocab, merges = dict(BYTE_OF), []
    while len(vocab) < 500:
        left, right = chance.choices([*vocab], k=2)
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    saved = Tokenizer.from_str(json.dumps(made.document(model={"vocab": vocab, "merges": merges}, added_tokens=[])))
    vocabulary = made.load(json.loads(saved.to_str()), n_rows=512)
    assert vocabulary.merges == [" ".join(pair) for pair in merges]
    assert vocabulary.tokens[:500] == sorted(vocab, key=vocab.__getitem__)


Case = tuple[Callable[[Any], Any], type[QuantkitError], str]
REFUSED: dict[str, Case] = {
    "no object": (lambda m: [1], ConfigError, "not a JSON object"),
    "no model": (lambda m: {}, ConfigError, "model"),
    "no vocab": (lambda m: m.document(model={"vocab": None}), ConfigError, "vocab"),
    "vocab is a list": (lambda m: m.document(model={"vocab": ["a"]}), ConfigError, "vocab"),
    "id is text": (lambda m: m.document(model={"vocab": {"a": "0"}}), ConfigError, "whole number"),
    "id is negative": (lambda m: m.document(model={"vocab": {"a": -1}}), VocabularyError, "negative"),
    "id is given twice": (lambda m: m.document(model={"vocab": {"a": 0, "b": 0}}), VocabularyError, "same id"),
    "id beyond the embedding": (
        lambda m: m.document(model={"vocab": m.document()["model"]["vocab"] | {"x": 300}}),
        VocabularyError,
        "larger than the embedding (expected ids below 300, the number of its rows, found 300 for 'x')",
    ),
    "added id beyond the embedding": (
        lambda m: m.document(*(m.token(262 + n, f"<{n}>") for n in range(39))),
        VocabularyError,
        "found 300 for '<38>'",
    ),
    "no merges": (lambda m: m.document(model={"merges": []}), VocabularyError, "no merges"),
    "merges missing": (lambda m: m.document(model={"merges": None}), ConfigError, "merges"),
    "merge of three": (lambda m: m.document(model={"merges": ["h e l"]}), VocabularyError, "not a pair"),
    "merge of one": (lambda m: m.document(model={"merges": [["h"]]}), VocabularyError, "not a pair"),
    "merge of numbers": (lambda m: m.document(model={"merges": [[1, 2]]}), VocabularyError, "merges[0]"),
    "merge of an unknown token": (lambda m: m.document(model={"merges": ["h zz"]}), VocabularyError, "'zz'"),
    "merge into an unknown token": (lambda m: m.document(model={"merges": ["h h"]}), VocabularyError, "'hh'"),
    "token added twice": (lambda m: m.document(m.token(262, "<|im_end|>")), VocabularyError, "added twice"),
    "added without text": (lambda m: m.document(m.token(262, "")), VocabularyError, "no text"),
    "added without id": (lambda m: m.document({"content": "x"}), ConfigError, "id"),
    "added is no object": (lambda m: m.document(7), ConfigError, "added token is no object"),
    "added id is not the next": (lambda m: m.document(m.token(263, "x ")), VocabularyError, "expected 262"),
    "added id is taken": (
        lambda m: m.document(
            model={"vocab": m.document()["model"]["vocab"] | {"x!": 262}},
            added_tokens=[m.token(261, "a!"), m.token(262, "b!")],
        ),
        VocabularyError,
        "same id",
    ),
    "text is the same when decoded": (
        lambda m: m.document(added_tokens=[m.token(259, "ï¿½"), m.token(260, "\ufffd")]),
        VocabularyError,
        "ids 259 and 260",
    ),
    "text is that of padding": (lambda m: m.document(m.token(262, "[PAD270]")), VocabularyError, "ids 262 and 270"),
    "zero byte": (lambda m: m.document(m.token(262, "a\0b", normalized=True)), VocabularyError, "zero byte"),
    "normalizer": (lambda m: m.document(normalizer={"type": "NFC"}), UnsupportedError, "NFC"),
    "decoder": (lambda m: m.document(decoder={"type": "WordPiece"}), UnsupportedError, "WordPiece"),
    "no decoder": (lambda m: m.document(decoder=None), UnsupportedError, "decoder"),
    "Unigram": (lambda m: m.document(model={"type": "Unigram"}), UnsupportedError, "SentencePiece"),
    "byte fallback": (lambda m: m.document(model={"byte_fallback": True}), UnsupportedError, "SentencePiece"),
    "Metaspace": (
        lambda m: m.document(pre_tokenizer={"type": "Metaspace", "replacement": "▁"}),
        UnsupportedError,
        "SentencePiece",
    ),
    "WordPiece": (lambda m: m.document(model={"type": "WordPiece"}), UnsupportedError, "WordPiece"),
    "prefix": (lambda m: m.document(model={"continuing_subword_prefix": "##"}), UnsupportedError, "##"),
    "suffix": (lambda m: m.document(model={"end_of_word_suffix": "</w>"}), UnsupportedError, "</w>"),
    "ignore_merges": (lambda m: m.document(model={"ignore_merges": True}), UnsupportedError, "ignore_merges"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(made: Any, name: str) -> None:
    document, error, words = REFUSED[name]
    with pytest.raises(error) as caught:
        made.load(document(made))
    assert type(caught.value) is error and caught.value.exit_code == 65
    assert "tokenizer.json" in made.told(caught.value) and words in made.told(caught.value)


BROKEN: dict[str, tuple[str, str]] = {
    "cut": ('{"model": ', "not JSON"),
    "duplicate key": ('{"model": {"vocab": {"a": 1, "a": 2}}}', "twice"),
    "half a surrogate pair": (r'{"model": {"vocab": {"\ud800": 1}}}', "surrogate"),
    "not a number": ('{"model": NaN}', "finite"),
    "nested deeply": ("[" * 200_000 + "]" * 200_000, "deep"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.json"])
def test_broken_json_is_refused(made: Any, name: str, file: str) -> None:
    text, words = BROKEN[name]
    with pytest.raises(FormatError) as caught:
        made.load(files={file: text})
    assert words in made.told(caught.value)
    assert caught.value.details["file"] == made.folder / file


def test_without_tokenizer_json(made: Any) -> None:
    made.load()
    (made.folder / "tokenizer.json").rename(made.folder / "tokenizer.model")
    with pytest.raises(UnsupportedError, match="SentencePiece"):
        load_vocabulary(made.folder, {}, n_rows=made.N_ROWS, warn=made.warnings.append)
    (made.folder / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.json is missing"):
        load_vocabulary(made.folder, {}, n_rows=made.N_ROWS, warn=made.warnings.append)


def test_vocab_size_must_be_the_rows(made: Any) -> None:
    assert len(made.load(config={"vocab_size": 300}).tokens) == 300
    with pytest.raises(ConfigError, match="vocab_size"):
        made.load(config={"vocab_size": 301})


@pytest.mark.parametrize(
    "name", ["GPT2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", None]
)
def test_the_class_name_decides_nothing(made: Any, name: str | None) -> None:
    assert made.load(settings={"tokenizer_class": name}) == made.load()
