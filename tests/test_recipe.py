"""Recipes: the mixes against llama-quantize's own dry runs, the rules' grammar, and what a bad TOML is told."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections import Counter
from pathlib import Path

import gguf
import pytest
import small
from make_types import GOLDEN, NETWORKS, compact, shapes

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import RecipeError, UsageError
from quantkit.gguf_io import data_bytes, place
from quantkit.plan import make_plan
from quantkit.qtypes import F16, F32, Q4_1, Q4_K, Q5_0, Q6_K, Q8_0, QType
from quantkit.recipe import (
    ALIASES,
    FALLBACKS,
    FAMILIES,
    Facts,
    Recipe,
    Rule,
    When,
    families,
    fitting,
    load,
    more_bits,
    preset,
    presets,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "recipes/README.md").read_text("utf-8")
SHAPE = (256, 256)
PHI4 = Facts(n_layers=40, n_gqa=4, imatrix=False, tied=False)
LLAMA_QUANTIZES = ["Q2_K", "Q2_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q4_0", "Q4_1", "Q4_K_M", "Q4_K_S", "Q5_0", "Q5_1"]
LLAMA_QUANTIZES += ["Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0"]


def facts_of(net: dict[str, int], imatrix: bool) -> Facts:
    return Facts(net["layers"], net["heads"] // net["kv_heads"], imatrix, bool(net["tied"]))


def types_of(recipe: Recipe, net: dict[str, int], imatrix: bool) -> dict[str, QType]:
    facts = facts_of(net, imatrix)
    return {name: recipe.type_of(name, shape, facts) for name, shape in shapes(net).items()}


def mib(types: dict[str, QType], net: dict[str, int]) -> float:
    entries = place((name, shape, types[name]) for name, shape in shapes(net).items())
    return round(sum(entry.nbytes for entry in entries) / 2**20, 2)


# --- the family llama.cpp --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_mix_has_the_types_that_llama_quantize_gives(name: str) -> None:
    """Type of every tensor, size of the file, and whether it goes without an importance matrix."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    net = golden["network"]
    assert net == NETWORKS[name]
    assert sorted(golden["mixes"]) == presets()
    for title, (state, imatrix) in itertools.product(presets(), (("without", False), ("with", True))):
        recipe = preset(title)
        expected = golden["mixes"][title].get(state) or golden["mixes"][title].get("any")
        if expected is None:
            with pytest.raises(UsageError, match=title):
                recipe.check(facts_of(net, imatrix))
            continue
        recipe.check(facts_of(net, imatrix))
        types = types_of(recipe, net, imatrix)
        assert compact({tensor: qtype.name for tensor, qtype in types.items()}) == expected["types"], title
        assert mib(types, net) == expected["MiB"], title


def test_there_is_golden_data_of_every_network_and_no_other() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == NETWORKS.keys()


@pytest.mark.parametrize(("n_gqa", "qkv"), [(1, "Q3_K"), (3, "Q3_K"), (4, "Q4_K"), (5, "Q4_K"), (71, "Q4_K")])
def test_heads_to_a_key_value_head_decide_over_qkv(n_gqa: int, qkv: str) -> None:
    facts = Facts(n_layers=8, n_gqa=n_gqa, imatrix=False, tied=False)
    assert preset("Q2_K").type_of("blk.7.attn_qkv.weight", SHAPE, facts).name == qkv


def test_compact_tells_layers_apart() -> None:
    """What the golden data is compared in loses nothing."""
    swapped = {f"blk.{i}.a.weight": "Q6_K" if i in (0, 2, 3) else "Q4_K" for i in range(5)}
    assert compact(swapped | {"output.weight": "F16"}) == {
        "blk.*.a.weight": {"Q4_K": "1,4", "Q6_K": "0,2-3"},
        "output.weight": "F16",
    }


# --- the family classic ----------------------------------------------------------------------------------------------

