"""`quantkit plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.completion import complete_recipe, complete_type
from quantkit.cli.talk import Talk, size, table

if TYPE_CHECKING:
    from quantkit.outline import Outline

SCHEMA = {"name": "quantkit.plan", "version": 1}


@click.command("plan", short_help="Say how large the files will be.")
@click.argument("source", type=click.Path(path_type=Path))
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
@click.option("--tensors", is_flag=True, help="The type of every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on stdout.")
def command(
    source: Path, types: Sequence[str], recipe: str, imatrix: Path | None, tensors: bool, as_json: bool
) -> None:
    """Say how large SOURCE's files will be, to the byte, and which type each tensor gets.

    Of a checkpoint folder config.json is enough; with the tokenizer the size of the whole file is known too.

    \b
    quantkit plan my-phi-4
    quantkit plan my-phi-4 -t Q4_K_M --tensors
    """
    from quantkit.convert import memory_bytes
    from quantkit.imatrix import read_imatrix
    from quantkit.outline import outlines
    from quantkit.recipe import choose, families, presets

    wanted = types or (presets(recipe) if recipe in families() else ())
    matrix = read_imatrix(imatrix) if imatrix else None
    found = sorted(
        outlines(source, choose(wanted, recipe), matrix, Talk(quiet=False).warn),
        key=lambda outline: outline.tensor_bytes,
    )
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "memory_bytes": memory_bytes(), "types": list(map(_as_json, found))}))
        return
    rows = [("type", "file", "tensors", "bits/weight", "types of tensors")]
    for outline in found:
        file = size(outline.file_bytes) if outline.file_bytes is not None else "-"
        mix = ", ".join(f"{count} {name}" for name, count in outline.types.items())
        note = "  (needs --imatrix)" if outline.needs_imatrix and matrix is None else ""
        rows.append((outline.name, file, size(outline.tensor_bytes), f"{outline.bits_per_weight:.2f}", mix + note))
    click.echo(table(rows))
    click.echo(f"\n{found[0].n_weights:,} weights; converting takes about {size(memory_bytes())} of memory")
    if tensors:
        for outline in found:
            click.echo(f"\n{outline.name}")
            for tensor in outline.tensors:
                click.echo(f"  {tensor.qtype.name:5} {size(tensor.nbytes):>10}  {tensor.name}")


def _as_json(outline: Outline) -> dict[str, Any]:
    return {
        "type": outline.name,
        "tensor_bytes": outline.tensor_bytes,
        "file_bytes": outline.file_bytes,
        "bits_per_weight": round(outline.bits_per_weight, 4),
        "types": outline.types,
        "needs_imatrix": outline.needs_imatrix,
        "tensors": {tensor.name: tensor.qtype.name for tensor in outline.tensors},
    }
