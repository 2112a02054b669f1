"""What a run of llama.cpp needs: the options that describe one, and what `plan` says of its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.sizes import OVERHEAD
from quantkit.cli.talk import table
from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.memory import MemoryUse, Run, Term
    from quantkit.outline import Outline

LEGEND = "Under a card's size: what is left on it; or no, and with how many tokens of context the type would fit."


_RUN_OPTIONS = (
    click.option(
        "--kv-type",
        type=click.Choice(["f16", "q8_0", "q4_0"]),
        default="f16",
        help="Type of the KV cache.  [default: f16]",
    ),
    click.option("--parallel", type=int, default=1, help="Sequences at once, each with its own cache.  [default: 1]"),
    click.option("--ubatch", type=int, default=512, help="Tokens computed at once.  [default: 512]"),
    click.option("--gpu-layers", type=int, help="As llama.cpp's -ngl; 0 is a run without a card.  [default: all]"),
    click.option(
        "--overhead",
        type=OVERHEAD,
        default="512MiB",
        help="What driver and backend take of the card.  [default: 512MiB]",
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that say, beside the context, how llama.cpp is run: the arguments of memory.Run."""
    return reduce(lambda decorated, option: option(decorated), reversed(_RUN_OPTIONS), command)


@dataclass(frozen=True)
class Room:
    """How a file fits a card.

    left_bytes       below 0 if it does not
    longest_context  up to the one asked for; 0 for none
    """

    vram_bytes: int
    left_bytes: int
    longest_context: int

    def __str__(self) -> str:
        if self.left_bytes >= 0:
            return f"{size(self.left_bytes)} left"
        return f"no ({self.longest_context:,})" if self.longest_context else "no"


@dataclass(frozen=True)
class Need:
    """What one type's file needs in one run, and how that fits each card."""

    outline: Outline
    run: Run
    use: MemoryUse
    rooms: tuple[Room, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "context": self.run.context,
            "card_bytes": self.use.card_bytes,
            "host_bytes": self.use.host_bytes,
            "card": [term.as_json() for term in self.use.card],
            "host": [term.as_json() for term in self.use.host],
            "vram": [asdict(room) | {"fits": room.left_bytes >= 0} for room in self.rooms],
        }


def needs_of(outline: Outline, runs: Sequence[Run], cards: Sequence[int]) -> list[Need]:
    """What the outlined file needs in each run; cards are sizes in bytes.  Raises UsageError."""
    from quantkit.memory import longest_context, memory_use

    needs = []
    for run in runs:
        use = memory_use(outline.network, outline.tensors, run)
        rooms = (
            Room(card, card - use.card_bytes, longest_context(outline.network, outline.tensors, run, card))
            for card in cards
        )
        needs.append(Need(outline, run, use, tuple(rooms)))
    return needs


def describe(needs: Sequence[Need], imatrix: bool) -> str:
    """A table of the types in one run, with the formula of each term under it.

    imatrix  whether there is an importance matrix: types that need one are marked where there is none
    """
    run, use, network = needs[0].run, needs[0].use, needs[0].outline.network
    places = [*(["on the card"] if use.card else []), "in the host"]
    rows = [("type", *places, *(size(room.vram_bytes) for room in needs[0].rooms), "")]
    for need in needs:
        card = [size(need.use.card_bytes)] if need.use.card else []
        note = "(needs --imatrix)" if need.outline.needs_imatrix and not imatrix else ""
        rows.append((need.outline.name, *card, size(need.use.host_bytes), *map(str, need.rooms), note))
    terms = [("on the card", "", ""), *_term_rows([need.use.card for need in needs])] if use.card else []
    terms += [("in the host's memory", "", ""), *_term_rows([need.use.host for need in needs])]
    title = f"{run.context:,} tokens of context: llama-server {_options(run, network.layers)}"
    return f"{title}\n\n{table(rows)}\n\n{table(terms)}"


def _term_rows(uses: Sequence[tuple[Term, ...]]) -> Iterator[tuple[str, str, str]]:
    """The terms of one place: what each takes, from the least of the types to the most, and how that comes about."""
    for terms in zip(*uses, strict=True):
        least, most = (size(bound(term.nbytes for term in terms)) for bound in (min, max))
        formulas = " or ".join(dict.fromkeys(term.formula for term in terms))
        if any(term.nbytes for term in terms):
            yield f"  {terms[0].name}", least if least == most else f"{least} to {most}", formulas


def _options(run: Run, n_layers: int) -> str:
    """llama-server's options for the run."""
    kv = f" -ctk {run.kv_type} -ctv {run.kv_type} -fa on" if run.kv_type != "f16" else ""
    batch = f" -ub {run.ubatch}" if run.ubatch != 512 else ""
    return f"-c {run.context * run.parallel} -np {run.parallel} -ngl {run.offloaded(n_layers)}{batch}{kv}"
