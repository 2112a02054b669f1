"""The text that models are measured on: the user's files, a file of a dataset on the hub, or the one that is shipped.

A text is taken as it stands, to the byte: nothing is stripped, no line end is changed, and a byte order mark is refused
where other tools would make a token of it.  So the SHA-256 of a text that is one file is that of the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.checkpoint.hub import fetch_file
from quantkit.errors import FormatError, InputError, UsageError
from quantkit.osio import InputFile, is_file

SHIPPED = Path(__file__).parents[1] / "data"
CALIBRATION = ("calibration.txt", "broad.txt")
BETWEEN_FILES = "\n\n"

_HUB = "hub:"
_ON_THE_HUB = re.compile(r"hub:(?P<repo>[^/@]+/[^/@]+)/(?P<path>.+?)(?:@(?P<revision>[^@]+))?")
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Text:
    """A text and where it comes from.

    sha256  of its UTF-8 bytes
    names   of its files, without their folders; of one on the hub, all that names it
    """

    text: str
    sha256: str
    names: tuple[str, ...]


def read_text(places: Sequence[str]) -> Text:
    """The files at places, joined by a blank line.

    places  each a path, or `hub:ORG/NAME/FILE[@REVISION]`, a file of a dataset on the hub; a local file of that name
            wins, and the last @ begins a revision
    raises  InputError   a file is missing, unreadable or empty
            FormatError  a file is not UTF-8, or begins with a byte order mark
            UsageError   what begins with hub: names no file there
            HubError     the hub cannot be reached, or refuses
            DiskError    reading fails
    """
    found = [_find(place) for place in places]
    text = BETWEEN_FILES.join(_read(path) for path, _ in found)
    return Text(text, hashlib.sha256(text.encode()).hexdigest(), tuple(name for _, name in found))


def shipped(name: str) -> Text:
    """A text that comes with quantkit, "eval.txt" or one of CALIBRATION; it never changes under a version."""
    return read_text([str(SHIPPED / name)])


def calibration_text(places: Sequence[str], *, broad: bool) -> Text:
    """What to collect from: the texts at places, as read_text() takes them; where there are none, calibration.txt.

    broad   for second moments, which need more and more varied text than importance: all of CALIBRATION in any case
    """
    ours = CALIBRATION if broad else () if places else CALIBRATION[:1]
    return read_text([*places, *(str(SHIPPED / name) for name in ours)])


def _find(place: str) -> tuple[Path, str]:
    """The local file of a place, and its name."""
    path = Path(place)
    if not place.startswith(_HUB) or is_file(path):
        return path, path.name
    named = _ON_THE_HUB.fullmatch(place)
    if named is None:
        raise UsageError(
            "is neither a local file nor one of a dataset on the hub",
            file=place,
            expected="hub:ORG/NAME/FILE or hub:ORG/NAME/FILE@REVISION",
        )
    return fetch_file(named["repo"], named["path"], named["revision"], repo_type="dataset"), place


def _read(path: Path) -> str:
    with InputFile(path) as file:
        data = file.read(file.size)
    if not data:
        raise InputError("the text is empty", file=path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(
            "is not UTF-8", file=path, offset=error.start, found=f"byte {data[error.start]:#04x}"
        ) from None
    if text.startswith(_BYTE_ORDER_MARK):
        raise FormatError("begins with a byte order mark", hint="save it as UTF-8 without one", file=path, offset=0)
    return text
