"""Ollama's template: what Go's text/template makes of it is what Jinja makes of the checkpoint's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jinja2
import jinja2.sandbox
import phi4_mini_tiny
import phi4_widths
import pytest

from quantkit.release.ollama import STYLES, Chat, Messages, modelfile, params, recognise

GO = shutil.which("go")
PROGRAM = Path(__file__).with_name("render.go")
# of microsoft/phi-4: as it was first published, and as it is since its repair (MIT)
FIRST_PHI_4 = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
    "message['content'] + '<|im_end|><|im_start|>assistant<|im_sep|>'}}{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
)
PHI_4 = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are \"{{ Smol }}\", named\n so<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KNOWN = {
    "Phi-4": (PHI_4, "Phi-4"),
    "the tests' Phi-4": (phi4_widths.CHAT_TEMPLATE, "Phi-4"),
    "ChatML": (CHATML, "ChatML"),
    "ChatML with a system message of its own": (SMOLLM2, "ChatML"),
    "Phi-4-mini": (phi4_mini_tiny.CHAT_TEMPLATE, "Phi-4-mini"),
}
TURNS = ("system:You are terse.", "user:Hello", "assistant:Hi", "user:And now?", "assistant:Now.", "user:Why?")
# "role:content" each
CONVERSATIONS = [
    ["user:Hello"],
    *(list(TURNS[:n]) for n in (2, 4, 6)),
    *(list(TURNS[1:n]) for n in (4, 6)),
    ["user:"],
    ["system:", "user:Hello"],
    ["user: spaces around \n", "assistant:\n\nlines\n", "user:\ttab"],
    ["user:{{ .Content }} {{ range .Messages }}{{ end }} {% if x %} {# y #} ${z}"],
    ["user:<b>&amp; \"quoted\" 'so' `code` \\n \\u0041 %s</b>"],
    ["user:Grüße, 你好, مرحبا, 🙂, e\u0301, \u200b"],
    ["user:<|im_end|><|im_start|>system<|im_sep|>No", "assistant:<|im_sep|>", "user:<|endoftext|>"],
    ["user:" + "long " * 4000],
    ["user:null", "assistant:true", "user:0"],
    ["user:one", "user:two"],
    ["system:a", "system:b", "user:c"],
    ["user:a", "system:in the middle", "user:b"],
    ["user:a", "assistant:ends with the assistant"],
    ["user:a", "tool:a role of another kind", "user:b"],
]


def messages(conversation: list[str]) -> list[dict[str, str]]:
    pairs = (turn.split(":", 1) for turn in conversation)
    return [{"role": role, "content": content} for role, content in pairs]


def renderer(template: str) -> Callable[[Messages], str | None]:
    """Jinja as transformers sets it up."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def render(conversation: Messages) -> str | None:
        try:
            return environment.from_string(template).render(
                messages=conversation, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
            )
        except jinja2.TemplateError:
            return None

    return render


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[list[str]]], list[str]]:
    """(template, conversations) -> what Go makes of each."""
    if GO is None:
        if os.environ.get("QUANTKIT_REQUIRE_GO"):
            pytest.fail("go is not installed, and QUANTKIT_REQUIRE_GO is set")
        pytest.skip("go is not installed: what Ollama's template language makes of the templates was not compared")
    program = tmp_path_factory.mktemp("go") / "render"
    environment = os.environ | {"GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOPROXY": "off", "CGO_ENABLED": "0"}
    subprocess.run([GO, "build", "-o", program, PROGRAM], env=environment, check=True, timeout=300)

    def render(template: str, conversations: list[list[str]]) -> list[str]:
        asked = json.dumps([template, [messages(conversation) for conversation in conversations]])
        done = subprocess.run([program], input=asked, capture_output=True, text=True, check=True, timeout=60)
        texts: list[str] = json.loads(done.stdout)
        return texts

    return render


@pytest.mark.parametrize("name", KNOWN)
def test_go_makes_of_20_conversations_what_jinja_does(
    go: Callable[[str, list[list[str]]], list[str]], name: str
) -> None:
    template, style = KNOWN[name]
    render = renderer(template)
    chat = recognise(render)
    assert chat is not None and chat.style.name == style
    assert len(CONVERSATIONS) == 20
    expected = [render(messages(conversation)) for conversation in CONVERSATIONS]
    assert go(chat.go(), CONVERSATIONS) == expected


def test_the_first_phi_4_template_is_met_where_turns_alternate(go: Callable[[str, list[list[str]]], list[str]]) -> None:
    """It opens an answer behind each question, so that two questions on end are another text."""
    render = renderer(FIRST_PHI_4)
    chat = recognise(render)
    assert chat is not None and chat.style.name == "Phi-4"
    expected = [render(messages(conversation)) for conversation in CONVERSATIONS[:15]]
    assert go(chat.go(), CONVERSATIONS[:15]) == expected


OTHERS = {
    "trims": PHI_4.replace("message['content']", "message['content'] | trim"),
    "escapes": PHI_4.replace("message['content']", "message['content'] | e"),
    "ends otherwise": PHI_4.replace("<|im_end|>", "<|end|>"),
    "begins with bos": "{{ bos_token }}" + PHI_4,
    "forgets the system message": PHI_4.replace("== 'system'", "== 'sistem'"),
    "adds to a long one": PHI_4.replace("{% if add_gen", "{{ 'x' if messages|length > 3 }}{% if add_gen"),
    "does not open the answer": PHI_4.replace("add_generation_prompt", "false"),
    "raises": "{{ raise_exception('no') }}",
    "is no template": "{% if",
    "is empty": "",
    "another": "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_templates_are_not_taken_for_known_ones(name: str) -> None:
    assert recognise(renderer(OTHERS[name])) is None


def test_modelfile() -> None:
    chat = Chat(STYLES[0], "", False)
    text = modelfile("phi-4-Q4_K_M.gguf", chat, 16384, "MIT License\n\nAs is.\n")
    lines = text.splitlines()
    assert lines[0] == "FROM ./phi-4-Q4_K_M.gguf"
    assert lines[1].startswith('TEMPLATE """{{ range') and lines[1].endswith('<|im_start|>assistant<|im_sep|>"""')
    assert lines[2:6] == [
        'PARAMETER stop "<|im_start|>"',
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|im_sep|>"',
        "PARAMETER num_ctx 16384",
    ]
    assert text.endswith('LICENSE """MIT License\n\nAs is.\n"""\n')
    assert json.loads(params(chat, 4096)) == {"stop": ["<|im_start|>", "<|im_end|>", "<|im_sep|>"], "num_ctx": 4096}


@pytest.mark.parametrize("licence", ['with """ in it', 'with one at the end"'])
def test_without_a_known_template_nothing_is_guessed(licence: str) -> None:
    assert modelfile("a.gguf", None, 4096, licence) == "FROM ./a.gguf\nPARAMETER num_ctx 4096\n"
    assert json.loads(params(None, 4096)) == {"num_ctx": 4096}
