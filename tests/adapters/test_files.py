"""Files of a source with adapters: the bytes of the merged model, what they say of it, and what goes on from what."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
from click.testing import CliRunner, Result
from safetensors import deserialize, safe_open
from safetensors.numpy import load_file, save_file

from quantkit import kernels
from quantkit.checkpoint import Lora
from quantkit.cli import cli
from quantkit.convert import _plan_digests, convert
from quantkit.errors import Paused, TensorError
from quantkit.evaluate import open_model
from quantkit.gguf_io import read_gguf
from quantkit.outline import outlines
from quantkit.plan import make_plan
from quantkit.qtypes import F32
from quantkit.recipe import preset
from quantkit.source import open_source

Trained = Callable[[str], Path]


def write(base: Path, out: Path, *lora: Lora, kind: str = "Q4_K_M", threads: int | None = None) -> Path:
    with open_source(base, lora=lora) as weights:
        plan = make_plan(weights, [preset(kind)], warn=lambda text: None)
        convert(weights, plan, [out], threads=threads)
    return out


def data(path: Path) -> bytes:
    return path.read_bytes()[read_gguf(path).data_offset :]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)


@pytest.mark.parametrize(("name", "base"), [("dora split", "fused"), ("embedding", "fused"), ("split", "gguf")])
def test_the_bytes_do_not_depend_on_slabs(
    bases: dict[str, Path], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, base: str
) -> None:
    """A slab that begins and ends anywhere, also across q, k and v."""
    lora = Lora(trained(name))
    expected = data(write(bases[base], tmp_path / "whole.gguf", lora, kind="F32"))
    for module in ("slabs", "check", "evaluate.model"):
        monkeypatch.setattr(f"quantkit.{module}.SLAB_WEIGHTS", 7 * small.HIDDEN)
    assert data(write(bases[base], tmp_path / "slabs.gguf", lora, kind="F32")) == expected
    with (
        open_model(bases[base], lambda text: None, [lora]) as model,
        open_model(tmp_path / "whole.gguf", pytest.fail) as written,
    ):
        for tensor in model.tensors:
            assert np.array_equal(model.matrix(tensor), written.matrix(tensor)), tensor


@pytest.mark.parametrize("name", ["fused", "dora", "embedding", "resized"])
def test_the_bytes_do_not_depend_on_threads_or_backend(
    bases: dict[str, Path], trained: Trained, tmp_path: Path, name: str
) -> None:
    found = set()
    for backend in kernels.backends():
        with kernels.using(backend):
            for threads in (1, 3):
                path = write(bases["fused"], tmp_path / "x.gguf", Lora(trained(name), 0.7), kind="F32", threads=threads)
                found.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(found) == 1


LAYOUTS = [("fused", "fused"), ("fused", "split"), ("fused", "gguf"), ("split", "gguf")]


@pytest.mark.parametrize(("name", "base"), LAYOUTS)
def test_one_pass_gives_what_merging_first_gives(
    bases: dict[str, Path], trained: Trained, tmp_path: Path, name: str, base: str
) -> None:
    """The merged model as an F32 file, then quantized; and of a base in any layout."""
    lora = Lora(trained(name), -1.5)
    merged = write(bases["fused"], tmp_path / "merged.gguf", lora, kind="F32")
    expected = write(merged, tmp_path / "expected.gguf")
    assert data(write(bases[base], tmp_path / "found.gguf", lora)) == data(expected)
    assert data(expected) != data(write(bases["fused"], tmp_path / "before.gguf"))


def test_what_is_measured_is_what_is_written(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    path = write(bases["fused"], tmp_path / "x.gguf", Lora(trained("embedding"), 2), kind="F32")
    with (
        open_model(path, pytest.fail) as written,
        open_model(bases["fused"], pytest.fail, [Lora(trained("embedding"), 2)]) as measured,
    ):
        assert written.tensors == measured.tensors
        for name in written.tensors:
            assert np.array_equal(written.matrix(name), measured.matrix(name)), name
        assert measured.qtype("token_embd.weight") is F32
        ids = np.array([5, 200, 5, 262])
        assert np.array_equal(written.embed(ids), measured.embed(ids))
        assert measured.name == "fused-embedding"


def test_several_adapters_add_up_in_their_order(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    first, second = Lora(trained("fused"), 0.5), Lora(trained("split"), 2)
    merged = write(bases["fused"], tmp_path / "first.gguf", first, kind="F32")
    expected = write(merged, tmp_path / "expected.gguf", second, kind="F32")
    assert data(write(bases["fused"], tmp_path / "both.gguf", first, second, kind="F32")) == data(expected)


# ---- what a file says


def test_a_file_tells_its_adapters(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    adapter = trained("whole")
    path = write(bases["fused"], tmp_path / "x.gguf", Lora(adapter), Lora(trained("split"), 0.3))
    fields = {key: field.value for key, field in read_gguf(path).fields.items()}
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    lines = "".join(f"{hashlib.sha256(tensors[name]).hexdigest()}  {name}\n" for name in sorted(tensors))
    assert fields["quantkit.lora.0.sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert fields["quantkit.lora.0.scale"] == 1
    assert fields["quantkit.lora.1.scale"] == np.float32(0.3)
    assert fields["general.name"] == "Fused Whole Split"
    assert fields["general.base_model.0.name"] == "Fused"
    assert str(bases["fused"].parent) not in path.read_bytes().decode("latin-1")

    replaced = ("o_proj", "input_layernorm", "embed_tokens", "lm_head", "model.norm")
    read = [name for name in small.tensors() if not any(part in name for part in replaced)]
    stored = _stored(bases["fused"])
    lines = "".join(f"{hashlib.sha256(stored[name]).hexdigest()}  {name}\n" for name in sorted(read))
    assert fields["quantkit.source.0.sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def _stored(checkpoint: Path) -> dict[str, bytes]:
    return {name: bytes(entry["data"]) for name, entry in deserialize((checkpoint / "model.safetensors").read_bytes())}


def test_an_adapter_alone_finds_its_base(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    with open_source(trained("fused"), lora=[Lora(trained("split"))]) as weights:
        assert weights.name == "fused-split"
        assert weights.path == bases["fused"]
    expected = write(bases["fused"], tmp_path / "expected.gguf", Lora(trained("fused")))
    assert data(write(trained("fused"), tmp_path / "found.gguf")) == data(expected)


def test_a_base_that_is_on_the_hub_is_told(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained("fused"), adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "microsoft/phi-4"}))
    fields = read_gguf(write(bases["fused"], tmp_path / "x.gguf", Lora(adapter))).fields
    assert fields["general.base_model.0.organization"].value == "Microsoft"
    assert fields["general.base_model.0.repo_url"].value == "https://huggingface.co/microsoft/phi-4"


def test_the_tokenizer_beside_an_adapter_counts(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained("resized"), adapter)
    other = small.write(tmp_path / "other")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    added = settings["added_tokens_decoder"]
    added["263"] = added["262"] | {"content": "<|tool|>"}
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings))
    without = read_gguf(write(bases["fused"], tmp_path / "without.gguf", Lora(adapter))).fields
    assert without["tokenizer.ggml.tokens"].value[263] == "[PAD263]"
    shutil.copyfile(other / "tokenizer.json", adapter / "tokenizer.json")
    fields = read_gguf(write(bases["fused"], tmp_path / "with.gguf", Lora(adapter))).fields
    assert fields["tokenizer.ggml.tokens"].value[263] == "<|tool|>"
    assert len(fields["tokenizer.ggml.tokens"].value) == 270


def test_tying_ends_where_one_of_the_two_was_trained(bases: dict[str, Path], trained: Trained) -> None:
    alike, apart = ("tied", "tied resized"), ("tied head", "tied embedding", "tied whole")
    for name, n_tensors in [*((name, 14) for name in alike), *((name, 15) for name in apart)]:
        said: list[str] = []
        with open_source(bases["tied"], lora=[Lora(trained(name))]) as weights:
            plan = make_plan(weights, [preset("Q8_0")], warn=said.append)
        assert len(plan.jobs) == n_tensors
        assert any("output.weight is written" in text for text in said) == (n_tensors == 15)


def test_a_larger_embedding_alone_is_the_output_matrix_too(
    bases: dict[str, Path], trained: Trained, tmp_path: Path
) -> None:
    """Of a tied model PEFT saves it twice; without the second the first is both."""
    adapter = tmp_path / "tied-resized"
    shutil.copytree(trained("tied resized"), adapter)
    file = adapter / "adapter_model.safetensors"
    save_file({name: values for name, values in load_file(file).items() if "lm_head" not in name}, file)
    expected = write(bases["tied"], tmp_path / "both.gguf", Lora(trained("tied resized")))
    found = write(bases["tied"], tmp_path / "one.gguf", Lora(adapter))
    assert data(found) == data(expected)
    with (
        pytest.raises(TensorError, match="not that of the output matrix"),
        open_source(bases["fused"], lora=[Lora(adapter)]),
    ):
        pass


def test_a_dtype_of_the_adapter_of_its_own(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    """F16, which widens exactly: as if the rounded values had been saved as F32."""
    rounded = {}
    for dtype in (np.float16, np.float32):
        adapter = tmp_path / dtype.__name__
        shutil.copytree(trained("fused"), adapter)
        file = adapter / "adapter_model.safetensors"
        save_file({name: t.astype(np.float16).astype(dtype) for name, t in load_file(file).items()}, file)
        rounded[dtype] = data(write(bases["fused"], tmp_path / f"{dtype.__name__}.gguf", Lora(adapter)))
    assert rounded[np.float16] == rounded[np.float32]


# ---- plan, resume, options


def test_the_size_is_known_before(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    for base, name in (("fused", "resized"), ("tied", "tied head"), ("fused", "fused")):
        lora = [Lora(trained(name))]
        (outline,) = outlines(bases[base], [preset("Q4_K_M")], None, lambda text: None, lora)
        assert outline.file_bytes == write(bases[base], tmp_path / "x.gguf", *lora).stat().st_size
        folder = tmp_path / f"{base}-{name}"
        shutil.copytree(bases[base], folder)
        (folder / "model.safetensors").unlink()
        (without,) = outlines(folder, [preset("Q4_K_M")], None, lambda text: None, lora)
        assert without.tensor_bytes == outline.tensor_bytes


@pytest.mark.parametrize("change", ["scale", "alpha", "weights", "none"])
def test_another_adapter_starts_over(
    bases: dict[str, Path], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "x.gguf"
    shutil.copytree(trained("fused"), adapter)
    lora = Lora(adapter, 0.5)
    monkeypatch.setattr("quantkit.convert._finish", _stop)
    with pytest.raises(Paused):
        write(bases["fused"], out, lora)
    monkeypatch.undo()
    if change == "scale":
        lora = Lora(adapter, 0.25)
    if change == "alpha":
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 80}))
    if change == "weights":
        tensors = load_file(adapter / "adapter_model.safetensors")
        save_file({name: values * 2 for name, values in tensors.items()}, adapter / "adapter_model.safetensors")
    kept = json.loads((tmp_path / "x.gguf.part.json").read_text())["plan"]
    with open_source(bases["fused"], lora=[lora]) as weights:
        ((_, digest),) = _plan_digests(weights, make_plan(weights, [preset("Q4_K_M")], warn=pytest.fail))
    assert (digest == kept) == (change == "none")
    assert data(write(bases["fused"], out, lora)) == data(write(bases["fused"], tmp_path / "fresh.gguf", lora))


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_option_of_every_command(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    base, lora, out = bases["fused"], f"{trained('fused')}:0.5", tmp_path / "x.gguf"
    assert run("convert", base, "--lora", lora, "-t", "Q8_0", "-o", out, "-q").exit_code == 0
    assert read_gguf(out).fields["quantkit.lora.0.scale"].value == 0.5
    planned = json.loads(run("plan", base, "--lora", lora, "-t", "Q8_0", "--json").stdout)
    assert planned["types"][0]["file_bytes"] == out.stat().st_size
    measuring = ("--window", "16", "--windows", "2", "--json", "-q")
    measured = json.loads(run("eval", out, "--base", base, "--lora", lora, *measuring).stdout)
    assert measured["base"]["name"] == "fused-fused"
    assert measured["models"][0]["kld"]["mean"] < 1e-3
    other = json.loads(run("eval", out, "--base", base, *measuring).stdout)
    assert other["models"][0]["kld"]["mean"] > 10 * measured["models"][0]["kld"]["mean"]
    assert other["base_sha256"] != measured["base_sha256"]
    matrix = tmp_path / "imatrix.gguf"
    assert run("imatrix", base, "--lora", lora, "-o", matrix, *measuring).exit_code == 0
    assert run("imatrix", base, "-o", tmp_path / "plain.gguf", *measuring).exit_code == 0
    assert data(matrix) != data(tmp_path / "plain.gguf")


def test_a_sweep_is_of_the_merged_model(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    """It says what was merged, does not take the base's measurements for its own, and writes what convert does."""
    arguments = ("--vram", "1GiB", "-t", "Q8_0", "--window", "16", "--windows", "2", "-o", tmp_path / "out", "--json")
    plain = json.loads(run("sweep", bases["fused"], *arguments).stdout)
    lora = f"{trained('fused')}:0.5"
    found = json.loads(run("sweep", bases["fused"], "--lora", lora, *arguments).stdout)
    assert found["merged"]["base"] == "fused"
    assert found["merged"]["lora"][0]["scale"] == 0.5
    assert "merged" not in plain
    assert found["base"]["ppl"] != plain["base"]["ppl"]
    expected = write(bases["fused"], tmp_path / "x.gguf", Lora(trained("fused"), 0.5), kind="Q8_0")
    assert (tmp_path / "out" / "fused-fused-Q8_0.gguf").read_bytes() == expected.read_bytes()


def test_a_colon_in_a_folders_name_is_no_scale(bases: dict[str, Path], trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "adapter:2"
    shutil.copytree(trained("fused"), folder)
    for value, scale in ((folder, 1), (f"{folder}:0.5", 0.5)):
        run("convert", bases["fused"], "--lora", value, "-t", "Q8_0", "-o", tmp_path / "x.gguf", "-q")
        assert read_gguf(tmp_path / "x.gguf").fields["quantkit.lora.0.scale"].value == scale
