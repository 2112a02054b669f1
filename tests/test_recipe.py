"""Recipes: the layer arithmetic, the rules' order, and what a bad TOML is told."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from quantkit.errors import RecipeError, UsageError
from quantkit.qtypes import F32
from quantkit.recipe import Recipe, Rule, load, more_bits, preset, presets

SHAPE = (256, 256)


def types(recipe: Recipe, tensor: str, layers: int) -> list[str]:
    return [recipe.type_of(f"blk.{i}.{tensor}.weight", SHAPE, layers).name for i in range(layers)]


def test_more_bits_is_phi4s_twenty_layers() -> None:
    expected = [0, 1, 2, 3, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 35, 36, 37, 38, 39]
    assert [i for i in range(40) if more_bits(i, 40)] == expected
    assert [i for i in range(32) if more_bits(i, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_q4_k_m_of_phi4() -> None:
    recipe = preset("q4_k_m")
    mixed = ["Q6_K" if more_bits(i, 40) else "Q4_K" for i in range(40)]
    assert types(recipe, "attn_qkv", 40) == mixed
    assert types(recipe, "ffn_down", 40) == mixed
    assert set(types(recipe, "ffn_up", 40) + types(recipe, "attn_output", 40)) == {"Q4_K"}
    assert recipe.type_of("output.weight", SHAPE, 40).name == "Q6_K"
    assert recipe.type_of("token_embd.weight", SHAPE, 40).name == "Q4_K"


def test_q4_k_s_of_phi4() -> None:
    recipe = preset("Q4_K_S")
    assert types(recipe, "attn_qkv", 40) == ["Q5_K"] * 4 + ["Q4_K"] * 36
    assert types(recipe, "ffn_down", 40) == ["Q5_K"] * 5 + ["Q4_K"] * 35


@pytest.mark.parametrize("name", presets())
def test_presets_have_llama_cpps_file_type_and_leave_vectors_alone(name: str) -> None:
    recipe = preset(name)
    spelled = {"F32": "ALL_F32"}.get(name, f"MOSTLY_{name}")
    assert recipe.file_type == gguf.LlamaFileType[spelled]
    assert recipe.type_of("output_norm.weight", (256,), 40) is F32
    assert recipe.name == name


def test_an_unknown_preset_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        preset("Q9_K")
    assert caught.value.hint is not None and "Q4_K_M" in caught.value.hint


def test_a_name_that_leaves_the_folder_is_no_preset() -> None:
    with pytest.raises(UsageError):
        preset("../llama.cpp/Q4_K_M")


@pytest.mark.parametrize(
    ("layers", "chosen"), [("0-1,3", [0, 1, 3]), ("2", [2]), ("first 1/2", [0, 1]), ("first 1/8", [])]
)
def test_layers(layers: str, chosen: list[int]) -> None:
    rule = Rule(match="blk.*", type="Q8_0", layers=layers)
    assert [i for i in range(4) if rule.matches(f"blk.{i}.x.weight", 4)] == chosen
    assert not rule.matches("output.weight", 4)


def test_the_first_rule_that_matches_decides() -> None:
    rules = (Rule(match="blk.0.*", type="Q8_0"), Rule(match="*", type="Q4_K"))
    recipe = Recipe("mine", 7, rules, "")
    assert recipe.type_of("blk.0.a.weight", SHAPE, 2).name == "Q8_0"
    assert recipe.type_of("blk.1.a.weight", SHAPE, 2).name == "Q4_K"


def test_a_matrix_without_a_rule_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"output\.weight"):
        Recipe("mine", 7, (Rule(match="blk.*", type="Q8_0"),), "").type_of("output.weight", SHAPE, 2)


BAD = {
    "no rules": ("file_type = 7", "rule"),
    "no file type": ('[[rule]]\nmatch = "*"\ntype = "Q8_0"', "file_type"),
    "unknown type": ('file_type = 7\n[[rule]]\nmatch = "*"\ntype = "Q9"', r"rule\.1\.type"),
    "unknown key": ('file_type = 7\n[[rule]]\nmatch = "*"\ntype = "Q8_0"\ncolour = 1', "colour"),
    "unknown layers": ('file_type = 7\n[[rule]]\nmatch = "*"\ntype = "Q8_0"\nlayers = "some"', "more_bits"),
    "a number for text": ('file_type = 7\n[[rule]]\nmatch = 3\ntype = "Q8_0"', r"rule\.1\.match"),
    "not TOML": ("file_type = ", "not TOML"),
    "not UTF-8": (b"\xff", "not TOML"),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=words):
        load(path)
