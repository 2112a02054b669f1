"""A GGUF file as a source: the bytes that its checkpoint gives, and all of its keys."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import small
import small_gguf
import synthetic_imatrix
from small_gguf import Model, edited, run

from quantkit import kernels, slabs
from quantkit.convert import convert
from quantkit.gguf_io import Field, Kind, read_gguf
from quantkit.imatrix import read_imatrix
from quantkit.osio import InputFile
from quantkit.plan import make_plan, output_paths
from quantkit.qtypes import F16, F32, Q4_K
from quantkit.recipe import preset, presets
from quantkit.source import open_source

SOURCE = "quantkit.source."


def data_section(path: Path) -> bytes:
    return path.read_bytes()[read_gguf(path).data_offset :]


def fields(path: Path) -> list[Field]:
    """All fields in order, but for those that name the source."""
    return [field for key, field in read_gguf(path).fields.items() if not key.startswith(SOURCE)]


def assert_same(found: Path, expected: Path) -> None:
    assert read_gguf(found).tensors == read_gguf(expected).tensors
    assert data_section(found) == data_section(expected)
    assert fields(found) == fields(expected)


# ---- the same bytes


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bfloat16", "BF16"), ("bfloat16", "F32"), ("float16", "F16"), ("float32", "F32")]
)
def test_every_preset_is_what_the_checkpoint_gives(tmp_path: Path, dtype: str, kind: str) -> None:
    types = [name for name in presets() if not preset(name).needs_imatrix]
    source = small_gguf.make(tmp_path, kind, dtype)
    expected = run(tmp_path / f"small_{dtype}", tmp_path / "expected", types, name="a")
    found = run(source, tmp_path / "found", types, name="a")
    for name in types:
        assert_same(found[name], expected[name])


def test_with_importance_too(base: Path, tmp_path: Path) -> None:
    columns = [(name, shape[-1]) for name, (shape, *_) in small_gguf.read(base).tensors.items() if len(shape) > 1]
    synthetic_imatrix.write(tmp_path / "imatrix.gguf", "gguf", columns)
    imatrix = read_imatrix(tmp_path / "imatrix.gguf")
    types = ["Q4_K_M", "Q2_K_S", "Q5_1"]
    checkpoint = base.parent / "small_bfloat16"
    expected = run(checkpoint, tmp_path / "expected", types, imatrix=imatrix)
    found = run(base, tmp_path / "found", types, imatrix=imatrix)
    unweighted = run(base, tmp_path / "unweighted", ["Q4_K_M"])
    for name in types:
        assert_same(found[name], expected[name])
    assert data_section(unweighted["Q4_K_M"]) != data_section(found["Q4_K_M"])


def test_tied_embedding_and_rope_factors(phi4_mini_tiny: Path, tmp_path: Path) -> None:
    types = ["BF16", "Q4_K_M"]
    expected = run(phi4_mini_tiny, tmp_path / "expected", types)
    found = run(expected["BF16"], tmp_path / "found", types)
    assert {"rope_factors_long.weight", "rope_factors_short.weight"} <= read_gguf(found["BF16"]).tensors.keys()
    for name in types:
        assert_same(found[name], expected[name])


def test_a_file_of_the_gguf_package(tmp_path: Path) -> None:
    """Tensors in an order of its own, norms in F16, another alignment, keys of every kind."""
    model = small_gguf.read(small_gguf.make(tmp_path, "F16", "float16"))
    writer = gguf.GGUFWriter(tmp_path / "theirs-f16.gguf", "phi3")
    writer.add_custom_alignment(64)
    for field in list(model.fields.values())[1:]:
        if not field.key.startswith("quantkit."):
            theirs = gguf.GGUFValueType(field.kind)
            item = None if field.item_kind is None else gguf.GGUFValueType(field.item_kind)
            writer.add_key_value(field.key, field.value, theirs, item)
    writer.add_uint8("a.u8", 200)
    writer.add_int64("a.i64", -(2**40))
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_array("a.strings", ["é", "b"])
    writer.add_array("a.bools", [True, False])
    weights = {}
    for name, (shape, qtype, raw) in reversed(model.tensors.items()):
        weights[name] = np.frombuffer(raw, {F32: np.float32, F16: np.float16}[qtype]).reshape(shape).astype(np.float16)
        writer.add_tensor(name, weights[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    source, made = read_gguf(tmp_path / "theirs-f16.gguf"), run(tmp_path / "theirs-f16.gguf", tmp_path, ["Q4_K_M"])
    found, section = read_gguf(made["Q4_K_M"]), data_section(made["Q4_K_M"])
    assert list(found.tensors) == list(small_gguf.read(made["Q4_K_M"]).tensors)
    for tensor in found.tensors.values():
        rows = np.atleast_2d(weights[tensor.name].astype(np.float32))
        assert tensor.qtype is F32 if rows.shape[0] == 1 else tensor.qtype is not F32
        expected = kernels.encode(rows, tensor.qtype).tobytes()
        assert section[tensor.offset : tensor.offset + tensor.nbytes] == expected, tensor.name
    changed = {"general.alignment": None, "general.file_type": Field("general.file_type", Kind.U32, 15)}
    kept = [changed.get(key, field) for key, field in source.fields.items()]
    assert "a.bools" in source.fields and "general.alignment" in source.fields
    assert [field for field in found.fields.values() if not field.key.startswith("quantkit.")] == [
        field for field in kept if field is not None
    ]


# ---- keys


def test_keys_of_the_files_own_conversion_are_replaced(base: Path, tmp_path: Path) -> None:
    def edit(model: Model) -> None:
        model.set("quantize.imatrix.file", Kind.STRING, "/home/someone/imatrix.dat")
        model.set("quantkit.lora.0.scale", Kind.F32, 1.0)
        model.set("quantkit.recipe.name", Kind.STRING, "old")
        model.set("split.count", Kind.U16, 1)
        model.set("general.description", Kind.STRING, "0" * 64)  # looks like the place of a digest

    path = run(edited(base, tmp_path / "a.gguf", edit), tmp_path / "out", ["Q8_0"])["Q8_0"]
    found = read_gguf(path).fields
    assert not [key for key in found if key.startswith(("quantize.", "split.", "quantkit.lora."))]
    assert found["quantkit.recipe.name"].value == "Q8_0"
    assert found["general.description"].value == "0" * 64
    assert (found["general.file_type"].value, found["general.quantization_version"].value) == (7, 2)
    assert list(found).index("general.file_type") == list(read_gguf(base).fields).index("general.file_type")


def test_keys_that_it_lacks_are_added(base: Path, tmp_path: Path) -> None:
    def edit(model: Model) -> None:
        for key in ("general.file_type", "general.quantization_version", "general.name", "general.type"):
            del model.fields[key]

    path = run(edited(base, tmp_path / "a.gguf", edit), tmp_path / "out", ["Q8_0"], name="Ours")["Q8_0"]
    found = read_gguf(path).fields
    assert found["general.file_type"] == Field("general.file_type", Kind.U32, 7)
    assert found["general.quantization_version"] == Field("general.quantization_version", Kind.U32, 2)
    assert found["general.name"] == Field("general.name", Kind.STRING, "Ours")
    assert "general.type" not in found


def test_name_and_metadata(base: Path, tmp_path: Path) -> None:
    overrides = {"tokenizer.ggml.eos_token_id": "258", "general.url": "here"}
    path = run(base, tmp_path, ["Q8_0"], name="Ours", overrides=overrides)["Q8_0"]
    found = read_gguf(path).fields
    assert found["general.name"].value == "Ours"
    assert found["tokenizer.ggml.eos_token_id"] == Field("tokenizer.ggml.eos_token_id", Kind.U32, 258)
    assert found["general.url"].value == "here"
    assert list(found).index("general.name") == list(read_gguf(base).fields).index("general.name")


def test_the_source_and_its_digest_are_named(base: Path, tmp_path: Path) -> None:
    found = read_gguf(run(base, tmp_path, ["Q8_0"])["Q8_0"]).fields
    tensors = sorted(small_gguf.read(base).tensors.items())
    lines = "".join(f"{hashlib.sha256(raw).hexdigest()}  {name}\n" for name, (_, _, raw) in tensors)
    assert {key: field.value for key, field in found.items() if key.startswith(SOURCE)} == {
        SOURCE + "0.name": base.name,
        SOURCE + "0.sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


# ---- names and shards

NAMES = {
    "model-BF16.gguf": "model",
    "model.f16.gguf": "model",
    "my-phi-4_F32.gguf": "my-phi-4",
    "model-bf16-00001-of-00001.gguf": "model",
    "model-Q8.gguf": "model-Q8",
    "BF16.gguf": "BF16",
    "-BF16.gguf": "-BF16",
    "model": "model",
}


@pytest.mark.parametrize(("file", "name"), NAMES.items())
def test_outputs_are_called_after_the_file(base: Path, tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / file
    path.hardlink_to(base)
    with open_source(path) as weights:
        assert weights.name == name


def write_shards(checkpoint: Path, out: Path) -> list[Path]:
    """The checkpoint as BF16 in six shards, made by quantkit."""
    with open_source(checkpoint) as weights:
        plan = make_plan(weights, [preset("BF16")], split_max_bytes=600_000, warn=pytest.fail)
        (paths,) = output_paths(plan.outputs, weights.name, out)
        convert(weights, plan, paths)
    assert len(paths) == 6
    return paths


def test_shards_give_what_the_whole_gives(base: Path, tmp_path: Path) -> None:
    shards = write_shards(base.parent / "small_bfloat16", tmp_path)
    found = run(shards[0], tmp_path / "found", ["Q4_K_M"])["Q4_K_M"]
    assert_same(found, run(base, tmp_path / "expected", ["Q4_K_M"])["Q4_K_M"])
    names = [field.value for key, field in read_gguf(found).fields.items() if key.startswith(SOURCE) and "name" in key]
    assert names == [path.name for path in shards]


# ---- how it runs


def test_tensors_are_never_read_whole(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slab_weights, read = 4096, InputFile.read_into
    sizes: list[int] = []

    def recorded(self: InputFile, out: memoryview, offset: int) -> None:
        sizes.append(out.nbytes)
        read(self, out, offset)

    monkeypatch.setattr(slabs, "SLAB_WEIGHTS", slab_weights)
    with open_source(base) as weights:
        plan = make_plan(weights, [preset("Q8_0")], warn=pytest.fail)
        monkeypatch.setattr(InputFile, "read_into", recorded)
        convert(weights, plan, [tmp_path / "a.gguf"])
    assert sum(sizes) == plan.source_bytes
    assert max(sizes) == slab_weights * 2  # BF16


SLOWLY = """
import sys, time
from quantkit import convert, slabs
from quantkit.cli import main
write = slabs._journey
def slowly(*arguments):
    time.sleep(0.01)
    return write(*arguments)
