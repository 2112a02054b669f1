"""The promises of a conversion: one reading, the same bytes however it is run, whole files or none."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import small

from quantkit import convert as convert_module
from quantkit import kernels, slabs
from quantkit.checkpoint import open_checkpoint
from quantkit.cli import main
from quantkit.convert import convert
from quantkit.errors import MagnitudeError, NotFiniteError, OutputError, QuantkitError, TensorError, UsageError
from quantkit.gguf_io import read_gguf
from quantkit.plan import make_plan, output_paths
from quantkit.recipe import preset

TYPES = ("Q4_K_M", "Q6_K", "Q8_0", "F16", "BF16", "F32")


def run(source: Path, out: Path, types: Sequence[str] = TYPES, threads: int | None = None) -> dict[str, Path]:
    out.mkdir(exist_ok=True)
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, [preset(name) for name in types], warn=pytest.fail)
        paths = [path for (path,) in output_paths(plan.outputs, checkpoint.name, out / "{type}.gguf")]
        convert(checkpoint, plan, paths, threads=threads)
    for output, path in zip(plan.outputs, paths, strict=True):
        assert path.stat().st_size == output.file_bytes
    return dict(zip(types, paths, strict=True))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small.write(tmp_path / "small")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_tensor_is_its_encoded_source(tmp_path: Path, dtype: str) -> None:
    with open_checkpoint(small.write(tmp_path / "small", dtype=dtype)) as checkpoint:
        plan = make_plan(checkpoint, [preset("Q4_K_M")], warn=pytest.fail)
        convert(checkpoint, plan, [tmp_path / "a.gguf"])
        found = read_gguf(tmp_path / "a.gguf")
        data = (tmp_path / "a.gguf").read_bytes()
        for job, tensor in zip(plan.jobs, found.tensors.values(), strict=True):
            (source,) = job.sources
            raw = np.empty((source.n_rows, source.row_bytes), np.uint8)
            checkpoint.read_rows(source, 0, source.n_rows, raw)
            expected = kernels.encode(kernels.decode(raw, source.dtype), tensor.qtype).tobytes()
            start = found.data_offset + tensor.offset
            assert data[start : start + tensor.nbytes] == expected, tensor.name


def test_f32_holds_the_sources_weights(source: Path, tmp_path: Path) -> None:
    path = run(source, tmp_path / "out", ["F32"])["F32"]
    found = read_gguf(path)
    entry = found.tensors["blk.1.ffn_down.weight"]
    values = np.fromfile(path, np.float32, entry.n_weights, offset=found.data_offset + entry.offset)
    weights = small.tensors()["model.layers.1.mlp.down_proj.weight"]
    assert np.array_equal(
        values.reshape(entry.shape), (small.to_bf16(weights).astype(np.uint32) << 16).view(np.float32)
    )


def test_same_bytes_for_any_thread_count_and_slab_size(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {name: digest(path) for name, path in run(source, tmp_path / "one", threads=1).items()}
    for threads in (2, 3, 8):
        found = run(source, tmp_path / f"t{threads}", threads=threads)
        assert {name: digest(path) for name, path in found.items()} == expected
    monkeypatch.setattr(slabs, "SLAB_WEIGHTS", 700)
    found = run(source, tmp_path / "slabs", threads=2)
    assert {name: digest(path) for name, path in found.items()} == expected


def test_one_run_for_many_types_equals_a_run_for_each(source: Path, tmp_path: Path) -> None:
    together = run(source, tmp_path / "together")
    for name in TYPES:
        assert digest(run(source, tmp_path / name, [name])[name]) == digest(together[name])


def test_same_bytes_from_the_numpy_kernels(source: Path, tmp_path: Path) -> None:
    expected = run(source, tmp_path / "native")
    types = [part for name in TYPES for part in ("-t", name)]
    command = [sys.executable, "-m", "quantkit", "convert", str(source), *types, "-o", str(tmp_path / "{type}.gguf")]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"QUANTKIT_BACKEND": "numpy"})
    for name, path in expected.items():
        assert digest(tmp_path / f"{name}.gguf") == digest(path)


BAD_WEIGHTS = {
    "nan": (np.nan, NotFiniteError),
    "inf": (np.inf, NotFiniteError),
    "minus inf": (-np.inf, NotFiniteError),
    "too large": (1.7e38, MagnitudeError),
}


@pytest.mark.parametrize(("value", "error"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K", "Q8_0", "F16"])
def test_a_weight_that_cannot_be_packed_is_named_and_the_old_file_survives(
    tmp_path: Path, value: float, error: type[QuantkitError], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def spoil(tensors: small.Tensors) -> None:
        tensors[name][200, 300] = value

    source = small.write(tmp_path / "small", edit_tensors=spoil)
    old = tmp_path / "old.gguf"
    old.write_bytes(b"precious")
    monkeypatch.setattr(slabs, "SLAB_WEIGHTS", 10_000)  # so the row is not in the first slab
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, [preset(kind)], warn=pytest.fail)
        with pytest.raises(error) as caught:
            convert(checkpoint, plan, [old])
    assert caught.value.exit_code == 65
    assert {"tensor": name, "row": 200, "column": 300}.items() <= caught.value.details.items()
    assert old.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.gguf", "small"]


def test_nan_in_a_norm_is_found_too(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small", edit_tensors=lambda t: t["model.norm.weight"].put(7, np.nan))
    with pytest.raises(NotFiniteError) as caught:
        run(source, tmp_path / "out", ["Q8_0"])
    assert {"tensor": "model.norm.weight", "row": 0, "column": 7}.items() <= caught.value.details.items()


def test_a_large_weight_that_a_wider_type_holds_is_kept(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small", edit_tensors=lambda t: t["model.embed_tokens.weight"].put(9, 2.0**100))
    run(source, tmp_path / "out", ["BF16", "F32"])


def _drop(tensors: small.Tensors) -> None:
    del tensors["model.norm.weight"]


def _add(tensors: small.Tensors) -> None:
    tensors["model.layers.2.mlp.down_proj.weight"] = np.zeros((2, 2), np.float32)


def _reshape(tensors: small.Tensors) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()


MISFITS = {
    "missing": (_drop, "model.norm.weight", "missing"),
    "extra": (_add, "model.layers.2.mlp.down_proj.weight", "does not have"),
    "shape": (_reshape, "lm_head.weight", "contradicts config"),
}


@pytest.mark.parametrize(("edit", "tensor", "words"), MISFITS.values(), ids=MISFITS.keys())
def test_tensors_that_do_not_fit_the_config_are_named(tmp_path: Path, edit: object, tensor: str, words: str) -> None:
    source = small.write(tmp_path / "small", edit_tensors=edit)  # type: ignore[arg-type]
    with pytest.raises(TensorError, match=words) as caught:
        run(source, tmp_path / "out", ["Q8_0"])
    assert caught.value.details["tensor"] == tensor


def test_two_outputs_of_one_name_are_refused(source: Path, tmp_path: Path) -> None:
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, [preset("Q8_0"), preset("Q6_K")], warn=pytest.fail)
        with pytest.raises(UsageError, match="same name"):
            convert(checkpoint, plan, [tmp_path / "a.gguf", tmp_path / "a.gguf"])


def test_a_source_is_not_replaced(source: Path, tmp_path: Path) -> None:
    shard = next(source.glob("*.safetensors"))
    link = tmp_path / "a.gguf"
    link.symlink_to(shard)
    before = shard.read_bytes()
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, [preset("Q8_0")], warn=pytest.fail)
        for path in (shard, link):
            with pytest.raises(UsageError, match="would replace an input"):
                convert(checkpoint, plan, [path])
    assert shard.read_bytes() == before


def test_too_little_room_is_seen_before_work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module, "free_space", lambda folder: 1000)
    with pytest.raises(OutputError, match="too little room"):
        run(source, tmp_path / "out", ["Q8_0"])
    assert not list((tmp_path / "out").iterdir())


def test_a_second_output_that_cannot_be_created_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "Q6_K.gguf").mkdir()
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, [preset("Q8_0"), preset("Q6_K")], warn=pytest.fail)
        with pytest.raises(OutputError):
            convert(checkpoint, plan, [tmp_path / "Q8_0.gguf", tmp_path / "Q6_K.gguf"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Q6_K.gguf", "small"]


SLOW = """
import sys, time
from quantkit import convert, slabs
from quantkit.cli import main
write = slabs._journey
def slow(*arguments):
    time.sleep(0.02)
    return write(*arguments)
slabs._journey = slow
slabs.SLAB_WEIGHTS = 4096
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_stopped_in_the_middle_the_old_file_is_whole(
    source: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    old = tmp_path / "old.gguf"
    old.write_bytes(b"precious")
    command = [sys.executable, "-c", SLOW, "convert", str(source), "-t", "Q8_0", "-o", str(old)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not (tmp_path / "old.gguf.part").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.6)
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert old.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"old.gguf", "old.gguf.part", "old.gguf.part.json", "small"}


def test_a_chat_template_is_not_replaced(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "a.jinja"
    template.write_text("{{ messages }}")
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), "-t", "Q8_0", "--chat-template", str(template), "-o", str(template)])
    assert ended.value.code == 2 and "would replace an input" in capsys.readouterr().err
    assert template.read_text() == "{{ messages }}"
