"""The option --lora, of every command that reads a source."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from quantkit.checkpoint import Lora

_SCALE = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.ASCII | re.DOTALL)


class _LoraType(click.ParamType["Lora"]):
    """DIR, or DIR:SCALE; what is there under the whole name is a DIR."""

    name = "lora"

    def convert(self, value: str | Lora, param: click.Parameter | None, ctx: click.Context | None) -> Lora:
        from quantkit.checkpoint import Lora

        if isinstance(value, Lora):
            return value
        found = _SCALE.fullmatch(value)
        if found is None or Path(value).exists():
            return Lora(Path(value))
        return Lora(Path(found[1]), float(found[2]))


def lora_option(merged_into: str = "SOURCE") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option, whose values arrive as `lora`, a tuple of Lora."""
    return click.option(
        "--lora",
        type=_LoraType(),
        multiple=True,
        metavar="DIR[:SCALE]",
        help=f"PEFT adapter to merge into {merged_into}; may be repeated.",
    )


def as_arguments(lora: Sequence[Lora]) -> list[str]:
    """The options again, for a command to show: "--lora", "DIR:0.5"."""
    return [argument for one in lora for argument in ("--lora", str(one))]
