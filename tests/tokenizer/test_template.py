"""Chat templates: where they are found, and which token ends a turn."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from quantkit.errors import ConfigError, FormatError
from quantkit.tokenizer.template import turn_end

CONTROL = ["<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endoftext|>", "<|end|>", "<|eot_id|>", "<|tool|>", "<|end|>2"]


def phi_4(assistant: str) -> str:
    """Phi-4's template with one way to put out what the assistant said."""
    return (
        "{% for message in messages %}{% if (message['role'] == 'system') %}"
        "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
        "{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
        f"{{% elif (message['role'] == 'assistant') %}}{assistant}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{'<|im_start|>assistant<|im_sep|>'}}{% endif %}"
    )


ENDS: dict[str, tuple[str, str | None]] = {
    "Phi-4": (phi_4("{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}"), "<|im_end|>"),
    "Phi-4, first release": (
        "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
        "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
        "message['content'] + '<|im_end|><|im_start|>assistant<|im_sep|>'}}{% elif (message['role'] == 'assistant') %}"
        "{{message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}",
        "<|im_end|>",
    ),
    "Phi-4 with a generation block": (
        phi_4("{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}"),
        "<|im_end|>",
    ),
    "the assistant alone differs": (phi_4("{{message['content'] + '<|endoftext|>'}}"), "<|endoftext|>"),
    "the assistant has no end": (phi_4("{{message['content']}}"), None),
    "eos_token": (phi_4("{{message['content'] + eos_token}}"), "<|eos|>"),
    "SmolLM2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "Llama 3": (
        "{% for message in messages %}{% set content = '<|start|>' + message['role'] + message['content'] | trim + "
        "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        "<|eot_id|>",
    ),
    "by attribute": ("{{ message.role }}{{ message.content }}{{ '<|end|>' }}", "<|end|>"),
    "the longest token counts": ("{{ message.content }}{{ '<|end|>2' }}", "<|end|>2"),
    "a condition puts nothing out": (
        "{% if message['content'] is string %}<|tool|>{% endif %}{{ message['content'] }}<|im_end|>",
        "<|im_end|>",
    ),
    "a comment does not count": ("{{ message.content }}{# <|tool|> #}<|im_end|>", "<|im_end|>"),
    "the next turn's opening is no end": (
        "{{ message.content }}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
        None,
    ),
    "another role's opening is no end": (
        "{{ message.content }}{% if message.role == 'tool' %}<|tool|>{% endif %}",
        None,
    ),
    "no content": ("{{ bos_token }}<|im_end|>", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize("name", ENDS)
def test_turn_end(name: str) -> None:
    template, expected = ENDS[name]
    assert turn_end(template, CONTROL, "<|eos|>") == expected


HOSTILE = (
    "{#",
    "{% if ",
    "{%if role ",
    "role ",
    "role'] ",
    "['content'",
    "[ ",
    ".content",
    "add_generation_prompt",
    "<|im_",
)


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("tail", ["", " " * 100_000])
def test_no_template_takes_long(unit: str, tail: str) -> None:
    template = unit * (1_000_000 // len(unit)) + tail
    start = time.process_time()
    turn_end(template, CONTROL, None)
    assert time.process_time() - start < 5


def test_from_the_settings(made: Any) -> None:
    assert made.load(settings={"chat_template": "a"}).chat_template == "a"


def test_from_jinja(made: Any) -> None:
    vocabulary = made.load(settings={}, files={"chat_template.jinja": "a\r\nb\n"})
    assert (vocabulary.chat_template, vocabulary.named_templates) == ("a\nb\n", {})


def test_from_jinja_with_others(made: Any) -> None:
    files = {"chat_template.jinja": "a"} | {
        f"additional_chat_templates/{name}.jinja": name for name in ("tool-use", "rag")
    }
    vocabulary = made.load(settings={}, files=files)
    assert (vocabulary.chat_template, vocabulary.named_templates) == ("a", {"rag": "rag", "tool_use": "tool-use"})


def test_from_json(made: Any) -> None:
    assert made.load(settings={}, files={"chat_template.json": json.dumps({"chat_template": "a"})}).chat_template == "a"


def test_a_list(made: Any) -> None:
    entries = [{"name": name, "template": name} for name in ("rag v2", "default")]
    vocabulary = made.load(settings={"chat_template": entries})
    assert (vocabulary.chat_template, vocabulary.named_templates) == ("default", {"rag_v2": "rag v2"})


def test_none(made: Any) -> None:
    assert made.load(settings={"chat_template": None}).chat_template is None


def test_the_settings_win_and_a_difference_is_told(made: Any) -> None:
    assert made.load(settings={"chat_template": "a"}, files={"chat_template.jinja": "a"}).chat_template == "a"
    assert made.warnings == []
    assert made.load(settings={"chat_template": "b"}, files={"chat_template.jinja": "a"}).chat_template == "b"
    assert made.warnings == [
        "tokenizer_config.json and chat_template.jinja hold different chat templates; the first is taken"
    ]


REFUSED = {
    "a number": (5, "not text"),
    "an object": ({"default": "a"}, "not text"),
    "a list of texts": (["a"], "not text"),
    "without a name": ([{"template": "a"}], "not text"),
    "one name twice": ([{"name": "a b", "template": "a"}, {"name": "a-b", "template": "b"}], "'a_b'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(made: Any, name: str) -> None:
    value, words = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        made.load(settings={"chat_template": value})
    assert words in made.told(caught.value) and "tokenizer_config.json" in made.told(caught.value)


def test_jinja_without_end_is_refused(made: Any) -> None:
    with (made.folder / "chat_template.jinja").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(FormatError, match=r"chat_template\.jinja: the file is too long"):
        made.load()


def test_jinja_that_is_not_utf_8_is_refused(made: Any) -> None:
    (made.folder / "chat_template.jinja").write_bytes(b"a\xff")
    with pytest.raises(FormatError, match=r"chat_template\.jinja, offset 1: is not UTF-8"):
        made.load()
