"""What a part file holds for certain, written beside it, so that an interrupted conversion can go on.

`OUT.gguf.part.json` names the plan that the part belongs to and, for each tensor that is complete and on disk, the
SHA-256 of its bytes and of the source tensors it was made from.  It is replaced whole, after the part was synced.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantkit.checkpoint.json_file import read_json
from quantkit.errors import QuantkitError
from quantkit.osio import AtomicFile

SCHEMA = {"name": "quantkit.part", "version": 1}


@dataclass(frozen=True)
class Done:
    """A tensor that is complete: the SHA-256 of its bytes in the part, and of each source tensor by name."""

    sha256: str
    sources: dict[str, str]


@dataclass
class Journal:
    """The record beside one part file.

    path     of the record
    plan     the digest of what the part is being filled with
    tensors  those that are complete, by GGUF name
    """

    path: Path
    plan: str
    tensors: dict[str, Done] = field(default_factory=dict)

    @classmethod
    def beside(cls, part: Path, plan: str) -> Journal:
        """The journal of a part file, with what an earlier run of the same plan recorded there."""
        journal = cls(part.with_name(part.name + ".json"), plan)
        record = _read(journal.path)
        if record.get("schema") == SCHEMA and record.get("plan") == plan:
            with contextlib.suppress(TypeError, KeyError, AttributeError):  # a record of another shape is none
                journal.tensors = {name: Done(**done) for name, done in record["tensors"].items()}
        return journal

    @staticmethod
    def owner(part: Path) -> int | None:
        """The process that wrote the journal of a part file last."""
        pid = _read(part.with_name(part.name + ".json")).get("pid")
        return pid if isinstance(pid, int) else None

    def write(self) -> None:
        """Put the record on disk, whole; raises OutputError, DiskError."""
        tensors = {name: asdict(done) for name, done in self.tensors.items()}
        record = {"schema": SCHEMA, "plan": self.plan, "pid": os.getpid(), "tensors": tensors}
        data = json.dumps(record, indent=1).encode()
        with AtomicFile(self.path) as file:
            file.write(data, 0)
            file.publish()

    def remove(self) -> None:
        """Take the record away."""
        self.path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """The record at path; empty where there is none or it cannot be made out, for then the part starts over."""
    try:
        record = read_json(path)
    except QuantkitError:
        return {}
    return record if isinstance(record, dict) else {}
