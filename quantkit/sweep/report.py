"""What a sweep found, as JSON and as CSV: the same bytes for the same measurements, whenever they were made."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.osio import AtomicFile

JSON, CSV = "report.json", "report.csv"
# column of the CSV: where its figure stands in a candidate of the JSON
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "type": ("type",),
    "file_bytes": ("file_bytes",),
    "tensor_bytes": ("tensor_bytes",),
    "bits_per_weight": ("bits_per_weight",),
    "card_bytes": ("memory", "card_bytes"),
    "host_bytes": ("memory", "host_bytes"),
    "fits": ("memory", "fits"),
    "ppl": ("ppl",),
    "ppl_stderr": ("ppl_stderr",),
    "kld_mean": ("kld", "mean"),
    "kld_stderr": ("kld", "stderr"),
    "kld_p99": ("kld", "p99"),
    "kld_max": ("kld", "max"),
    "same_top": ("same_top",),
    "ppl_ratio": ("ppl_ratio",),
    "ppl_ratio_stderr": ("ppl_ratio_stderr",),
}
_FORMULA = ("=", "+", "-", "@")  # a spreadsheet would reckon out a name that begins so


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json and report.csv; raises OutputError, DiskError."""
    for name, text in ((JSON, json.dumps(report, indent=1) + "\n"), (CSV, _as_csv(report))):
        with AtomicFile(folder / name) as out:
            out.write(text.encode(), 0)
            out.publish()


def _as_csv(report: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for candidate in report["candidates"]:
        writer.writerow([_at(candidate, path) for path in _COLUMNS.values()])
    return text.getvalue()


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value[name]
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return json.dumps(value) if isinstance(value, bool) else value
