"""Measurements that are kept: one file for each, named by the SHA-256 of all that decides its figures.

    <sha256 of the facts>.scores    first line: SHA-256 of all bytes after it
                                    second line: the facts, as JSON
                                    then nll f64, kld f64, agree u8 of every position, little endian; of the base nll
                                    alone
    <sha256 of a question>.note     what was found out once and costs reading to find out again

Nothing in a name or in the facts is of one machine, so folders of several can be copied together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import BusyError, FormatError, InputError
from quantkit.evaluate import Scores
from quantkit.osio import AtomicFile, InputFile, is_file

Facts = Mapping[str, Any]


class Store:
    """The measurements in a folder.

    warn  called for each that is damaged; it is then as if it were not there
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn

    def get(self, facts: Facts, n: int) -> Scores | None:
        """The scores of n positions that were kept under facts, or None; raises DiskError."""
        path = self._folder / f"{key(facts)}.scores"
        if not is_file(path):
            return None
        try:
            return _unpacked(_read(path), facts, n)
        except (InputError, ValueError) as error:
            self._warn(f"{path}: {error}; it is measured again")
            return None

    def put(self, facts: Facts, scores: Scores) -> None:
        """Keep scores; raises OutputError, DiskError."""
        self._write(f"{key(facts)}.scores", _packed(facts, scores))

    def recall(self, question: Facts) -> str | None:
        """The answer that was kept, or None; raises DiskError."""
        path = self._folder / f"{key(question)}.note"
        if not is_file(path):
            return None
        digest, _, answer = _read(path).partition(b"\n")
        return answer.decode() if digest == _digest(answer) else None

    def remember(self, question: Facts, answer: str) -> None:
        """Keep the answer to a question; raises OutputError, DiskError."""
        self._write(f"{key(question)}.note", _digest(answer.encode()) + b"\n" + answer.encode())

    def _write(self, name: str, data: bytes) -> None:
        with suppress(BusyError), AtomicFile(self._folder / name) as out:  # another run is writing the same bytes
            out.write(data, 0)
            out.publish()


def key(facts: Facts) -> str:
    """SHA-256 of facts, whatever their order."""
    return hashlib.sha256(_as_json(facts)).hexdigest()


def _as_json(facts: Facts) -> bytes:
    return json.dumps(facts, sort_keys=True).encode()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _read(path: Path) -> bytes:
    with InputFile(path) as file:
        return bytes(file.read(file.size))


def _packed(facts: Facts, scores: Scores) -> bytes:
    arrays = [scores.nll.astype("<f8")]
    if scores.kld is not None and scores.agree is not None:
        arrays += [scores.kld.astype("<f8"), scores.agree.astype(np.uint8)]
    body = _as_json(facts) + b"\n" + b"".join(array.tobytes() for array in arrays)
    return _digest(body) + b"\n" + body


def _unpacked(data: bytes, facts: Facts, n: int) -> Scores:
    """The scores in a file's bytes; raises FormatError."""
    digest, _, body = data.partition(b"\n")
    if digest != _digest(body):
        raise FormatError("the measurement is damaged")
    stated, _, values = body.partition(b"\n")
    if stated != _as_json(facts) or len(values) not in (8 * n, 17 * n):
        raise FormatError("the measurement is not what its name says")
    nll = np.frombuffer(values, "<f8", n).astype(np.float64)
    if len(values) == 8 * n:
        return Scores(nll)
    kld = np.frombuffer(values, "<f8", n, 8 * n).astype(np.float64)
    return Scores(nll, kld, np.frombuffer(values, np.uint8, n, 16 * n).astype(np.bool_))
