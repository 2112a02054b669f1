"""`quantkit doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantkit.cli.talk import Talk
from quantkit.errors import FormatError, GateError, TensorError, UnsupportedError

if TYPE_CHECKING:
    from quantkit.doctor import Finding

SCHEMA = {"name": "quantkit.doctor", "version": 1}


@click.command("doctor", short_help="Look for what is wrong, with this machine or a file.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, and only what is not ok.")
def command(file: Path | None, as_json: bool, quiet: bool) -> None:
    """Look for what is wrong with this installation; or with the GGUF file FILE, of a split one the first shard.

    Of a file: whether runtimes will load it, chat with it and stop, and whether every weight is a number.  Its chat
    template is rendered in a child process of 2 seconds and 256 MiB.

    \b
    quantkit doctor
    quantkit doctor my-phi-4-Q4_K_M.gguf
    """
    found = _of_file(file, Talk(quiet)) if file else _of_machine()
    if as_json:
        checks = [{"name": name} | asdict(finding) for name, finding in found]
        click.echo(json.dumps({"schema": SCHEMA, "file": str(file) if file else None, "checks": checks}, indent=2))
    else:
        _show(found, quiet)
    failed = [name for name, finding in found if finding.verdict == "failed"]
    if failed:
        raise GateError(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}")


def _of_machine() -> list[tuple[str, Finding]]:
    from quantkit.doctor import findings, machine_checks

    return list(findings(machine_checks(Path())))


def _of_file(file: Path, talk: Talk) -> list[tuple[str, Finding]]:
    from quantkit.doctor import Finding, Model, Verdict, findings, model_checks

    try:
        model = Model(file)
    except (FormatError, TensorError, UnsupportedError) as error:
        return [("structure", Finding(Verdict.FAILED, str(error), error.hint or "fetch or convert it again"))]
    with model:
        nbytes = sum(tensor.nbytes for tensor in model.weights.tensors.values())
        with talk.progress("looking at the weights", nbytes) as progress:
            return list(findings(model_checks(model, progress)))


def _show(found: Iterable[tuple[str, Finding]], quiet: bool) -> None:
    """A line for each check, and under it the cure."""
    shown = [(name, finding) for name, finding in found if not quiet or finding.verdict != "ok"]
    width = max((len(name) for name, _ in shown), default=0)
    for name, finding in shown:
        click.echo(f"{finding.verdict:7}  {name.ljust(width)}  {finding.found}")
        if finding.cure:
            click.echo(f"{'':7}  {'':{width}}  cure: {finding.cure}")
