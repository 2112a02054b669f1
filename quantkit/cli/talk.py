"""What commands say: data on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quantkit.units import size

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS_BETWEEN_LINES = 5.0


class Talk:
    """Messages and progress on stderr, silent if quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._warned: set[str] = set()
        if quiet:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # huggingface_hub draws its own

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        """Warnings are said even if quiet, and each once."""
        if text not in self._warned:
            self._warned.add(text)
            print(f"quantkit: warning: {text}", file=sys.stderr)

    @contextmanager
    def progress(self, what: str, total: int, *, of_bytes: bool = True) -> Iterator[Callable[[int], None]]:
        """A function to call with the size of each finished piece: a bar on a terminal, a line now and then off it.

        total     what the pieces add up to: bytes, or else any steps of about the same length
        """
        if self.quiet:
            yield lambda done: None
        elif sys.stderr.isatty():
            yield from _bar(what, total, of_bytes)
        else:
            yield from _lines(what, total, of_bytes)


def _bar(what: str, total: int, of_bytes: bool) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (DownloadColumn(True), TransferSpeedColumn()) if of_bytes else (TaskProgressColumn(),)
    columns = (TextColumn(what), BarColumn(), *amount, TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _lines(what: str, total: int, of_bytes: bool) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    done = 0

    def advance(piece: int) -> None:
        nonlocal done, last
        done += piece
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = done / (now - start)
        amount = f"{size(done)} of {size(total)}, {size(rate)}/s" if of_bytes else f"{100 * done / total:.0f} %"
        print(f"{what}: {amount}, ETA {(total - done) / rate:.0f} s", file=sys.stderr)

    yield advance


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, the last as wide as it likes."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    )
