"""`quantkit imatrix`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantkit.cli.lora import as_arguments, lora_option
from quantkit.cli.measuring import measuring_options
from quantkit.cli.source import SOURCE
from quantkit.cli.talk import Talk
from quantkit.errors import Interrupted, OutputError
from quantkit.osio import AtomicFile, free_space, make_folder, refuse_replacing
from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.checkpoint import Lora

SCHEMA = {"name": "quantkit.imatrix", "version": 1}


@click.command("imatrix", short_help="Collect what each column of a matrix counts.")
@click.argument("source", type=SOURCE)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@lora_option()
@measuring_options("calibration.txt")
@click.option("--covariance", type=click.Path(path_type=Path), help="Folder for the whole second moments as well.")
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
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a text through SOURCE and write how much each column of its matrices counts, for convert --imatrix.

    The file has llama.cpp's format: llama-quantize takes it too.

    \b
    quantkit imatrix my-phi-4 -o my-phi-4.imatrix.gguf
    quantkit convert my-phi-4 -t Q4_K_M --imatrix my-phi-4.imatrix.gguf
    """
    from quantkit.evaluate import (
        arithmetic,
        collect,
        moment_columns,
        n_collect_steps,
        open_model,
        read_text,
        sample,
        shipped,
    )
    from quantkit.imatrix import write_imatrix
    from quantkit.moments import layer_file, nbytes, refuse_others

    talk = Talk(quiet)
    how = arithmetic("f32", dtype, device)
    text = read_text(texts) if texts else shipped("calibration.txt")
    with ExitStack() as stack:
        model = stack.enter_context(open_model(source, talk.warn, lora))
        layers = [layer_file(covariance, f"blk.{i}") for i in range(model.network.layers)] if covariance else []
        refuse_replacing([output, *layers], [*model.files, *map(Path, texts)])
        out = stack.enter_context(AtomicFile(output))
        chosen = sample([model], text, window, windows)
        if covariance is not None:
            _make_room(covariance, nbytes(moment_columns(model)), talk)
            refuse_others(covariance, chosen.windows.size, text.sha256)
            stack.enter_context(_saying_what_is_there(covariance))
        total = n_collect_steps(model, chosen.windows, covariance is not None)
        with talk.progress("collecting", total, of_bytes=False) as progress:
            sums = collect(
                model,
                chosen.windows,
                how=how,
                covariance=covariance,
                text_sha256=text.sha256,
                progress=lambda: progress(1),
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
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    convert = ["quantkit", "convert", str(source), *as_arguments(lora), "-t", "Q4_K_M", "--imatrix", str(output)]
    talk.say(
        f"{len(sums)} matrices, {len(chosen.windows)} windows of {chosen.windows.shape[1]} tokens of "
        f"{', '.join(text.names)} (sha256 {text.sha256[:16]})\n"
        f"next: {shlex.join(convert)}"
    )


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
