"""llama.cpp loads one file of each type; all but the smallest know the capital, and the smallest compute."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import Engine

from quantkit.checkpoint import open_checkpoint
from quantkit.convert import convert
from quantkit.plan import make_plan, output_paths
from quantkit.recipe import preset

# Without an importance matrix the smallest leave too little of a network of 135 million weights.
KNOW = ("Q3_K_L", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q5_K_S", "F16", "BF16")
COMPUTE = ("Q2_K", "Q3_K_S", "Q3_K_M")


def test_every_type(engine: Engine, real_small: Path, tmp_path: Path) -> None:
    with open_checkpoint(real_small) as checkpoint:
        plan = make_plan(checkpoint, [preset(name) for name in (*KNOW, *COMPUTE)], warn=pytest.fail)
        paths = [path for (path,) in output_paths(plan.outputs, checkpoint.name, tmp_path)]
        convert(checkpoint, plan, paths)
    said = {}
    for output, path in zip(plan.outputs, paths, strict=True):
        engine.load(path)
        said[output.name] = engine.complete("The capital of France is", 4)
        path.unlink()
    assert {name: text for name, text in said.items() if name in KNOW and not text.startswith(" Paris")} == {}
    assert {name: text for name, text in said.items() if not text or set(text) == {"!"}} == {}
