"""`quantkit plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.completion import complete_recipe, complete_type
from quantkit.cli.lora import lora_option
from quantkit.cli.memory import LEGEND, Need, describe, needs_of, run_options
from quantkit.cli.sizes import MEMORY
from quantkit.cli.source import SOURCE
from quantkit.cli.talk import Talk, table
from quantkit.errors import UsageError
from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.checkpoint import Lora
    from quantkit.memory import Run
    from quantkit.outline import Outline

SCHEMA = {"name": "quantkit.plan", "version": 1}
USUAL_CONTEXT = 16384


@click.command("plan", short_help="Say how large the files will be.")
@click.argument("source", type=SOURCE)
@click.option(
    "-t",
    "--type",
    "types",
    multiple=True,
    shell_complete=complete_type,
    help="Preset; may be repeated.  [default: all]",
)
@click.option(
    "--recipe",
    default="llama.cpp",
    shell_complete=complete_recipe,
    help="Family of the presets, or a TOML file.  [default: llama.cpp]",
)
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix, as for convert.")
@lora_option()
@click.option("--vram", "cards", type=MEMORY, multiple=True, help="Say what fits a card: 12GiB, 12GB; may be repeated.")
@click.option(
    "--ctx",
    "contexts",
    type=int,
    multiple=True,
    help=f"Tokens of each sequence; may be repeated.  [default: the model's, at most {USUAL_CONTEXT}]",
)
@run_options
@click.option("--tensors", is_flag=True, help="The type of every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on stdout.")
def command(
    source: Path,
    types: Sequence[str],
    recipe: str,
    imatrix: Path | None,
    lora: tuple[Lora, ...],
    cards: Sequence[int],
    contexts: Sequence[int],
    kv_type: str,
    parallel: int,
    ubatch: int,
    gpu_layers: int | None,
    overhead: int,
    tensors: bool,
    as_json: bool,
) -> None:
    """Say how large SOURCE's files will be, to the byte, and what llama.cpp will need to run them.

    Of a checkpoint folder config.json is enough; with the tokenizer the size of the whole file is known too.
    With --vram, --ctx or another option of a run the table is of memory: what lies on the card and what in the host's
    memory, with the formula of each part.

    \b
    quantkit plan my-phi-4
    quantkit plan my-phi-4 -t Q4_K_M --tensors
    quantkit plan my-phi-4 --vram 12GiB --ctx 16384
    """
    from quantkit.imatrix import read_imatrix
    from quantkit.memory import Run
    from quantkit.outline import outlines
    from quantkit.recipe import choose, families, presets
    from quantkit.slabs import memory_bytes

    if cards and gpu_layers == 0:
        raise UsageError("--vram with --gpu-layers 0", hint="a run without a card has no use for one")
    talk = Talk(quiet=False)
    wanted = types or (presets(recipe) if recipe in families() else ())
    matrix = read_imatrix(imatrix) if imatrix else None
    found = sorted(
        outlines(source, choose(wanted, recipe), matrix, talk.warn, lora), key=lambda outline: outline.tensor_bytes
    )
    made_for = found[0].network.rope.context
    runs = [
        Run(context, kv_type, parallel, ubatch, gpu_layers, overhead)
        for context in contexts or [min(made_for, USUAL_CONTEXT)]
    ]
    for run in runs:
        if run.context > made_for:
            talk.warn(f"the model is made for {made_for:,} tokens, and {run.context:,} are more")
    needs = [needs_of(outline, runs, cards) for outline in found]
    if as_json:
        entries = [_as_json(outline, needed) for outline, needed in zip(found, needs, strict=True)]
        settings = _settings_as_json(runs[0])
        click.echo(
            json.dumps({"schema": SCHEMA, "memory_bytes": memory_bytes(), "settings": settings, "types": entries})
        )
        return
    if cards or contexts or runs[0] != Run(runs[0].context):
        click.echo("\n\n".join(describe(column, matrix is not None) for column in zip(*needs, strict=True)))
        if cards:
            click.echo(f"\n{LEGEND}")
    else:
        _show_sizes(found, matrix is not None)
        click.echo(f"\n{found[0].n_weights:,} weights; converting takes about {size(memory_bytes())} of memory")
    if tensors:
        for outline in found:
            click.echo(f"\n{outline.name}")
            for tensor in outline.tensors:
                click.echo(f"  {tensor.qtype.name:5} {size(tensor.nbytes):>10}  {tensor.name}")


def _show_sizes(found: Sequence[Outline], imatrix: bool) -> None:
    rows = [("type", "file", "tensors", "bits/weight", "types of tensors")]
    for outline in found:
        file = size(outline.file_bytes) if outline.file_bytes is not None else "-"
        mix = ", ".join(f"{count} {name}" for name, count in outline.types.items())
        note = "  (needs --imatrix)" if outline.needs_imatrix and not imatrix else ""
        rows.append((outline.name, file, size(outline.tensor_bytes), f"{outline.bits_per_weight:.2f}", mix + note))
    click.echo(table(rows))


def _settings_as_json(run: Run) -> dict[str, Any]:
    return {
        "kv_type": run.kv_type,
        "parallel": run.parallel,
        "ubatch": run.ubatch,
        "gpu_layers": run.gpu_layers,
        "overhead_bytes": run.overhead_bytes,
    }


def _as_json(outline: Outline, needs: Sequence[Need]) -> dict[str, Any]:
    return {
        "type": outline.name,
        "tensor_bytes": outline.tensor_bytes,
        "file_bytes": outline.file_bytes,
        "bits_per_weight": round(outline.bits_per_weight, 4),
        "types": outline.types,
        "needs_imatrix": outline.needs_imatrix,
        "memory": [need.as_json() for need in needs],
        "tensors": {tensor.name: tensor.qtype.name for tensor in outline.tensors},
    }
