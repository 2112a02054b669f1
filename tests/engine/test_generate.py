"""llama.cpp loads the files, computes with them, and follows their keys."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from engine import Engine, EngineError

from quantkit.checkpoint import open_checkpoint
from quantkit.convert import convert
from quantkit.evaluate import Arithmetic, collect, evenly, open_model, run_of, sample, shipped
from quantkit.plan import make_plan
from quantkit.recipe import preset
from quantkit.strategy import REFERENCE, by_name

Converted = Callable[[Path], dict[str, Path]]

PROMPT = "The capital of France is"


@pytest.mark.parametrize("preset", ["Q4_K_M", "Q6_K", "Q8_0"])
def test_trained_weights_know_the_capital(engine: Engine, converted: Converted, real_small: Path, preset: str) -> None:
    engine.load(converted(real_small)[preset])
    assert engine.complete(PROMPT, 4).startswith(" Paris")


def test_error_feedback_keeps_what_a_small_type_forgets(engine: Engine, real_small: Path, tmp_path: Path) -> None:
    """With the moments of a few windows; as llama.cpp packs it without importance, it is lost."""
    moments = tmp_path / "moments"
    moments.mkdir()
    with open_model(real_small, pytest.fail) as model:
        some = evenly(sample([model], shipped("calibration.txt"), 256, None), 8)
        collect(model, some.windows, moments=(moments, run_of(model, some, Arithmetic(), None)))
    said = {}
    for strategy in (REFERENCE, by_name("feedback", moments)):
        with open_checkpoint(real_small) as checkpoint:
            plan = make_plan(checkpoint, [preset("Q3_K_M")], strategy=strategy, warn=lambda text: None)
            convert(checkpoint, plan, [tmp_path / f"{strategy.name}.gguf"])
        engine.load(tmp_path / f"{strategy.name}.gguf")
        said[strategy.name] = engine.complete(PROMPT, 4)
    assert said["feedback"].startswith(" Paris")
    assert not said["reference"].startswith(" Paris")


@pytest.mark.parametrize("name", ["phi4_tiny", "phi4_mini_tiny"])
def test_random_weights_compute(
    engine: Engine, converted: Converted, name: str, request: pytest.FixtureRequest
) -> None:
    """A token each time; an id of 0 throughout, as NaN gives, would decode to one "!" after another."""
    engine.load(converted(request.getfixturevalue(name))["Q4_K_M"])
    text = engine.complete(PROMPT, 4)
    assert text and set(text) != {"!"}


@pytest.mark.parametrize("add_bos, first", [(True, 100257), (False, None)])
def test_bos_goes_first_where_the_file_says_so(
    engine: Engine, converted: Converted, phi4_tiny: Path, tmp_path: Path, add_bos: bool, first: int | None
) -> None:
    checkpoint = tmp_path / f"bos_{add_bos}"
    shutil.copytree(phi4_tiny, checkpoint, copy_function=os.link)
    settings_file = checkpoint / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text("utf-8"))
    settings_file.unlink()  # the link, not the shared file
    settings_file.write_text(json.dumps(settings | {"add_bos_token": add_bos}), "utf-8")
    assert engine.load(converted(checkpoint)["Q8_0"]) == first


def test_a_damaged_file_does_not_load(engine: Engine, converted: Converted, phi4_tiny: Path, tmp_path: Path) -> None:
    """Else loading would prove nothing."""
    damaged = tmp_path / "damaged.gguf"
    shutil.copyfile(converted(phi4_tiny)["Q8_0"], damaged)
    os.truncate(damaged, damaged.stat().st_size - 1000)
    with pytest.raises(EngineError, match="exit code 1 "):
        engine.load(damaged)
