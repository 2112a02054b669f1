"""What Ollama reads: a Modelfile, and beside it, for repositories on the Hub, `template` and `params`.

Ollama does not run the Jinja template of a GGUF file but one for Go's text/template, and where it is given none it
guesses.  So the Jinja template is recognised by what it makes of a few conversations, and the Go template is written
that makes the same of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Messages = Sequence[dict[str, str]]
# (messages) -> what the Jinja template makes of them, the prompt of the answer at the end; None where it fails
Render = Callable[[Messages], str | None]

_MODELFILE_QUOTES = '"""'  # what is between them cannot have them
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Style:
    """A kind of chat template: every message is its opening, its content and its closing; then the answer is opened.

    opening  with {role} for its name
    stops    texts that end an answer where a tokenizer does not keep them together
    """

    name: str
    opening: str
    closing: str
    stops: tuple[str, ...]

    def text(self, messages: Messages) -> str:
        """What such a template makes of messages."""
        turns = (self.turn(message["role"], message["content"]) for message in messages)
        return "".join(turns) + self.opening.format(role="assistant")

    def turn(self, role: str, content: str) -> str:
        return self.opening.format(role=role) + content + self.closing


STYLES = (
    Style("Phi-4", "<|im_start|>{role}<|im_sep|>", "<|im_end|>", ("<|im_start|>", "<|im_end|>", "<|im_sep|>")),
    Style("ChatML", "<|im_start|>{role}\n", "<|im_end|>\n", ("<|im_start|>", "<|im_end|>")),
    Style("Phi-4-mini", "<|{role}|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    Style("Phi-3", "<|{role}|>\n", "<|end|>\n", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
)


@dataclass(frozen=True)
class Chat:
    """A chat template that was recognised.

    system  the message that it puts before a conversation that has none of that role at its start; "" for none
    others  whether messages of other roles than ROLES are put out, too
    """

    style: Style
    system: str
    others: bool

    def go(self) -> str:
        """The template for Go's text/template, of .Messages with .Role and .Content."""
        style = self.style
        turn = f"{style.opening.format(role='{{ .Role }}')}{{{{ .Content }}}}{style.closing}"
        if not self.others:
            known = " ".join(f'(eq .Role "{role}")' for role in ROLES)
            turn = f"{{{{ if or {known} }}}}{turn}{{{{ end }}}}"
        first = ""
        if self.system:
            missing = '{{ if and (eq $i 0) (ne .Role "system") }}'
            first = f"{missing}{style.turn('system', _quoted(self.system))}{{{{ end }}}}"
        return f"{{{{ range $i, $_ := .Messages }}}}{first}{turn}{{{{ end }}}}{style.opening.format(role='assistant')}"


def recognise(render: Render) -> Chat | None:
    """The style that makes the same of the probes as render, or None."""
    for style in STYLES:
        system = _system_of(style, render)
        if system is None:
            continue
        told = _other_roles(style, render)
        if all(render(probe) == _expected(style, system, probe) for probe in _probes()):
            return Chat(style, system, told)
    return None


def modelfile(file: str, chat: Chat | None, context: int, licence: str | None) -> str:
    """The text of a Modelfile beside the GGUF file of that name.

    context  tokens
    licence  its whole text
    """
    lines = [f"FROM ./{file}"]
    if chat:
        lines.append(f'TEMPLATE """{chat.go()}"""')
        lines += [f'PARAMETER stop "{stop}"' for stop in chat.style.stops]
    lines.append(f"PARAMETER num_ctx {context}")
    if licence is not None and _MODELFILE_QUOTES not in licence and not licence.endswith('"'):
        lines.append(f'LICENSE """{licence}"""')
    return "\n".join(lines) + "\n"


def params(chat: Chat | None, context: int) -> str:
    """The text of `params`: a Modelfile's parameters as JSON."""
    stops = {"stop": list(chat.style.stops)} if chat else {}
    return json.dumps(stops | {"num_ctx": context}, indent=2) + "\n"


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _probes() -> Iterator[Messages]:
    """Conversations that tell templates apart: contents that some would trim, leave out, escape or take for theirs."""
    question, answer, more = _message("user", " A <b> \n"), _message("assistant", "\n{{ é }} "), _message("user", "")
    for start in ([], [_message("system", " S\n")]):
        yield [*start, question]
        yield [*start, question, answer, more]
        yield [*start, question, answer, more, answer, question]


def _system_of(style: Style, render: Render) -> str | None:
    """The message that goes before a conversation without one, as far as one conversation tells; None for no match."""
    question = [_message("user", "Q")]
    text, end = render(question), style.text(question)
    if text is None or not text.endswith(end):
        return None
    before = text.removesuffix(end)
    opening = style.opening.format(role="system")
    if not before:
        return ""
    if before.startswith(opening) and before.endswith(style.closing) and len(before) > len(opening + style.closing):
        system = before[len(opening) : len(before) - len(style.closing)]
        return None if _MODELFILE_QUOTES in system else system
    return None


def _other_roles(style: Style, render: Render) -> bool:
    start, other = [_message("system", "S"), _message("user", "Q")], _message("tool", "T")
    return render([*start, other]) == style.text([*start, other])


def _expected(style: Style, system: str, messages: Messages) -> str:
    first = style.turn("system", system) if system and messages[0]["role"] != "system" else ""
    return first + style.text(messages)


def _quoted(text: str) -> str:
    """As text in a Go template: a part that would begin an action is put out by one."""
    return text.replace("{{", '{{ "{{" }}')
