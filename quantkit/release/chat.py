"""The chat template of a release, recognised by running it where it can do no harm."""

from __future__ import annotations

import json
from collections.abc import Callable

from quantkit.doctor.render import render, unavailable
from quantkit.release.ollama import Chat, Messages, recognise


def recognised(template: str | None, bos: str, eos: str, warn: Callable[[str], None]) -> Chat | None:
    """What a Jinja template is for Ollama; None, and a warning, where it cannot be told.

    bos, eos  texts of these tokens
    """
    if template is None:
        warn("there is no chat template, so the Modelfile gets none")
        return None
    if why := unavailable():
        warn(f"{why}, so the chat template was not looked at and the Modelfile gets none")
        return None
    known: dict[str, str | None] = {}

    def text(messages: Messages) -> str | None:
        key = json.dumps(messages)
        if key not in known:
            known[key] = render(template, messages, bos_token=bos, eos_token=eos).text
        return known[key]

    chat = recognise(text)
    if chat is None:
        warn("the chat template is none that is known, so the Modelfile gets none: Ollama will guess")
    return chat
