"""`quantkit sweep`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING

import click

from quantkit.cli.completion import complete_recipe, complete_type
from quantkit.cli.lora import as_arguments, lora_option
from quantkit.cli.measuring import measuring_options
from quantkit.cli.memory import run_options
from quantkit.cli.optimizing import bounds, optimizing_options, refuse_idle, with_mixes
from quantkit.cli.report import EXTRA
from quantkit.cli.sizes import MEMORY
from quantkit.cli.source import SOURCE
from quantkit.cli.strategy import strategy_options
from quantkit.cli.talk import Talk, table
from quantkit.errors import Paused, UsageError
from quantkit.osio import refuse_replacing
from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.checkpoint import Lora
    from quantkit.report import Report
    from quantkit.sweep import Request, Shard, Sweep

_SHARD_SCHEMA = {"name": "quantkit.sweep.shard", "version": 1}


@click.command("sweep", short_help="Measure every type and pick the best that fits.")
@click.argument("source", type=SOURCE)
@click.option("--vram", type=MEMORY, required=True, help="Memory of the card: 12GiB, 12GB.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for all that comes of it.")
@click.option(
    "-t",
    "--type",
    "types",
    multiple=True,
    shell_complete=complete_type,
    help="Preset; may be repeated.  [default: all that fit, and the next larger]",
)
@click.option(
    "--recipe",
    default="llama.cpp",
    shell_complete=complete_recipe,
    help="Family of the presets, or a TOML file.  [default: llama.cpp]",
)
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix, as for convert.")
@strategy_options
@lora_option()
@click.option("--ctx", "context", type=int, help="Tokens of each sequence.  [default: the model's, at most 16384]")
@run_options
@measuring_options("eval.txt")
@optimizing_options
@click.option("--shard", "shard_text", metavar="I/N", help="Measure every N-th candidate, from the I-th on, and stop.")
@click.option("--merge", is_flag=True, help="Measure nothing: report what the shards have left in the folder.")
@click.option("--ray", metavar="ADDRESS", help="Measure on a Ray cluster: HOST:PORT, auto, or local for this machine.")
@click.option("--no-write", is_flag=True, help="Do not write the file that is picked.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON on stdout; of a shard, what it has measured.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no table.")
def command(
    source: Path,
    vram: int,
    output: Path,
    types: Sequence[str],
    recipe: str,
    imatrix: Path | None,
    strategy: str,
    covariance: Path | None,
    lora: tuple[Lora, ...],
    context: int | None,
    kv_type: str,
    parallel: int,
    ubatch: int,
    gpu_layers: int | None,
    overhead: int,
    texts: Sequence[str],
    window: int,
    windows: int | None,
    dtype: str,
    device: str,
    optimize: bool,
    keep: tuple[str, ...],
    min_type: str | None,
    same_type: tuple[str, ...],
    probes: int | None,
    shard_text: str | None,
    merge: bool,
    ray: str | None,
    no_write: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure what every type would lose of SOURCE, pick the best that fits a card, and write that one.

    Candidates are packed and unpacked in memory while the layers go by, so the source is read once for all of them.
    Each measurement is kept in the folder: a second run, one with more types, or one after a kill measures only what
    is missing.

    \b
    quantkit sweep my-phi-4 --vram 12GiB --ctx 16384 -o out/
    quantkit sweep my-phi-4 --vram 12GiB --ctx 16384 -o out/ --optimize      and a mix for that very card
    quantkit sweep my-phi-4 --vram 12GiB --ctx 16384 -o out/ --shard 1/4     one of four machines
    quantkit sweep my-phi-4 --vram 12GiB --ctx 16384 -o out/ --merge         their folders copied together
    quantkit sweep my-phi-4 --vram 12GiB --ctx 16384 -o out/ --ray head:6379 on the nodes of a Ray cluster
    """
    if gpu_layers == 0:
        raise UsageError("--vram with --gpu-layers 0", hint="a run without a card has no use for one")
    if shard_text is not None and merge:
        raise UsageError("--shard measures and --merge does not: take one of them")
    if optimize and (shard_text is not None or merge):
        hint = "let the shards run without it; then run it alone, on a folder with the measurements of all"
        raise UsageError("--optimize is for one machine", hint=hint)
    refuse_idle(optimize, {"keep": keep, "min_type": min_type, "same_type": same_type, "probes": probes})
    if ray is not None and merge:
        raise UsageError("--ray measures and --merge does not: take one of them")
    if ray is not None and covariance is not None:
        raise UsageError("--ray packs as llama.cpp does", hint="leave out --strategy, or --ray")
    from quantkit.evaluate import arithmetic, read_text
    from quantkit.report import outputs
    from quantkit.strategy import by_name
    from quantkit.sweep import Request, Sweep
    from quantkit.sweep.report import CSV, JSON

    talk = Talk(quiet)
    shard = _shard(shard_text) if shard_text is not None else None
    inputs = [*map(Path, texts), Path(recipe), *([imatrix] if imatrix else [])]
    refuse_replacing([output / JSON, output / CSV, *outputs(output)], inputs)
    request = Request(
        source,
        output,
        vram,
        context,
        {
            "kv_type": kv_type,
            "parallel": parallel,
            "ubatch": ubatch,
            "gpu_layers": gpu_layers,
            "overhead_bytes": overhead,
        },
        types,
        recipe,
        imatrix,
        read_text(texts) if texts else None,
        window,
        windows,
        arithmetic("f32", dtype, device),
        lora=lora,
        strategy=by_name(strategy, covariance),
    )
    with _going_on():
        if optimize:
            request = with_mixes(request, bounds(keep, min_type, same_type), probes, talk)
        with Sweep.open(request, talk.warn) as sweep:
            if not merge:
                _measure(sweep, shard, ray, talk)
            if shard:
                _say_measured(shard, [candidate.output.name for candidate in sweep.share(shard)], output, talk, as_json)
            else:
                _finish(sweep, request, not no_write, talk, as_json)


