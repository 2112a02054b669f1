"""Chat templates: where a checkpoint keeps them, and the token with which one ends a turn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from quantkit.checkpoint.json_file import shown
from quantkit.errors import ConfigError, FormatError
from quantkit.osio import InputFile
from quantkit.tokenizer.files import read_object

# All of these run in linear time on any text: no two adjacent repetitions match the same character.
_CONTENT = re.compile(r"""\[\s*['"]content['"]\s*\]|\.content\b""")
_ROLE_TEST = re.compile(r"""\brole[\s'"\])]*==\s*['"](\w+)['"]""")
_ROLE_BRANCH = re.compile(r"\{%[-+]?\s*(?:el)?if\b[^%]*\brole\b")
_OPEN_CONDITION = re.compile(r"\{%[-+]?\s*(?:el)?if\b[^%]*\Z")
_BRANCH_END = re.compile(r"\{%[-+]?\s*(?:endif|else|elif)\b")
_EOS_VARIABLE = "eos_token"

_MAX_BYTES = 16 << 20  # of a .jinja file; published ones have up to 20 thousand


@dataclass(frozen=True)
class Templates:
    """The default chat template or None, and further ones by name."""

    default: str | None
    named: dict[str, str]


def read(folder: Path, settings: Mapping[str, Any], warn: Callable[[str], None]) -> Templates:
    """The chat templates of a checkpoint.

    Where llama.cpp's converter looks (gguf-py/gguf/vocab.py): `chat_template` of tokenizer_config.json; else
    chat_template.jinja with additional_chat_templates/*.jinja, as transformers 5 saves them; else chat_template.json.

    settings  tokenizer_config.json
    warn      told when the first two are both there and differ
    raises    ConfigError  a template is not text, or two have one name
              FormatError  a template is not UTF-8, or longer than any template is
    """
    config_file, json_file = folder / "tokenizer_config.json", folder / "chat_template.json"
    stated, jinja = settings.get("chat_template"), folder / "chat_template.jinja"
    beside = _from_jinja(jinja) if jinja.is_file() else None
    if stated is not None:
        if isinstance(stated, str) and beside is not None and beside[0][1] != stated:
            warn(f"{config_file.name} and {jinja.name} hold different chat templates; the first is taken")
        return _sorted_out(stated, config_file)
    if beside is not None:
        return _sorted_out([{"name": name, "template": text} for name, text in beside], jinja)
    return _sorted_out(read_object(json_file).get("chat_template"), json_file)


def turn_end(template: str, control_tokens: Iterable[str], eos: str | None) -> str | None:
    """The control token with which a template ends a turn, or None.

    Found without running the template, by this rule: wherever a message's content is put out, the first control token
    (or `eos_token`) behind it has a vote, if it stands before the next such place and the next role's branch, and does
    not open the assistant's turn, as seen behind `add_generation_prompt`.  Where there is a branch for the assistant,
    only places in it count.  The majority wins.

    template        Jinja text
    control_tokens  texts of the tokens that may end a turn
    eos             text that the variable `eos_token` stands for
    """
    words = sorted({*control_tokens, _EOS_VARIABLE}, key=len, reverse=True)
    token = re.compile("|".join(map(re.escape, words)))
    start, *commented = template.split("{#")
    template = start + "".join(part.partition("#}")[2] for part in commented)
    prompts = (part.partition("%}")[2] for part in template.split("add_generation_prompt")[1:])
    openers = {text for prompt in prompts for text in token.findall(_BRANCH_END.split(prompt, maxsplit=1)[0])}

    votes: dict[bool, list[str | None]] = {True: [], False: []}
    role = ""
    for before, after in pairwise(_CONTENT.split(template)):
        role = [role, *_ROLE_TEST.findall(before)][-1]
        if _OPEN_CONDITION.search(before):
            continue
        found = token.search(_ROLE_BRANCH.split(after, maxsplit=1)[0])
        text = eos if found and found[0] == _EOS_VARIABLE else found and found[0]
        votes[role == "assistant"].append(text if text not in openers else None)
    valid = Counter(filter(None, votes[True] or votes[False]))
    return valid.most_common(1)[0][0] if valid else None


def _from_jinja(main: Path) -> list[tuple[str, str]]:
    others = sorted((main.parent / "additional_chat_templates").glob("*.jinja"))
    return [("default", _text(main)), *((path.stem, _text(path)) for path in others)]


def _text(path: Path) -> str:
    with InputFile(path) as file:
        if file.size > _MAX_BYTES:
            raise FormatError(
                "the file is too long", file=path, expected=f"at most {_MAX_BYTES} bytes", found=file.size
            )
        data = file.read(file.size)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("is not UTF-8", file=path, offset=error.start) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python's text files are read


def _sorted_out(value: Any, file: Path) -> Templates:
    """value: a template, a list of {name, template}, or None."""
    entries = value if isinstance(value, list) else [] if value is None else [{"name": "default", "template": value}]
    texts: dict[str, str] = {}
    for entry in entries:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(name, str) and name and isinstance(text, str)):
            raise ConfigError("a chat template is not text", file=file, key="chat_template", found=shown(entry))
        name = re.sub(r"[^a-zA-Z0-9]", "_", name)  # a part of a GGUF key, as llama.cpp's writer spells it
        if name in texts:
            raise ConfigError("two chat templates have one name", file=file, key="chat_template", found=shown(name))
        texts[name] = text
    default = texts.pop("default", None)
    return Templates(default, texts)
