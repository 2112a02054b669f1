"""The table of candidates, in words: for a terminal, a page and a Markdown file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quantkit.report.record import Candidate, Report
from quantkit.units import size

# heading: the cell of a candidate
_COLUMNS: Mapping[str, Callable[[Candidate], str]] = {
    "type": lambda one: one.name,
    "file": lambda one: size(one.file_bytes),
    "bits/weight": lambda one: f"{one.bits_per_weight:.2f}",
    "on the card": lambda one: size(one.memory.card_bytes),
    "PPL": lambda one: f"{one.ppl:.4f}",
    "KLD": lambda one: f"{one.kld.mean:.5f} ± {one.kld.stderr:.5f}",
    "predicted": lambda one: "" if one.predicted_kld is None else f"{one.predicted_kld:.5f}",
    "99 %": lambda one: f"{one.kld.p99:.4f}",
    "same top": lambda one: f"{100 * one.same_top:.2f} %",
}


def table(report: Report) -> list[list[str]]:
    """Headings, the base, and a row for each candidate; in the last column what becomes of it.

    The column of predictions is there where something was predicted.
    """
    headings = [heading for heading in _COLUMNS if heading != "predicted" or report.mixes]
    of_base = {"type": "base", "file": size(report.source_bytes), "PPL": f"{report.base.ppl:.4f}"}
    rows = [[*headings, ""], [*(of_base.get(heading, "") for heading in headings), ""]]
    for one in report.candidates:
        rows.append([*(_COLUMNS[heading](one) for heading in headings), verdict(report, one)])
    return rows


def verdict(report: Report, candidate: Candidate) -> str:
    """What becomes of a candidate."""
    if candidate.name == report.pick.name:
        return "picked"
    return "" if candidate.memory.fits else "does not fit"


def measured(report: Report) -> str:
    """What was measured on what, in a line."""
    return (
        f"{report.windows} windows of {report.window} tokens, the second half of each scored; text "
        f"{', '.join(report.text)} (sha256 {report.text_sha256[:16]}); {report.dtype} on {report.device}; KLD in nats"
    )
