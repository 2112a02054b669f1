"""`quantkit release`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.completion import complete_recipe, complete_type
from quantkit.cli.described import describing, description
from quantkit.cli.lora import lora_option
from quantkit.cli.measuring import measuring_options
from quantkit.cli.sizes import MEMORY, SPLIT
from quantkit.cli.source import SOURCE
from quantkit.cli.talk import Talk, table
from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.checkpoint import Lora

SCHEMA = {"name": "quantkit.release", "version": 1}
# keys of release.toml whose parameters are called otherwise
_PARAMETERS = {"text": "texts", "ctx": "context"}


def _read_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Take the settings of a file for those that are not given."""
    if path is not None:
        from quantkit.release.settings import read_settings

        ctx.default_map = {_PARAMETERS.get(key, key): value for key, value in read_settings(path).items()}


@click.command("release", short_help="Make a folder to publish.")
@click.argument("source", type=SOURCE)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="release.toml: SOURCE and options by their long names (types for -t); options given here win.",
)
@click.option("-t", "--type", "types", multiple=True, shell_complete=complete_type, help="Preset; may be repeated.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder.")
@click.option(
    "--recipe",
    default="llama.cpp",
    shell_complete=complete_recipe,
    help="Family of the presets, or a TOML file.  [default: llama.cpp]",
)
@lora_option()
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix; a copy becomes part of it.")
@describing
@click.option("--split-max-size", type=SPLIT, help="Shards of at most this many bytes of tensors: 4G, 500M.")
@click.option("--vram", type=MEMORY, help="Card that the report is about: 12GiB.  [default: one that all files fit]")
@click.option("--ctx", "context", type=int, help="Tokens to reckon memory with.  [default: the model's, at most 16384]")
@measuring_options("eval.txt")
@click.option("--repo", metavar="ORG/NAME", help="Where it will be published, for the commands in its card.")
@click.option("--base-model", metavar="ORG/NAME", help="What is quantized, if SOURCE is not on the hub.")
@click.option("--license", help="In place of the one that the source's card names.")
@click.option("--quantized-by", metavar="NAME", help="Who you are; nobody is named without it.")
@click.option("--tag", "tags", multiple=True, help="Of the card, beside the usual ones; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no table.")
def command(
    source: Path,
    types: Sequence[str],
    output: Path,
    recipe: str,
    lora: tuple[Lora, ...],
    imatrix: Path | None,
    name: str | None,
    metadata: Sequence[str],
    chat_template: Path | None,
    fix_special_tokens: bool,
    split_max_size: int | None,
    vram: int | None,
    context: int | None,
    texts: Sequence[str],
    window: int,
    windows: int | None,
    dtype: str,
    device: str,
    repo: str | None,
    base_model: str | None,
    license: str | None,
    quantized_by: str | None,
    tags: Sequence[str],
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert SOURCE to every TYPE, measure what each file loses, and write a folder that can be published as it is.

    It has the GGUF files, a model card with the figures, the report, the recipes, Ollama's Modelfile and SHA256SUMS.
    The same command goes on after a stop, and makes only what is missing.

    \b
    quantkit release my-phi-4 -t Q4_K_M -t Q6_K -t Q8_0 -o out/
    quantkit release --config release.toml
    quantkit push out/ me/my-phi-4-GGUF
    """
    from quantkit.evaluate import arithmetic, read_text
    from quantkit.release.release import Order, Release

    talk = Talk(quiet)
    order = Order(
        source,
        output,
        types,
        recipe,
        imatrix,
        lora,
        description(name, metadata, chat_template, fix_special_tokens),
        split_max_size,
        vram,
        context,
        read_text(texts) if texts else None,
        window,
        windows,
        arithmetic("f32", dtype, device),
        repo,
        base_model,
        license,
        quantized_by,
        tags,
    )
    with Release.open(order, talk.warn) as release:
        if release.unwritten.outputs:
            with talk.progress("converting", release.unwritten.source_bytes) as progress:
                release.convert(progress)
        if release.sweep.n_missing():
            talk.say(f"measuring in about {size(release.sweep.memory_bytes())} of memory")
            with talk.progress("measuring", release.sweep.n_steps(), of_bytes=False) as progress:
                release.sweep.measure(progress=lambda: progress(1))
        result = {"schema": SCHEMA, **release.publish()}
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not quiet:
        _show(output, result)
    talk.say(f"next: quantkit push {output} {repo or 'ORG/NAME'}")


def _show(folder: Path, result: dict[str, Any]) -> None:
    rows = [("size", "SHA-256", "file")]
    rows += [(size((folder / name).stat().st_size), digest[:16], name) for name, digest in result["files"].items()]
    click.echo(table(rows))
