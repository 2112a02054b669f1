"""What could be taken: the files that a request comes down to, and what each would need in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.arch import Network
from quantkit.errors import GateError
from quantkit.memory import MemoryUse, Run, longest_context, memory_use
from quantkit.plan import Output
from quantkit.qtypes import QType
from quantkit.recipe import Recipe, choose, families, preset, presets
from quantkit.sweep.request import Request
from quantkit.units import size


@dataclass(frozen=True, eq=False)
class Planned:
    """A candidate: its recipe, the file that it would be, and what that needs in the run."""

    recipe: Recipe
    output: Output
    use: MemoryUse

    @property
    def types(self) -> Mapping[str, QType]:
        """By GGUF name."""
        return {tensor.name: tensor.qtype for tensor in self.output.tensors}


def recipes(request: Request) -> list[Recipe]:
    """Those to plan: what is asked for, or all of a family that need no importance matrix where there is none."""
    mixes = [mix.recipe for mix in request.optimized.mixes] if request.optimized else []
    if names_candidates(request):
        return [*choose(request.types, request.recipe), *mixes]
    every = [preset(name, request.recipe) for name in presets(request.recipe)]
    return [*(recipe for recipe in every if request.imatrix or not recipe.needs_imatrix), *mixes]


def candidates(
    request: Request, network: Network, run: Run, recipes: Sequence[Recipe], outputs: Sequence[Output]
) -> list[Planned]:
    """What is to be measured, smallest first: all that is asked for, or all that fit and the next larger.

    outputs  that each of the recipes plans
    raises   GateError  none fits, and request.any_size does not allow for that
    """
    planned = [
        Planned(recipe, output, memory_use(network, output.tensors, run))
        for recipe, output in zip(recipes, outputs, strict=True)
    ]
    planned.sort(key=lambda candidate: (candidate.use.card_bytes, candidate.output.tensor_bytes, candidate.output.name))
    n_fitting = sum(candidate.use.card_bytes <= request.vram_bytes for candidate in planned)
    if not n_fitting and (names_candidates(request) or not request.any_size):
        smallest = planned[0]
        context = longest_context(network, smallest.output.tensors, run, request.vram_bytes)
        raise GateError(
            "no candidate fits the card",
            expected=f"at most {size(request.vram_bytes)}",
            found=f"{size(smallest.use.card_bytes)} for {smallest.output.name}, the smallest, with "
            f"{run.context:,} tokens of context",
            hint=f"it would fit with {context:,} tokens: --ctx {context}"
            if context
            else "it does not fit with any context; --gpu-layers N leaves some layers to the processor",
        )
    return planned if names_candidates(request) else planned[: n_fitting + 1]


def names_candidates(request: Request) -> bool:
    """Whether a request says which they are; else its card does."""
    return bool(request.types) or request.recipe not in families()
