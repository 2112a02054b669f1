"""SHA256SUMS: the files of a release with their digests, as `sha256sum -c SHA256SUMS` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from quantkit.checkpoint.index import is_plain_name
from quantkit.errors import FormatError, InputError, UnsafeError
from quantkit.osio import InputFile, file_sha256

NAME = "SHA256SUMS"
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>.+)")


def as_text(digests: Mapping[str, str]) -> str:
    """The text of the file: digests by name, with forward slashes."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def read(folder: Path) -> dict[str, str]:
    """The digests in folder's SHA256SUMS by name; raises InputError, FormatError, UnsafeError, DiskError."""
    path = folder / NAME
    with InputFile(path) as file:
        lines = file.read(file.size).decode("utf-8", errors="replace").splitlines()
    digests: dict[str, str] = {}
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None or found["name"] in digests:
            raise FormatError("is no list of digests, or has a file twice", file=path, found=ascii(line[:80]))
        if not all(is_plain_name(part) for part in found["name"].split("/")):
            raise UnsafeError("a name leaves the folder", file=path, found=ascii(found["name"]))
        digests[found["name"]] = found["digest"]
    return digests


def check(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise InputError for the first file that is not as its digest says."""
    for name, digest in digests.items():
        found = file_sha256(folder / name)
        if found != digest:
            raise InputError(
                "is not the file that was released",
                hint="make the release again",
                file=folder / name,
                expected=digest,
                found=found,
            )
