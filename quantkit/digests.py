"""SHA-256 of things whose pieces are worked on side by side: each piece waits for its turn."""

from __future__ import annotations

import hashlib
import threading
from types import TracebackType
from typing import Self


class Abandoned(Exception):
    """A piece before this one failed, so this one's turn will never come. The failure itself is raised elsewhere."""


class OrderedDigest:
    """The SHA-256 of consecutive pieces that many threads add; pieces must be begun in order, not finished in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._n_bytes = 0
        self._failed = False
        self._turn = threading.Condition()

    def add(self, offset: int, piece: memoryview) -> None:
        """Add the piece that begins at offset, after all before it; raises Abandoned if one of them failed."""
        view = piece.cast("B")
        with self._turn:
            self._turn.wait_for(lambda: self._failed or self._n_bytes == offset)
            if self._failed:
                raise Abandoned
            self._hash.update(view)
            self._n_bytes += len(view)
            self._turn.notify_all()

    def fail(self) -> None:
        """Let those who wait give up."""
        with self._turn:
            self._failed = True
            self._turn.notify_all()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class FailTogether:
    """A `with` block that lets the waiters of these digests give up if it ends by an exception."""

    def __init__(self, *digests: OrderedDigest) -> None:
        self._digests = digests

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for digest in self._digests:
                digest.fail()
