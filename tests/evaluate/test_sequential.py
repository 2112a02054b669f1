"""Moments behind packed layers: what is collected, what it gains, and that convert packs what was foreseen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from numpy.typing import NDArray

from quantkit import kernels, moments
from quantkit.convert import convert
from quantkit.errors import NotFiniteError, TensorError
from quantkit.evaluate import (
    Arithmetic,
    Model,
    Sample,
    Text,
    collect,
    collect_sequential,
    n_sequential_steps,
    open_model,
    run_of,
)
from quantkit.evaluate.network import run
from quantkit.evaluate.sequential import RIDGE, STRENGTH
from quantkit.imatrix import read_imatrix, write_imatrix
from quantkit.osio import AtomicFile
from quantkit.plan import make_plan
from quantkit.recipe import Recipe, load, named
from quantkit.source import open_source
from quantkit.strategy import by_name

EXACT = Arithmetic()
TEXT = "ab" * 32
MIXED = """file_type = 12
[[rule]]
match = "blk.0.ffn_down.weight"
type = "Q8_0"
[[rule]]
match = "blk.*"
type = "Q3_K"
[[rule]]
match = "*"
type = "Q4_0"
"""


@pytest.fixture(scope="module")
def ids() -> NDArray[np.int64]:
    return np.random.default_rng(7).integers(0, small.VOCABULARY, (24, 64))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("sequential") / "small")


@pytest.fixture(scope="module")
def model(source: Path) -> Any:
    with open_model(source, pytest.fail) as opened:
        yield opened


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "mixed.toml"
    path.write_text(MIXED)
    return load(path)


@pytest.fixture(scope="module")
def folder(model: Model, ids: NDArray[np.int64], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequential") / "moments"
    folder.mkdir()
    calls: list[None] = []
    of_run = run_of(model, sampled(ids), EXACT, recipe)
    sums = collect_sequential(
        model, ids, recipe, how=EXACT, moments=(folder, of_run), progress=lambda: calls.append(None)
    )
    assert len(calls) == n_sequential_steps(model) == 4 * small.LAYERS
    plain = collect(model, ids)
    assert sums.keys() == plain.keys()
    for name, entry in sums.items():
        assert entry.count == ids.size
        assert np.allclose(entry.sums, plain[name].sums, rtol=1e-4), name
    return folder


def sampled(ids: NDArray[np.int64]) -> Sample:
    return Sample(Text("", TEXT, ()), ids, ids.size, "")


def test_runs_are_told_apart(
    source: Path, model: Model, ids: NDArray[np.int64], recipe: Recipe, tmp_path: Path
) -> None:
    """By model, text, windows, arithmetic and recipe."""
    other = small.write(tmp_path / "other", edit_tensors=lambda tensors: tensors["lm_head.weight"].__imul__(2))
    with open_model(other, pytest.fail) as another:
        runs = [
            run_of(model, sampled(ids), EXACT, None),
            run_of(another, sampled(ids), EXACT, None),
            run_of(model, replace(sampled(ids), text=Text("", "cd" * 32, ())), EXACT, None),
            run_of(model, sampled(ids[::-1]), EXACT, None),
            run_of(model, sampled(ids.reshape(12, 128)), EXACT, None),
            run_of(model, sampled(ids), Arithmetic(dtype=torch.bfloat16), None),
            run_of(model, sampled(ids), EXACT, recipe),
            run_of(model, sampled(ids), EXACT, named("Q4_0")),
        ]
    assert len({one.sha256 for one in runs}) == len(runs)
    assert runs[0] == run_of(model, sampled(ids.copy()), EXACT, None)


def converted(source: Path, recipe: Recipe, folder: Path, out: Path) -> Path:
    with open_source(source) as weights:
        plan = make_plan(weights, [recipe], strategy=by_name("feedback", folder), warn=lambda text: None)
        convert(weights, plan, [out])
    return out


def test_convert_packs_what_the_moments_were_collected_behind(
    source: Path, model: Model, ids: NDArray[np.int64], recipe: Recipe, folder: Path, tmp_path: Path
) -> None:
    """The inputs of every matrix of the file are those whose moments there are."""
    seen: dict[str, list[torch.Tensor]] = {}
    with (
        open_model(converted(source, recipe, folder, tmp_path / "a.gguf"), pytest.fail) as made,
        torch.inference_mode(),
    ):
        run([made], ids, EXACT, observe=lambda name, x: seen.setdefault(name, []).append(x))
    for name, inputs in seen.items():
        x = torch.cat(inputs)
        found = moments.read_moments(folder, name, model.tensors[name]).sums  # type: ignore[arg-type]
        expected = (x.T @ x).numpy()
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_an_embedding_that_is_the_head_as_well_has_importance(phi4_mini_tiny: Path, tmp_path: Path) -> None:
    """As convert packs it with the importance matrix of the same text."""
    name, four = "blk.0.attn_qkv.weight", named("Q4_0")
    with open_model(phi4_mini_tiny, pytest.fail) as model:
        ids = np.random.default_rng(3).integers(0, model.network.vocabulary, (4, 32))
        run_here = run_of(model, sampled(ids), EXACT, four)
        sums = collect_sequential(model, ids, four, how=EXACT, moments=(tmp_path, run_here))
        shape = model.tensors[name]
    with AtomicFile(tmp_path / "imatrix.gguf") as out:
        write_imatrix(out, sums, chunk_count=4, chunk_size=32, text_sha256=TEXT)
    imatrix, how = read_imatrix(tmp_path / "imatrix.gguf"), by_name("feedback", tmp_path)
    with open_source(phi4_mini_tiny) as weights:
        plan = make_plan(weights, [four], imatrix=imatrix, strategy=how, warn=lambda text: None)
        convert(weights, plan, [tmp_path / "a.gguf"])
    seen: list[torch.Tensor] = []
    with open_model(tmp_path / "a.gguf", pytest.fail) as made, torch.inference_mode():
        run([made], ids, EXACT, observe=lambda one, x: seen.append(x) if one == name else None)
    x = torch.cat(seen)
    expected = (x.T @ x).numpy()
    found = moments.read_moments(tmp_path, name, (shape[0], shape[1])).sums
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_importance_is_that_of_the_model_in_any_arithmetic(
    model: Model, ids: NDArray[np.int64], recipe: Recipe, tmp_path: Path
) -> None:
    how = Arithmetic(dtype=torch.bfloat16)
    of_run = run_of(model, sampled(ids), how, recipe)
    found = collect_sequential(model, ids, recipe, how=how, moments=(tmp_path, of_run))
    for name, entry in collect(model, ids, how=how).items():
        assert np.allclose(found[name].sums, entry.sums, rtol=1e-6), name


def test_the_correction_is_the_regression(
    source: Path, model: Model, ids: NDArray[np.int64], recipe: Recipe, folder: Path, tmp_path: Path
) -> None:
    """Of what the exact model computes, and of what was lost of the states before, on the inputs that there will be."""
    streams: list[dict[str, torch.Tensor]] = []
    with open_model(converted(source, recipe, folder, tmp_path / "a.gguf"), pytest.fail) as made:
        for one in (model, made):
            seen: dict[str, list[torch.Tensor]] = {}
            with torch.inference_mode():
                run([one], ids, EXACT, observe=lambda name, x, seen=seen: seen.setdefault(name, []).append(x))
            streams.append({name: torch.cat(inputs).double() for name, inputs in seen.items()})
        before = [torch.from_numpy(one.embed(ids.reshape(-1))).double() for one in (model, made)]
    for name, missing in (("attn_qkv", None), ("attn_output", before[0] - before[1])):
        exact, lossy = (stream[f"blk.0.{name}.weight"] for stream in streams)
        rows = torch.from_numpy(model.matrix(f"blk.0.{name}.weight")).double()
        error = (exact - lossy) @ rows.T + (0 if missing is None else missing)
        moment = lossy.T @ lossy
        ridge = RIDGE * moment.diagonal().mean() * torch.eye(len(moment))
        expected = STRENGTH * torch.linalg.solve(moment + ridge, lossy.T @ error).T.numpy()
        correction = moments.read_moments(folder, f"blk.0.{name}.weight", tuple(rows.shape)).correction  # type: ignore[arg-type]
        assert correction is not None
        assert np.abs(correction - expected).max() < 2e-3 * np.abs(expected).max(), name


def test_types_without_codes_have_no_correction(model: Model, folder: Path) -> None:
    shapes = {name: shape for name, shape in model.tensors.items() if moments.has_moments(name) and len(shape) == 2}
    without = {name for name, (n, k) in shapes.items() if moments.read_moments(folder, name, (n, k)).correction is None}
    assert without == {"blk.0.ffn_down.weight"}


def test_it_loses_less(
    source: Path, model: Model, ids: NDArray[np.int64], recipe: Recipe, folder: Path, tmp_path: Path
) -> None:
    """The states that the head is given are nearer to the model's own than with the moments of the model itself."""
    plain = tmp_path / "plain"
    plain.mkdir()
    collect(model, ids, moments=(plain, run_of(model, sampled(ids), EXACT, None)))
    errors = []
    with torch.inference_mode():
        (own,) = run([model], ids, EXACT)
        for used in (plain, folder):
            with open_model(converted(source, recipe, used, tmp_path / f"{used.name}.gguf"), pytest.fail) as made:
                (states,) = run([made], ids, EXACT)
            errors.append(float((states - own).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_other_types_are_refused(source: Path, model: Model, recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TensorError, match="matrices of other types") as caught:
        converted(source, named("Q4_0"), folder, tmp_path / "a.gguf")
    assert "mixed" in str(caught.value.details["expected"])
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("preset", "place"), [("Q8_0", {"row": 300, "column": 7}), ("Q4_0", {})], ids=["as it is", "with a correction"]
)
def test_what_cannot_be_packed_is_named(
    ids: NDArray[np.int64], tmp_path: Path, preset: str, place: dict[str, int]
) -> None:
    """The weight itself, or where everything that is added to it is none."""

    def spoil(tensors: small.Tensors) -> None:
        tensors["model.layers.1.mlp.gate_up_proj.weight"][300, 7] = np.nan

    spoilt = small.write(tmp_path / "spoilt", edit_tensors=spoil)
    of_run = moments.Run(ids.size, TEXT, TEXT)
    with open_model(spoilt, pytest.fail) as model, pytest.raises(NotFiniteError) as caught:
        collect_sequential(model, ids, named(preset), how=EXACT, moments=(tmp_path, of_run))
    details = caught.value.details
    assert (details["file"], details["tensor"]) == (spoilt, "blk.1.ffn_up.weight")
    assert {key: details[key] for key in ("row", "column") if key in details} == place
    assert [path.name for path in tmp_path.glob("blk.*")] == ["blk.0.safetensors"]


@pytest.mark.parametrize("backend", kernels.backends())
def test_the_correction_is_added_to_each_row(
    source: Path, recipe: Recipe, folder: Path, tmp_path: Path, backend: str
) -> None:
    """Whatever slabs the rows come in, and on every backend."""
    expected = converted(source, recipe, folder, tmp_path / "a.gguf").read_bytes()
    with kernels.using(backend):
        assert converted(source, recipe, folder, tmp_path / "b.gguf").read_bytes() == expected
