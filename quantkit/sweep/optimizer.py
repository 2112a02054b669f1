"""The types of every matrix that lose the least in a budget of bytes: what `sweep --optimize` measures and finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from quantkit import __version__
from quantkit.errors import GateError
from quantkit.evaluate import evenly, n_group_steps, sample, shipped
from quantkit.gguf_io import place
from quantkit.gguf_io.layout import padded
from quantkit.memory import is_on_card, memory_use
from quantkit.osio import AtomicFile
from quantkit.qtypes import BF16, F16, F32, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, QType
from quantkit.recipe import fitting, layer_of, load
from quantkit.sweep.bounds import OFFERED, Bounds
from quantkit.sweep.knapsack import Option, Solution, needs_solver, smallest, solve
from quantkit.sweep.mix import Budget, Mix, Optimized
from quantkit.sweep.request import Request
from quantkit.sweep.response import Response
from quantkit.sweep.sensitivity import PROBED, Sensitivity, Survey
from quantkit.sweep.sweep import Sweep
from quantkit.sweep.written import ranges, recipe_text
from quantkit.units import size

TEXT, TOKENS = "calibration.txt", 2560  # that matrices are tried on; so many tokens, in windows evenly over it
# For the curve from costs to KL divergence: how many tokens of the text that is reported on, in windows evenly over it,
# and where between the smallest mix and the largest those stand that it goes through.
REPORTED_TOKENS, CALIBRATING = 8192, (0.05, 0.2, 0.45)
# general.file_type of a mix: that of the preset named for the type in which most of its bytes are.
FILE_TYPES: Mapping[QType, int] = {
    **{Q2_K: 10, Q3_K: 12, Q4_K: 15, Q5_K: 17, Q6_K: 18, Q8_0: 7},
    **{Q4_0: 2, Q4_1: 3, Q5_0: 8, Q5_1: 9, F32: 0, F16: 1, BF16: 32},  # that stand in, or are asked for
}

Choices = Sequence[tuple[tuple[str, ...], tuple[QType, ...]]]  # the matrices of a group, and the types it may have


class Optimizer:
    """Finds a mix for the size of each candidate that a sweep's request names; if it names none, one for its card.

    sweep     open
    bounds    what is asked of the mixes beside their size
    n_probes  matrices to probe at most; None for all
    raises    UsageError  highspy is not installed, or the bounds make no sense
              GateError   no mix is small enough
              TensorError the strategy is for one recipe alone
    """

    def __init__(self, sweep: Sweep, bounds: Bounds, n_probes: int | None) -> None:
        needs_solver()
        self._sweep, self._bounds = sweep, bounds
        tensors = sweep.candidates[0].output.tensors
        self._shapes = {tensor.name: tensor.shape for tensor in tensors if _is_matrix(tensor.name, tensor.shape)}
        self._vectors = {tensor.name: tensor for tensor in tensors if tensor.name not in self._shapes}
        self._check_strategy()
        self._choices = self._choices_in(bounds)
        self.budgets = [*map(self._checked, self._wanted())]
        measured, window = sweep.measurements, sweep.request.window
        text = sample([measured.model], shipped(TEXT), window, None)
        self._tried = measured.on(evenly(text, max(2, TOKENS // window)))
        self._reported = measured.on(evenly(measured.sample, max(2, REPORTED_TOKENS // window)))
        types = dict.fromkeys([*OFFERED, *(qtype for _, qtype in bounds.keep)])
        self._survey = Survey(self._tried, self._shapes, list(types), n_probes, sweep.store)

    def _check_strategy(self) -> None:
        """Raise TensorError where it is for one recipe alone: here every matrix is tried in every type."""
        columns = {name: shape[-1] for name, shape in self._shapes.items()}
        tried = [{name: fitting(qtype, n_columns) for name, n_columns in columns.items()} for qtype in (PROBED, Q8_0)]
        self._sweep.request.strategy.check(columns, tried, lambda text: None)

    # ---- what is measured

    @property
    def n_missing(self) -> int:
        """How many probes are to be made."""
        return self._survey.n_missing

    def n_steps(self) -> int:
        """How often measure() will call progress."""
        of_calibration = n_group_steps([self._tried.model.network] * (1 + len(CALIBRATING)))
        return self._survey.n_steps() + of_calibration

    def memory_bytes(self) -> int:
        """About how much memory measure() takes at most."""
        return self._survey.memory_bytes()

    def measure(self, progress: Callable[[], None] = lambda: None) -> None:
        """Make the measurements that are missing, and keep each as it is made; raises what Survey.measure() does."""
        self._survey.measure(progress)
        self._reported.measure(self._calibrating, progress)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """Of the matrices; the survey is measured."""
        return self._survey.sensitivity()

    @cached_property
    def response(self) -> Response:
        """From the sum of costs to KL divergence on the text that is reported on; everything is measured.

        It has no say in which mix is the best: a rising curve leaves them in the order of their sums.
        """
        points = []
        for types in self._calibrating:
            kld = self._reported.scores(types).kld
            assert kld is not None, "only the base has none"
            points.append((self.sensitivity.total(types), float(kld.mean())))
        return Response(points)

    @cached_property
    def _calibrating(self) -> list[dict[str, QType]]:
        """Mixes of several sizes, with the types of all tensors; the same whatever is asked, so that they are kept."""
        every, free = frozenset(self._shapes), self._choices_in(Bounds())
        sizes = [[self._nbytes(names, qtype) for qtype in types] for names, types in free]
        least, most = sum(map(min, sizes)), sum(map(max, sizes))
        vectors = {name: tensor.qtype for name, tensor in self._vectors.items()}
        budgets = [Budget("", least + int(part * (most - least)), every) for part in CALIBRATING]
        return [self._solved(budget, free)[1] | vectors for budget in budgets]

    # ---- what is found

    def optimized(self) -> Optimized:
        """The mix of each budget, its recipe written into the request's folder; everything is measured.

        raises  OutputError, DiskError
        """
        mixes = [self._mix(budget) for budget in self.budgets]
        sensitivity, bounds = self.sensitivity, self._bounds
        text = self._tried.sample
        return Optimized(
            mixes,
            {
                "text": text.text.names,
                "text_sha256": text.text.sha256,
                "windows": len(text.windows),
                "keep": [f"{pattern}={qtype}" for pattern, qtype in bounds.keep],
                "min_type": bounds.least.name if bounds.least else None,
                "same_type": list(bounds.same),
                "matrices": {
                    name: {
                        "probe": sensitivity.types[name].name,
                        "kld": sensitivity.kld[name],
                        "interpolated": name not in sensitivity.probed,
                        "errors": {qtype.name: error for qtype, error in sensitivity.errors[name].items()},
                    }
                    for name in self._shapes
                },
                "calibration": [{"cost": cost, "kld": kld} for cost, kld in self.response.points],
                "mixes": [mix.described() for mix in mixes],
            },
        )

    def _mix(self, budget: Budget) -> Mix:
        solution, types = self._solved(budget, self._choices)
        predicted = self.response.predict(self.sensitivity.total(types))
        path = self._sweep.request.out / f"{budget.name}.toml"
        most = Counter({q: sum(self._nbytes([n], q) for n in types if types[n] is q) for q in FILE_TYPES})
        text = recipe_text(
            types,
            FILE_TYPES[most.most_common(1)[0][0]],
            self._comments(budget, solution, predicted),
            needs_imatrix=self._tried.imatrix_sha256 is not None,
        )
        with AtomicFile(path) as out:
            out.write(text.encode(), 0)
            out.publish()
        return Mix(load(path), types, budget, solution.nbytes, predicted, solution.gap)

    def _comments(self, budget: Budget, solution: Solution, predicted: float) -> list[str]:
        measured, sensitivity = self._tried, self.sensitivity
        aside = [name for name in self._shapes if name not in budget.counted]
        layers = {layer_of(name) for name in aside} - {-1}
        host = [name for name in aside if layer_of(name) < 0] + ([f"layers {ranges(layers)}"] if layers else [])
        n, n_positions = measured.sample.windows.shape
        n_guessed = len(self._shapes) - len(sensitivity.probed)
        guessed = f", {n_guessed} of them interpolated" if n_guessed else ""
        return [
            f"The least KL divergence in {budget.nbytes:,} bytes of matrices"
            + (f", {' and '.join(host)} aside" if host else "")
            + f"; these take {solution.nbytes:,}.",
            f"Predicted: {predicted:.5f} nats on {', '.join(self._reported.sample.text.names)}; "
            f"optimality gap of the sum of costs {100 * solution.gap:.2f} %.",
            f"Costs: each of {len(self._shapes)} matrices alone in {PROBED}{guessed}, on {n} windows of {n_positions} "
            f"tokens of {TEXT}.",
            f"Bounds: {self._asked()}.",
            f"source   sha256 {measured.conditions['base_sha256']}",
            f"imatrix  sha256 {measured.imatrix_sha256}" if measured.imatrix_sha256 else "imatrix  none",
            f"text     sha256 {measured.sample.text.sha256}",
            f"Written by quantkit {__version__}.",
        ]

    def _asked(self) -> str:
        bounds = self._bounds
        asked = [f"{pattern}={qtype}" for pattern, qtype in bounds.keep]
        asked += [f"at least {bounds.least}"] if bounds.least else []
        asked += [f"one type for {pattern}" for pattern in bounds.same]
        return ", ".join(asked) or "none"

    # ---- the knapsack

    def _wanted(self) -> list[Budget]:
        sweep, every = self._sweep, frozenset(self._shapes)
        if sweep.names_candidates:
            vectors = sum(padded(tensor.nbytes) for tensor in self._vectors.values())
            return [
                Budget(f"OPT-{candidate.output.name}", candidate.output.tensor_bytes - vectors, every)
                for candidate in sweep.candidates
            ]
        network, run, vram = sweep.measurements.model.network, sweep.run, sweep.request.vram_bytes
        largest = place(
            (name, shape, max(types, key=lambda qtype: qtype.bits_per_weight))
            for names, types in self._choices
            for name in names
            for shape in [self._shapes[name]]
        )
        use = memory_use(network, [*largest, *self._vectors.values()], run)
        counted = frozenset(name for name in self._shapes if is_on_card(name, network, run))
        room = vram - use.card_bytes + sum(padded(tensor.nbytes) for tensor in largest if tensor.name in counted)
        unit, suffix = (2**30, "GiB") if vram >= 2**30 else (2**20, "MiB")
        return [Budget(f"OPT-{vram / unit:g}{suffix}", room, counted)]

    def _checked(self, budget: Budget) -> Budget:
        """The budget itself; raises GateError where nothing fits it."""
        least = smallest(self._items(budget, self._choices, lambda name, qtype: 0.0))
        if least > budget.nbytes:
            raise GateError(
                f"no mix fits {budget.name}",
                hint="a larger size, or weaker bounds: --keep, --min-type, --same-type",
                expected=f"at most {size(max(0, budget.nbytes))} of matrices",
                found=f"{size(least)} at least",
            )
        return budget

    def _choices_in(self, bounds: Bounds) -> Choices:
        return [(names, bounds.options(names, self._shapes)) for names in bounds.groups(self._shapes)]

    def _solved(self, budget: Budget, choices: Choices) -> tuple[Solution, dict[str, QType]]:
        """The best mix, and its types by GGUF name in the order of tensors."""
        solution = solve(self._items(budget, choices, self.sensitivity.cost), budget.nbytes)
        chosen = {
            name: types[number]
            for (names, types), number in zip(choices, solution.chosen, strict=True)
            for name in names
        }
        return solution, {name: chosen[name] for name in self._shapes}

    def _items(self, budget: Budget, choices: Choices, cost: Callable[[str, QType], float]) -> list[list[Option]]:
        """What each type of each group takes of the budget, and costs."""

        def option(names: Sequence[str], qtype: QType) -> Option:
            counted = [name for name in names if name in budget.counted]
            return Option(self._nbytes(counted, qtype), sum(cost(name, qtype) for name in names))

        return [[option(names, qtype) for qtype in types] for names, types in choices]

    def _nbytes(self, names: Sequence[str], qtype: QType) -> int:
        return sum(padded(self._shapes[name][0] * qtype.row_bytes(self._shapes[name][1])) for name in names)


def optimize(
    request: Request,
    bounds: Bounds | None = None,
    *,
    n_probes: int | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Request:
    """A request whose candidates are also the mixes that were found for it, for sweep(); their recipes are written.

    request   what is asked
    bounds    what is asked of the mixes beside their size
    n_probes  matrices to probe at most; None for all
    warn      called with each warning
    raises    as Sweep.open, Optimizer, and Optimizer.measure do
    """
    with Sweep.open(replace(request, any_size=True), warn) as sweep:
        optimizer = Optimizer(sweep, bounds or Bounds(), n_probes)
        optimizer.measure()
        return replace(request, optimized=optimizer.optimized())


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and not name.endswith("_norm.weight")
