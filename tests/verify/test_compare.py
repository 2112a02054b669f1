"""A file is what its source gives, or the place where it is not is named: one flipped bit is enough."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import small_gguf
import synthetic_imatrix
from small_gguf import Model, edited

from quantkit.checkpoint import Origin
from quantkit.convert import convert
from quantkit.errors import InputError, UnsupportedError, UsageError
from quantkit.gguf_io import Field, Kind, read_gguf
from quantkit.imatrix import Imatrix, read_imatrix
from quantkit.osio import InputFile
from quantkit.plan import make_plan, output_paths
from quantkit.qtypes import Q8_0
from quantkit.recipe import Facts, load, preset
from quantkit.source import open_source
from quantkit.verify import Recorded, Verification, compare, remake

DOWN = "blk.1.ffn_down.weight"  # 256 rows of 512 columns


def verify(path: Path, source: Path, threads: int | None = None, **options: Any) -> Verification:
    with Recorded(path) as recorded, open_source(source) as weights:
        remaking = remake(weights, recorded, warn=pytest.fail, **options)
        done: list[int] = []
        found = compare(weights, recorded, remaking, threads=threads, progress=done.append)
        assert not found.subjects or sum(done) == remaking.source_bytes
        return found


def the_difference(path: Path, source: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    """The message and place of the only difference; the file is named in it."""
    (difference,) = verify(path, source, **options).differences
    place = dict(difference.place)
    assert place.pop("file") == path
    return difference.message, place


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("verify") / "small")


@pytest.fixture(scope="module")
def made(source: Path) -> dict[str, Path]:
    types = ("Q2_K", "Q4_K_M", "Q5_1", "Q8_0", "BF16", "F16", "F32")
    return small_gguf.run(source, source.parent / "made", types)


@pytest.fixture(scope="module")
def importance(source: Path) -> Imatrix:
    columns = {
        "attn_qkv": small.HIDDEN,
        "attn_output": small.HIDDEN,
        "ffn_up": small.HIDDEN,
        "ffn_down": small.FEED_FORWARD,
    }
    layers = [(f"blk.{i}.{name}.weight", n) for i in range(small.LAYERS) for name, n in columns.items()]
    synthetic_imatrix.write(source.parent / "imatrix.gguf", "gguf", layers)
    return read_imatrix(source.parent / "imatrix.gguf")


def test_what_was_made_is_equal(source: Path, made: dict[str, Path]) -> None:
    for path in made.values():
        assert verify(path, source).differences == ()


def test_a_real_model_is_equal_and_its_digest_is_taken_on_the_way(
    real_small: Path, converted: Callable[[Path], dict[str, Path]]
) -> None:
    path = converted(real_small)["Q4_K_M"]
    found = verify(path, real_small, threads=3)
    assert found.differences == ()
    assert found.subjects == {path.name: _sha256(path)}
    fields = read_gguf(path).fields
    assert list(found.sources.values()) == [fields[f"quantkit.source.{i}.sha256"].value for i in range(2)]


def _sha256(path: Path) -> str:

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _place_of(path: Path, tensor: str, row: int, row_byte: int) -> int:
    """The offset in the file of a byte of a tensor's row."""
    found = read_gguf(path)
    entry = found.tensors[tensor]
    return found.data_offset + entry.offset + row * entry.qtype.row_bytes(entry.shape[-1]) + row_byte


def _end_of(path: Path, tensor: str) -> int:
    found = read_gguf(path)
    return found.data_offset + found.tensors[tensor].offset + found.tensors[tensor].nbytes


def _header_end(path: Path) -> int:
    return read_gguf(path).data_offset - 1


def _in_the_name(path: Path) -> int:
    return path.read_bytes().index(b"general.name") + len(b"general.name") + 4 + 8


