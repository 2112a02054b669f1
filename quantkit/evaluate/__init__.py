"""Perplexity, KL divergence and importance matrices, measured on the weights a file really holds.

Raises UsageError on import where torch or tokenizers is not installed: they are an extra.
"""

from __future__ import annotations

from importlib.util import find_spec

from quantkit.errors import UsageError

if missing := [name for name in ("torch", "tokenizers") if find_spec(name) is None]:
    raise UsageError(f"measuring needs {' and '.join(missing)}", hint="pip install 'quantkit[eval]'")

from quantkit.evaluate.activations import Activations
from quantkit.evaluate.baseline import Baseline, Finding, read_baseline, write_baseline
from quantkit.evaluate.collect import collect, moment_shapes, n_collect_steps
from quantkit.evaluate.evaluation import Sample, conditions, evaluate, evenly, sample
from quantkit.evaluate.measure import groups, measure_group, n_group_steps, n_scored, n_steps
from quantkit.evaluate.model import Model, open_model
from quantkit.evaluate.network import Arithmetic, arithmetic, use_cpus
from quantkit.evaluate.probes import measure_probes, n_probe_steps, output_errors
from quantkit.evaluate.score import Scores
from quantkit.evaluate.sequential import collect_sequential, n_sequential_steps, run_of
from quantkit.evaluate.statistics import summary
from quantkit.evaluate.text import Text, calibration_text, read_text, shipped

__all__ = [
    "Activations",
    "Arithmetic",
    "Baseline",
    "Finding",
    "Model",
    "Sample",
    "Scores",
    "Text",
    "arithmetic",
    "calibration_text",
    "collect",
    "collect_sequential",
    "conditions",
    "evaluate",
    "evenly",
    "groups",
    "measure_group",
    "measure_probes",
    "moment_shapes",
    "n_collect_steps",
    "n_group_steps",
    "n_probe_steps",
    "n_scored",
    "n_sequential_steps",
    "n_steps",
    "open_model",
    "output_errors",
    "read_baseline",
    "read_text",
    "run_of",
    "sample",
    "shipped",
    "summary",
    "use_cpus",
    "write_baseline",
]
