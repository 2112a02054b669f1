"""What a file says of its model: options that commands which write files, or make them again, have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import click

from quantkit.errors import FormatError, UsageError
from quantkit.osio import InputFile

_OPTIONS = (
    click.option("--name", help="The model's name in the files, in place of the source's own."),
    click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Set a key of the files; may be repeated."),
    click.option(
        "--chat-template", type=click.Path(path_type=Path), help="Jinja file, in place of the source's template."
    ),
    click.option("--fix-special-tokens", is_flag=True, help="Repair eos and pad that disagree with the chat template."),
)


def describing(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --name, --metadata, --chat-template and --fix-special-tokens."""
    return reduce(lambda inner, option: option(inner), reversed(_OPTIONS), command)


def description(
    name: str | None, metadata: Sequence[str], chat_template: Path | None, fix_special_tokens: bool
) -> dict[str, Any]:
    """Those options as make_plan takes them; raises UsageError, InputError, FormatError."""
    for pair in metadata:
        if "=" not in pair:
            raise UsageError("--metadata takes KEY=VALUE", found=pair)
    return {
        "name": name,
        "overrides": dict(pair.split("=", 1) for pair in metadata),
        "chat_template": _text(chat_template) if chat_template else None,
        "fix_special_tokens": fix_special_tokens,
    }


def _text(path: Path) -> str:
    """The text of a file."""
    with InputFile(path) as file:
        try:
            return file.read(file.size).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError("is not UTF-8", file=path) from None