Flipped = tuple[Callable[[Path], int], str, dict[str, object]]
FLIPPED: dict[str, Flipped] = {
    "a block's codes": (
        lambda path: _place_of(path, DOWN, 200, 210 + 16),
        "1 of 512 Q6_K blocks differ; of the first these are columns 256 to 511",
        {"tensor": DOWN, "row": 200, "column": 256},
    ),
    "a block's scale": (
        lambda path: _place_of(path, "blk.0.attn_output.weight", 3, 0),
        "1 of 256 Q4_K blocks differ; of the first these are columns 0 to 255",
        {"tensor": "blk.0.attn_output.weight", "row": 3, "column": 0},
    ),
    "the first byte": (
        lambda path: read_gguf(path).data_offset,
        "1 of 263 Q6_K blocks differ; of the first these are columns 0 to 255",
        {"tensor": "output.weight", "row": 0, "column": 0},
    ),
    "a norm": (
        lambda path: _place_of(path, "blk.1.ffn_norm.weight", 0, 4 * 77 + 1),
        "1 of 256 F32 weights differ",
        {"tensor": "blk.1.ffn_norm.weight", "row": 0, "column": 77},
    ),
    "padding between tensors": (lambda path: _end_of(path, "output.weight"), "padding that is not zero", {}),
    "padding of the header": (_header_end, "the header is spelled in another way", {}),
    "a key's value": (
        _in_the_name,
        "another value",
        {"key": "general.name", "expected": "'Small'", "found": "'Rmall'"},
    ),
}


@pytest.mark.parametrize("case", FLIPPED)
def test_one_flipped_bit_is_named(source: Path, made: dict[str, Path], tmp_path: Path, case: str) -> None:
    where, message, place = FLIPPED[case]
    path = tmp_path / "a.gguf"
    data = bytearray(made["Q4_K_M"].read_bytes())
    at = where(made["Q4_K_M"])
    data[at] ^= 1
    path.write_bytes(data)
    said, found = the_difference(path, source)
    assert said == message
    assert place.items() <= found.items()
    assert found.get("offset", at) == at
    if "found" in found and "key" not in found:
        assert found["found"] == f"byte {data[at]:#04x}"


