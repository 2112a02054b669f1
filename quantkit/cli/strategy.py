"""How codes are found: options that commands which pack weights have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path

import click

_OPTIONS = (
    click.option(
        "--strategy",
        type=click.Choice(["reference", "feedback"]),
        default="reference",
        help="How codes are found: as llama.cpp does, or with error feedback.  [default: reference]",
    ),
    click.option("--covariance", type=click.Path(path_type=Path), help="Second moments for --strategy feedback."),
)


def strategy_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --strategy and --covariance."""
    return reduce(lambda inner, option: option(inner), reversed(_OPTIONS), command)
