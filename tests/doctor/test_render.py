"""Chat templates of strangers: what they may do, and what stops the others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small

from quantkit.doctor import render as module
from quantkit.doctor.render import MEMORY_BYTES, SECONDS, render

MESSAGES = ({"role": "user", "content": "hello"},)


def test_the_limits_are_those_that_are_promised() -> None:
    assert (SECONDS, MEMORY_BYTES) == (2.0, 256 << 20)


def test_a_template_is_rendered_as_runtimes_do() -> None:
    found = render(small.TEMPLATE, MESSAGES)
    assert found.problem is None
    assert found.text == "<|im_start|>user<|im_sep|>hello<|im_end|><|im_start|>assistant<|im_sep|>"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{%- for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        (
            "  {% if tools is none %}\n{{ messages[0] | tojson }}\n  {% endif %}",
            '{"role": "user", "content": "hello"}\n',
        ),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hello"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = 7 %}{{ ns.n }}{{ strftime_now('%Y') | length }}", "74"),
    ],
    ids=["tokens", "loop controls", "trimmed, with JSON", "generation", "namespace and date"],
)
def test_what_templates_are_used_to(template: str, text: str) -> None:
    assert render(template, MESSAGES, bos_token="<s>", eos_token="</s>").text == text


# what it does: the template, and what becomes of it
HOSTILE = {
    "a long loop": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "was stopped after",
    ),
    "a loop that prints": ("{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "more than 1048576 characters"),
    "a huge text": ("{{ 'a' * 10**9 }}", "more memory"),
    "a huge list": ("{{ [0] * 10**9 }}", "more memory"),
    "a text of texts": ("{% set a = 'a' * 10**7 %}{{ [a] * 99999 | join(a) }}", "TypeError|more memory|stopped"),
    "a huge range": ("{{ range(10**9) | list }}", "OverflowError"),
    "a huge number": ("{% set a = 9 ** (9 ** 9) %}", "was stopped"),
    "a huge power in steps": (
        "{% set n = namespace(a=9) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}",
        "stopped|memory",
    ),
    "a wide format": ("{{ '%999999999d' % 1 }}", "more memory"),
    "a wide filter": ("{{ 'a' | center(10**9) }}", "more memory"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
    "deep nesting": ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nested too deeply|SyntaxError|MemoryError|stopped"),
    "a class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError|UndefinedError"),
    "globals": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError|UndefinedError"),
    "a function's code": ("{{ raise_exception.__globals__['sys'] }}", "SecurityError|UndefinedError"),
    "an attribute by name": ("{{ (messages | attr('__class__')).__name__ }}", "SecurityError|UndefinedError"),
    "a format's attribute": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "SecurityError"),
    "a change": ("{{ messages.append(1) }}", "SecurityError"),
    "another file": ("{% include '/etc/passwd' %}", "TypeError|no loader"),
    "an import": ("{% import 'os' as os %}", "TypeError|no loader"),
    "no template": ("{% if %}", "TemplateSyntaxError"),
    "a refusal of its own": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "an undefined call": ("{{ frobnicate() }}", "UndefinedError"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_are_stopped(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template, problem = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    found = render(template, MESSAGES, seconds=0.5)
    assert found.text is None
    assert found.problem is not None
    assert re.search(problem, found.problem), found.problem
    assert time.monotonic() - start < 30  # it was not waited for
    assert not list(tmp_path.iterdir())


def test_the_child_is_killed_after_the_time_it_has() -> None:
    endless = HOSTILE["a long loop"][0]
    render("", MESSAGES)  # what is read from disk the first time
    start = time.monotonic()
    assert render(endless, MESSAGES).problem == "was stopped after 2 s"
    assert 2 <= time.monotonic() - start < 2 + 8


@pytest.mark.parametrize(("memory_mib", "fits"), [(256, True), (120, False)])
def test_the_child_has_the_memory_that_it_is_given(memory_mib: int, fits: bool) -> None:
    found = render(
        "{% set a = messages[0].content * (20 * 2**20) %}{{ a | length }}", MESSAGES, memory_bytes=memory_mib << 20
    )
    assert (found.text is not None) == fits, found


# Run in the child, past jinja2's own walls: what would be left of an escape.
ESCAPED = """
import json, os, socket, subprocess, sys
program = {{'__name__': 'sandbox'}}
exec(open({program!r}).read(), program)
program['environment'](), program['limit'](2.0, 256 << 20)
doors = {{}}
for name, door in {{
    'a file': lambda: open('/etc/hostname').read(),
    'a new file': lambda: open('written', 'w'),
    'a socket': lambda: socket.socket(),
}}.items():
    try:
        door()
        doors[name] = 'open'
    except OSError as error:
        doors[name] = 'shut'
print(json.dumps(doors))
"""


def test_beyond_the_sandbox_every_door_is_shut(tmp_path: Path) -> None:
    code = ESCAPED.format(program=str(module._PROGRAM))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    doors = json.loads(run.stdout)
    assert doors == dict.fromkeys(("a file", "a new file", "a socket"), "shut")
    assert not list(tmp_path.iterdir())


def test_secrets_are_not_handed_to_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    class Child(module.subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            seen.update(options["env"])  # type: ignore[call-overload]
            super().__init__(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(module.subprocess, "Popen", Child)
    assert render("ok", MESSAGES).text == "ok"
    assert seen and "HF_TOKEN" not in seen


def test_a_child_that_does_not_start_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROGRAM", Path("missing.py"))
    assert render("", MESSAGES).problem == "the process that renders templates did not start"
