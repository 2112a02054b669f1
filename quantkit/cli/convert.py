"""`quantkit convert`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.completion import complete_recipe, complete_type
from quantkit.cli.described import describing, description
from quantkit.cli.lora import lora_option
from quantkit.cli.sizes import SPLIT
from quantkit.cli.source import SOURCE
from quantkit.cli.strategy import strategy_options
from quantkit.cli.talk import Talk, table
from quantkit.osio import make_folder, refuse_replacing
from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.check import Finding
    from quantkit.checkpoint import Lora, Weights
    from quantkit.plan import Plan

SCHEMA = {"name": "quantkit.convert", "version": 1}
CHECK_SCHEMA = {"name": "quantkit.check", "version": 1}


@click.command("convert", short_help="Turn a checkpoint into GGUF files.")
@click.argument("source", type=SOURCE)
@click.option(
    "-t",
    "--type",
    "types",
    multiple=True,
    shell_complete=complete_type,
    help="Preset such as Q4_K_M; may be repeated.",
)
@click.option(
    "--recipe",
    default="llama.cpp",
    shell_complete=complete_recipe,
    help="Family of the presets, or a TOML file.  [default: llama.cpp]",
)
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix of llama-imatrix, GGUF or .dat.")
@lora_option()
@strategy_options
@click.option("-o", "--output", type=click.Path(), help="File; folder; or template with {type}.")
@describing
@click.option("--threads", type=click.IntRange(1, 1024), help="Slabs worked on at once.  [default: all processors]")
@click.option("--no-resume", is_flag=True, help="Start over, whatever a stopped run has left.")
@click.option("--split-max-size", type=SPLIT, help="Shards of at most this many bytes of tensors: 4G, 500M.")
@click.option("--check-only", is_flag=True, help="Look for weights that cannot be packed, and write nothing.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no table.")
def command(
    source: Path,
    types: Sequence[str],
    recipe: str,
    imatrix: Path | None,
    lora: tuple[Lora, ...],
    strategy: str,
    covariance: Path | None,
    output: str | None,
    name: str | None,
    metadata: Sequence[str],
    chat_template: Path | None,
    fix_special_tokens: bool,
    threads: int | None,
    no_resume: bool,
    split_max_size: int | None,
    check_only: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn SOURCE into one GGUF file for each type, in one pass over the weights.

    SOURCE is a checkpoint folder; or a GGUF file in F32, F16 or BF16, of a split one the first shard; or the folder of
    a PEFT adapter, which names its base; or ORG/NAME[@REVISION] on the hub.

    \b
    quantkit convert my-phi-4 -t Q4_K_M
    quantkit convert my-phi-4-BF16.gguf -t Q4_K_M
    quantkit convert microsoft/phi-4 -t Q4_K_M
    quantkit convert my-phi-4 -t Q4_K_M -t Q6_K -t Q8_0 -o out/
    quantkit convert my-phi-4 -t Q6_K -o 'release/phi-{type}.gguf'
    quantkit convert phi-4 --lora my-adapter -t Q4_K_M
    quantkit convert my-phi-4 -t Q3_K_M --imatrix my.gguf --strategy feedback --covariance moments/
    """
    from quantkit import kernels
    from quantkit.convert import convert
    from quantkit.imatrix import read_imatrix
    from quantkit.plan import make_plan, output_paths
    from quantkit.recipe import choose
    from quantkit.source import open_source
    from quantkit.strategy import by_name

    talk = Talk(quiet)
    recipes = choose(types, recipe)
    how = by_name(strategy, covariance)
    with open_source(source, lora=lora) as weights:
        plan = make_plan(
            weights,
            recipes,
            **description(name, metadata, chat_template, fix_special_tokens),
            imatrix=read_imatrix(imatrix) if imatrix else None,
            split_max_bytes=split_max_size,
            strategy=how,
            warn=talk.warn,
        )
        if check_only:
            _check(weights, plan, talk, as_json)
            return
        wanted = Path(output) if output is not None else None
        is_folder = output is not None and _names_folder(output, len(plan.outputs))
        paths = output_paths(plan.outputs, weights.name, wanted, is_folder=is_folder)
        if wanted is not None and is_folder and not dry_run:
            make_folder(wanted)
        seconds = None
        if not dry_run:
            flat = [path for shards in paths for path in shards]
            refuse_replacing(flat, [file for file in (imatrix, chat_template, Path(recipe)) if file])
            start = time.monotonic()
            with talk.progress("converting", plan.source_bytes) as progress:
                convert(weights, plan, flat, threads=threads, resume=not no_resume, progress=progress)
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


def _names_folder(output: str, n_outputs: int) -> bool:
    """Whether -o names a folder that may have to be made."""
    return output.endswith(("/", os.sep)) or (n_outputs > 1 and "{type}" not in Path(output).name)


def _check(weights: Weights, plan: Plan, talk: Talk, as_json: bool) -> None:
    """Report every tensor with weights that cannot be packed; NotFiniteError or MagnitudeError if there is one."""
    from quantkit.check import check

    with talk.progress("checking", plan.source_bytes) as progress:
        findings = check(weights, plan, progress)
    if as_json:
        click.echo(json.dumps({"schema": CHECK_SCHEMA, "findings": list(map(_as_json, findings))}, indent=2))
    for finding in findings:
        talk.say(str(finding))
    if findings:
        raise findings[0].error()
    talk.say(f"{len(plan.jobs)} tensors are sound: every weight is finite and fits its types")


def _as_json(finding: Finding) -> dict[str, Any]:
    """JSON has no NaN and no infinity: these are strings."""
    value = finding.value if math.isfinite(finding.value) else str(finding.value)
    return asdict(finding) | {"value": value}


def _show(result: dict[str, Any]) -> None:
    rows = [("type", "size", "bits/weight", "tensors", "file")]
    for file in result["files"]:
        mix = ", ".join(f"{count} {name}" for name, count in file["types"].items())
        rows.append((file["type"], size(file["file_bytes"]), f"{file['bits_per_weight']:.2f}", mix, file["paths"][0]))
    click.echo(table(rows))
