"""Measuring: groups of windows, interruption, a model against itself and against the definition, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import small
import small_gguf
import torch
from transformers import PreTrainedModel

from quantkit.errors import NotFiniteError, UsageError, VocabularyError
from quantkit.evaluate import (
    Arithmetic,
    Model,
    Sample,
    Text,
    arithmetic,
    evaluate,
    n_steps,
    open_model,
    read_text,
    sample,
)
from quantkit.evaluate import measure as module
from quantkit.evaluate.network import head_rows, run
from quantkit.gguf_io import Kind
from quantkit.qtypes import BF16, F32

EXACT = Arithmetic()
WORDS = ("the", "hen,", "theme", "&", "12", "other", "héros", "–", "")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """About 1500 tokens of the small vocabulary."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(np.random.default_rng(1).choice(WORDS, 400)), encoding="utf-8")
    return read_text([str(path)])


@pytest.fixture
def groups_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_TOKENS", 2 * 64)


@contextmanager
def opened(*paths: Path) -> Iterator[list[Model]]:
    models = [open_model(path, pytest.fail) for path in paths]
    try:
        yield models
    finally:
        for model in models:
            model.close()


def measured(
    paths: list[Path], text: Text, progress: Callable[[], None] = lambda: None, **options: Any
) -> dict[str, Any]:
    """The result of five windows of 64 tokens, the first model being the base."""
    with opened(*paths) as (base, *models):
        chosen = sample([base, *models], text, 64, 5)
        return evaluate(models, chosen, base=base, how=Arithmetic(**options), progress=progress)


@pytest.mark.usefixtures("groups_of_two")
def test_groups_do_not_show(
    little: Path, little_files: dict[str, Path], text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [little, little_files["Q2_K"]]
    in_twos = measured(paths, text)
    monkeypatch.setattr(module, "GROUP_TOKENS", 5 * 64)
    at_once = measured(paths, text)
    assert in_twos["windows"] == at_once["windows"] == 5
    for key in ("nll_by_window", "kld_by_window"):
        few, all_together = in_twos["models"][0][key], at_once["models"][0][key]
        assert len(few) == 5
        assert few == pytest.approx(all_together, rel=1e-6, abs=1e-9)


@pytest.mark.usefixtures("groups_of_two")
def test_progress_comes_as_often_as_was_said(little: Path, little_files: dict[str, Path], text: Text) -> None:
    calls: list[None] = []
    measured([little, little_files["Q8_0"]], text, lambda: calls.append(None))
    with opened(little, little_files["Q8_0"]) as models:
        expected = n_steps(models, sample(models, text, 64, 5).windows)
    assert len(calls) == expected == 3 * (2 * small.LAYERS + 1)


@pytest.mark.usefixtures("groups_of_two")
def test_interrupted_it_gives_what_is_finished(little: Path, little_files: dict[str, Path], text: Text) -> None:
    paths = [little, little_files["Q2_K"]]
    left = iter(range(2 * small.LAYERS + 1 + 3))  # of the first group, and into the second

    def progress() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    result, whole = measured(paths, text, progress), measured(paths, text)
    assert (result["complete"], result["windows"]) == (False, 2)
    assert (whole["complete"], whole["windows"]) == (True, 5)
    assert result["models"][0]["nll_by_window"] == whole["models"][0]["nll_by_window"][:2]
    assert result["models"][0]["ppl"] == pytest.approx(np.exp(np.mean(whole["models"][0]["nll_by_window"][:2])))


def test_interrupted_at_once_it_gives_nothing(little: Path, text: Text) -> None:
    def progress() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured([little, little], text, progress)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"activations": "q8"}], ids=str)
def test_a_model_is_nothing_from_itself(little: Path, little_files: dict[str, Path], text: Text, options: Any) -> None:
    result = measured([little, little, little_files["BF16"], little_files["F32"]], text, **options)
    same, bf16, f32 = result["models"]
    for model in (same, bf16) if options.get("activations") == "q8" else (same, bf16, f32):  # q8 goes by the type
        assert model["kld"] == dict.fromkeys(model["kld"], 0)
        assert (model["same_top"], model["ppl_ratio"], model["delta_p_rms"]) == (1, 1, 0)


