"""What a sweep found, to be looked at: a page, its plots and a Markdown file, all from report.json alone.

The page and the plots need the extra `report`, and say so; the Markdown file does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from quantkit.osio import AtomicFile, make_folder
from quantkit.report.commands import served
from quantkit.report.markdown import markdown
from quantkit.report.record import Report, read_report
from quantkit.report.table import measured, table

__all__ = ["Report", "measured", "missing", "outputs", "read_report", "served", "table", "write_pages"]

HTML, MARKDOWN, PLOTS = "report.html", "report.md", "plots"


def missing() -> list[str]:
    """The libraries of the extra `report` that are not installed."""
    return [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]


def outputs(folder: Path) -> list[Path]:
    """The files that write_pages writes there, plots aside."""
    return [folder / HTML, folder / MARKDOWN]


def write_pages(report: Report, folder: Path) -> list[Path]:
    """Write report.html, report.md and plots/*.svg, *.png; of these report.md alone where a library is missing.

    The same report gives the same bytes under the same version of matplotlib.

    report   as read_report reads it
    folder   is there
    returns  what was written, the page first
    raises   OutputError, DiskError
    """
    if missing():
        return _write(folder, {MARKDOWN: markdown(report, {}).encode()})
    from quantkit.report.page import page
    from quantkit.report.plots import plots

    drawn = plots(report)
    links = {plot.title: f"{PLOTS}/{plot.name}.png" for plot in drawn}
    make_folder(folder / PLOTS)
    files = {HTML: page(report, drawn).encode(), MARKDOWN: markdown(report, links).encode()}
    for plot in drawn:
        files |= {f"{PLOTS}/{plot.name}.svg": plot.wide.encode(), f"{PLOTS}/{plot.name}.png": plot.png}
    return _write(folder, files)


def _write(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    for name, data in files.items():
        with AtomicFile(folder / name) as out:
            out.write(data, 0)
            out.publish()
    return [folder / name for name in files]
