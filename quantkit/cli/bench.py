"""`quantkit bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from quantkit import qtypes
from quantkit.cli.completion import complete_tensor_type
from quantkit.cli.talk import Talk, table

if TYPE_CHECKING:
    from quantkit.bench import Report, Speed

SCHEMA = {"name": "quantkit.bench", "version": 1}


@click.command("bench", short_help="Measure the kernels on this machine.")
@click.option(
    "-t",
    "--type",
    "types",
    multiple=True,
    type=click.Choice([qtype.name for qtype in qtypes.ALL], case_sensitive=False),
    shell_complete=complete_tensor_type,
    metavar="TYPE",
    help="Tensor type such as Q4_K; may be repeated.  [default: all but F32]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Time for each type and mode, at least.",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(types: Sequence[str], seconds: float, as_json: bool, quiet: bool) -> None:
    """Measure how fast this machine packs and unpacks weights, with every instruction set it has and with NumPy.

    First the bytes of all are compared. ggml's own speed is measured beside ours where its library is installed:

    \b
    pip install --no-deps libggml-python

    \b
    quantkit bench
    quantkit bench -t Q4_K -t Q6_K
    """
    from quantkit.bench import TYPES, bench

    wanted = [qtypes.by_name(name) for name in types] or TYPES
    with _steps(Talk(quiet)) as progress:
        report = bench(wanted, seconds=seconds, progress=progress)
    if as_json:
        click.echo(json.dumps(_as_json(report), indent=2))
    else:
        click.echo(shown(report))


@contextmanager
def _steps(talk: Talk) -> Iterator[Callable[[str], None]]:
    """A function to call with each step: it changes a line on a terminal, and is heard of once a stage off it."""
    if sys.stderr.isatty() and not talk.quiet:
        from rich.console import Console

        with Console(stderr=True).status("") as status:
            yield status.update
        return
    stages = set()

    def step(text: str) -> None:
        stage = text.partition(":")[0]
        if stage not in stages:
            talk.say(stage)
        stages.add(stage)

    yield step


def shown(report: Report) -> str:
    """The report for people: a table for each mode, and one of what can be held against memcpy."""
    from quantkit.bench import MEMCPY, Mode

    n_rows, n_columns = report.shape
    lines = [
        f"{report.processor}; {report.backend} is what the other commands use here",
        f"Million weights a second, of {n_rows} x {n_columns} Gaussian ones ({report.numpy_rows} rows for NumPy), "
        "on one thread where no other number stands",
    ]
    if report.ggml:
        lines.append(f"x: the ratio to ggml, that is libggml-python {report.ggml}, whose turns came between ours")
    elif report.without_ggml:
        lines.append(f"without ggml's: {report.without_ggml}; to have them: {report.without_ggml.hint}")
    for mode in Mode:
        speeds = [speed for speed in report.speeds if speed.mode is mode]
        lines += ["", _table(mode.value, speeds, _rate)]
    with_memcpy = [speed for speed in report.speeds if MEMCPY in speed.weights_per_second]
    if with_memcpy:
        lines += ["", _table("bytes moved", with_memcpy, _share)]
        lines.append("What decode reads and writes in a second, as a share of what memcpy does")
    return "\n".join(lines)


def _table(title: str, speeds: Sequence[Speed], cell: Callable[[Speed, str], str]) -> str:
    """A line for each type, a column for each runner that the cells say something of."""
    names = [name for name in speeds[0].weights_per_second if cell(speeds[0], name)]
    rows = [(title, *(f"{name.removeprefix('native/'):>5}" for name in names))]
    rows += [(speed.qtype.name, *(cell(speed, name) for name in names)) for speed in speeds]
    return table(rows)


def _rate(speed: Speed, name: str) -> str:
    from quantkit.bench import GGML, MEMCPY

    if name == MEMCPY:
        return ""
    rate = f"{speed.weights_per_second[name] / 1e6:5.0f}"
    ratio = speed.ratio(name) if name != GGML else None
    return rate if ratio is None else f"{rate} {ratio:5.{2 if ratio < 1 else 1}f}x"


def _share(speed: Speed, name: str) -> str:
    from quantkit.bench import MEMCPY

    if name == MEMCPY:
        return f"{8 * speed.weights_per_second[name] / 1e9:.0f} GB/s"
    return f"{speed.memcpy_share(name):5.0%}"


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "processor": report.processor,
        "backend": report.backend,
        "libggml_python": report.ggml,
        "rows": report.shape[0],
        "columns": report.shape[1],
        "numpy_rows": report.numpy_rows,
        "speeds": [_speed_as_json(speed) for speed in report.speeds],
    }


def _speed_as_json(speed: Speed) -> dict[str, Any]:
    """Weights a second of each; of ours the ratio to ggml's, and the share of memcpy's bytes, where there are any."""
    from quantkit.bench import GGML, MEMCPY

    names = [name for name in speed.weights_per_second if name not in (GGML, MEMCPY)]
    ratios = {name: speed.ratio(name) for name in names}
    shares = {name: speed.memcpy_share(name) for name in names}
    return {
        "type": speed.qtype.name,
        "mode": speed.mode.value,
        "weights_per_second": {name: round(rate) for name, rate in speed.weights_per_second.items()},
        "ratio_to_ggml": {name: round(ratio, 3) for name, ratio in ratios.items() if ratio is not None},
        "share_of_memcpy": {name: round(share, 3) for name, share in shares.items() if share is not None},
    }
