"""`quantkit imatrix`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantkit.cli.lora import as_arguments, lora_option
from quantkit.cli.measuring import measuring_options
from quantkit.cli.source import SOURCE
from quantkit.cli.talk import Talk
from quantkit.errors import Interrupted, OutputError, UsageError
from quantkit.osio import AtomicFile, free_space, make_folder, refuse_replacing
from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.checkpoint import Lora

SCHEMA = {"name": "quantkit.imatrix", "version": 1}


@click.command("imatrix", short_help="Collect what each column of a matrix counts.")
@click.argument("source", type=SOURCE)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@lora_option()
@measuring_options("calibration.txt; for --covariance broad.txt as well, and both beside yours")
@click.option("--covariance", type=click.Path(path_type=Path), help="Folder for the whole second moments as well.")
@click.option(
    "--sequential",
    metavar="TYPE|FILE",
    help="Collect them behind layers packed as by this preset or recipe, with corrections for what these lose.",
)
@click.option("--own-text-only", is_flag=True, help="Do not add the shipped texts to yours for --covariance.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no talk.")
def command(
    source: Path,
    output: Path,
    lora: tuple[Lora, ...],
    texts: Sequence[str],
    window: int,
    windows: int | None,
    dtype: str,
    device: str,
    covariance: Path | None,
    sequential: str | None,
    own_text_only: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a text through SOURCE and write how much each column of its matrices counts, for convert --imatrix.

    The file has llama.cpp's format: llama-quantize takes it too.

    \b
    quantkit imatrix my-phi-4 -o my-phi-4.imatrix.gguf
    quantkit convert my-phi-4 -t Q4_K_M --imatrix my-phi-4.imatrix.gguf
    quantkit imatrix my-phi-4 -o my-phi-4.imatrix.gguf --text ours.txt --covariance moments/ --sequential Q4_K_M
    """
    from quantkit.evaluate import (
        arithmetic,
        calibration_text,
        collect,
        collect_sequential,
        evenly,
        moment_shapes,
        n_collect_steps,
        n_sequential_steps,
        open_model,
        run_of,
        sample,
    )
    from quantkit.imatrix import write_imatrix
    from quantkit.moments import layer_file, nbytes, refuse_others
    from quantkit.recipe import named

    talk = Talk(quiet)
    _check_options(covariance, sequential, own_text_only, texts)
    how = arithmetic("f32", dtype, device)
    recipe = named(sequential) if sequential is not None else None
    text = calibration_text(texts, broad=covariance is not None and not own_text_only)
    with ExitStack() as stack:
        model = stack.enter_context(open_model(source, talk.warn, lora))
        layers = [layer_file(covariance, f"blk.{i}") for i in range(model.network.layers)] if covariance else []
        refuse_replacing([output, *layers], [*model.files, *map(Path, texts)])
        out = stack.enter_context(AtomicFile(output))
        chosen = sample([model], text, window, windows if covariance is None else None)
        if covariance is not None:
            if windows is not None:  # some of each text, and not the first alone
                chosen = evenly(chosen, windows)
            run = run_of(model, chosen, how, recipe)
            _make_room(covariance, nbytes(moment_shapes(model), corrected=recipe is not None), talk)
            refuse_others(covariance, run)
            stack.enter_context(_saying_what_is_there(covariance))
        total = n_sequential_steps(model) if recipe else n_collect_steps(model, chosen.windows, covariance is not None)
        with talk.progress("collecting", total, of_bytes=False) as progress:
            step = partial(progress, 1)
            if covariance is None:
                sums = collect(model, chosen.windows, how=how, progress=step)
            elif recipe is None:
                sums = collect(model, chosen.windows, how=how, moments=(covariance, run), progress=step)
            else:
                sums = collect_sequential(
                    model, chosen.windows, recipe, how=how, moments=(covariance, run), progress=step
                )
        write_imatrix(
            out, sums, chunk_count=len(chosen.windows), chunk_size=chosen.windows.shape[1], text_sha256=text.sha256
        )
    result = {
        "schema": SCHEMA,
        "file": str(output),
        "text": text.names,
        "text_sha256": text.sha256,
        "n_tokens": chosen.n_tokens,
        "windows": len(chosen.windows),
        "window": chosen.windows.shape[1],
        "matrices": len(sums),
        "covariance": str(covariance) if covariance is not None else None,
        "sequential": recipe.name if recipe is not None else None,
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    packing = _recipe_arguments(sequential or "Q4_K_M")
    convert = ["quantkit", "convert", str(source), *as_arguments(lora), *packing, "--imatrix", str(output)]
    convert += ["--strategy", "feedback", "--covariance", str(covariance)] if covariance is not None else []
    talk.say(
        f"{len(sums)} matrices, {len(chosen.windows)} windows of {chosen.windows.shape[1]} tokens of "
        f"{', '.join(text.names)} (sha256 {text.sha256[:16]})\n"
        f"next: {shlex.join(convert)}"
    )


def _check_options(covariance: Path | None, sequential: str | None, own_text_only: bool, texts: Sequence[str]) -> None:
    if covariance is None and (sequential is not None or own_text_only):
        raise UsageError("--sequential and --own-text-only are for --covariance DIR")
    if own_text_only and not texts:
        raise UsageError("--own-text-only needs a --text")


def _recipe_arguments(recipe: str) -> list[str]:
    """With which convert takes a preset, or a recipe's file."""
    from quantkit.recipe import is_file

    return ["--recipe" if is_file(recipe) else "-t", recipe]


def _make_room(folder: Path, nbytes: int, talk: Talk) -> None:
    """Say how much the moments take, and see that there is room; raises OutputError."""
    talk.say(f"the second moments take {size(nbytes)} in {folder}")
    make_folder(folder)
    free = free_space(folder)
    if free < nbytes:
        raise OutputError("the disk has too little room", file=folder, expected=f"{nbytes} bytes free", found=f"{free}")


@contextmanager
def _saying_what_is_there(folder: Path) -> Iterator[None]:
    """Raise Interrupted for a KeyboardInterrupt if folder has second moments, and name their layers."""
    from quantkit.moments import layers_in

    try:
        yield
    except KeyboardInterrupt:
        layers = layers_in(folder)
        if not layers:
            raise
        raise Interrupted(
            f"stopped; the folder has the second moments of {', '.join(layers)}",
            hint="the same command begins anew and replaces them",
            file=folder,
        ) from None
