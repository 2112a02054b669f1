"""`quantkit sweep` as a function, and as an object for those who want to do one step after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit import __version__
from quantkit.checkpoint import Checkpoint
from quantkit.convert import convert
from quantkit.errors import GateError, InputError, Paused
from quantkit.evaluate import (
    Model,
    Sample,
    Scores,
    conditions,
    groups,
    measure_group,
    n_group_steps,
    n_scored,
    sample,
    shipped,
    summary,
)
from quantkit.imatrix import Imatrix, read_imatrix
from quantkit.memory import MemoryUse, Run, longest_context, memory_use
from quantkit.osio import make_folder
from quantkit.plan import Output, Plan, make_plan, output_paths
from quantkit.qtypes import QType
from quantkit.recipe import Recipe, choose, families, preset, presets
from quantkit.source import GGUFWeights, open_source, read_source
from quantkit.sweep.candidates import Base, Candidate
from quantkit.sweep.cost import memory_bytes
from quantkit.sweep.pick import Option, Pick, pick, size
from quantkit.sweep.report import write_report
from quantkit.sweep.request import USUAL_CONTEXT, Request, Shard
from quantkit.sweep.store import Store, key

SCHEMA = {"name": "quantkit.sweep", "version": 1}
MEASUREMENTS = "measurements"
_NAMES_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Planned:
    """A candidate: its recipe, the file that it would be, and what that needs in the run."""

    recipe: Recipe
    output: Output
    use: MemoryUse

    @property
    def types(self) -> dict[str, QType]:
        """By GGUF name."""
        return {tensor.name: tensor.qtype for tensor in self.output.tensors}


class Sweep:
    """The measurements that a request comes down to, those that are there already, and what they say.

    Made by Sweep.open.
    candidates  smallest first
    run         how llama.cpp would be run
    missing     (candidate or None for the base, number of the group of windows) that are not measured yet
    """

    def __init__(
        self,
        request: Request,
        model: Model,
        weights: Checkpoint | GGUFWeights,
        imatrix: Imatrix | None,
        warn: Callable[[str], None],
    ) -> None:
        self.request, self._model, self._weights, self._imatrix = request, model, weights, imatrix
        made_for = model.network.rope.context
        context = min(made_for, USUAL_CONTEXT) if request.context is None else request.context
        if context > made_for:
            warn(f"the model is made for {made_for:,} tokens, and {context:,} are more")
        self.run = Run(context, **request.memory)
        recipes = _recipes(request, imatrix is not None)
        self._plan = make_plan(weights, recipes, imatrix=imatrix, warn=warn)
        self.candidates = self._wanted(recipes)
        self._sample: Sample = sample([model], request.text or shipped("eval.txt"), request.window, request.windows)
        make_folder(request.out)
        make_folder(request.out / MEASUREMENTS)
        self._store = Store(request.out / MEASUREMENTS, warn)
        self._groups = list(groups(self._sample.windows))
        self._found: dict[str, Scores] = {}
        for facts, n in self._units([None, *self.candidates]):
            scores = self._store.get(facts, n)
            if scores is not None:
                self._found[key(facts)] = scores

    @classmethod
    @contextmanager
    def open(cls, request: Request, warn: Callable[[str], None]) -> Iterator[Sweep]:
        """The sweep of a request, for a `with` block.  It takes the SHA-256 of the source if the store lacks it.

        warn    called with each warning
        raises  GateError   no candidate fits the card
                InputError in its kinds, UsageError: as convert and eval do
        """
        imatrix = read_imatrix(request.imatrix) if request.imatrix else None
        with open_source(request.source) as weights:
            source = read_source(
                weights, name=None, fix_special_tokens=False, chat_template=None, warn=lambda text: None
            )
            yield cls(request, Model(source), weights, imatrix, warn)

    def _wanted(self, recipes: Sequence[Recipe]) -> list[Planned]:
        """The candidates among what is planned; raises GateError where none fits."""
        network, vram = self._model.network, self.request.vram_bytes
        planned = [
            Planned(recipe, output, memory_use(network, output.tensors, self.run))
            for recipe, output in zip(recipes, self._plan.outputs, strict=True)
        ]
        planned.sort(
            key=lambda candidate: (candidate.use.card_bytes, candidate.output.tensor_bytes, candidate.output.name)
        )
        fitting = [candidate for candidate in planned if candidate.use.card_bytes <= vram]
        if not fitting:
            smallest = planned[0]
            context = longest_context(network, smallest.output.tensors, self.run, vram)
            raise GateError(
                "no candidate fits the card",
                expected=f"at most {size(vram)}",
                found=f"{size(smallest.use.card_bytes)} for {smallest.output.name}, the smallest, with "
                f"{self.run.context:,} tokens of context",
                hint=f"it would fit with {context:,} tokens: --ctx {context}"
                if context
                else "it does not fit with any context; --gpu-layers N leaves some layers to the processor",
            )
        if self.request.types or self.request.recipe not in families():
            return planned
        return planned[: len(fitting) + 1]

    # ---- what is measured

    @cached_property
    def source_sha256(self) -> str:
        """Of the source's files, read for it only if the store does not know them."""
        stats = [
            (str(shard.resolve()), status.st_size, status.st_mtime_ns)
            for shard in self._model.shards
            for status in [shard.stat()]
        ]
        known = self._store.recall({"sha256_of": stats})
        if known is None:
            known = self._model.sha256
            self._store.remember({"sha256_of": stats}, known)
        return known

    def _facts(self, candidate: Planned | None, number: int) -> dict[str, Any]:
        """All that decides the figures of a candidate, or of the base, in one group of windows."""
        start = sum(map(len, self._groups[:number]))
        quantized = candidate and {
            "types": {name: qtype.name for name, qtype in sorted(candidate.types.items())},
            "imatrix_sha256": self._imatrix.sha256 if self._imatrix else None,
        }
        return {
            "quantkit": __version__,
            **self._conditions(),
            "network_sha256": self._model.network_sha256,
            "device": self.request.how.device,
            "windows": [start, start + len(self._groups[number])],
            "quantized": quantized,
        }

    def _conditions(self) -> dict[str, Any]:
        return conditions(self._sample, self.request.how, None) | {"base_sha256": self.source_sha256}

    def _n_scores(self, number: int) -> int:
        return len(self._groups[number]) * n_scored(self._sample.windows.shape[1])

    def _units(self, candidates: Sequence[Planned | None]) -> Iterator[tuple[dict[str, Any], int]]:
        """The facts of every measurement of these candidates, None for the base, and how many positions it has."""
        for number in range(len(self._groups)):
            for candidate in candidates:
                yield self._facts(candidate, number), self._n_scores(number)

    def _missing(self, candidates: Sequence[Planned]) -> list[dict[str, Planned | None]]:
        """What is not measured yet, of each group of windows by key: two candidates of the same types are one."""
        return [
            {
                name: candidate
                for candidate in (None, *candidates)
                for name in [key(self._facts(candidate, number))]
                if name not in self._found
            }
            for number in range(len(self._groups))
        ]

    def share(self, shard: Shard | None) -> list[Planned]:
        """The candidates that a shard measures; all for None."""
        return self.candidates[shard.number - 1 :: shard.count] if shard else self.candidates

    def n_missing(self, shard: Shard | None = None) -> int:
        """How many measurements are to be made."""
        return sum(map(len, self._missing(self.share(shard))))

    def n_steps(self, shard: Shard | None = None) -> int:
        """How often measure() will call progress."""
        every = (len({*missing.values(), None}) for missing in self._missing(self.share(shard)) if missing)
        return sum(n_group_steps([self._model.network] * n_models) for n_models in every)

    def memory_bytes(self, shard: Shard | None = None) -> int:
        """About how much memory measure() takes at most."""
        missing = [{*missing.values()} - {None} for missing in self._missing(self.share(shard)) if missing]
        most = max(missing, key=len, default=set())
        types = [candidate.types for candidate in most if candidate]
        n_windows, n_positions = self._groups[0].shape
        return memory_bytes(self._model, types, (n_windows, n_positions))

    def measure(self, shard: Shard | None = None, progress: Callable[[], None] = lambda: None) -> None:
        """Make the measurements that are missing, all candidates side by side, and keep each as it is made.

        raises  Paused              KeyboardInterrupt came; the groups of windows that were finished are kept
                NotFiniteError, MagnitudeError   a weight that cannot be packed, or values that are no numbers
                OutputError, DiskError
        """
        importance = {job.name: job.importance for job in self._plan.jobs}
        base = Base(self._model, importance)
        try:
            for number, missing in enumerate(self._missing(self.share(shard))):
                if missing:
                    self._measure(base, number, missing, progress)
        except KeyboardInterrupt:
            raise Paused("stopped", hint="the same command goes on from what is measured") from None

    def _measure(
        self, base: Base, number: int, missing: Mapping[str, Planned | None], progress: Callable[[], None]
    ) -> None:
        """Measure one group of windows; the base runs along in any case."""
        names = {key(self._facts(None, number)): None} | dict(missing)
        models = [Candidate(base, self._model, one.types) if one else base for one in names.values()]
        found = measure_group(
            models, self._groups[number], self.request.how, has_base=True, together=True, progress=progress
        )
        for (name, candidate), scores in zip(names.items(), found, strict=True):
            if name in missing:
                self._store.put(self._facts(candidate, number), scores)
                self._found[name] = scores

    # ---- what it says

    def report(self) -> dict[str, Any]:
        """The result: see README.md.  Raises InputError where measurements are missing."""
        if lacking := self._lacking():
            raise InputError(
                f"{self.n_missing()} measurements are missing",
                hint="run the shards that have not finished, and copy their measurements folders together",
                file=self.request.out / MEASUREMENTS,
                found="nothing, or not all, of "
                + ", ".join(lacking[:_NAMES_SHOWN])
                + (", ..." if lacking[_NAMES_SHOWN:] else ""),
            )
        base = self._scores(None)
        choice = self.pick()
        return {
            "schema": SCHEMA,
            "quantkit": __version__,
            "source": self._weights.name,
            "source_bytes": self._model.file_bytes,
            "text": self._sample.text.names,
            **self._conditions(),
            "imatrix_sha256": self._imatrix.sha256 if self._imatrix else None,
            "recipe": self.request.recipe if self.request.recipe in families() else self.candidates[0].output.name,
            "n_tokens": self._sample.n_tokens,
            "windows": len(self._sample.windows),
            "scored": n_scored(self._sample.windows.shape[1]),
            "device": self.request.how.device,
            "vram_bytes": self.request.vram_bytes,
            "run": asdict(self.run),
            "base": summary(base, None) | self._by_window({"nll_by_window": base.nll}),
            "candidates": [self._described(candidate, base) for candidate in self.candidates],
            "pick": {
                "type": choice.best.name,
                "runner_up": choice.runner_up.name if choice.runner_up else None,
                "step": asdict(choice.step) if choice.step else None,
                "sentence": choice.sentence(self.run.context),
            },
        }

    def pick(self) -> Pick:
        """The choice; every measurement is there."""
        base = self._scores(None)
        options = []
        for candidate in self.candidates:
            figures = summary(self._scores(candidate), base)
            options.append(
                Option(candidate.output.name, candidate.use.card_bytes, figures["ppl"], figures["kld"]["mean"])
            )
        choice = pick(options, self.request.vram_bytes)
        assert choice is not None, "that none fits was seen before anything was measured"
        return choice

    def _lacking(self) -> list[str]:
        """Names of what is not all measured."""
        missing = [candidate for group in self._missing(self.candidates) for candidate in group.values()]
        return list(dict.fromkeys(candidate.output.name if candidate else "the base" for candidate in missing))

    def _scores(self, candidate: Planned | None) -> Scores:
        """All scores of a candidate, or of the base, in the order of the windows."""
        parts = [self._found[key(self._facts(candidate, number))] for number in range(len(self._groups))]
        kld = [part.kld for part in parts if part.kld is not None]
        agree = [part.agree for part in parts if part.agree is not None]
        return Scores(
            np.concatenate([part.nll for part in parts]),
            np.concatenate(kld) if kld else None,
            np.concatenate(agree) if agree else None,
        )

    def _described(self, candidate: Planned, base: Scores) -> dict[str, Any]:
        scores, output = self._scores(candidate), candidate.output
        left = self.request.vram_bytes - candidate.use.card_bytes
        longest = longest_context(self._model.network, output.tensors, self.run, self.request.vram_bytes)
        return {
            "type": output.name,
            "recipe_sha256": candidate.recipe.sha256,
            "file_bytes": output.file_bytes,
            "tensor_bytes": output.tensor_bytes,
            "bits_per_weight": round(output.bits_per_weight, 4),
            "types": output.types,
            "memory": {
                "card_bytes": candidate.use.card_bytes,
                "host_bytes": candidate.use.host_bytes,
                "left_bytes": left,
                "fits": left >= 0,
                "longest_context": longest,
            },
            **summary(scores, base),
            **self._by_window({"nll_by_window": scores.nll, "kld_by_window": scores.kld}),
        }

    def _by_window(self, columns: Mapping[str, npt.NDArray[np.float64] | None]) -> dict[str, list[float]]:
        """The means of each window."""
        n = len(self._sample.windows)
        return {
            name: values.reshape(n, -1).mean(axis=1).tolist() for name, values in columns.items() if values is not None
        }

    # ---- what is written

    def chosen_plan(self) -> tuple[Plan, Path]:
        """The conversion that the choice is, and where its file goes."""
        best = self.pick().best.name
        recipe = next(candidate.recipe for candidate in self.candidates if candidate.output.name == best)
        plan = make_plan(self._weights, [recipe], imatrix=self._imatrix, warn=lambda text: None)
        ((path,),) = output_paths(plan.outputs, self._weights.name, self.request.out, is_folder=True)
        return plan, path

    def is_written(self, plan: Plan, path: Path) -> bool:
        """Whether the file is there as an earlier sweep wrote it."""
        answer = self._store.recall(_written(path)) if path.is_file() else None
        return answer == self._meaning(plan)

    def write(self, plan: Plan, path: Path, progress: Callable[[int], None] = lambda source_bytes: None) -> None:
        """Convert the choice, as `quantkit convert` does; raises what convert() does."""
        convert(self._weights, plan, [path], progress=progress)
        self._store.remember(_written(path), self._meaning(plan))

    def _meaning(self, plan: Plan) -> str:
        """SHA-256 of what a file holds: its planned header, and the source."""
        return key({"header": plan.files[0].header.hex(), "source_sha256": self.source_sha256})


