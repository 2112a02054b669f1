"""The parts of a mix: what a user may ask, what is written, what is predicted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from quantkit.errors import UsageError
from quantkit.qtypes import F16, Q2_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from quantkit.recipe import Facts, load
from quantkit.sweep import Bounds
from quantkit.sweep.bounds import OFFERED
from quantkit.sweep.response import Response
from quantkit.sweep.sensitivity import interpolated, spread_over_layers
from quantkit.sweep.written import ranges, recipe_text

LAYERS = 12
KINDS = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
SHAPES = {"output.weight": (64, 256), "token_embd.weight": (64, 256)} | {
    f"blk.{i}.{kind}.weight": (256, 512 if kind == "ffn_down" else 256) for i in range(LAYERS) for kind in KINDS
}
UP = tuple(f"blk.{i}.ffn_up.weight" for i in range(LAYERS))


def test_a_recipe_gives_back_the_types(tmp_path: Path) -> None:
    rng = random.Random(2)
    facts = Facts(LAYERS, 1, False, False)
    for number in range(20):
        types = {name: rng.choice(OFFERED[: 1 + number % len(OFFERED)]) for name in SHAPES}
        path = tmp_path / f"OPT-{number}.toml"
        path.write_text(recipe_text(types, 15, ["what was found", ""]))
        recipe = load(path)
        assert recipe.file_type == 15
        assert {name: recipe.type_of(name, shape, facts) for name, shape in SHAPES.items()} == types


def test_a_recipe_is_short() -> None:
    types = dict.fromkeys(SHAPES, Q4_K) | dict.fromkeys(UP[3:6], Q6_K) | {UP[0]: Q6_K}
    text = recipe_text(types, 15, ["what was found"])
    assert text.startswith("# what was found\nfile_type = 15\n\n[[rule]]\n")
    assert text.count("[[rule]]") == 7 and text.count("layers") == 1
    assert 'match = "blk.*.ffn_up.weight"\nlayers = "0,3-5"\ntype = "Q6_K"\n' in text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "3"), ([0, 1], "0-1"), ([7, 0, 2, 1, 4], "0-2,4,7"), (range(40), "0-39")],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_without_bounds_every_matrix_has_every_type() -> None:
    groups = Bounds().groups(SHAPES)
    assert groups == [(name,) for name in SHAPES]
    assert {Bounds().options(names, SHAPES) for names in groups} == {OFFERED}


def test_bounds() -> None:
    bounds = Bounds([("output*", Q8_0), ("out*", Q2_K), ("*ffn_down*", F16)], Q4_K, ["*ffn_up*", "blk.[01].attn_*"])
    groups = bounds.groups(SHAPES)
    assert UP in groups and sorted(name for names in groups for name in names) == sorted(SHAPES)
    assert len(groups) == len(SHAPES) - (LAYERS - 1) - 3
    options = {names: bounds.options(names, SHAPES) for names in groups}
    assert options[("output.weight",)] == (Q8_0,)
    assert options[("blk.7.ffn_down.weight",)] == (F16,)
    assert options[UP] == (Q4_K, Q5_K, Q6_K, Q8_0)


def test_a_pattern_may_leave_out_what_all_names_end_with() -> None:
    bounds = Bounds([("output", Q8_0)], same=["blk.*.ffn_up"])
    assert UP in bounds.groups(SHAPES)
    assert bounds.options(["output.weight"], SHAPES) == (Q8_0,)
    assert bounds.options(["blk.0.attn_output.weight"], SHAPES) != (Q8_0,)


def test_rows_that_do_not_divide_have_their_fallbacks() -> None:
    shapes = {"a": (4, 96), "b": (4, 100), "c": (4, 256)}
    assert Bounds().options(["a"], shapes) == (Q4_0, Q5_0, Q5_1, Q8_0)
    assert Bounds().options(["b"], shapes) == (F16,)
    assert Bounds().options(["a", "c"], shapes) == (Q8_0,)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds([("nothing.*", Q8_0)]), "found nothing.*"),
        (Bounds(same=["blk.99.*"]), "found blk.99.*"),
        (Bounds(same=["*ffn_up*", "blk.0.*"]), "found *ffn_up*, blk.0.*"),
        (Bounds([("blk.0.ffn_up.weight", Q2_K)], Q4_K, ["*ffn_up*"]), "no type is left"),
        (Bounds(least=F16), "no type is left"),
    ],
    ids=["keep", "same", "two groups", "contradiction", "too much"],
)
def test_bounds_that_make_no_sense(bounds: Bounds, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        for names in bounds.groups(SHAPES):
            bounds.options(names, SHAPES)
    assert words in str(caught.value)


def test_a_prediction_goes_through_what_was_measured() -> None:
    points = [(0.01, 0.012), (0.1, 0.1), (1.0, 0.7), (4.0, 2.0)]
    response = Response(points)
    for cost, kld in points:
        assert response.predict(cost) == pytest.approx(kld)
    assert response.predict(0.001) == pytest.approx(0.0012) and response.predict(0) == 0
    costs = [0.0005 * 1.1**i for i in range(120)]
    assert sorted(map(response.predict, costs)) == [response.predict(cost) for cost in costs]


def test_noise_makes_no_prediction_fall() -> None:
    response = Response([(1.0, 0.7), (1.1, 0.6), (2.0, 0.9)])
    assert response.predict(1.1) == pytest.approx(0.7)


def test_what_is_not_probed_is_reckoned_from_its_neighbours() -> None:
    """Where the logarithm of kld / error is straight, it comes back exactly."""
    rng = random.Random(1)
    error = {name: rng.uniform(1, 9) for name in SHAPES}
    rate = {name: 0.01 * 0.8 ** int(name.split(".")[1]) if name.startswith("blk") else 3.0 for name in SHAPES}
    kld = {name: error[name] * rate[name] for name in SHAPES}
    probed = spread_over_layers(list(SHAPES), 20)
    assert len(probed) == 18 and {"output.weight", UP[0], UP[-1]} <= {*probed}
    found = interpolated({name: kld[name] for name in probed}, error)
    assert found == pytest.approx(kld) and list(found) == list(SHAPES)


def test_too_few_probes() -> None:
    assert spread_over_layers(list(SHAPES), None) == spread_over_layers(list(SHAPES), 1000) == list(SHAPES)
    assert len(spread_over_layers(list(SHAPES), 10)) == 10
    with pytest.raises(UsageError, match="at least 10"):
        spread_over_layers(list(SHAPES), 9)