# preset: MiB of Phi-4.  Q4_K_M is that of published files (8.43 GiB, 4.94 bits per weight).
CLASSIC = {
    "Q2_K": 5286.97,
    "Q2_K_S": 4932.48,
    "Q3_K_M": 7018.77,
    "Q3_K_L": 7559.39,
    "Q4_K_S": 8046.35,
    "Q4_K_M": 8630.33,
    "Q5_K_M": 10109.55,
}


@pytest.mark.parametrize(("name", "size"), CLASSIC.items())
def test_classic_sizes_of_phi4(name: str, size: float) -> None:
    net = NETWORKS["phi-4"]
    assert mib(types_of(preset(name, "classic"), net, imatrix=True), net) == size


def test_classic_q4_k_m_has_the_published_types() -> None:
    types = types_of(preset("Q4_K_M", "classic"), NETWORKS["phi-4"], imatrix=False)
    assert Counter(str(qtype) for qtype in types.values()) == {"F32": 81, "Q4_K": 101, "Q5_K": 40, "Q6_K": 21}
    assert {str(types[f"blk.{i}.attn_qkv.weight"]) for i in range(40)} == {"Q5_K"}


@pytest.mark.parametrize("net", ["phi-4", "phi-4-mini", "narrow-7"])
@pytest.mark.parametrize("name", presets("classic"))
def test_families_differ_in_nothing_but_qkv(name: str, net: str) -> None:
    for imatrix in (False, True):
        new, old = (types_of(preset(name, family), NETWORKS[net], imatrix) for family in families())
        assert {tensor for tensor in new if new[tensor] is not old[tensor] and "attn_qkv" not in tensor} == set()
    assert preset(name).needs_imatrix == preset(name, "classic").needs_imatrix


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families())
def test_presets_of_a_family(family: str) -> None:
    assert set(presets(family)) == {*LLAMA_QUANTIZES, "F16", "BF16", "F32"}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in families() for name in presets(family)])
def test_presets_have_llama_cpps_file_type_and_leave_vectors_alone(family: str, name: str) -> None:
    recipe = preset(name, family)
    spelled = {"F32": "ALL_F32"}.get(name, f"MOSTLY_{name}")
    assert recipe.file_type == gguf.LlamaFileType[spelled]
    assert recipe.type_of("output_norm.weight", (256,), PHI4) is F32
    assert recipe.type_of("blk.0.attn_norm.weight", SHAPE, PHI4) is F32
    assert recipe.name == name


@pytest.mark.parametrize(("alias", "name"), [*ALIASES.items(), ("q4_k_m", "Q4_K_M"), ("q5_k", "Q5_K_M")])
@pytest.mark.parametrize("family", families())
def test_aliases_and_letter_case(alias: str, name: str, family: str) -> None:
    assert preset(alias, family) == preset(name, family)
    assert preset(alias, family).name == name


def test_an_unknown_preset_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        preset("Q9_K")
    assert caught.value.hint is not None and "Q4_K_M" in caught.value.hint


def test_an_unknown_family_is_told_the_known_ones() -> None:
    for call in (lambda: presets("llama"), lambda: preset("Q4_K_M", "llama")):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.hint == "families: llama.cpp, classic"


def test_a_name_that_leaves_the_folder_is_no_preset() -> None:
    with pytest.raises(UsageError):
        preset("../llama.cpp/Q4_K_M")
    with pytest.raises(UsageError):
        preset("Q4_K_M", "../recipes/classic")


