"""Added tokens from several files.

The expected tables were read off llama.cpp's converter, build b11434, over transformers 5.23 and tokenizers 0.23.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer

from quantkit.errors import ConfigError, QuantkitError, VocabularyError
from quantkit.tokenizer.added import AddedToken, number

KNOWN = {"260": {"content": "<|endoftext|>", "special": True}, "261": {"content": "<|im_end|>", "special": True}}
FOO = {"content": "foo", "special": False, "normalized": True}
MM = {"content": "<mm>", "normalized": True}


@dataclass
class Case:
    """What stands in the files beside tokenizer.json; the tokens from 262 on with "C" control or "U" user-defined."""

    expected: list[tuple[str, str]]
    foo: bool = False  # tokenizer.json has a normalized token "foo" at 262 that is not special
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)


CASES = {
    "new in the decoder": Case(
        [("<|x|>", "C"), ("foo", "U")],
        settings={"added_tokens_decoder": {**KNOWN, "263": FOO, "262": {"content": "<|x|>", "special": True}}},
    ),
    "the decoder's ids are numbers": Case(
        [("a ", "U"), ("b ", "U")],
        settings={"added_tokens_decoder": {"263": {"content": "b "}, "0262": {"content": "a "}}},
    ),
    "the decoder's flags count": Case(
        [("foo", "C")], foo=True, settings={"added_tokens_decoder": {"262": {"content": "foo", "special": True}}}
    ),
    "a role makes special": Case([("foo", "C")], foo=True, settings={"pad_token": "foo"}),
    "a role makes special, unless the decoder lists others": Case(
        [("foo", "U")], foo=True, settings={"pad_token": "foo", "added_tokens_decoder": KNOWN}
    ),
    "a list does not change flags": Case(
        [("foo", "U")], foo=True, settings={"added_tokens_decoder": KNOWN, "extra_special_tokens": ["foo"]}
    ),
    "new roles come in the order of roles": Case(
        [("<pp>", "C"), ("<mm>", "C"), ("<r>", "C")],
        settings={"extra_special_tokens": ["<r>"], "mask_token": "<mm>", "pad_token": "<pp>"},
    ),
    "roles of one's own": Case(
        [("<img>", "C"), ("<aa>", "C")], settings={"image_token": "<img>", "extra_special_tokens": {"a_token": "<aa>"}}
    ),
    "the older name of the list": Case([("<q>", "C")], settings={"additional_special_tokens": ["<q>"]}),
    "a role with flags": Case([("<mm>", "C")], settings={"mask_token": MM}),
    "older files": Case(
        [("foo", "U"), ("yyy", "C"), ("zzz", "U")],
        foo=True,
        settings={"mask_token": "yyy"},
        files={"added_tokens.json": {"zzz": 264, "yyy": 263, "foo": 262}},
    ),
    "older roles": Case(
        [("<mm>", "C"), ("<n>", "C")],
        files={"special_tokens_map.json": {"mask_token": MM, "additional_special_tokens": ["<n>"]}},
    ),
    "older files beside a decoder": Case(
        [],
        settings={"added_tokens_decoder": KNOWN},
        files={"added_tokens.json": {"zzz": 262}, "special_tokens_map.json": {"mask_token": "<mm>"}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_of_several_files(made: Any, name: str) -> None:
    case = CASES[name]
    tokens = [made.token(262, "foo", special=False, normalized=True)] if case.foo else []
    files = {file: json.dumps(value) for file, value in case.files.items()}
    vocabulary = made.load(made.document(*tokens), case.settings, files=files)
    letters = {3: "C", 4: "U"}
    found = zip(vocabulary.tokens[262:], map(letters.get, vocabulary.types[262:]), strict=True)
    assert [(text, letter) for text, letter in found if letter] == case.expected


def test_a_token_that_a_role_names_in_the_base_vocabulary_becomes_control(made: Any) -> None:
    vocabulary = made.load(settings={"pad_token": "hel"})
    assert (vocabulary.tokens[257], vocabulary.types[257]) == ("hel", 3)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[QuantkitError], str]] = {
    "another id in the decoder": (
        {"added_tokens_decoder": {"260": KNOWN["261"]}},
        {},
        VocabularyError,
        "different ids (expected 261 as in tokenizer.json, found 260)",
    ),
    "a gap in the decoder": (
        {"added_tokens_decoder": {"265": {"content": "foo"}}},
        {},
        VocabularyError,
        "(expected 262, which the tokenizers library gives it, found 265)",
    ),
    "another id in added_tokens.json": ({}, {"added_tokens.json": {"<|im_end|>": 5}}, VocabularyError, "different ids"),
    "decoder is a list": ({"added_tokens_decoder": []}, {}, ConfigError, "added_tokens_decoder"),
    "decoder without a number": ({"added_tokens_decoder": {"-1": FOO}}, {}, ConfigError, "'-1'"),
    "decoder with a long number": ({"added_tokens_decoder": {"9" * 5000: FOO}}, {}, ConfigError, "an id is no number"),
    "decoder entry is text": ({"added_tokens_decoder": {"262": "foo"}}, {}, ConfigError, "262"),
    "flag is text": ({"added_tokens_decoder": {"262": {"content": "a", "special": "no"}}}, {}, ConfigError, "special"),
    "role is a number": ({"pad_token": 5}, {}, ConfigError, "no text"),
    "list is a number": ({"extra_special_tokens": 5}, {}, ConfigError, "extra_special_tokens"),
    "added_tokens.json is a list": ({}, {"added_tokens.json": []}, ConfigError, "not a JSON object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(made: Any, name: str) -> None:
    settings, files, error, words = REFUSED[name]
    with pytest.raises(error) as caught:
        made.load(None, settings, files={file: json.dumps(value) for file, value in files.items()})
    assert type(caught.value) is error and words in made.told(caught.value)


HOLE = {"x<": 270, "he": 256}  # added tokens that the base vocabulary has, the first far above its other ids


@pytest.mark.parametrize(
    "ids",
    [{"<1>": 261, "<2>": 262}, {"<1>": 271, "<2>": 272}],
    ids=["as by tokenizers since 0.22.2", "as by tokenizers up to 0.22.1"],
)
def test_ids_behind_a_hole_are_read_as_they_were_written(made: Any, ids: dict[str, int]) -> None:
    """Read off both versions, for a vocabulary of 261 tokens whose highest id is 270."""
    stated = HOLE | ids
    document = made.document(added_tokens=[made.token(token_id, text) for text, token_id in stated.items()])
    document["model"]["vocab"]["x<"] = 270
    tokens = made.load(document).tokens
    assert {text: tokens.index(text) for text in stated} == stated


@pytest.mark.parametrize("ids", [{"<1>": 261, "<2>": 272}, {"<1>": 271, "<2>": 273}, {"<1>": 260, "<2>": 261}])
def test_ids_behind_a_hole_as_neither_gives_them_are_refused(made: Any, ids: dict[str, int]) -> None:
    added = [made.token(token_id, text) for text, token_id in (HOLE | ids).items()]
    document = made.document(added_tokens=added)
    document["model"]["vocab"]["x<"] = 270
    with pytest.raises(VocabularyError, match="the id its file states"):
        made.load(document)


def test_numbers_are_the_librarys(made: Any) -> None:
    """Any tokens added in any order, some of them in the base vocabulary, which has a hole."""
    document = made.document(added_tokens=[])
    document["model"]["vocab"]["hell"] = 280
    base, chance = document["model"]["vocab"], random.Random(5)
    for _ in range(50):
        library = Tokenizer.from_str(json.dumps(document))
        texts = chance.sample(["he", "hel", "hell", "a", "<1>", "<2>", "<3>", "<4>"], k=5)
        library.add_tokens([LibraryToken(text) for text in texts])
        numbered = number([AddedToken(text, False, False, Path("x")) for text in texts], base)
        assert {token.text: i for i, token in numbered.items()} == {text: library.token_to_id(text) for text in texts}
