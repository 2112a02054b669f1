"""Every way quantkit refuses or fails, and the exit code each one ends a command with.

An error names what a reader needs to act: the file, the tensor or key, the byte offset, what was expected, what was
found, and a hint.  Foreign exceptions become one of these in the module that meets the outside; `assert` is for our
bugs.
"""

from __future__ import annotations

import os
from typing import Any


class QuantkitError(Exception):
    """Base of all errors a user can meet.

    message   what is wrong, one sentence without the place
    hint      what to do about it, or None
    file, tensor, key, offset, row, column, expected, found
              the place and the facts; those given are printed in this order and kept in `details`
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        key: str | None = None,
        offset: int | None = None,
        row: int | None = None,
        column: int | None = None,
        expected: Any = None,
        found: Any = None,
    ) -> None:
        self.message = message
        self.hint = hint
        places = {"file": file, "tensor": tensor, "key": key, "offset": offset, "row": row, "column": column}
        facts = {"expected": expected, "found": found}
        self.details = {name: value for name, value in (places | facts).items() if value is not None}
        super().__init__(self.describe())

    def describe(self) -> str:
        """The message with its place in front and its facts behind, on one line."""
        places = [
            f"{value}" if name == "file" else f"{name} {value}"
            for name, value in self.details.items()
            if name not in ("expected", "found")
        ]
        facts = [f"{name} {self.details[name]}" for name in ("expected", "found") if name in self.details]
        where = ", ".join(places)
        return (f"{where}: " if where else "") + self.message + (f" ({', '.join(facts)})" if facts else "")


class UsageError(QuantkitError):
    """The command line or a call does not make sense, or results cannot be compared."""

    exit_code = 2


class GateError(QuantkitError):
    """A gate was not met: what was measured is worse than what was recorded."""

    exit_code = 3


class InputError(QuantkitError):
    """What was given to read is not what it claims to be."""

    exit_code = 65


class FormatError(InputError):
    """A file's structure breaks its format: truncated, overlapping, lying header."""


class ConfigError(InputError):
    """config.json or a tokenizer file lacks a key or holds an impossible value."""


class TensorError(InputError):
    """A tensor is missing, extra, or has the wrong shape or dtype."""


class VocabularyError(InputError):
    """The vocabulary contradicts itself or the embedding."""


class RecipeError(InputError):
    """A recipe cannot be read, or leaves a tensor without a type."""


class UnsupportedError(InputError):
    """A sound input of a kind quantkit does not convert yet; the hint lists what it does."""


class ShapeError(InputError):
    """A row length does not divide into a type's blocks, or arrays do not fit together."""


class NotFiniteError(InputError):
    """NaN or infinity among the weights."""


class MagnitudeError(InputError):
    """A finite weight too large for the type it should be packed into."""


class HubError(QuantkitError):
    """The hub cannot be reached, or does not give what was asked for."""

    exit_code = 69


class ClusterError(QuantkitError):
    """A cluster cannot be reached, or its nodes cannot do their part."""

    exit_code = 69


class OutputError(QuantkitError):
    """The output cannot be created: permission, a folder in its place, no space, in use."""

    exit_code = 73


class BusyError(OutputError):
    """Another run is writing this output."""


class DiskError(QuantkitError):
    """Reading or writing failed half-way (EIO, ENOSPC, a file that shrank)."""

    exit_code = 74


class BugError(QuantkitError):
    """What cannot happen did: a bug of quantkit, or of what it was built with."""

    exit_code = 70


class Interrupted(QuantkitError):
    """Stopped by a signal, and there is nothing to go on from."""

    exit_code = 130


class Paused(QuantkitError):
    """Stopped by a signal; the same command goes on from what is done."""

    exit_code = 75


class UnsafeError(QuantkitError):
    """Refused for safety: a name that leaves its folder, a format that executes code."""

    exit_code = 77
