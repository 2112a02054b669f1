"""`quantkit sweep` as a function, and as an object for those who want to do one step after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

from quantkit.checkpoint import Checkpoint, Weights
from quantkit.errors import InputError
from quantkit.evaluate import Model, sample, shipped
from quantkit.imatrix import Imatrix, read_imatrix
from quantkit.memory import Run
from quantkit.osio import make_folder
from quantkit.plan import make_plan
from quantkit.source import GGUFWeights, open_source, read_source
from quantkit.strategy import recorded
from quantkit.sweep.chosen import Chosen
from quantkit.sweep.cluster import Cluster, connect
from quantkit.sweep.findings import Findings
from quantkit.sweep.measurements import Measurements, Types
from quantkit.sweep.pick import Pick
from quantkit.sweep.planned import Planned, candidates, names_candidates, recipes
from quantkit.sweep.report import write_report
from quantkit.sweep.request import USUAL_CONTEXT, Request, Shard
from quantkit.sweep.store import Store

MEASUREMENTS = "measurements"
_NAMES_SHOWN = 6


class Sweep:
    """The measurements that a request comes down to, those that are there already, and what they say.

    Made by Sweep.open.
    candidates    smallest first
    run           how llama.cpp would be run
    measurements  all of them, there or not
    store         where they are kept
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
        asked = recipes(request)
        plan = make_plan(weights, asked, imatrix=imatrix, strategy=request.strategy, warn=warn)
        self.candidates: list[Planned] = candidates(request, model.network, self.run, asked, plan.outputs)
        chosen_text = sample([model], request.text or shipped("eval.txt"), request.window, request.windows)
        make_folder(request.out)
        make_folder(request.out / MEASUREMENTS)
        self.store = Store(request.out / MEASUREMENTS, warn)
        self.measurements = Measurements(
            model,
            chosen_text,
            request.how,
            importance={job.name: job.importance for job in plan.jobs},
            imatrix_sha256=imatrix.sha256 if imatrix else None,
            strategy=request.strategy,
            recorded=recorded(plan.outputs[0].files[0].fields),
            base_sha256=self.source_sha256,
            store=self.store,
        )

    @classmethod
    @contextmanager
    def open(cls, request: Request, warn: Callable[[str], None]) -> Iterator[Sweep]:
        """The sweep of a request, for a `with` block.  It takes the SHA-256 of the source if the store lacks it.

        warn    called with each warning
        raises  GateError   no candidate fits the card
                InputError in its kinds, UsageError: as convert and eval do
        """
        imatrix = read_imatrix(request.imatrix) if request.imatrix else None
        with open_source(request.source, lora=request.lora) as weights:
            source = read_source(
                weights, name=None, fix_special_tokens=False, chat_template=None, warn=lambda text: None
            )
            yield cls(request, Model(source), weights, imatrix, warn)

    @cached_property
    def source_sha256(self) -> str:
        """Of the source's files and adapters, read for it only if the store does not know them."""
        question = {"sha256_of": self._model.stats}
        known = self.store.recall(question)
        if known is None:
            known = self._model.sha256
            self.store.remember(question, known)
        return known

    @property
    def names_candidates(self) -> bool:
        """Whether the request does, and not its card's size."""
        return names_candidates(self.request)

    def share(self, shard: Shard | None) -> list[Planned]:
        """The candidates that a shard measures; all for None."""
        return self.candidates[shard.number - 1 :: shard.count] if shard else self.candidates

    def n_missing(self, shard: Shard | None = None) -> int:
        """How many measurements are to be made."""
        return self.measurements.n_missing(self._wanted(shard))

    def n_steps(self, shard: Shard | None = None, cluster: Cluster | None = None) -> int:
        """How often measure() will call progress."""
        return self.measurements.n_steps(self._wanted(shard), self._parts(shard, cluster))

    def memory_bytes(self, shard: Shard | None = None, cluster: Cluster | None = None) -> int:
        """About how much memory measure() takes at most, here or for a task of the cluster."""
        return self.measurements.memory_bytes(self._wanted(shard), self._parts(shard, cluster))

    def measure(
        self,
        shard: Shard | None = None,
        progress: Callable[[], None] = lambda: None,
        cluster: Cluster | None = None,
    ) -> None:
        """Make the measurements that are missing, here or on a cluster; raises what its measure() does."""
        if cluster is None:
            self.measurements.measure(self._wanted(shard), progress)
        else:
            cluster.measure(self.measurements, self._wanted(shard), progress)

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
        return self._findings.report()

    def pick(self) -> Pick:
        """The choice; every measurement is there."""
        return self._findings.pick()

    def chosen(self) -> Chosen:
        """The conversion that the choice is."""
        best = self.pick().best.name
        return Chosen(
            self._weights,
            next(candidate.recipe for candidate in self.candidates if candidate.output.name == best),
            self._imatrix,
            self.request.strategy,
            source_sha256=self.source_sha256,
            folder=self.request.out,
            store=self.store,
        )

    @property
    def _findings(self) -> Findings:
        merged = _merged(self._weights)
        return Findings(self.request, self._weights.name, merged, self.run, self.candidates, self.measurements)

    def _wanted(self, shard: Shard | None) -> list[Types]:
        return [candidate.types for candidate in self.share(shard)]

    def _parts(self, shard: Shard | None, cluster: Cluster | None) -> int:
        return cluster.parts(self.measurements, self._wanted(shard)) if cluster else 1

    def _lacking(self) -> list[str]:
        """Names of what is not all measured."""
        every: list[tuple[str, Types | None]] = [("the base", None)]
        every += [(candidate.output.name, candidate.types) for candidate in self.candidates]
        return [name for name, types in every if not self.measurements.is_complete(types)]


def _merged(weights: Weights) -> dict[str, Any] | None:
    """The base's name, and name, digest and scale of each adapter; None without any."""
    if not weights.adapters:
        return None
    lora = [{"name": one.name, "sha256": one.sha256, "scale": one.scale} for one in weights.adapters]
    return {"base": weights.origin.name if weights.origin else weights.path.resolve().name, "lora": lora}


def sweep(
    request: Request,
    *,
    shard: Shard | None = None,
    merge: bool = False,
    ray: str | None = None,
    write: bool = True,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any] | None:
    """Measure what is missing of a request, write the report into its folder, and the file that is chosen.

    request  what is asked
    shard    measure only the shard's part; no report
    merge    measure nothing: everything is there, in the folder
    ray      measure on the Ray cluster at this address, as cluster.connect() has it
    write    write the chosen file
    warn     called with each warning
    returns  the report; None for a shard
    raises   GateError   no candidate fits the card
             InputError  in its kinds: the source, or measurements that are missing for merge
             UsageError, ClusterError, UnsafeError, Paused, OutputError, DiskError
    """
    with Sweep.open(request, warn) as opened:
        if not merge and opened.n_missing(shard):
            with connect(ray) if ray else nullcontext() as cluster:
                opened.measure(shard, cluster=cluster)
        if shard:
            return None
        report = opened.report()
        write_report(request.out, report)
        chosen = opened.chosen()
        if write and not chosen.is_written():
            chosen.write()
        return report