def sweep(
    request: Request,
    *,
    shard: Shard | None = None,
    merge: bool = False,
    write: bool = True,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any] | None:
    """Measure what is missing of a request, write the report into its folder, and the file that is chosen.

    request  what is asked
    shard    measure only the shard's part; no report
    merge    measure nothing: everything is there, in the folder
    write    write the chosen file
    warn     called with each warning
    returns  the report; None for a shard
    raises   GateError   no candidate fits the card
             InputError  in its kinds: the source, or measurements that are missing for merge
             UsageError, Paused, OutputError, DiskError
    """
    with Sweep.open(request, warn) as opened:
        if not merge:
            opened.measure(shard)
        if shard:
            return None
        report = opened.report()
        write_report(request.out, report)
        plan, path = opened.chosen_plan()
        if write and not opened.is_written(plan, path):
            opened.write(plan, path)
        return report


def _recipes(request: Request, has_imatrix: bool) -> list[Recipe]:
    if request.types or request.recipe not in families():
        return choose(request.types, request.recipe)
    every = [preset(name, request.recipe) for name in presets(request.recipe)]
    return [recipe for recipe in every if has_imatrix or not recipe.needs_imatrix]


def _written(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"written": [str(path.resolve()), status.st_size, status.st_mtime_ns]}
