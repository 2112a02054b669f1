"""llama.cpp loads a set of shards by the first of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import Engine

from quantkit.checkpoint import open_checkpoint
from quantkit.convert import convert
from quantkit.plan import make_plan, output_paths
from quantkit.recipe import preset


def test_shards_speak(engine: Engine, real_small: Path, tmp_path: Path) -> None:
    with open_checkpoint(real_small) as checkpoint:
        plan = make_plan(checkpoint, [preset("Q5_K_M")], split_max_bytes=50_000_000, warn=pytest.fail)
        (paths,) = output_paths(plan.outputs, checkpoint.name, tmp_path)
        convert(checkpoint, plan, paths)
    assert len(paths) > 2
    engine.load(paths[0])
    assert engine.complete("The capital of France is", 4).startswith(" Paris")
