"""What a node of a cluster does: the same measurement from its own reading of the source, or the reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit import __version__
from quantkit.checkpoint import Lora
from quantkit.errors import InputError, QuantkitError, UsageError
from quantkit.evaluate import Arithmetic, Model, Scores, measure_group, open_model, use_cpus
from quantkit.qtypes import by_name
from quantkit.sweep.candidates import Base, Candidate, Importance

_digests: dict[object, str] = {}  # SHA-256 of sources, by what changes with their files: a worker does many tasks

SHARED = "every node reads the source itself: it has to be there under the same path, the same to the byte"


@dataclass(frozen=True)
class Task:
    """What a node is told.

    quantkit        version of who asks
    source          path, the same on every node
    base_sha256     of its weights
    network_sha256  of what is computed with them
    types           names of the types of each candidate, by GGUF name
    windows         int64 (n, positions)
    how             the arithmetic
    n_cpus          processors to compute on
    lora            adapters of the source, with paths likewise
    """

    quantkit: str
    source: Path
    base_sha256: str
    network_sha256: str
    types: Sequence[Mapping[str, str]]
    windows: npt.NDArray[np.int64]
    how: Arithmetic
    n_cpus: int
    lora: Sequence[Lora] = ()


def measure(task: Task, importance: Importance) -> list[Scores]:
    """The scores of the base and of each candidate.

    raises  UsageError  another version of quantkit runs here
            InputError  the source is not here, or is another
            NotFiniteError, MagnitudeError, DiskError
    """
    if task.quantkit != __version__:
        raise UsageError(
            "figures of two versions cannot be compared",
            hint="install the same quantkit on every node",
            expected=f"quantkit {task.quantkit}",
            found=__version__,
        )
    use_cpus(task.n_cpus)
    with _opened(task) as model:
        for what, expected, found in (
            ("weights", task.base_sha256, _sha256(model)),
            ("network", task.network_sha256, model.network_sha256),
        ):
            if found != expected:
                raise InputError(
                    f"the {what} of the source are others here",
                    hint=SHARED,
                    file=task.source,
                    expected=expected,
                    found=found,
                )
        base = Base(model, importance)
        types = [{name: by_name(qtype) for name, qtype in one.items()} for one in task.types]
        models: list[Base | Candidate] = [base, *(Candidate(base, model, one) for one in types)]
        return measure_group(models, task.windows, task.how, has_base=True, together=True)


def _opened(task: Task) -> Model:
    try:
        return open_model(task.source, lambda text: None, task.lora)
    except QuantkitError as error:
        raise type(error)(error.message, hint=SHARED, **error.details) from None


def _sha256(model: Model) -> str:
    if model.stats not in _digests:
        _digests[model.stats] = model.sha256
    return _digests[model.stats]