def test_what_is_kept_of_how(little: Path, little_files: dict[str, Path], text: Text) -> None:
    result = measured([little, little_files["Q8_0"]], text, activations="q8", dtype=torch.bfloat16)
    assert (result["activations"], result["dtype"], result["device"]) == ("q8", "bfloat16", "cpu")
    assert (result["window"], result["scored"], result["text_sha256"]) == (64, 31, text.sha256)
    assert result["text"] == ("words.txt",)
    with opened(little, little_files["Q8_0"]) as models:
        assert [model.sha256 for model in models] == [
            file["file_sha256"] for file in (result["base"], *result["models"])
        ]
    assert result["base_sha256"] == result["base"]["file_sha256"]


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint without its second layer, the second half of its width, heads and feed-forward."""
    heads, kv_heads, width = small.HEADS // 2, small.KV_HEADS // 2, small.HIDDEN // 2
    sizes = {
        "num_hidden_layers": 1,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": small.FEED_FORWARD // 2,
    }

    def prune(tensors: small.Tensors) -> None:
        small.lively(tensors)
        for name in [name for name in tensors if "layers.1." in name]:
            del tensors[name]
        for name, values in tensors.items():
            kept = [n if n == small.VOCABULARY else n // 2 for n in values.shape]
            tensors[name] = values[tuple(map(slice, kept))].copy()

    folder = tmp_path_factory.mktemp("pruned") / "pruned"
    return small.write(folder, edit_config=lambda config: config.update(sizes), edit_tensors=prune)


def test_a_base_of_another_width_and_depth(
    little: Path, little_files: dict[str, Path], pruned: Path, text: Text
) -> None:
    """Each has the figures it has alone, and the distance of two is that of their predictions."""
    calls: list[None] = []
    mixed = measured([little, pruned, little_files["Q8_0"]], text, lambda: calls.append(None))
    with opened(little, pruned, little_files["Q8_0"]) as models:
        chosen = sample(models, text, 64, 5)
        assert len(calls) == n_steps(models, chosen.windows) == 2 * small.LAYERS + 1 + 1
        for model, figures in zip(models, (mixed["base"], *mixed["models"]), strict=True):
            alone = evaluate([model], chosen, how=EXACT)["models"][0]
            assert alone["nll_by_window"] == figures["nll_by_window"]
        states = [run([model], chosen.windows, EXACT)[0].flatten(0, 1) for model in models[:2]]
        base, other = (
            torch.log_softmax(head_rows(model, EXACT, 0, small.VOCABULARY)(state).double(), -1)
            for model, state in zip(models, states, strict=False)
        )
    kld = (base.exp() * (base - other)).sum(-1).view(5, 64)[:, 32:63].mean(-1)
    assert mixed["models"][0]["kld_by_window"] == pytest.approx(kld.numpy(), rel=1e-5)
    assert kld.min() > 0.05
    assert mixed["models"][1] == measured([little, little_files["Q8_0"]], text)["models"][0]


# transformers' name of a module of a layer: GGUF's
MODULES = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """Of a parameter of transformers' Phi3ForCausalLM."""
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module = name.removesuffix(".weight")
    if module in ends:
        return f"{ends[module]}.weight"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{MODULES[rest]}.weight"


def test_against_the_definition(trained: Model, their_trained: PreTrainedModel, trained_files: dict[str, Path]) -> None:
    """Two windows through transformers with the weights that the gguf package decodes, compared in float64."""
    path = trained_files["Q4_K_M"]
    ids = np.random.default_rng(2).integers(1000, 20000, (2, 96))
    scored = slice(48, 95)

    def log_probabilities() -> torch.Tensor:
        with torch.inference_mode():
            return torch.log_softmax(their_trained(torch.from_numpy(ids)).logits[:, scored].double(), -1)

    exact = log_probabilities()
    kept = {name: values.clone() for name, values in their_trained.state_dict().items()}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    decoded = {name: stored[gguf_name(name)] for name in kept}
    their_trained.load_state_dict(
        {
            name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).view(kept[name].shape)
            for name, tensor in decoded.items()
        }
    )
    try:
        rounded = log_probabilities()
    finally:
        their_trained.load_state_dict(kept)
    kld = (exact.exp() * (exact - rounded)).sum(-1).mean(-1).numpy()
    wanted = torch.from_numpy(ids)[:, 49:, None]

    with opened(path) as (quant,):
        chosen = Sample(Text("", "", ()), ids, ids.size, "")
        result = evaluate([quant], chosen, base=trained, how=EXACT)
    ours = result["models"][0]
    assert ours["kld_by_window"] == pytest.approx(kld, rel=1e-3)
    assert ours["nll_by_window"] == pytest.approx(-rounded.gather(-1, wanted).mean((1, 2)).numpy(), abs=1e-4)
    assert result["base"]["nll_by_window"] == pytest.approx(-exact.gather(-1, wanted).mean((1, 2)).numpy(), abs=1e-4)
    assert ours["same_top"] == (exact.argmax(-1) == rounded.argmax(-1)).double().mean()
    change = (rounded.gather(-1, wanted).exp() - exact.gather(-1, wanted).exp()).square().mean().sqrt()
    assert ours["delta_p_rms"] == pytest.approx(float(change), rel=1e-3)
    assert kld.min() > 0.05