def test_every_recipe_file_belongs_to_a_family_and_says_nothing_twice() -> None:
    """A mix that both families have alike stands in one file."""
    files = {path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.toml")}
    assert {str(file.parent) for file in files} == {folder for folders in FAMILIES.values() for folder in folders}
    contents = [tomllib.loads((ROOT / "recipes" / file).read_text("utf-8")) for file in files]
    assert all(one != other for one, other in itertools.combinations(contents, 2))
    shadowed = [name for name, count in Counter(file.stem for file in files).items() if count > 1]
    assert not {file.stem for file in files if file.parent.name == "shared"} & set(shadowed)


def test_the_wheel_takes_the_recipes_along() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["scikit-build"]["wheel"]["packages"]["quantkit/recipes"] == "recipes"


# --- the tables of the README ----------------------------------------------------------------------------------------


def table(heading: str) -> list[list[str]]:
    """The cells of the README's first table under a heading, without its head."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[2:]]


def sizes(name: str, family: str, imatrix: bool) -> list[str]:
    net = NETWORKS["phi-4"]
    types = types_of(preset(name, family), net, imatrix)
    entries = place((tensor, shape, types[tensor]) for tensor, shape in shapes(net).items())
    nbytes, n_weights = data_bytes(entries), sum(entry.n_weights for entry in entries)
    return [f"{nbytes:,}", f"{nbytes / 2**30:.2f}", f"{8 * nbytes / n_weights:.2f}"]


def test_sizes_of_phi4_in_the_readme() -> None:
    """Each preset, once more with an importance matrix where that makes a difference or is needed."""
    expected = []
    for name in presets():
        for title, imatrix in ((name, False), (f"{name} with imatrix", True)):
            ours, classic = (sizes(name, family, imatrix) for family in families())
            if imatrix and ours == sizes(name, "llama.cpp", imatrix=False) and not preset(name).needs_imatrix:
                continue
            if imatrix or not preset(name).needs_imatrix:
                expected.append([title, *ours, *(["the same", "", ""] if classic == ours else classic)])
    assert sorted(table("Sizes of Phi-4")) == sorted(expected)


def test_file_types_in_the_readme() -> None:
    rows = table("The name and the file type of your own mix")
    found = {name: int(number) for row in rows for name, number in zip(row[::2], row[1::2], strict=True)}
    assert found == {name: preset(name).file_type for name in presets()}


# --- rules -----------------------------------------------------------------------------------------------------------


def test_more_bits_is_phi4s_twenty_layers() -> None:
    expected = [0, 1, 2, 3, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 35, 36, 37, 38, 39]
    assert [i for i in range(40) if more_bits(i, 40)] == expected
    assert [i for i in range(32) if more_bits(i, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


@pytest.mark.parametrize(
    ("layers", "chosen"), [("0-1,3", [0, 1, 3]), ("2", [2]), ("3-3", [3]), ("first 1/2", [0, 1]), ("first 1/8", [])]
)
def test_layers(layers: str, chosen: list[int]) -> None:
    rule = Rule(match="blk.*", type="Q8_0", layers=layers)
    facts = Facts(n_layers=4, n_gqa=1, imatrix=False, tied=False)
    assert [i for i in range(4) if rule.holds(f"blk.{i}.x.weight", facts)] == chosen
    assert not Rule(match="*", type="Q8_0", layers=layers).holds("output.weight", facts)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [(">=4", [4, 5]), (">4", [5]), ("<=4", [3, 4]), ("<4", [3]), ("==4", [4]), (">=0", [3, 4, 5])],
)
def test_comparisons(text: str, chosen: list[int]) -> None:
    when = When(n_gqa=text)
    assert [n for n in (3, 4, 5) if when.holds(Facts(n_layers=1, n_gqa=n, imatrix=True, tied=True))] == chosen


@pytest.mark.parametrize(("imatrix", "tied"), list(itertools.product((False, True), repeat=2)))
def test_all_conditions_must_hold(imatrix: bool, tied: bool) -> None:
    facts = Facts(n_layers=1, n_gqa=4, imatrix=imatrix, tied=tied)
    assert When().holds(facts)
    assert When(imatrix=True).holds(facts) == imatrix
    assert When(tied=False).holds(facts) != tied
    assert When(n_gqa="==4", imatrix=True, tied=True).holds(facts) == (imatrix and tied)
    assert not When(n_gqa="<4", imatrix=imatrix, tied=tied).holds(facts)


def test_the_first_rule_that_holds_decides() -> None:
    rules = (
        Rule(match="blk.0.*", type="Q6_K", when=When(imatrix=True)),
        Rule(match="blk.0.*", type="Q8_0"),
        Rule(match="*", type="Q4_K"),
    )
    recipe = Recipe("mine", 7, rules, "")
    assert recipe.type_of("blk.0.a.weight", SHAPE, PHI4).name == "Q8_0"
    assert recipe.type_of("blk.1.a.weight", SHAPE, PHI4).name == "Q4_K"
    assert recipe.type_of("blk.0.a.weight", SHAPE, Facts(2, 4, imatrix=True, tied=False)).name == "Q6_K"


def test_a_matrix_without_a_rule_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"output\.weight"):
        Recipe("mine", 7, (Rule(match="blk.*", type="Q8_0"),), "").type_of("output.weight", SHAPE, PHI4)


# --- fallbacks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("qtype", "n_columns", "expected"),
    [
        (Q4_K, 512, Q4_K),
        (Q4_K, 288, Q5_0),
        (Q4_K, 272, F16),
        (Q6_K, 32, Q8_0),
        (Q8_0, 32, Q8_0),
        (Q8_0, 48, F16),
        (Q4_1, 48, F16),
        (F32, 7, F32),
    ],
)
def test_fitting(qtype: QType, n_columns: int, expected: QType) -> None:
    assert fitting(qtype, n_columns) is expected


def test_every_type_of_256_weights_falls_back_to_one_of_32() -> None:
    assert {str(wanted): str(got) for wanted, got in FALLBACKS.items()} == {
        "Q2_K": "Q4_0",
        "Q3_K": "Q4_0",
        "Q4_K": "Q5_0",
        "Q5_K": "Q5_1",
        "Q6_K": "Q8_0",
    }


def test_a_caller_can_tell_what_fell_back() -> None:
    recipe, facts = preset("Q4_K_M"), facts_of(NETWORKS["narrow-30"], imatrix=False)
    fallen = {
        name: (recipe.wanted(name, shape, facts), recipe.type_of(name, shape, facts))
        for name, shape in shapes(NETWORKS["narrow-30"]).items()
        if recipe.wanted(name, shape, facts) is not recipe.type_of(name, shape, facts)
    }
    assert len(fallen) == 2 + 3 * 30
    assert fallen["output.weight"] == (Q6_K, Q8_0)
    assert fallen["blk.4.attn_output.weight"] == (Q4_K, Q5_0)


# --- in a plan -------------------------------------------------------------------------------------------------------


def test_the_plan_says_how_many_tensors_fell_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "FEED_FORWARD", 544)
    said: list[str] = []
    with open_checkpoint(small.write(tmp_path / "small")) as checkpoint:
        plan = make_plan(checkpoint, [preset("Q8_0"), preset("Q5_K_S")], warn=said.append)
    types = [{tensor.name: tensor.qtype.name for tensor in output.tensors} for output in plan.outputs]
    assert [mix["blk.1.ffn_down.weight"] for mix in types] == ["Q8_0", "Q5_1"]
    assert len(said) == 1
    assert said[0].startswith("Q5_K_S: 2 tensors get a fallback type")


@pytest.mark.parametrize(("kv_heads", "tied"), [(1, False), (2, True)])
def test_the_plan_knows_the_facts_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_heads: int, tied: bool
) -> None:
    monkeypatch.setattr(small, "KV_HEADS", kv_heads)
    source = small.write(
        tmp_path / "small",
        edit_config=lambda config: config.update(tie_word_embeddings=tied),
        edit_tensors=lambda tensors: tensors.pop("lm_head.weight") if tied else None,
    )
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, [preset("Q2_K"), preset("Q4_K_M")], warn=pytest.fail)
    types, more = ({tensor.name: tensor.qtype.name for tensor in output.tensors} for output in plan.outputs)
    assert [more[f"blk.{i}.ffn_down.weight"] for i in range(small.LAYERS)] == ["Q4_K", "Q6_K"]
    assert types["blk.0.attn_qkv.weight"] == ("Q4_K" if small.HEADS // kv_heads >= 4 else "Q3_K")
    assert types["token_embd.weight"] == ("Q6_K" if tied else "Q2_K")


def test_a_plan_without_the_importance_matrix_that_a_preset_needs_is_refused(tmp_path: Path) -> None:
    with (
        open_checkpoint(small.write(tmp_path / "small")) as checkpoint,
        pytest.raises(UsageError, match="Q2_K_S needs an importance matrix"),
    ):
        make_plan(checkpoint, [preset("Q4_K_M"), preset("Q2_K_S")], warn=pytest.fail)


# --- a recipe of the user's ------------------------------------------------------------------------------------------

MINE = """
file_type = 15
needs_imatrix = true

[[rule]]
match = "blk.*.ffn_down.weight"
layers = "0-1"
when = { n_gqa = ">=4", imatrix = true, tied = false }
type = "q8_0"

[[rule]]
match = "*"
type = "Q4_K"
"""


def test_a_file_is_a_recipe_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "my-mix_1.2.toml"
    path.write_text(MINE)
    recipe = load(path)
    assert (recipe.name, recipe.file_type, recipe.needs_imatrix) == ("my-mix_1.2", 15, True)
    facts = Facts(n_layers=4, n_gqa=4, imatrix=True, tied=False)
    found = [recipe.type_of(f"blk.{i}.ffn_down.weight", SHAPE, facts).name for i in range(4)]
    assert found == ["Q8_0", "Q8_0", "Q4_K", "Q4_K"]


def test_the_example_of_the_readme_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(README.split("```toml\n")[1].split("```")[0])
    types = types_of(load(path), NETWORKS["phi-4"], imatrix=False)
    assert Counter(str(qtype) for qtype in types.values()) == {"F32": 81, "Q4_K": 116, "Q6_K": 6, "Q5_K": 40}


FILE = 'file_type = 7\n[[rule]]\nmatch = "*"\ntype = "Q8_0"\n'
BAD = {
    "no rules": ("file_type = 7", "rule"),
    "no file type": ('[[rule]]\nmatch = "*"\ntype = "Q8_0"', "file_type"),
    "a file type in words": (FILE.replace("7", '"Q8_0"'), "file_type"),
    "unknown type": (FILE.replace("Q8_0", "Q9"), r"rule\.1\.type"),
    "a type that is only read": (FILE.replace("Q8_0", "IQ4_XS"), r"rule\.1\.type.* only read"),
    "unknown key": (FILE + "colour = 1", r"rule\.1\.colour"),
    "unknown key above": ("colour = 1\n" + FILE, "key colour"),
    "unknown layers": (FILE + 'layers = "some"', "more_bits"),
    "the first 0th": (FILE + 'layers = "first 1/0"', r"rule\.1\.layers"),
    "a range backwards": (FILE + 'layers = "1,7-4"', "ends before it starts"),
    "layers as numbers": (FILE + "layers = [1, 2]", r"rule\.1\.layers"),
    "a comparison of nothing": (FILE + 'when = { n_gqa = ">=" }', r"rule\.1\.when\.n_gqa"),
    "no comparison": (FILE + "when = { n_gqa = 4 }", r"rule\.1\.when\.n_gqa"),
    "two comparisons": (FILE + 'when = { n_gqa = ">=4 <8" }', "whole number"),
    "a condition in words": (FILE + 'when = { tied = "no" }', r"rule\.1\.when\.tied"),
    "an unknown condition": (FILE + "when = { experts = 8 }", r"rule\.1\.when\.experts"),
    "the second rule": (FILE + "[[rule]]\nmatch = 3\ntype = 'Q8_0'", r"rule\.2\.match"),
    "a truth in words": ('needs_imatrix = "yes"\n' + FILE, "needs_imatrix"),
    "not TOML": ("file_type = ", "not TOML"),
    "not UTF-8": (b"\xff", "not TOML"),
}


def test_the_file_that_the_bad_ones_are_made_of_is_good(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    assert load(path).rules == (Rule(match="*", type="Q8_0"),)


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=words):
        load(path)


@pytest.mark.parametrize("name", ["{type}.toml", "a b.toml", "ü.toml", "x" * 65 + ".toml", "\udcff.toml"])
def test_a_name_that_does_not_fit_into_others_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="letters, digits"):
        load(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load(tmp_path / "mine.toml")
