"""The file that is picked: written once, and known again as long as nobody touches it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.convert import convert
from quantkit.imatrix import Imatrix
from quantkit.plan import Plan, make_plan, output_paths
from quantkit.recipe import Recipe
from quantkit.source import GGUFWeights
from quantkit.sweep.store import Store, key


class Chosen:
    """A conversion, and where its file goes.

    source_sha256  of the weights
    folder         for the file
    store          remembers what was written
    """

    def __init__(
        self,
        weights: Checkpoint | GGUFWeights,
        recipe: Recipe,
        imatrix: Imatrix | None,
        *,
        source_sha256: str,
        folder: Path,
        store: Store,
    ) -> None:
        self._weights, self._source_sha256, self._store = weights, source_sha256, store
        self.plan: Plan = make_plan(weights, [recipe], imatrix=imatrix, warn=lambda text: None)
        ((self.path,),) = output_paths(self.plan.outputs, weights.name, folder, is_folder=True)

    def is_written(self) -> bool:
        """Whether the file is there as an earlier sweep wrote it."""
        answer = self._store.recall(_written(self.path)) if self.path.is_file() else None
        return answer == self._meaning()

    def write(self, progress: Callable[[int], None] = lambda source_bytes: None) -> None:
        """Convert, as `quantkit convert` does; raises what convert() does."""
        convert(self._weights, self.plan, [self.path], progress=progress)
        self._store.remember(_written(self.path), self._meaning())

    def _meaning(self) -> str:
        """SHA-256 of what the file holds: its planned header, and the source."""
        return key({"header": self.plan.files[0].header.hex(), "source_sha256": self._source_sha256})


def _written(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"written": [str(path.resolve()), status.st_size, status.st_mtime_ns]}