# ---- refusals


@pytest.mark.parametrize(
    ("tensor", "where"),
    [
        ("blk.0.ffn_down.weight", "blk.0"),
        ("blk.1.attn_qkv.weight", "blk.1"),
        ("blk.1.ffn_norm.weight", "blk.1"),
        ("token_embd.weight", "token_embd.weight"),
        ("output_norm.weight", "output_norm.weight"),
        ("output.weight", "output.weight"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_where_numbers_end_is_named(
    little: Path, little_files: dict[str, Path], text: Text, tmp_path: Path, tensor: str, where: str, value: float
) -> None:
    def plant(model: small_gguf.Model) -> None:
        shape, qtype, data = model.tensors[tensor]
        dtype = {F32: "<u4", BF16: "<u2"}[qtype]
        bits = np.array([value], "<f4").view("<u4") >> (0 if qtype is F32 else 16)
        values = np.frombuffer(data, dtype).reshape(-1, shape[-1]).copy()
        values[ord("o") if tensor == "token_embd.weight" else 0, 3] = bits.astype(dtype)[0]
        model.tensors[tensor] = (shape, qtype, values.tobytes())

    path = small_gguf.edited(little_files["BF16"], tmp_path / "spoiled.gguf", plant)
    with pytest.raises(NotFiniteError) as caught:
        measured([little, path], text)
    assert (caught.value.details["file"], caught.value.details["tensor"]) == (path, where)


def another_token(model: small_gguf.Model) -> None:
    key = "tokenizer.ggml.tokens"
    field = model.fields[key]
    model.fields[key] = type(field)(key, Kind.ARRAY, [*field.value[:-1], "<|other|>"], Kind.STRING)


def test_other_vocabularies_are_refused(
    little: Path, little_files: dict[str, Path], text: Text, tmp_path: Path
) -> None:
    path = small_gguf.edited(little_files["Q8_0"], tmp_path / "other.gguf", another_token)
    with pytest.raises(UsageError, match="vocabulary is not that of little") as caught:
        measured([little, path], text)
    assert caught.value.details["file"] == path


def without_a_byte(model: small_gguf.Model) -> None:
    """The token of the byte 0xc3, with which é begins, becomes another."""
    key = "tokenizer.ggml.tokens"
    field = model.fields[key]
    tokens = ["<|none|>" if token == "Ã" else token for token in field.value]
    assert tokens != field.value
    model.fields[key] = type(field)(key, Kind.ARRAY, tokens, Kind.STRING)


def test_a_vocabulary_without_a_character_is_refused(little_files: dict[str, Path], text: Text, tmp_path: Path) -> None:
    path = small_gguf.edited(little_files["Q8_0"], tmp_path / "poor.gguf", without_a_byte)
    with opened(path) as models, pytest.raises(VocabularyError, match="é"):
        sample(models, text, 64, None)


def test_a_text_of_less_than_two_windows_is_refused(little: Path, text: Text) -> None:
    with opened(little) as models, pytest.raises(UsageError, match="too short"):
        sample(models, text, 1024, None)


def test_a_window_beyond_the_context_is_refused(little: Path, text: Text) -> None:
    with opened(little) as models, pytest.raises(UsageError, match=r"at most 2048 tokens, found 4096"):
        sample(models, text, 4096, None)


@pytest.mark.parametrize("device", ["cuda:99", "meta", "abacus"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=f"cannot use the device '{device}'"):
        arithmetic("f32", "f32", device)
