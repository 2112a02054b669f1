"""The file that is picked: written once, and known again as long as nobody touches it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantkit.checkpoint import Checkpoint
from quantkit.convert import convert
from quantkit.imatrix import Imatrix
from quantkit.plan import Plan, make_plan, output_paths
from quantkit.recipe import Recipe
from quantkit.source import GGUFWeights
from quantkit.strategy import Strategy
from quantkit.sweep.store import Facts, Store, key


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
        strategy: Strategy,
        *,
        source_sha256: str,
        folder: Path,
        store: Store,
    ) -> None:
        self._weights, self._source_sha256, self._store = weights, source_sha256, store
        self.plan: Plan = make_plan(weights, [recipe], imatrix=imatrix, strategy=strategy, warn=lambda text: None)
        ((self.path,),) = output_paths(self.plan.outputs, weights.name, folder, is_folder=True)

    def is_written(self) -> bool:
        """Whether the file is there as an earlier sweep wrote it."""
        return self.path.is_file() and self._store.recall(self._question) == self._answer()

    def write(self, progress: Callable[[int], None] = lambda source_bytes: None) -> None:
        """Convert, as `quantkit convert` does; raises what convert() does."""
        convert(self._weights, self.plan, [self.path], progress=progress)
        self._store.remember(self._question, self._answer())

    @property
    def _question(self) -> Facts:
        """By the path alone: a note whose writing was killed is the one that the next run writes, under its name."""
        return {"written": str(self.path.resolve())}

    def _answer(self) -> str:
        """SHA-256 of what tells the file from others: its planned header, the source, its size and its moment."""
        status = self.path.stat()
        header, stat = self.plan.files[0].header.hex(), [status.st_size, status.st_mtime_ns]
        return key({"header": header, "source_sha256": self._source_sha256, "stat": stat})
