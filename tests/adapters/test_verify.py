"""A file with adapters merged in is made again from its base and the same adapters, and from no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_gguf
from small_gguf import Model

from quantkit.cli import main
from quantkit.gguf_io import Kind


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def made(bases: dict[str, Path], trained: Callable[[str], Path], tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    lora = ("--lora", f"{trained('fused')}:0.7", "--lora", trained("split"))
    assert run("convert", bases["fused"], "-t", "Q4_K_M", *lora, "-o", path, "-q") == 0
    return path


def test_the_same_adapters_give_the_same_file(
    bases: dict[str, Path], trained: Callable[[str], Path], made: Path
) -> None:
    statement = made.with_suffix(".json")
    lora = ("--lora", f"{trained('fused')}:0.7", "--lora", trained("split"))
    assert run("verify", made, "--source", bases["fused"], *lora, "--write-statement", statement) == 0
    stated = json.loads(statement.read_text())["predicate"]["lora"]
    assert [adapter["scale"] for adapter in stated] == [float(np.float32(0.7)), 1.0]
    assert run("verify", made, "--statement", statement) == 0


def test_another_scale_is_a_difference(
    bases: dict[str, Path], trained: Callable[[str], Path], made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = ("--lora", f"{trained('fused')}:0.71", "--lora", trained("split"))
    assert run("verify", made, "--source", bases["fused"], *lora, "--json") == 3
    places = json.loads(capsys.readouterr().out)["differences"]
    assert "quantkit.lora.0.scale" in {place.get("key") for place in places}
    assert "blk.1.ffn_down.weight" in {place.get("tensor") for place in places}


def test_no_adapters_other_adapters_and_another_order_are_refused(
    bases: dict[str, Path], trained: Callable[[str], Path], made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("verify", made, "--source", bases["fused"])
    assert run(*command) == 2
    assert "hint: give the same ones" in capsys.readouterr().err
    assert run(*command, "--lora", trained("fused")) == 65
    assert run(*command, "--lora", trained("split"), "--lora", f"{trained('fused')}:0.7") == 65
    assert "other adapters than the file was made with" in capsys.readouterr().err


def test_adapters_that_did_not_go_in_are_refused(
    bases: dict[str, Path], trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", bases["fused"], "-t", "Q8_0", "-o", tmp_path / "a.gguf", "-q") == 0
    command = ("verify", tmp_path / "a.gguf", "--source", bases["fused"], "--lora", trained("fused"))
    assert run(*command) == 2
    assert "was made without adapters" in capsys.readouterr().err


def test_a_merged_file_of_llama_cpps_tools(
    bases: dict[str, Path], trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """It does not say what was merged; the statement does."""

    def forget(model: Model) -> None:
        for key in [key for key in model.fields if key.startswith("quantkit.")]:
            del model.fields[key]
        model.set("general.name", Kind.STRING, "Merged")

    adapter, path, statement = trained("fused"), tmp_path / "a.gguf", tmp_path / "a.json"
    assert run("convert", bases["fused"], "-t", "Q8_0", "--lora", adapter, "-o", path, "-q") == 0
    small_gguf.edited(path, path, forget)
    command = ("verify", path, "--source", bases["fused"], "--name", "Merged")
    assert run(*command) == 3
    assert run(*command, "--lora", adapter, "--write-statement", statement) == 0
    assert [one["scale"] for one in json.loads(statement.read_text())["predicate"]["lora"]] == [1.0]
