"""What the measurements say: the report, and the candidate to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit import __version__
from quantkit.evaluate import Scores, n_scored, summary
from quantkit.memory import Run, longest_context
from quantkit.recipe import families
from quantkit.sweep.measurements import Measurements
from quantkit.sweep.pick import Option, Pick, pick
from quantkit.sweep.planned import Planned
from quantkit.sweep.request import Request

SCHEMA = {"name": "quantkit.sweep", "version": 1}


@dataclass(frozen=True)
class Findings:
    """Of a sweep all of whose measurements are there.

    source      its name
    merged      what it was made of, if adapters were merged into it
    run         how llama.cpp would be run
    candidates  smallest first
    """

    request: Request
    source: str
    merged: Mapping[str, Any] | None
    run: Run
    candidates: Sequence[Planned]
    measurements: Measurements

    def report(self) -> dict[str, Any]:
        """The result: see README.md."""
        request, measured = self.request, self.measurements
        base, sample, choice = measured.scores(None), measured.sample, self.pick()
        return {
            "schema": SCHEMA,
            "quantkit": __version__,
            "source": self.source,
            "source_bytes": measured.model.file_bytes,
            "text": sample.text.names,
            **measured.conditions,
            "imatrix_sha256": measured.imatrix_sha256,
            **({"strategy": measured.recorded} if measured.recorded else {}),
            "recipe": request.recipe if request.recipe in families() else Path(request.recipe).stem,
            "n_tokens": sample.n_tokens,
            "windows": len(sample.windows),
            "scored": n_scored(sample.windows.shape[1]),
            "device": request.how.device,
            "vram_bytes": request.vram_bytes,
            "run": asdict(self.run),
            "base": summary(base, None) | self._by_window({"nll_by_window": base.nll}),
            "candidates": [self._described(candidate, base) for candidate in self.candidates],
            "pick": {
                "type": choice.best.name,
                "runner_up": choice.runner_up.name if choice.runner_up else None,
                "step": asdict(choice.step) if choice.step else None,
                "sentence": choice.sentence(self.run.context),
            },
            **({"optimized": request.optimized.report} if request.optimized else {}),
            **({"merged": self.merged} if self.merged else {}),
        }

    def pick(self) -> Pick:
        """The choice."""
        base = self.measurements.scores(None)
        options = []
        for candidate in self.candidates:
            figures = summary(self.measurements.scores(candidate.types), base)
            options.append(
                Option(candidate.output.name, candidate.use.card_bytes, figures["ppl"], figures["kld"]["mean"])
            )
        choice = pick(options, self.request.vram_bytes)
        assert choice is not None, "that none fits was seen before anything was measured"
        return choice

    def _described(self, candidate: Planned, base: Scores) -> dict[str, Any]:
        scores, output = self.measurements.scores(candidate.types), candidate.output
        network, vram_bytes = self.measurements.model.network, self.request.vram_bytes
        left = vram_bytes - candidate.use.card_bytes
        return {
            "type": output.name,
            "recipe_sha256": candidate.recipe.sha256,
            "file_bytes": output.file_bytes,
            "tensor_bytes": output.tensor_bytes,
            "bits_per_weight": round(output.bits_per_weight, 4),
            "types": output.types,
            "tensor_types": {tensor.name: tensor.qtype.name for tensor in output.tensors},
            "memory": {
                "card_bytes": candidate.use.card_bytes,
                "host_bytes": candidate.use.host_bytes,
                "left_bytes": left,
                "fits": left >= 0,
                "longest_context": longest_context(network, output.tensors, self.run, vram_bytes),
                "card": [term.as_json() for term in candidate.use.card],
                "host": [term.as_json() for term in candidate.use.host],
            },
            **summary(scores, base),
            **self._by_window({"nll_by_window": scores.nll, "kld_by_window": scores.kld}),
            **({"predicted_kld": self._predicted(output.name)} if self.request.optimized else {}),
        }

    def _predicted(self, name: str) -> float | None:
        """Of a mix that was found, what was thought of it before it was measured."""
        mixes = self.request.optimized.mixes if self.request.optimized else ()
        return next((mix.predicted for mix in mixes if mix.recipe.name == name), None)

    def _by_window(self, columns: Mapping[str, npt.NDArray[np.float64] | None]) -> dict[str, list[float]]:
        """The means of each window."""
        n = len(self.measurements.sample.windows)
        return {
            name: values.reshape(n, -1).mean(axis=1).tolist() for name, values in columns.items() if values is not None
        }
