"""Adapters that are not what they claim to be: each is refused by name, and nothing outside its folder is read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from numpy.typing import NDArray
from safetensors.numpy import save_file

from quantkit.check import check
from quantkit.checkpoint import Lora, open_adapter
from quantkit.checkpoint.adapter_config import read_adapter_config
from quantkit.convert import convert
from quantkit.errors import (
    ConfigError,
    FormatError,
    InputError,
    NotFiniteError,
    QuantkitError,
    TensorError,
    UnsafeError,
    UnsupportedError,
    UsageError,
)
from quantkit.plan import make_plan
from quantkit.recipe import preset
from quantkit.source import open_source

LAYER = "base_model.model.model.layers.0"
VECTOR = np.ones(small.HIDDEN, np.float32)
Config, Tensors = dict[str, Any], dict[str, NDArray[Any]]


def write(
    folder: Path,
    edit_config: Callable[[Config], object] = lambda config: None,
    edit_tensors: Callable[[Tensors], object] = lambda tensors: None,
) -> Path:
    """An adapter of rank 2 for o_proj of the small checkpoint, after the edits."""
    config: Config = {
        "base_model_name_or_path": None,
        "lora_alpha": 4,
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["o_proj"],
    }
    rng = np.random.default_rng(8)
    tensors: Tensors = {
        f"{LAYER}.self_attn.o_proj.lora_A.weight": rng.standard_normal((2, small.HIDDEN), np.float32),
        f"{LAYER}.self_attn.o_proj.lora_B.weight": rng.standard_normal((small.HIDDEN, 2), np.float32),
    }
    edit_config(config)
    edit_tensors(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def renamed(old: str, new: str) -> Callable[[Tensors], None]:
    """An edit of tensors: part of their names."""

    def edit(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return edit


def more(**tensors: NDArray[Any]) -> Callable[[Tensors], None]:
    """An edit of tensors: others of layer 0, __ for a dot."""
    return lambda known: known.update({f"{LAYER}.{name.replace('__', '.')}": value for name, value in tensors.items()})


def resized(part: str, *shape: int) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors.update({name: np.ones(shape, np.float32) for name in tensors if part in name})

    return edit


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("refusals") / "small")


NONE = lambda anything: None  # noqa: E731
SET: Callable[..., Callable[[Config], None]] = lambda **values: lambda config: config.update(values)  # noqa: E731
# name: (edit of the config, edit of the tensors, the error, words of it)
SPOILT: dict[str, tuple[Callable[[Config], Any], Callable[[Tensors], Any], type[QuantkitError], str]] = {
    "another kind": (SET(peft_type="IA3"), NONE, UnsupportedError, "kind of adapter.*LORA.*IA3"),
    "a kind that is no word": (SET(peft_type=["LORA"]), NONE, ConfigError, "peft_type.*a string"),
    "no kind": (lambda config: config.pop("peft_type"), NONE, ConfigError, "peft_type"),
    "no rank": (lambda config: config.pop("r"), NONE, ConfigError, "key r: a needed key is missing"),
    "a rank of none": (SET(r=0), NONE, ConfigError, "impossible rank"),
    "a rank that is true": (SET(r=True), NONE, ConfigError, "key r: a value has the wrong type"),
    "alpha that is a string": (SET(lora_alpha="16"), NONE, ConfigError, "lora_alpha.*a number"),
    "alpha beyond float64": (SET(lora_alpha=10**400), NONE, ConfigError, "lora_alpha"),
    "alpha beyond float32": (SET(lora_alpha=1e39), NONE, ConfigError, "alpha is so large.*5e\\+38"),
    "patterns that are a list": (SET(rank_pattern=[["o_proj", 2]]), NONE, ConfigError, "rank_pattern.*an object"),
    "a pattern that is none": (SET(alpha_pattern={"(o_proj": 2}), NONE, ConfigError, "alpha_pattern is none"),
    "a pattern that takes forever": (SET(rank_pattern={r"(\w+\.?)+X": 2}), NONE, UnsupportedError, "may take forever"),
    "many repeats": (SET(rank_pattern={".*.*.*.*X": 2}), NONE, UnsupportedError, "may take forever"),
    "a rank in a pattern that is none": (SET(rank_pattern={"o_proj": -1}), NONE, ConfigError, "impossible rank"),
    "targets that are a number": (SET(target_modules=7), NONE, ConfigError, "target_modules: is not a list of names"),
    "a base that is a list": (SET(base_model_name_or_path=["x"]), NONE, ConfigError, "base_model_name_or_path"),
    "PiSSA": (SET(init_lora_weights="pissa_niter_4"), NONE, UnsupportedError, "training began by changing.*pissa"),
    "OLoRA": (SET(init_lora_weights="olora"), NONE, UnsupportedError, "training began by changing"),
    "aLoRA": (SET(alora_invocation_tokens=[1]), NONE, UnsupportedError, "active for some tokens only"),
    "repeated layers": (SET(layer_replication=[[0, 2]]), NONE, UnsupportedError, "repeats layers"),
    "single tokens": (SET(trainable_token_indices=[1]), NONE, UnsupportedError, "single rows of the embedding"),
    "biases": (NONE, more(self_attn__o_proj__lora_B__bias=VECTOR), UnsupportedError, "no known kind"),
    "biases of the base": (NONE, more(self_attn__o_proj__bias=VECTOR), UnsupportedError, "no known kind"),
    "no name of PEFT's": (NONE, renamed("base_model.model.", ""), UnsupportedError, "no known kind"),
    "dense": (NONE, renamed("o_proj", "dense"), TensorError, "a module that the model does not have"),
    "a layer too many": (NONE, renamed("layers.0", "layers.2"), TensorError, "a module that the model does not have"),
    "a whole tensor of no module": (
        NONE,
        more(self_attn__dense__weight=np.ones((4, 4), np.float32)),
        TensorError,
        "does not have",
    ),
    "a whole tensor of some rows": (
        NONE,
        more(self_attn__q_proj__weight=np.ones((256, 256), np.float32)),
        UnsupportedError,
        "for some rows",
    ),
    "a whole tensor of another shape": (
        NONE,
        more(self_attn__o_proj__weight=np.ones((256, 255), np.float32)),
        TensorError,
        r"does not fit the model.*found \[256, 255\]",
    ),
    "half a pair": (NONE, lambda tensors: tensors.popitem(), TensorError, "no pair.*lora_A and lora_B"),
    "another rank": (SET(r=3), NONE, TensorError, r"lora_A.*contradicts the rank.*expected \[3, \.\.\.\]"),
    "ranks that differ": (NONE, resized("lora_B", 256, 3), TensorError, "lora_B.*contradicts the rank"),
    "too few inputs": (NONE, resized("lora_A", 2, 255), TensorError, "does not fit the model.*found \\[256, 255\\]"),
    "too many outputs": (NONE, resized("lora_B", 257, 2), TensorError, "does not fit the model.*found \\[257, 256\\]"),
    "a vector": (NONE, resized("lora_A", 2), TensorError, "contradicts the rank|does not fit"),
    "three dimensions": (NONE, resized("lora_A", 2, 16, 16), TensorError, "contradicts the rank"),
    "magnitudes unasked": (NONE, more(self_attn__o_proj__lora_magnitude_vector=VECTOR), TensorError, "use_dora"),
    "no magnitudes": (SET(use_dora=True), NONE, TensorError, "use_dora"),
    "too few magnitudes": (
        SET(use_dora=True),
        more(self_attn__o_proj__lora_magnitude_vector=np.ones(255, np.float32)),
        TensorError,
        "does not fit the model.*expected \\[256\\], found \\[255\\]",
    ),
    "two adapters in one file": (
        NONE,
        lambda tensors: tensors.update({f"{LAYER}.self_attn.o_proj.lora_A.x.weight": np.ones((2, 256), np.float32)}),
        TensorError,
        "two tensors mean the same",
    ),
    "parts of two adapters": (
        NONE,
        lambda tensors: [renamed(f"lora_{x}.", f"lora_{x}.{x}.")(tensors) for x in "AB"],
        UnsupportedError,
        "several adapters are in one file.*'A', 'B'",
    ),
    "integers": (NONE, more(x__weight=np.ones(2, np.int8)), UnsupportedError, "I8"),
    "no elements": (NONE, resized("lora_A", 0, 256), TensorError, "no elements"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_adapter_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    edit_config, edit_tensors, error, words = SPOILT[name]
    adapter = write(tmp_path / "adapter", edit_config, edit_tensors)
    with pytest.raises(error, match=words) as caught, open_source(base, lora=[Lora(adapter)]):
        pass
    assert type(caught.value) is error
    assert str(adapter) in str(caught.value)


def test_a_sound_one_is_not(base: Path, tmp_path: Path) -> None:
    with open_source(base, lora=[Lora(write(tmp_path / "adapter"))]) as weights:
        assert list(weights.changes) == ["blk.0.attn_output.weight"]
        assert weights.warnings == ()


def test_the_hint_names_the_modules_that_there_are(base: Path, tmp_path: Path) -> None:
    """Tutorials name `dense`, which Phi-4 does not have."""
    adapter = write(tmp_path / "adapter", edit_tensors=renamed("o_proj", "dense"))
    with pytest.raises(TensorError) as caught, open_source(base, lora=[Lora(adapter)]):
        pass
    for module in ("model.layers.N.self_attn.o_proj", "qkv_proj", "gate_proj", "lm_head", "N from 0 to 1"):
        assert module in (caught.value.hint or "")


def test_a_name_that_is_only_listed_is_a_warning(base: Path, tmp_path: Path) -> None:
    listed = SET(target_modules=["o_proj", "dense"], modules_to_save=["lm_head"], newest=[1])
    adapter = write(tmp_path / "adapter", listed)
    said: list[str] = []
    with open_source(base, lora=[Lora(adapter)]) as weights:
        make_plan(weights, [preset("Q8_0")], warn=said.append)
    assert len(said) == 2
    assert "'newest' is not known" in said[0]
    assert "dense, lm_head is listed" in said[1]


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "lora_magnitude_vector"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_found_where_it_is(base: Path, tmp_path: Path, part: str, value: float) -> None:
    def spoil(tensors: Tensors) -> None:
        more(self_attn__o_proj__lora_magnitude_vector=VECTOR)(tensors)
        next(tensor for name, tensor in tensors.items() if part in name).reshape(-1)[7] = value

    adapter = write(tmp_path / "adapter", SET(use_dora=True), spoil)
    with open_source(base, lora=[Lora(adapter)]) as weights:
        plan = make_plan(weights, [preset("Q8_0")], warn=pytest.fail)
        with pytest.raises(NotFiniteError, match=part) as caught:
            convert(weights, plan, [tmp_path / "out.gguf"])
        assert caught.value.details["file"] == adapter / "adapter_model.safetensors"
        with pytest.raises(NotFiniteError, match=part):
            check(weights, plan, lambda done: None)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", ["overflow", "too large for F16"])
def test_a_change_that_is_too_large_is_found_in_the_merged_rows(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = write(tmp_path / "adapter", SET(lora_alpha=3e38 if kind == "overflow" else 1e7))
    with open_source(base, lora=[Lora(adapter)]) as weights:
        plan = make_plan(weights, [preset("F32" if kind == "overflow" else "F16")], warn=pytest.fail)
        with pytest.raises(InputError, match=r"layers\.0\.self_attn\.o_proj") as caught:
            convert(weights, plan, [tmp_path / "out.gguf"])
        assert "row" in caught.value.details
        (finding,) = check(weights, plan, lambda done: None)
        assert (finding.n_not_finite if kind == "overflow" else finding.n_too_large) > 0


def test_a_row_without_a_direction_gets_no_magnitude(base: Path, tmp_path: Path) -> None:
    """Its norm is beyond float32, or the row is zeros; PEFT makes NaN or zeros of it."""
    magnitudes = more(self_attn__o_proj__lora_magnitude_vector=VECTOR)
    adapter = write(tmp_path / "adapter", SET(use_dora=True, lora_alpha=1e25), magnitudes)
    with open_source(base, lora=[Lora(adapter)]) as weights:
        plan = make_plan(weights, [preset("Q8_0")], warn=pytest.fail)
        with pytest.raises(NotFiniteError, match="no direction"):
            convert(weights, plan, [tmp_path / "out.gguf"])


# ---- folders


def test_a_pickle_is_refused_for_safety(tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UnsafeError, match="a pickle") as caught:
        open_adapter(Lora(adapter))
    assert "save_pretrained" in (caught.value.hint or "")


def test_an_adapter_with_a_name_lies_in_a_folder_of_its_own(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "run" / "mine", edit_tensors=renamed("lora_A.weight", "lora_A.default.weight"))
    with open_source(base, lora=[Lora(tmp_path / "run")]) as weights:
        assert weights.name == "small-mine"
    write(tmp_path / "run" / "other")
    with pytest.raises(InputError, match=r"several adapters.*'mine', 'other'"):
        open_adapter(Lora(tmp_path / "run"))


@pytest.mark.parametrize("content", ["[]", "{", '{"peft_type": "LORA", "peft_type": "LORA"}', '{"r": NaN}', "\ud800"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    adapter = write(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises((FormatError, ConfigError)):
        open_adapter(Lora(adapter))


def test_what_is_no_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    for path, words in ((tmp_path / "absent", "is not a folder"), (base, "no adapter is in this folder")):
        with pytest.raises(InputError, match=words):
            open_adapter(Lora(path))
    adapter = write(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no such file"):
        open_adapter(Lora(adapter))
    with pytest.raises(UsageError, match="no float32 number"):
        Lora(adapter, 1e39)


@pytest.mark.parametrize("name", ["../small", "x/../../small", r"..\small", "a\nb"])
def test_a_base_that_climbs_out_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    adapter = write(tmp_path / "adapter", SET(base_model_name_or_path=name))
    (base.parent / "x").mkdir(exist_ok=True)
    monkeypatch.chdir(base.parent / "x")
    with pytest.raises(UnsafeError, match="climbs out") as caught, open_source(adapter):
        pass
    assert "--lora" in (caught.value.hint or "")


@pytest.mark.parametrize("name", [None, "", "absent", "/absent/model", "a/b/c"])
def test_a_base_that_is_not_here_is_refused(tmp_path: Path, name: str | None) -> None:
    adapter = write(tmp_path / "adapter", SET(base_model_name_or_path=name))
    with pytest.raises(InputError, match="base_model_name_or_path") as caught, open_source(adapter):
        pass
    assert "--lora" in (caught.value.hint or "")


def test_two_adapters_cannot_both_replace_a_tensor_or_set_a_norm(base: Path, tmp_path: Path) -> None:
    whole = more(input_layernorm__weight=VECTOR)
    wholes = [Lora(write(tmp_path / name, edit_tensors=whole)) for name in "ab"]
    with pytest.raises(UnsupportedError, match="two adapters have this tensor"), open_source(base, lora=wholes):
        pass
    dora = write(tmp_path / "dora", SET(use_dora=True), more(self_attn__o_proj__lora_magnitude_vector=VECTOR))
    plain = write(tmp_path / "plain")
    for pair in ([dora, plain], [plain, dora]):
        with pytest.raises(UnsupportedError, match="DoRA"), open_source(base, lora=[Lora(path) for path in pair]):
            pass


@pytest.mark.parametrize(
    "pattern",
    [
        r".?" * 40 + "X",
        r"(.|.)" * 40 + "X",
        r"([a-z._0-9]+|\\)+X",  # the backslash is one by itself, and the group repeated
        r"(?x:([a-z._0-9]+) +)X",  # blanks mean nothing here, and the group is repeated
        r"(?=(.*))X",
        r"([a-z]|[.)])*X",
        "+" * 512,
    ],
)
def test_a_pattern_that_may_take_forever_is_refused(tmp_path: Path, pattern: str) -> None:
    adapter = write(tmp_path / "adapter", SET(alpha_pattern={pattern: 1}))
    with pytest.raises(UnsupportedError, match="may take forever"):
        read_adapter_config(adapter / "adapter_config.json")


def test_patterns_that_people_write_are_taken(tmp_path: Path) -> None:
    layers = "|".join(map(str, range(40)))
    patterns = {
        rf"model\.layers\.({layers})\.(?:self_attn|mlp)\..*_proj": 3,
        r"^model.layers.[*+0-9]+.mlp\.(up|down)_proj?": 4,
        **{f"model.layers.{i}.self_attn.{name}": 5 for i in range(40) for name in ("q_proj", "k_proj")},
    }
    config = read_adapter_config(write(tmp_path / "adapter", SET(rank_pattern=patterns)) / "adapter_config.json")
    assert config.rank_of("model.layers.39.self_attn.o_proj") == 3
    assert len(config.rank_patterns) == len(patterns)


def test_a_pattern_is_matched_in_no_time(base: Path, tmp_path: Path) -> None:
    """The worst that is allowed, on every module."""
    start = time.monotonic()
    adapter = write(tmp_path / "adapter", SET(rank_pattern={".*.*.*" + "o_projX" * 60: 2, "[a-z._0-9]*.*.*Y": 2}))
    with open_source(base, lora=[Lora(adapter)]):
        pass
    assert time.monotonic() - start < 2


def test_the_command_line_ends_with_the_right_code(base: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    climbing = write(tmp_path / "climbing", SET(base_model_name_or_path="../small"))
    for arguments, code in (
        ([str(base), "--lora", str(adapter)], 77),
        ([str(climbing)], 77),
        ([str(base), "--lora", str(tmp_path / "absent")], 65),
        ([str(base), "--lora", f"{climbing}:1e99"], 2),
    ):
        command = [sys.executable, "-m", "quantkit", "convert", *arguments, "-t", "Q8_0", "-o", str(tmp_path / "x")]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.returncode == code, run.stderr
        assert "hint: " in run.stderr or code == 2
