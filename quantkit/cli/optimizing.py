"""`sweep --optimize`: its options, and the mixes that it adds to a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.completion import complete_tensor_type
from quantkit.cli.talk import Talk
from quantkit.errors import UnsupportedError, UsageError
from quantkit.qtypes import QType, by_name
from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.sweep import Bounds, Request

_FLAGS = {"keep": "--keep", "min_type": "--min-type", "same_type": "--same-type", "probes": "--probes"}


def optimizing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that can look for mixes; those after --optimize make no sense without it."""
    options = (
        click.option(
            "--optimize",
            is_flag=True,
            help="Find the type of every matrix: a mix of the size of each -t; without -t, one for the card.",
        ),
        click.option("--keep", metavar="PATTERN=TYPE", multiple=True, help="Matrices with this type; may be repeated."),
        click.option(
            "--min-type", metavar="TYPE", shell_complete=complete_tensor_type, help="None with fewer bits than this."
        ),
        click.option(
            "--same-type", metavar="PATTERN", multiple=True, help="Matrices that share one type; may be repeated."
        ),
        click.option(
            "--probes",
            metavar="N",
            type=click.IntRange(1),
            help="Try at most N matrices, and reckon those of the layers between from them.  [default: all]",
        ),
    )
    return reduce(lambda decorated, option: option(decorated), reversed(options), command)


def refuse_idle(optimize: bool, asked: Mapping[str, Any]) -> None:
    """Raise UsageError where an option of --optimize stands without it; values by name of the parameter."""
    idle = [_FLAGS[name] for name, value in asked.items() if value]
    if idle and not optimize:
        raise UsageError(f"{', '.join(idle)} without --optimize", hint="add --optimize, or take them away")


def bounds(keep: tuple[str, ...], min_type: str | None, same_type: tuple[str, ...]) -> Bounds:
    """What the options ask of the mixes; raises UsageError."""
    from quantkit.sweep import Bounds

    pairs = []
    for text in keep:
        pattern, sign, name = text.rpartition("=")
        if not (pattern and sign):
            raise UsageError("--keep takes PATTERN=TYPE", expected="output.weight=Q6_K", found=text)
        pairs.append((pattern, _type(name)))
    return Bounds(pairs, _type(min_type) if min_type else None, same_type)


def _type(name: str) -> QType:
    try:
        return by_name(name)
    except UnsupportedError as error:
        raise UsageError(error.message, hint=error.hint) from None


def with_mixes(request: Request, wanted: Bounds, n_probes: int | None, talk: Talk) -> Request:
    """The request with the mixes that were found for it, measured as far as that takes; raises what Optimizer does."""
    from quantkit.sweep import Optimizer, Sweep

    with Sweep.open(replace(request, any_size=True), talk.warn) as sweep:
        optimizer = Optimizer(sweep, wanted, n_probes)
        if optimizer.n_missing:
            talk.say(f"{optimizer.n_missing} matrices to try, in about {size(optimizer.memory_bytes())} of memory")
        with talk.progress("trying matrices", optimizer.n_steps(), of_bytes=False) as progress:
            optimizer.measure(lambda: progress(1))
        optimized = optimizer.optimized()
    for mix in optimized.mixes:
        talk.say(
            f"{request.out / mix.recipe.name}.toml: {mix.nbytes:,} of {mix.budget.nbytes:,} bytes, predicted KLD "
            f"{mix.predicted:.5f}; optimality gap {100 * mix.gap:.2f} %"
        )
    return replace(request, optimized=optimized)