def test_many_differences_are_counted_and_the_first_row_is_named_whatever_the_threads(
    source: Path, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.slabs.SLAB_WEIGHTS", 4096)  # 8 rows
    path = tmp_path / "a.gguf"
    data = bytearray(made["Q4_K_M"].read_bytes())
    for row in (250, 9, 100, 101):
        data[_place_of(made["Q4_K_M"], DOWN, row, 300)] ^= 0x10
    path.write_bytes(data)
    for threads in (1, 8):
        (difference,) = verify(path, source, threads=threads).differences
        assert difference.message.startswith("4 of 512 Q6_K blocks differ")
        assert difference.place["row"] == 9


def test_nothing_larger_than_a_slab_is_read(
    source: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.slabs.SLAB_WEIGHTS", 4096)
    sizes: list[int] = []
    read = InputFile.read_into

    def recorded(self: InputFile, out: memoryview, offset: int) -> None:
        sizes.append(out.nbytes)
        read(self, out, offset)

    header_bytes = read_gguf(made["F32"]).data_offset
    monkeypatch.setattr(InputFile, "read_into", recorded)
    assert verify(made["F32"], source).differences == ()
    assert max(size for size in sizes if size != header_bytes) <= 1 << 20  # what the reader of headers takes at once


def _another_weight(tensors: small.Tensors) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"][5, 300] += 0.5


def test_another_source_is_told_by_its_weights_and_its_digest(made: dict[str, Path], tmp_path: Path) -> None:
    other = small.write(tmp_path / "small", edit_tensors=_another_weight)
    weights, digest = verify(made["Q4_K_M"], other).differences
    assert {"tensor": DOWN, "row": 5, "column": 256}.items() <= weights.place.items()
    assert digest.place["key"] == "quantkit.source.0.sha256"


def test_a_copy_of_what_came_from_the_hub_will_do(source: Path, made: dict[str, Path], tmp_path: Path) -> None:
    """The repository is a claim that the digests make good; one that the source contradicts is a difference."""
    claims = {"quantkit.source.repo": "org/model", "quantkit.source.revision": "0" * 40}

    def claim(model: Model) -> None:
        at = [*model.fields].index("quantkit.source.0.name")
        fields = [*model.fields.values()]
        added = [Field(key, Kind.STRING, value) for key, value in claims.items()]
        model.fields = {field.key: field for field in [*fields[:at], *added, *fields[at:]]}

    path = edited(made["Q8_0"], tmp_path / "a.gguf", claim)
    assert verify(path, source).differences == ()
    with Recorded(path) as recorded, open_source(source) as weights:
        weights.origin = Origin("org/model", "1" * 40)
        differences = compare(weights, recorded, remake(weights, recorded, name="Small", warn=pytest.fail)).differences
        assert [difference.place["key"] for difference in differences] == ["quantkit.source.revision"]
    with Recorded(made["Q8_0"]) as recorded, open_source(source) as weights:
        weights.origin = Origin("org/model", "1" * 40)
        assert compare(weights, recorded, remake(weights, recorded, name="Small", warn=pytest.fail)).differences == ()


def _rename(model: Model) -> None:
    model.set("general.name", Kind.STRING, "Another")


def _drop_key(model: Model) -> None:
    del model.fields["tokenizer.ggml.merges"]


def _add_key(model: Model) -> None:
    model.set("tokenizer.ggml.add_space_prefix", Kind.BOOL, True)


def _another_kind(model: Model) -> None:
    model.set("phi3.block_count", Kind.U64, small.LAYERS)


def _another_token(model: Model) -> None:
    model.fields["tokenizer.ggml.tokens"].value[257] = "teh"


def _another_order(model: Model) -> None:
    model.fields["general.name"] = model.fields.pop("general.name")


def _another_place(model: Model) -> None:
    model.tensors = dict(reversed(model.tensors.items()))


def _drop_tensor(model: Model) -> None:
    del model.tensors["blk.0.ffn_norm.weight"]


def _add_tensor(model: Model) -> None:
    model.tensors["blk.0.bias.weight"] = model.tensors["blk.0.ffn_norm.weight"]


def _another_shape(model: Model) -> None:
    shape, qtype, data = model.tensors[DOWN]
    model.tensors[DOWN] = (shape[::-1], qtype, data)


EDITED: dict[str, tuple[Callable[[Model], object], str, dict[str, object]]] = {
    "a value": (_rename, "another value", {"key": "general.name", "expected": "'Small'", "found": "'Another'"}),
    "a key too few": (_drop_key, "a key is missing", {"key": "tokenizer.ggml.merges"}),
    "a key too many": (
        _add_key,
        "a key that the conversion does not write",
        {"key": "tokenizer.ggml.add_space_prefix"},
    ),
    "a kind": (_another_kind, "another value", {"key": "phi3.block_count", "expected": "U32", "found": "U64"}),
    "a token": (
        _another_token,
        "another value",
        {"key": "tokenizer.ggml.tokens", "expected": "'the' as item 257", "found": "'teh' as item 257"},
    ),
    "the order of keys": (_another_order, "the keys stand in another order", {"key": "general.name"}),
    "the order of tensors": (_another_place, "the tensors stand in another order", {"tensor": "blk.1.ffn_up.weight"}),
    "a tensor too few": (_drop_tensor, "a tensor is missing", {"tensor": "blk.0.ffn_norm.weight"}),
    "a tensor too many": (_add_tensor, "a tensor that the source does not give", {"tensor": "blk.0.bias.weight"}),
    "a shape": (_another_shape, "another shape", {"tensor": DOWN, "expected": [256, 512], "found": [512, 256]}),
}


@pytest.mark.parametrize("case", EDITED)
def test_keys_and_tables_that_differ_are_named(source: Path, made: dict[str, Path], tmp_path: Path, case: str) -> None:
    edit, message, place = EDITED[case]
    path = edited(made["Q4_K_M"], tmp_path / "a.gguf", edit)
    assert the_difference(path, source) == (message, place)


def test_a_type_that_its_recipe_does_not_give(source: Path, made: dict[str, Path], tmp_path: Path) -> None:
    """The weights are what the source gives in that type; the file still is not what its recipe makes."""
    better = small_gguf.read(made["Q8_0"]).tensors[DOWN]
    path = edited(made["Q4_K_M"], tmp_path / "a.gguf", lambda model: model.tensors.update({DOWN: better}))
    message, place = the_difference(path, source)
    assert message == "another type than the file's recipe gives"
    assert place == {"tensor": DOWN, "expected": preset("Q4_K_M").type_of(DOWN, (256, 512), _facts()), "found": Q8_0}


def _facts() -> Facts:
    return Facts(small.LAYERS, small.HEADS // small.KV_HEADS, imatrix=False, tied=False)


def test_trailing_bytes_are_named(source: Path, made: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(made["Q8_0"].read_bytes() + bytes(32))
    assert the_difference(path, source)[0] == "the file has another size"


def test_shards(source: Path, tmp_path: Path) -> None:
    with open_source(source) as weights:
        plan = make_plan(weights, [preset("Q4_K_M")], split_max_bytes=200_000, warn=pytest.fail)
        (paths,) = output_paths(plan.outputs, weights.name, tmp_path / "a.gguf")
        convert(weights, plan, paths)
    assert len(paths) > 2
    found = verify(paths[0], source)
    assert found.differences == ()
    assert found.subjects == {path.name: _sha256(path) for path in paths}
    data = bytearray(paths[1].read_bytes())
    data[-40] ^= 4
    paths[1].write_bytes(data)
    (difference,) = verify(paths[0], source).differences
    assert (difference.place["file"], difference.place["offset"]) == (paths[1], len(data) - 40)


def test_what_the_conversion_was_told_is_told_again(source: Path, tmp_path: Path) -> None:
    options = {"name": "Ours", "overrides": {"general.author": "us"}, "chat_template": "{{ messages }}<|im_end|>"}
    path = small_gguf.run(source, tmp_path, ["Q8_0"], **options)["Q8_0"]
    assert verify(path, source, **options).differences == ()
    keys = {difference.place["key"] for difference in verify(path, source).differences}
    assert keys >= {"general.name", "general.author", "tokenizer.chat_template"}


def test_importance_is_asked_for_and_must_be_the_same(source: Path, importance: Imatrix, tmp_path: Path) -> None:
    path = small_gguf.run(source, tmp_path, ["Q4_0"], imatrix=importance)["Q4_0"]
    assert verify(path, source, imatrix=importance).differences == ()
    with pytest.raises(UsageError, match="was made with an importance matrix"):
        verify(path, source)
    other = tmp_path / "other.gguf"
    synthetic_imatrix.write(other, "dat", [("blk.0.attn_qkv.weight", small.HIDDEN)])
    with pytest.raises(InputError, match="another importance matrix") as caught:
        verify(path, source, imatrix=read_imatrix(other))
    assert caught.value.details["expected"] == importance.sha256


def test_importance_that_did_not_go_in_is_refused(source: Path, made: dict[str, Path], importance: Imatrix) -> None:
    with pytest.raises(UsageError, match="without an importance matrix"):
        verify(made["Q8_0"], source, imatrix=importance)


def test_a_mix_of_ones_own_is_made_from_its_table(source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'file_type = 7\n[[rule]]\nmatch = "blk.0.*"\ntype = "Q5_0"\n[[rule]]\nmatch = "*"\ntype = "Q8_0"\n'
    )
    with open_source(source) as weights:
        plan = make_plan(weights, [load(recipe)], warn=pytest.fail)
        convert(weights, plan, [tmp_path / "a.gguf"])
    assert verify(tmp_path / "a.gguf", source).differences == ()


def _as_llama_quantize_leaves_it(model: Model) -> None:
    for key in [*model.fields]:
        if key.startswith("quantkit.") or key == "tokenizer.ggml.eot_token_id":
            del model.fields[key]


def test_a_file_of_llama_cpps_tools(source: Path, made: dict[str, Path], tmp_path: Path) -> None:
    path = edited(made["Q4_K_M"], tmp_path / "a.gguf", _as_llama_quantize_leaves_it)
    assert verify(path, source).differences == ()
    shuffled = edited(
        path, tmp_path / "b.gguf", lambda model: model.tensors.update(dict([*model.tensors.items()][::-1]))
    )
    assert verify(shuffled, source).differences == ()
    edited(path, path, _drop_key)
    assert the_difference(path, source) == ("a key is missing", {"key": "tokenizer.ggml.merges"})


def test_what_cannot_be_made_again_is_refused(source: Path, made: dict[str, Path], tmp_path: Path) -> None:
    def unknown(model: Model) -> None:
        model.set("quantkit.strategy", Kind.STRING, "divination")

    with pytest.raises(UnsupportedError, match="unknown strategy") as caught:
        verify(edited(made["Q8_0"], tmp_path / "a.gguf", unknown), source)
    assert caught.value.details["found"] == "divination"
