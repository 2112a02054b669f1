"""What a check found, and how a table of checks is gone through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from quantkit.errors import QuantkitError


class Verdict(StrEnum):
    """How a check ended; only FAILED makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    found  in one sentence
    cure   what to do about it, or None
    """

    verdict: Verdict
    found: str
    cure: str | None = None


Check = Callable[[], Finding]


def ok(found: str) -> Finding:
    return Finding(Verdict.OK, found)


def warning(found: str, cure: str | None) -> Finding:
    return Finding(Verdict.WARNING, found, cure)


def failed(found: str, cure: str | None) -> Finding:
    return Finding(Verdict.FAILED, found, cure)


def skipped(found: str, cure: str | None = None) -> Finding:
    return Finding(Verdict.SKIPPED, found, cure)


def findings(checks: Iterable[tuple[str, Check]]) -> Iterator[tuple[str, Finding]]:
    """Run a table of (name, check); a typed error of one is what it found."""
    for name, check in checks:
        try:
            yield name, check()
        except QuantkitError as error:
            yield name, failed(str(error), error.hint)
