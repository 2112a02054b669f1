"""Options that `eval`, `sweep` and `imatrix` share: the text, its windows, the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import click

_TEXT_HELP = "UTF-8 file, may be repeated; or hub:ORG/NAME/FILE of a dataset.  [default: the shipped {default}]"


def measuring_options(default_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a command that measures on the shipped text of that name unless it is given another."""
    options = (
        click.option("--text", "texts", multiple=True, help=_TEXT_HELP.format(default=default_text)),
        click.option(
            "--window", type=click.IntRange(16, 1 << 20), default=512, show_default=True, help="Tokens of a window."
        ),
        click.option("--windows", type=click.IntRange(2), help="Windows at most.  [default: all of the text]"),
        click.option(
            "--dtype",
            type=click.Choice(["f32", "bf16"]),
            default="f32",
            show_default=True,
            help="Arithmetic of the layers' matrix products.",
        ),
        click.option("--device", default="cpu", show_default=True, help="torch's name: cpu, cuda, cuda:1."),
    )
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)
