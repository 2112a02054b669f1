"""Special ids and flags, and what happens where they disagree with the chat template.

The expected ids and flags were read off llama.cpp's converter, build b11434.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from quantkit.errors import ConfigError, QuantkitError, UnsupportedError, VocabularyError

TEXT, TURN = "<|endoftext|>", "<|im_end|>"  # 260, 261
NAMES = {"bos_token": TEXT, "eos_token": TURN, "unk_token": TEXT, "pad_token": TEXT}
IDS = [("bos", 260), ("eos", 261), ("unk", 260), ("pad", 260)]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def around(single: str, pair: str) -> dict[str, Any]:
    """TemplateProcessing from a picture: A and B are the texts, t is TEXT, e is TURN."""
    piece = {
        "A": {"Sequence": {"id": "A", "type_id": 0}},
        "B": {"Sequence": {"id": "B", "type_id": 1}},
        "t": {"SpecialToken": {"id": TEXT, "type_id": 0}},
        "e": {"SpecialToken": {"id": TURN, "type_id": 0}},
    }
    return {"type": "TemplateProcessing", "single": [piece[c] for c in single], "pair": [piece[c] for c in pair]}


@dataclass
class Case:
    """tokenizer_config.json, config.json, the post-processor; ids and flags in the order they are written."""

    ids: list[tuple[str, int]]
    flags: list[tuple[str, bool]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    post: Any = None


CASES = {
    "by text": Case(IDS, settings=NAMES),
    "by text with flags": Case([("eos", 261)], settings={"eos_token": {"__type": "AddedToken", "content": TURN}}),
    "text before id": Case([("eos", 261)], settings={"eos_token": TURN}, config={"eos_token_id": 7}),
    "ids from config.json come last": Case(
        [("eos", 261), ("bos", 260), ("sep", 10), ("pad", 7), ("mask", 8)],
        settings={"eos_token": TURN},
        config={
            "bos_token_id": 260,
            "eos_token_id": 5,
            "pad_token_id": 7,
            "mask_token_id": 8,
            "cls_token_id": 9,
            "sep_token_id": 10,
        },
    ),
    "a list of ids is passed over": Case([], config={"eos_token_id": [260, 261], "pad_token_id": None}),
    "an id that is not needed may be wrong": Case(IDS, settings=NAMES, config={"pad_token_id": -1}),
    "a token of the base vocabulary is not found": Case(
        [("pad", 7)], settings={"pad_token": "hel"}, config={"pad_token_id": 7}
    ),
    "cls and sep stand in": Case(
        [("bos", 260), ("eos", 261), ("sep", 261)], settings={"cls_token": TEXT, "sep_token": TURN}
    ),
    "flags from the settings": Case(
        IDS,
        [("bos", True), ("eos", False), ("sep", True)],
        settings=NAMES | {"add_bos_token": True, "add_eos_token": False, "add_sep_token": True, "add_pad_token": True},
    ),
    "a byte-level post-processor adds nothing": Case(
        IDS, [("bos", False), ("eos", False)], settings=NAMES | {"add_bos_token": True}, post=BYTE_LEVEL
    ),
    "template without tokens": Case(IDS, settings=NAMES, post=around("A", "AB")),
    "template with bos": Case(
        IDS, [("bos", True), ("sep", False)], settings=NAMES | {"add_bos_token": False}, post=around("tA", "tAtB")
    ),
    "template with eos": Case(IDS, [("eos", True), ("sep", False)], settings=NAMES, post=around("Ae", "AeBe")),
    "template whose last token is another": Case(
        [("bos", 260), ("eos", 260), ("unk", 260), ("pad", 260), ("eot", 261)],
        [("eos", True), ("sep", False)],
        settings=NAMES,
        post=around("At", "AtBt"),
    ),
    "template with one separator": Case(
        [("bos", 260), ("eos", 261), ("unk", 260), ("sep", 261), ("pad", 260)],
        [("bos", True), ("sep", True)],
        settings=NAMES,
        post=around("tA", "tAeB"),
    ),
    "template with two separators": Case(
        [("bos", 260), ("eos", 261), ("unk", 260), ("sep", 261), ("pad", 260)],
        [("bos", True), ("eos", True), ("sep", True)],
        settings=NAMES,
        post=around("tAe", "tAeeBe"),
    ),
    "template names the roles": Case(
        [("bos", 260), ("eos", 261)],
        [("bos", True), ("eos", True), ("sep", False)],
        settings={"model_max_length": 5},
        post=around("tAe", "tAeBe"),
    ),
    "sequence": Case(
        IDS,
        [("bos", True), ("eos", False), ("sep", False)],
        settings=NAMES,
        post={"type": "Sequence", "processors": [BYTE_LEVEL, around("tA", "tAtB")]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_and_flags(made: Any, name: str) -> None:
    case = CASES[name]
    vocabulary = made.load(made.document(post_processor=case.post), case.settings, config=case.config)
    assert [*vocabulary.special_ids.items()] == case.ids
    assert [*vocabulary.add_flags.items()] == case.flags
    assert made.warnings == []


REFUSED: dict[str, tuple[dict[str, Any], Any, type[QuantkitError], str]] = {
    "id beyond the vocabulary": ({"eos_token_id": 300}, None, VocabularyError, "(expected 0 to 299, found 300)"),
    "negative id": ({"pad_token_id": -1}, None, VocabularyError, "pad_token_id"),
    "id is text": ({"eos_token_id": "2"}, None, ConfigError, "eos_token_id"),
    "id is a truth value": ({"eos_token_id": True}, None, ConfigError, "eos_token_id"),
    "unknown post-processor": ({}, {"type": "RobertaProcessing"}, UnsupportedError, "RobertaProcessing"),
    "post-processor is text": ({}, "ByteLevel", UnsupportedError, "post_processor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(made: Any, name: str) -> None:
    config, post, error, words = REFUSED[name]
    with pytest.raises(error) as caught:
        made.load(made.document(post_processor=post), {}, config=config)
    assert type(caught.value) is error and words in made.told(caught.value)


# Phi-4's template in short, and its special tokens: 262 <|im_start|>, 263 <|im_sep|>, 264 on what a case names.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + "
    "'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant<|im_sep|>'}}{% endif %}"
)
FIRST_PHI_4 = {"bos_token": TEXT, "eos_token": TEXT, "pad_token": TEXT}
LATER_PHI_4 = {"bos_token": TEXT, "eos_token": TURN, "pad_token": "<|dummy_85|>"}
DUMMIES = ("<|dummy_84|>", "<|dummy_85|>", "<|dummy_86|>")


def chat(
    made: Any, settings: dict[str, Any], *spare: str, template: str = TEMPLATE, fix: bool = False
) -> dict[str, int]:
    tokens = [made.token(262 + n, text) for n, text in enumerate(("<|im_start|>", "<|im_sep|>", *spare))]
    vocabulary = made.load(made.document(*tokens), settings | {"chat_template": template}, fix=fix)
    return vocabulary.special_ids


def test_the_first_phi_4_is_warned_about(made: Any) -> None:
    assert chat(made, FIRST_PHI_4, *DUMMIES) == {"bos": 260, "eos": 260, "pad": 260, "eot": 261}
    assert made.warnings == [
        "the special tokens disagree: bos is 260 <|endoftext|>, eos is 260 <|endoftext|>, pad is 260 <|endoftext|>, "
        "the chat template ends a turn with 261 <|im_end|>; "
        "--fix-special-tokens would set eos to 261 <|im_end|> and pad to 265 <|dummy_85|>"
    ]


def test_the_first_phi_4_is_repaired(made: Any) -> None:
    assert chat(made, FIRST_PHI_4, *DUMMIES, fix=True) == {"bos": 260, "eos": 261, "pad": 265, "eot": 261}
    assert "--fix-special-tokens has set eos to 261 <|im_end|> and pad to 265 <|dummy_85|>" in made.warnings[0]


@pytest.mark.parametrize("fix", [False, True])
def test_the_later_phi_4_is_left_alone(made: Any, fix: bool) -> None:
    assert chat(made, LATER_PHI_4, *DUMMIES, fix=fix) == {"bos": 260, "eos": 261, "pad": 265, "eot": 261}
    assert made.warnings == []


SPARE = {
    "called pad": (("<|dummy_1|>", "<|PAD|>", "<|reserved_9|>"), "<|PAD|>"),
    "the highest that was kept free": (("<|dummy_1|>", "<|reserved_9|>", "<|x|>"), "<|reserved_9|>"),
    "not one that the template uses": (("<|dummy_1|>", "<|dummy_2|>"), "<|dummy_1|>"),
    "none": (("<|x|>",), TEXT),
}


@pytest.mark.parametrize("name", SPARE)
def test_the_token_for_padding(made: Any, name: str) -> None:
    spare, expected = SPARE[name]
    template = TEMPLATE + "{# <|dummy_2|> #}"
    ids = chat(made, FIRST_PHI_4, *spare, template=template, fix=True)
    texts = [TEXT, TURN, "<|im_start|>", "<|im_sep|>", *spare]
    assert texts[ids["pad"] - 260] == expected
    assert ids["eos"] == 261


def test_pad_that_is_eos_is_repaired_where_a_token_is_free(made: Any) -> None:
    settings = {"eos_token": TURN, "pad_token": TURN}
    assert chat(made, settings, "<|x|>", fix=True) == {"eos": 261, "pad": 261, "eot": 261}
    assert made.warnings == []
    assert chat(made, settings, "<|unused|>", fix=True) == {"eos": 261, "pad": 264, "eot": 261}
    assert "pad to 264 <|unused|>" in made.warnings[0]


def test_pad_that_the_repair_would_make_eos_moves_too(made: Any) -> None:
    assert chat(made, {"eos_token": TEXT, "pad_token": TURN}, *DUMMIES, fix=True) == {
        "eos": 261,
        "pad": 265,
        "eot": 261,
    }


def test_a_missing_eos_is_named(made: Any) -> None:
    assert chat(made, {}, fix=True) == {"eos": 261, "eot": 261}
    assert "eos is not set" in made.warnings[0]