slabs._journey = slowly
slabs.SLAB_WEIGHTS = 16384
convert.SECONDS_BETWEEN_RECORDS = 0.0
main(sys.argv[1:])
"""


@pytest.mark.parametrize("changed", [False, True], ids=["same source", "changed source"])
def test_a_killed_run_goes_on(base: Path, tmp_path: Path, changed: bool) -> None:
    source, out, record = tmp_path / "a-BF16.gguf", tmp_path / "out.gguf", tmp_path / "out.gguf.part.json"
    source.write_bytes(base.read_bytes())
    command = [sys.executable, "-c", SLOWLY, "convert", str(source), "-t", "Q4_K_M", "-o", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if record.exists() and len(json.loads(record.read_text())["tensors"]) >= 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert not out.exists()
    part = (tmp_path / "out.gguf.part").stat().st_ino
    if changed:
        edited(source, source, lambda model: model.tensors.update({"output.weight": halved(model)}))
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert out.stat().st_ino == part
    assert out.read_bytes() == run(source, tmp_path / "expected", ["Q4_K_M"])["Q4_K_M"].read_bytes()
    assert not record.exists()


def halved(model: Model) -> tuple[tuple[int, ...], object, bytes]:
    shape, qtype, raw = model.tensors["output.weight"]
    exponents = np.frombuffer(raw, np.uint16) - np.uint16(1 << 7)
    return shape, qtype, exponents.tobytes()


def test_the_command_chooses_by_what_stands_there(base: Path, tmp_path: Path) -> None:
    source = tmp_path / "model-BF16.gguf"
    source.hardlink_to(base)
    command = [sys.executable, "-m", "quantkit", "convert", source.name, "-t", "Q4_K_M", "--json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    report = json.loads(result.stdout)
    assert (report["source"], report["files"][0]["paths"]) == (source.name, ["model-Q4_K_M.gguf"])
    assert report["source_bytes"] == sum(len(raw) for *_, raw in small_gguf.read(base).tensors.values())
    assert Q4_K in {tensor.qtype for tensor in read_gguf(tmp_path / "model-Q4_K_M.gguf").tensors.values()}
    assert len(read_gguf(tmp_path / "model-Q4_K_M.gguf").tensors) == 3 + 6 * small.LAYERS
