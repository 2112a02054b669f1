"""`quantkit convert`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import click

from quantkit.cli.talk import Talk, size
from quantkit.errors import UsageError

SCHEMA = {"name": "quantkit.convert", "version": 1}


class SplitSize(click.ParamType[int]):
    """A size as llama.cpp's gguf-split takes it: M and G are powers of 1000."""

    name = "size"
    _UNITS: ClassVar[dict[str, int]] = {"M": 10**6, "G": 10**9}

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number, unit = value[:-1], value[-1:].upper()
        if not number.isdigit() or int(number) == 0 or unit not in self._UNITS:
            self.fail(f"{value!r} is not a size such as 4G or 500M", param, ctx)
        return int(number) * self._UNITS[unit]


@click.command("convert", short_help="Turn a checkpoint into GGUF files.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-t", "--type", "types", multiple=True, help="Preset such as Q4_K_M; may be repeated.")
@click.option("--recipe", default="llama.cpp", help="Family of the presets, or a TOML file.  [default: llama.cpp]")
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix of llama-imatrix, GGUF or .dat.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File; folder; or template with {type}.")
@click.option("--name", help="The model's name in the files, in place of the one derived from the folder.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Set a key of the files; may be repeated.")
@click.option("--fix-special-tokens", is_flag=True, help="Repair eos and pad that disagree with the chat template.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Slabs worked on at once.  [default: all processors]")
@click.option("--no-resume", is_flag=True, help="Start over, whatever a stopped run has left.")
@click.option("--split-max-size", type=SplitSize(), help="Shards of at most this many bytes of tensors: 4G, 500M.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no table.")
def command(
    source: Path,
    types: Sequence[str],
    recipe: str,
    imatrix: Path | None,
    output: Path | None,
    name: str | None,
    metadata: Sequence[str],
    fix_special_tokens: bool,
    threads: int | None,
    no_resume: bool,
    split_max_size: int | None,
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
    from quantkit.imatrix import read_imatrix
    from quantkit.plan import make_plan, output_paths
    from quantkit.recipe import choose

    talk = Talk(quiet)
    recipes = choose(types, recipe)
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(
            checkpoint,
            recipes,
            name=name,
            fix_special_tokens=fix_special_tokens,
            imatrix=read_imatrix(imatrix) if imatrix else None,
            overrides=_key_values(metadata),
            split_max_bytes=split_max_size,
            warn=talk.warn,
        )
        paths = output_paths(plan.outputs, checkpoint.name, output)
        seconds = None
        if not dry_run:
            if len(paths) > 1 and output is not None and "{type}" not in output.name:
                output.mkdir(exist_ok=True)
            start = time.monotonic()
            with talk.progress("converting", plan.source_bytes) as progress:
                flat = [path for shards in paths for path in shards]
                convert(checkpoint, plan, flat, threads=threads, resume=not no_resume, progress=progress)
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
                "paths": [str(path) for path in shards],
                "tensor_bytes": out.tensor_bytes,
                "file_bytes": out.file_bytes,
                "bits_per_weight": round(out.bits_per_weight, 4),
                "types": out.types,
            }
            for out, shards in zip(plan.outputs, paths, strict=True)
        ],
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not quiet:
        _show(result)
    if seconds is not None:
        rate = f"{size(plan.source_bytes)} of weights in {seconds:.1f} s with {kernels.backend()} kernels"
        talk.say(f"{rate}\nnext: llama-server -m {paths[0][0]}")


def _show(result: dict[str, Any]) -> None:
    rows = [("type", "size", "bits/weight", "tensors", "file")]
    for file in result["files"]:
        mix = ", ".join(f"{count} {name}" for name, count in file["types"].items())
        rows.append((file["type"], size(file["file_bytes"]), f"{file['bits_per_weight']:.2f}", mix, file["paths"][0]))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())


def _key_values(pairs: Sequence[str]) -> dict[str, str]:
    """The KEY=VALUE pairs by key; raises UsageError."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError("--metadata takes KEY=VALUE", found=pair)
    return dict(pair.split("=", 1) for pair in pairs)
