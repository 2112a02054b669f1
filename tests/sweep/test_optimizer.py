"""Mixes that are found: what they cost, what they keep to, and that nothing is measured twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_moments

from quantkit.arch import EMBEDDING
from quantkit.errors import GateError, Paused, TensorError, UsageError
from quantkit.evaluate import (
    Arithmetic,
    conditions,
    evenly,
    measure_group,
    measure_probes,
    open_model,
    output_errors,
    sample,
    shipped,
)
from quantkit.evaluate.network import run
from quantkit.gguf_io import read_gguf
from quantkit.moments import Packed, types_sha256
from quantkit.qtypes import Q2_K, Q3_K, Q4_0, Q4_K, Q5_1, Q6_K, Q8_0, QType
from quantkit.strategy import REFERENCE, by_name
from quantkit.sweep import Bounds, Optimizer, Request, Sweep, knapsack, optimize, optimizer, sensitivity, sweep
from quantkit.sweep.candidates import Base, Candidate, Probe

Ask = Callable[..., Request]
HOW = Arithmetic()


@pytest.fixture(autouse=True)
def few_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five of 32 tokens."""
    monkeypatch.setattr(optimizer, "TOKENS", 5 * 32)
    monkeypatch.setattr(optimizer, "REPORTED_TOKENS", 4 * 32)


@pytest.fixture(scope="module", params=["little", "phi4_mini_tiny"])
def base(request: pytest.FixtureRequest) -> Iterator[tuple[Base, Any, Any]]:
    """A base, its model, windows; the second network's embedding is its head too."""
    with open_model(request.getfixturevalue(request.param), pytest.fail) as model:
        windows = evenly(sample([model], shipped("calibration.txt"), 32, None), 3).windows
        yield Base(model, {}), model, windows


def matrices(model: Any) -> list[str]:
    return [name for name, shape in model.tensors.items() if len(shape) == 2]


def test_some_windows_evenly(little: Path) -> None:
    """Which they are is told apart wherever figures are kept."""
    with open_model(little, pytest.fail) as model:
        every = sample([model], shipped("eval.txt"), 32, 12)
    assert evenly(every, 12) is every and "evenly" not in conditions(every, HOW, None)
    found = evenly(every, 4)
    assert np.array_equal(found.windows, every.windows[[1, 4, 7, 10]])
    assert conditions(found, HOW, None)["evenly"] == [4, 12]


def test_a_probe_has_the_figures_of_a_model_of_its_own(base: tuple[Base, Any, Any]) -> None:
    """To the bit, though it is computed beside others, and from the middle."""
    source, model, windows = base
    probes = [Probe(source, model, name, Q8_0 if i % 2 else Q2_K) for i, name in enumerate(matrices(model))]
    found = measure_probes(source, probes, windows, HOW)
    for probe, scores in zip(probes, found, strict=True):
        types = {name: probe.qtype(name) for name in model.tensors}
        assert [name for name, qtype in types.items() if qtype is not source.qtype(name)] == [probe.tensor]
        alone = measure_group([source, Candidate(source, model, types)], windows, HOW, has_base=True, together=True)[1]
        for part in ("nll", "kld", "agree"):
            assert np.array_equal(getattr(scores, part), getattr(alone, part)), (probe.tensor, part)
        assert scores.kld is not None and scores.kld.mean() > 0


