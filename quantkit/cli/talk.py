"""What commands say: data on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS_BETWEEN_LINES = 5.0


class Talk:
    """Messages and progress on stderr, silent if quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        """Warnings are said even if quiet."""
        print(f"quantkit: warning: {text}", file=sys.stderr)

    @contextmanager
    def progress(self, what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A function to call with the bytes of each finished piece: a bar on a terminal, a line now and then off it."""
        if self.quiet:
            yield lambda nbytes: None
        elif sys.stderr.isatty():
            yield from _bar(what, total_bytes)
        else:
            yield from _lines(what, total_bytes)


def _bar(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(True),
        TransferSpeedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda nbytes: bar.advance(task, nbytes)


def _lines(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done, last
        done += nbytes
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = done / (now - start)
        print(
            f"{what}: {size(done)} of {size(total_bytes)}, {size(rate)}/s, ETA {(total_bytes - done) / rate:.0f} s",
            file=sys.stderr,
        )

    yield advance


def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1024 and named so."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, the last as wide as it likes."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    )
