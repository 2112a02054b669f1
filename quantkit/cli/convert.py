"""`quantkit convert`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from quantkit.cli.talk import Talk, size

SCHEMA = {"name": "quantkit.convert", "version": 1}


@click.command("convert", short_help="Turn a checkpoint into GGUF files.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-t", "--type", "types", multiple=True, required=True, help="Preset such as Q4_K_M; may be repeated.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File; folder; or template with {type}.")
@click.option("--name", help="The model's name in the files, in place of the one derived from the folder.")
@click.option("--fix-special-tokens", is_flag=True, help="Repair eos and pad that disagree with the chat template.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Slabs worked on at once.  [default: all processors]")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no table.")
def command(
    source: Path,
    types: Sequence[str],
    output: Path | None,
    name: str | None,
    fix_special_tokens: bool,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn the checkpoint folder SOURCE into one GGUF file for each type, in one pass over the weights.

    \b
    quantkit convert my-phi-4 -t Q4_K_M
    quantkit convert my-phi-4 -t Q4_K_M -t Q6_K -t Q8_0 -o out/
    quantkit convert my-phi-4 -t Q6_K -o 'release/phi-{type}.gguf'
    """
    from quantkit import kernels
    from quantkit.checkpoint import open_checkpoint
    from quantkit.convert import convert
    from quantkit.plan import make_plan, output_paths
    from quantkit.recipe import preset

    talk = Talk(quiet)
    recipes = [preset(name) for name in dict.fromkeys(types)]
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, recipes, name=name, fix_special_tokens=fix_special_tokens, warn=talk.warn)
        paths = output_paths(plan.outputs, checkpoint.name, output)
        seconds = None
        if not dry_run:
            if len(paths) > 1 and output is not None and "{type}" not in output.name:
                output.mkdir(exist_ok=True)
            start = time.monotonic()
            with talk.progress("converting", plan.source_bytes) as progress:
                convert(checkpoint, plan, paths, threads=threads, progress=progress)
            seconds = time.monotonic() - start

    result: dict[str, Any] = {
        "schema": SCHEMA,
        "source": str(source),
        "source_bytes": plan.source_bytes,
        "seconds": seconds,
        "backend": kernels.backend(),
        "files": [
            {
                "type": out.name,
                "path": str(path),
                "tensor_bytes": out.tensor_bytes,
                "file_bytes": out.file_bytes,
                "bits_per_weight": round(out.bits_per_weight, 4),
                "types": out.types,
            }
            for out, path in zip(plan.outputs, paths, strict=True)
        ],
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not quiet:
        _show(result)
    if seconds is not None:
        rate = f"{size(plan.source_bytes)} of weights in {seconds:.1f} s with {kernels.backend()} kernels"
        talk.say(f"{rate}\nnext: llama-server -m {paths[0]}")


def _show(result: dict[str, Any]) -> None:
    rows = [("type", "size", "bits/weight", "tensors", "file")]
    for file in result["files"]:
        mix = ", ".join(f"{count} {name}" for name, count in file["types"].items())
        rows.append((file["type"], size(file["file_bytes"]), f"{file['bits_per_weight']:.2f}", mix, file["path"]))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())