def test_errors_are_those_of_the_second_moments(base: tuple[Base, Any, Any]) -> None:
    """trace(dW H dW^T), in float64."""
    source, model, windows = base
    inputs: dict[str, Any] = {}
    last = run([source], windows, HOW, observe=lambda name, x: inputs.__setitem__(name, x.double().numpy()))
    inputs[model.head] = last[0].flatten(0, 1).double().numpy()
    models = [Candidate(source, model, dict.fromkeys(model.tensors, qtype)) for qtype in (Q2_K, Q6_K)]
    for changed, errors in zip(models, output_errors(source, models, windows, HOW), strict=True):
        assert errors.keys() == {*matrices(model)}
        for name in matrices(model):
            difference = source.matrix(name).astype(np.float64) - changed.matrix(name)
            if name in inputs:
                expected = np.trace(difference @ (inputs[name].T @ inputs[name]) @ difference.T)
            else:
                assert name == EMBEDDING
                expected = (difference[windows.reshape(-1)] ** 2).sum()
            assert errors[name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_mix_for_each_size(ask: Ask, imatrix: Path, weighted: bool) -> None:
    """It is no larger than the preset and better; the file that convert makes of its recipe has its types."""
    presets = ("Q3_K_M", "Q4_K_M")
    asked = optimize(ask(types=presets, imatrix=imatrix if weighted else None), warn=pytest.fail)
    report = sweep(asked, warn=pytest.fail)
    assert report is not None and asked.optimized is not None
    by_name = {candidate["type"]: candidate for candidate in report["candidates"]}
    assert by_name.keys() == {*presets, *(f"OPT-{name}" for name in presets)}
    for name, mix in zip(presets, asked.optimized.mixes, strict=True):
        preset, own = by_name[name], by_name[f"OPT-{name}"]
        assert 0.95 * preset["tensor_bytes"] < own["tensor_bytes"] <= preset["tensor_bytes"]
        assert own["tensor_bytes"] - mix.nbytes == preset["tensor_bytes"] - mix.budget.nbytes  # the norms
        assert own["kld"]["mean"] < preset["kld"]["mean"]
        assert own["predicted_kld"] == mix.predicted == pytest.approx(own["kld"]["mean"], rel=0.5)
        assert preset["predicted_kld"] is None and mix.gap == 0
        assert mix.recipe.needs_imatrix is weighted  # or convert would make another file of it than was measured
    assert report["pick"]["type"].startswith("OPT-")
    (picked,) = asked.out.glob("*.gguf")
    best = next(mix for mix in asked.optimized.mixes if mix.recipe.name == report["pick"]["type"])
    types = {tensor.name: tensor.qtype for tensor in read_gguf(picked).tensors.values() if len(tensor.shape) == 2}
    assert types == dict(best.types)
    described = report["optimized"]
    for mix, found in zip(described["mixes"], asked.optimized.mixes, strict=True):
        assert (mix["type"], mix["used_bytes"]) == (found.recipe.name, found.nbytes)
        assert by_name[mix["type"]]["tensor_types"].items() > {n: q.name for n, q in found.types.items()}.items()
    assert described["matrices"].keys() == best.types.keys()
    assert all(matrix["kld"] > 0 and matrix["probe"] == "Q3_K" for matrix in described["matrices"].values())


def test_costs_are_those_of_the_strategy(ask: Ask, imatrix: Path, moments: Path) -> None:
    """Measured anew for it, and kept beside the reference's."""
    found = []
    for strategy in (REFERENCE, by_name("feedback", moments), REFERENCE):
        asked = ask(types=("Q3_K_M",), imatrix=imatrix, strategy=strategy)
        with Sweep.open(asked, pytest.fail) as opened:
            chosen = Optimizer(opened, Bounds(), None)
            assert (chosen.n_missing == 0) == (len(found) == 2)
            chosen.measure()
            found.append(chosen.sensitivity)
    plain, fed, again = found
    assert (again.kld, again.errors) == (plain.kld, plain.errors)
    for name in plain.kld:
        in_layer = name.startswith("blk.")
        assert (fed.kld[name] != plain.kld[name]) == in_layer, name
        assert (fed.errors[name][Q3_K] != plain.errors[name][Q3_K]) == in_layer, name
        assert fed.errors[name][Q8_0] == plain.errors[name][Q8_0], name


@pytest.mark.parametrize("qtype", [Q3_K, Q8_0])
def test_moments_for_one_recipe_find_no_mix(ask: Ask, tmp_path: Path, qtype: QType) -> None:
    recipe = tmp_path / "all.toml"
    recipe.write_text(f'file_type = 1\n[[rule]]\nmatch = "*"\ntype = "{qtype}"\n')
    asked = ask(types=(), recipe=str(recipe), vram_bytes=1 << 40)
    with Sweep.open(asked, pytest.fail) as opened:
        tensors = opened.candidates[0].output.tensors
        sha256 = types_sha256({tensor.name: tensor.qtype for tensor in tensors if len(tensor.shape) == 2})
        small_moments.write(tmp_path, packed=Packed("all", sha256))
    asked = replace(asked, strategy=by_name("feedback", tmp_path))
    with Sweep.open(asked, pytest.fail) as opened, pytest.raises(TensorError, match="matrices of other types"):
        Optimizer(opened, Bounds(), None)


def test_a_mix_for_the_card(ask: Ask) -> None:
    """All that is on the card fits it, to the last few bytes; the embedding is not there, and is not spared."""
    vram = 2_500_000
    asked = optimize(ask(types=(), vram_bytes=vram), warn=pytest.fail)
    with Sweep.open(asked, pytest.fail) as opened:
        planned = next(one for one in opened.candidates if one.output.name == "OPT-2.38419MiB")
    assert vram - 10_000 < planned.use.card_bytes <= vram
    assert planned.types[EMBEDDING] is Q8_0


def test_what_is_not_on_the_card_is_said_in_a_few_words(ask: Ask) -> None:
    asked = optimize(ask(types=(), vram_bytes=2_500_000, memory={"ubatch": 64, "overhead_bytes": 0, "gpu_layers": 1}))
    (recipe,) = asked.out.glob("*.toml")
    assert "bytes of matrices, token_embd.weight and layers 0-1 aside;" in recipe.read_text().splitlines()[0]


def test_a_card_for_which_every_preset_is_too_large(ask: Ask) -> None:
    with Sweep.open(ask(types=("Q2_K",)), pytest.fail) as opened:
        least = opened.candidates[0].use.card_bytes
    asked = ask(types=(), vram_bytes=least - 20_000)
    with pytest.raises(GateError, match="no candidate fits"):
        sweep(asked)
    report = sweep(optimize(asked), write=False)
    assert report is not None and report["pick"]["type"].startswith("OPT-")
    assert [candidate["memory"]["fits"] for candidate in report["candidates"]] == [True, False]
    with pytest.raises(GateError, match="no mix fits"):
        optimize(ask(types=(), vram_bytes=least - 200_000))


BOUNDS = Bounds([("output.weight", Q6_K), ("*.1.ffn_down*", Q2_K)], Q3_K, ["*attn_qkv*", "*attn_output*"])


def test_bounds_are_kept(ask: Ask) -> None:
    asked = optimize(ask(types=("Q3_K_M", "Q4_K_M")), BOUNDS)
    assert asked.optimized is not None
    for mix in asked.optimized.mixes:
        types = mix.types
        assert (types["output.weight"], types["blk.1.ffn_down.weight"]) == (Q6_K, Q2_K)
        for kind in ("attn_qkv", "attn_output"):
            assert types[f"blk.0.{kind}.weight"] is types[f"blk.1.{kind}.weight"]
        assert [name for name, qtype in types.items() if qtype is Q2_K] == ["blk.1.ffn_down.weight"]
        text = (asked.out / f"{mix.recipe.name}.toml").read_text()
        assert "# Bounds: output.weight=Q6_K, *.1.ffn_down*=Q2_K, at least Q3_K, one type for *attn_qkv*" in text


def test_the_file_type_is_that_of_most_bytes_whatever_they_are(ask: Ask) -> None:
    asked = optimize(ask(types=("Q5_K_M",)), Bounds([("output.weight", Q6_K), ("*", Q4_0)]))
    assert asked.optimized is not None and asked.optimized.mixes[0].recipe.file_type == 2


def test_it_costs_what_bounds_ask(ask: Ask) -> None:
    free, bound = (optimize(ask(types=("Q4_K_M",)), bounds).optimized for bounds in (Bounds(), BOUNDS))
    assert free is not None and bound is not None
    assert free.mixes[0].predicted < bound.mixes[0].predicted


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is probed, and the types whose errors are taken, as they are."""
    names: list[str] = []
    measure, errors = sensitivity.measure_probes, sensitivity.output_errors

    def counted(base: Any, probes: Any, *rest: Any) -> Any:
        found = measure(base, probes, *rest)
        names.extend(probe.tensor for probe in probes)
        return found

    def counted_errors(base: Any, models: Any, *rest: Any) -> Any:
        names.extend(model.qtype("output.weight").name for model in models)
        return errors(base, models, *rest)

    monkeypatch.setattr(sensitivity, "measure_probes", counted)
    monkeypatch.setattr(sensitivity, "output_errors", counted_errors)
    monkeypatch.setattr(sensitivity, "PROBES_AT_ONCE", 4)
    return names


def test_stopped_it_goes_on(ask: Ask, made: list[str], tmp_path: Path) -> None:
    """And ends with what an undisturbed run ends with, to the byte."""
    asked = ask(types=("Q4_K_M",))
    steps = iter(range(1000))

    def progress() -> None:
        if next(steps) == 8:  # of 3 for the errors, and 3 for each of three batches
            raise KeyboardInterrupt

    with Sweep.open(asked, pytest.fail) as opened:
        stopped = Optimizer(opened, Bounds(), None)
        assert stopped.n_missing == 10
        with pytest.raises(Paused):
            stopped.measure(progress)
        assert stopped.n_missing == 6
    before = list(made)
    assert before[:6] == ["Q3_K", "Q2_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"] and len(before) == 6 + 4
    made.clear()
    found = optimize(asked)
    assert len(made) == 6 and {*made, *before[6:]} == found.optimized.mixes[0].types.keys()  # type: ignore[union-attr]
    at_once = optimize(replace(asked, out=tmp_path / "at once"))
    assert found.optimized is not None and at_once.optimized is not None
    assert found.optimized.report == at_once.optimized.report
    assert (tmp_path / "at once/OPT-Q4_K_M.toml").read_bytes() == (asked.out / "OPT-Q4_K_M.toml").read_bytes()


def test_a_second_run_measures_nothing(ask: Ask, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one with other sizes, and other bounds on types that are known."""
    first = optimize(ask(types=("Q4_K_M",)))
    made.clear()
    monkeypatch.setattr("quantkit.sweep.measurements.measure_group", lambda *rest, **options: pytest.fail("measured"))
    assert optimize(ask(types=("Q4_K_M",))) == first
    optimize(ask(types=("Q3_K_M", "Q5_K_M")), BOUNDS)
    optimize(ask(types=()), BOUNDS)
    assert made == []


def test_another_type_is_measured(ask: Ask, made: list[str]) -> None:
    optimize(ask(types=("Q4_K_M",)))
    made.clear()
    optimize(ask(types=("Q4_K_M",)), Bounds([("output.weight", Q5_1)]))
    assert made == ["Q5_1"]


def test_another_imatrix_is_another_sensitivity(ask: Ask, made: list[str], imatrix: Path) -> None:
    optimize(ask(types=("Q4_K_M",)))
    made.clear()
    optimize(ask(types=("Q4_K_M",), imatrix=imatrix))
    assert len(made) == 16


def test_what_is_too_small_is_refused_before_anything_is_measured(ask: Ask, made: list[str]) -> None:
    with pytest.raises(GateError, match=r"no mix fits OPT-Q2_K .*expected at most .*found .* at least") as caught:
        optimize(ask(types=("Q4_K_M", "Q2_K")), Bounds([("blk.*", Q4_K)]))
    assert caught.value.exit_code == 3 and made == []


def test_what_makes_no_sense_is_refused_before_anything_is_measured(
    ask: Ask, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"found blk.7\.\*"):
        optimize(ask(), Bounds([("blk.7.*", Q4_K)]))
    monkeypatch.setattr(knapsack, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        optimize(ask())
    assert caught.value.hint == "pip install 'quantkit[optimize]'" and made == []
