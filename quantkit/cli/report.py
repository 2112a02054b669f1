"""`quantkit report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from quantkit.cli.talk import Talk
from quantkit.errors import UsageError
from quantkit.osio import is_folder, make_folder, refuse_replacing

SCHEMA = {"name": "quantkit.report", "version": 1}
EXTRA = "pip install 'quantkit[report]'"


@click.command("report", short_help="Draw the pages and plots of a sweep again.")
@click.argument("place", metavar="DIR|report.json", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder.  [default: that of report.json]")
@click.option("--json", "as_json", is_flag=True, help="The names of the files as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing.")
def command(place: Path, output: Path | None, as_json: bool, quiet: bool) -> None:
    """Make report.html, report.md and the plots from a sweep's report.json: nothing is measured.

    \b
    quantkit report out/
    quantkit report out/report.json -o page/
    """
    from quantkit.report import missing, outputs, read_report, write_pages

    if missing():
        raise UsageError(f"a page with plots needs {' and '.join(missing())}", hint=EXTRA)
    report = read_report(place)
    folder = output or (place if is_folder(place) else place.parent)
    refuse_replacing(outputs(folder), [place])
    make_folder(folder)
    files = write_pages(report, folder)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "files": list(map(str, files))}, indent=2))
    Talk(quiet).say(f"wrote {files[0]}, and {len(files) - 1} files beside it")
