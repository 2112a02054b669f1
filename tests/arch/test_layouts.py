"""One checkpoint in every layout that trainers leave: always the same file but for the names of its sources."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
import small
from gguf import GGUFReader
from oracle import contents

from quantkit.checkpoint import open_checkpoint
from quantkit.convert import convert
from quantkit.errors import QuantkitError, TensorError, UnsupportedError
from quantkit.gguf_io import Field
from quantkit.plan import Plan, make_plan
from quantkit.recipe import preset

LAYOUTS = {
    "transformers 4": layouts.transformers_4,
    "transformers 5": layouts.transformers_5,
    "shards": layouts.sharded,
    "llama": layouts.llama,
}
SHAPE = "model.layers.1.self_attn.k_proj.weight"


def checkpoint(folder: Path, change: Callable[[Path], None] = lambda folder: None) -> Path:
    """The small checkpoint in a layout; folders are told apart by their parents, as names end up in the file."""
    small.write(folder / "small")
    change(folder / "small")
    return folder / "small"


def plan_of(source: Path) -> Plan:
    with open_checkpoint(source) as opened:
        return make_plan(opened, [preset("Q8_0")], warn=pytest.fail)


def described(source: Path, out: Path) -> tuple[list[Field], object]:
    """The fields but for those of the sources, and the tensor table with the hash of the data section."""
    with open_checkpoint(source) as opened:
        plan = make_plan(opened, [preset("Q4_K_M")], warn=pytest.fail)
        convert(opened, plan, [out])
    fields = [
        (field.name, [part.tobytes() for part in field.parts])
        for field in GGUFReader(out).fields.values()
        if not field.name.startswith(("GGUF.", "quantkit.source."))
    ]
    return fields, contents(out)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_file_is_the_same(tmp_path: Path, name: str) -> None:
    expected = described(checkpoint(tmp_path / "plain"), tmp_path / "plain.gguf")
    found = described(checkpoint(tmp_path / "other", LAYOUTS[name]), tmp_path / "other.gguf")
    assert found == expected


def test_transformers_5_of_a_split_one(tmp_path: Path) -> None:
    def both(folder: Path) -> None:
        layouts.llama(folder)
        layouts.transformers_5(folder)

    expected = described(checkpoint(tmp_path / "plain"), tmp_path / "plain.gguf")
    assert described(checkpoint(tmp_path / "other", both), tmp_path / "other.gguf") == expected


def test_rows_in_another_order_are_seen(tmp_path: Path) -> None:
    """Else equality would prove nothing: k and v have the same shape."""

    def exchange(folder: Path) -> None:
        layouts.llama(folder)
        path = next(folder.glob("*.safetensors"))
        data = path.read_bytes().replace(b"layers.1.self_attn.k_proj", b"layers.1.self_attn.?_proj")
        data = data.replace(b"layers.1.self_attn.v_proj", b"layers.1.self_attn.k_proj")
        path.write_bytes(data.replace(b"layers.1.self_attn.?_proj", b"layers.1.self_attn.v_proj"))

    fields, data = described(checkpoint(tmp_path / "plain"), tmp_path / "plain.gguf")
    found_fields, found_data = described(checkpoint(tmp_path / "other", exchange), tmp_path / "other.gguf")
    assert found_fields == fields and found_data != data


def edited(**changes: object) -> Callable[[Path], None]:
    """The llama layout with other values in config.json."""

    def change(folder: Path) -> None:
        layouts.llama(folder)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(config | changes), "utf-8")

    return change


def other_pattern(folder: Path) -> None:
    layouts.llama(folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    steps = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False}]
    document["pre_tokenizer"]["pretokenizers"] = steps
    path.write_text(json.dumps(document), "utf-8")


def without_keys(folder: Path) -> None:
    layouts.llama(folder)
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes().replace(SHAPE.encode(), SHAPE.replace("k_proj", "x_proj").encode()))
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text("utf-8").replace(SHAPE, SHAPE.replace("k_proj", "x_proj")), "utf-8")


REFUSED: dict[str, tuple[Callable[[Path], None], type[QuantkitError], str]] = {
    "scaled positions": (
        edited(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        UnsupportedError,
        "key rope_scaling.type",
    ),
    "longrope": (
        edited(
            rope_scaling={"type": "longrope", "long_factor": [1.0] * 32, "short_factor": [1.0] * 32},
            original_max_position_embeddings=1024,
        ),
        UnsupportedError,
        "LlamaForCausalLM",
    ),
    "biases": (edited(attention_bias=True), UnsupportedError, "LlamaForCausalLM"),
    "another activation": (edited(hidden_act="gelu"), UnsupportedError, "LlamaForCausalLM"),
    "heads of another width": (edited(head_dim=128), UnsupportedError, "head_dim"),
    "another vocabulary": (other_pattern, UnsupportedError, "this LlamaForCausalLM is not supported"),
    "no k_proj": (without_keys, TensorError, SHAPE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_llamas_are_refused(tmp_path: Path, name: str) -> None:
    change, error, words = REFUSED[name]
    source = checkpoint(tmp_path, change)
    with pytest.raises(error, match="small") as caught:
        plan_of(source)
    assert type(caught.value) is error and words in str(caught.value)


def tied(**changes: object) -> Callable[[dict[str, object]], None]:
    return lambda config: config.update(changes, tie_word_embeddings=True)


def test_a_tied_head_is_left_out_with_a_word(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small", edit_config=tied())
    warnings: list[str] = []
    with open_checkpoint(source) as opened:
        plan = make_plan(opened, [preset("F16")], warn=warnings.append)
    (warning,) = warnings
    assert "lm_head.weight is left out" in warning and "tie_word_embeddings" in warning
    assert "output.weight" not in {job.name for job in plan.jobs}


def test_a_tied_checkpoint_has_no_head(tmp_path: Path) -> None:
    def drop(tensors: small.Tensors) -> None:
        del tensors["lm_head.weight"]

    plan = plan_of(small.write(tmp_path / "small", edit_config=tied(), edit_tensors=drop))
    assert {"token_embd.weight", "output.weight"} & {job.name for job in plan.jobs} == {"token_embd.weight"}
    with pytest.raises(TensorError, match=r"lm_head\.weight") as caught:
        plan_of(small.write(tmp_path / "untied", edit_tensors=drop))
    assert caught.value.hint is not None and "tie_word_embeddings" in caught.value.hint


def test_a_resized_vocabulary_is_padded(tmp_path: Path) -> None:
    """As transformers leaves it: rows to a multiple of 64, of which the tokenizer names fewer."""

    def grow(tensors: small.Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = small.np.resize(tensors[name], (320, small.HIDDEN))

    source = small.write(tmp_path / "small", edit_config=lambda c: c.update(vocab_size=320), edit_tensors=grow)
    document = json.loads((source / "tokenizer.json").read_text("utf-8"))
    document["added_tokens"] += [{**document["added_tokens"][0], "id": 263, "content": "<tool>", "special": False}]
    (source / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    fields = {field.key: field.value for field in plan_of(source).outputs[0].files[0].fields}
    assert fields["tokenizer.ggml.tokens"][262:265] == ["<|dummy_87|>", "<tool>", "[PAD264]"]
    assert fields["tokenizer.ggml.token_type"][262:265] == [3, 4, 5]
    assert len(fields["tokenizer.ggml.tokens"]) == 320