@contextmanager
def _going_on() -> Iterator[None]:
    """Wherever the command is stopped, it goes on: what is measured is kept.  Raises Paused."""
    from quantkit.sweep.measurements import GOES_ON

    try:
        yield
    except KeyboardInterrupt:
        raise Paused("stopped", hint=GOES_ON) from None


def _measure(sweep: Sweep, shard: Shard | None, ray: str | None, talk: Talk) -> None:
    from quantkit.sweep import connect

    n_missing = sweep.n_missing(shard)
    if not n_missing:
        talk.say("everything is measured already")
        return
    with connect(ray) if ray is not None else nullcontext() as cluster:
        where = f" on {cluster.n_nodes} nodes, {cluster.n_slots} tasks at once, each" if cluster else ","
        memory = size(sweep.memory_bytes(shard, cluster))
        talk.say(f"{n_missing} measurements to make{where} in about {memory} of memory")
        with talk.progress("measuring", sweep.n_steps(shard, cluster), of_bytes=False) as progress:
            sweep.measure(shard, lambda: progress(1), cluster)


def _say_measured(shard: Shard, names: Sequence[str], folder: Path, talk: Talk, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"schema": _SHARD_SCHEMA, "shard": shard.number, "shards": shard.count, "types": names}))
    talk.say(f"shard {shard.number} of {shard.count} has measured {', '.join(names) or 'nothing'}")
    talk.say(f"next: the same command with --merge, when all shards have, and their {folder} is one folder")


def _finish(sweep: Sweep, request: Request, write: bool, talk: Talk, as_json: bool) -> None:
    """Report, and write the file that is picked."""
    from quantkit.report import missing, read_report, served, write_pages
    from quantkit.sweep.report import write_report

    report = sweep.report()
    write_report(request.out, report)
    shown = read_report(request.out)
    page = write_pages(shown, request.out)[0]
    chosen = sweep.chosen()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif not talk.quiet:
        _show(shown)
    talk.say(f"wrote {page}" + (f"; a page with plots needs {' and '.join(missing())}: {EXTRA}" if missing() else ""))
    if not write:
        talk.say(f"next: {_command(request, report['pick']['type'], chosen.path)}")
        return
    if chosen.is_written():
        talk.say(f"{chosen.path} is there already")
    else:
        with talk.progress("converting", chosen.plan.source_bytes) as progress:
            chosen.write(progress)
        talk.say(f"wrote {chosen.path}")
    talk.say(f"next: {served(shown, str(chosen.path))}")


def _command(request: Request, name: str, path: Path) -> str:
    """The command that writes the file that was picked."""
    recipe = str(request.out / f"{name}.toml") if request.is_mix(name) else request.recipe
    kind = [] if recipe.endswith(".toml") else ["-t", name]
    family = ["--recipe", recipe] if recipe != "llama.cpp" else []
    imatrix = ["--imatrix", str(request.imatrix)] if request.imatrix else []
    how = [*as_arguments(request.lora), *kind, *family, *imatrix, *request.strategy.arguments]
    return join(["quantkit", "convert", str(request.source), *how, "-o", str(path)])


def _shard(text: str) -> Shard:
    """The shard that I/N names; raises UsageError."""
    from quantkit.sweep import Shard

    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
    if found is None:
        raise UsageError("--shard takes I/N", expected="1/4 for the first of four", found=text)
    return Shard(int(found[1]), int(found[2]))


def _show(report: Report) -> None:
    from quantkit.report import measured
    from quantkit.report import table as rows

    click.echo(table(rows(report)))
    click.echo(measured(report))
    click.echo(f"\n{report.pick.sentence}")
