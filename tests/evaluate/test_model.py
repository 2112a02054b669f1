"""A model's matrices, whatever they are stored in, and what is said of its files."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import gguf
import layouts
import numpy as np
import pytest
import small
import small_gguf
from numpy.typing import NDArray

from quantkit.arch import EMBEDDING, HEAD
from quantkit.convert import convert
from quantkit.errors import FormatError, TensorError, UnsupportedError
from quantkit.evaluate import Model, open_model
from quantkit.evaluate import model as module
from quantkit.gguf_io import Kind
from quantkit.osio import reading
from quantkit.plan import make_plan
from quantkit.qtypes import F32
from quantkit.recipe import preset
from quantkit.source import open_source


def opened(path: Path) -> Model:
    return open_model(path, pytest.fail)


def as_gguf_decodes(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a file, by the gguf package."""
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1, int(tensor.shape[0]))
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_K_M", "Q2_K"])
@pytest.mark.parametrize("slab", [1, 3000, 1 << 20])
def test_matrices_as_gguf_decodes_them(
    little_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, slab: int
) -> None:
    monkeypatch.setattr(module, "SLAB_WEIGHTS", slab)
    expected = as_gguf_decodes(little_files[kind])
    with opened(little_files[kind]) as model:
        assert model.tensors.keys() == expected.keys()
        for name, values in expected.items():
            assert np.array_equal(model.matrix(name), values), name
            assert np.array_equal(
                model.matrix(name, len(values) // 3, len(values) // 2 + 1),
                values[len(values) // 3 : len(values) // 2 + 1],
            )


def test_a_checkpoint_and_its_bf16_file_are_equal(little: Path, little_files: dict[str, Path]) -> None:
    with opened(little) as checkpoint, opened(little_files["BF16"]) as file:
        for name in checkpoint.tensors:
            assert checkpoint.matrix(name).tobytes() == file.matrix(name).tobytes(), name
        assert checkpoint.network == file.network
        assert (checkpoint.epsilon, checkpoint.rotation.factor) == (file.epsilon, file.rotation.factor)
        assert np.array_equal(checkpoint.rotation.inverse_frequencies, file.rotation.inverse_frequencies)


@pytest.mark.parametrize("slab", [3000, 1 << 20])
def test_matrices_that_a_checkpoint_has_in_parts(
    little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    """q, k, v, gate and up apart, and three tensors to a file."""
    monkeypatch.setattr(module, "SLAB_WEIGHTS", slab)
    for layout in (layouts.llama, layouts.sharded):
        folder = tmp_path / layout.__name__
        shutil.copytree(little, folder)
        layout(folder)
        with opened(little) as whole, opened(folder) as parts:
            for name in whole.tensors:
                assert np.array_equal(parts.matrix(name), whole.matrix(name)), name
            some = (small.HIDDEN - 3, small.HIDDEN + 70)  # of q and k
            name = "blk.1.attn_qkv.weight"
            assert np.array_equal(parts.matrix(name, *some), whole.matrix(name, *some))
            assert np.array_equal(parts.rotation.inverse_frequencies, whole.rotation.inverse_frequencies)


def test_longrope_factors_are_the_files(phi4_mini_tiny: Path, tmp_path: Path) -> None:
    path = small_gguf.run(phi4_mini_tiny, tmp_path, ["BF16"])["BF16"]
    with opened(phi4_mini_tiny) as checkpoint, opened(path) as file:
        assert np.array_equal(checkpoint.rotation.inverse_frequencies, file.rotation.inverse_frequencies)
        assert checkpoint.rotation.factor == file.rotation.factor
        assert checkpoint.rotation.factor > 1.1


def test_embeddings_of_tokens(little_files: dict[str, Path]) -> None:
    ids = np.array([5, 262, 0, 5, 17])
    expected = as_gguf_decodes(little_files["Q4_K_M"])[EMBEDDING]
    with opened(little_files["Q4_K_M"]) as model:
        assert np.array_equal(model.embed(ids), expected[ids])


def test_the_head_of_tied_weights_is_the_embedding(phi4_mini_tiny: Path, little: Path) -> None:
    with opened(phi4_mini_tiny) as tied, opened(little) as untied:
        assert (tied.head, untied.head) == (EMBEDDING, HEAD)
        assert tied.matrix(tied.head, 3, 5).tobytes() == tied.embed(np.array([3, 4])).tobytes()


def test_a_set_of_shards_is_one_model(little: Path, little_files: dict[str, Path], tmp_path: Path) -> None:
    with open_source(little) as weights:
        plan = make_plan(weights, [preset("Q8_0")], warn=pytest.fail, split_max_bytes=500_000)
        paths = [tmp_path / f"a-{n + 1:05d}-of-{len(plan.files):05d}.gguf" for n in range(len(plan.files))]
        convert(weights, plan, paths)
    assert len(paths) > 1
    with opened(paths[0]) as shards, opened(little_files["Q8_0"]) as whole:
        assert all(np.array_equal(shards.matrix(name), whole.matrix(name)) for name in whole.tensors)
        assert shards.file_bytes == sum(path.stat().st_size for path in paths)
        lines = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
        assert shards.sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_the_sha256_of_one_file_is_its_own(little_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_HASHED_AT_ONCE", 1000)
    path = little_files["Q8_0"]
    with opened(path) as model:
        assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (model.name, model.file_bytes) == (path.name, path.stat().st_size)


def test_another_architecture_is_refused(little_files: dict[str, Path], tmp_path: Path) -> None:
    edit = lambda model: model.set("general.architecture", Kind.STRING, "gemma3")  # noqa: E731
    with pytest.raises(UnsupportedError, match="gemma3") as caught:
        opened(small_gguf.edited(little_files["Q8_0"], tmp_path / "a.gguf", edit))
    assert caught.value.exit_code == 65


def test_another_stretched_rotation_is_refused(little_files: dict[str, Path], tmp_path: Path) -> None:
    edit = lambda model: model.set("phi3.rope.scaling.type", Kind.STRING, "yarn")  # noqa: E731
    with pytest.raises(UnsupportedError, match="yarn"):
        opened(small_gguf.edited(little_files["Q8_0"], tmp_path / "a.gguf", edit))


NUMBERS = {
    "phi3.attention.layer_norm_rms_epsilon": (math.inf, math.nan, 0.0, -1.0),
    "phi3.rope.freq_base": (math.inf, math.nan, 0.0, -10000.0),
    "phi3.rope.scaling.attn_factor": (math.inf, math.nan, 0.0, -1.0),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in NUMBERS.items() for value in values])
def test_numbers_that_nothing_can_be_computed_with_are_refused(
    little_files: dict[str, Path], tmp_path: Path, key: str, value: float
) -> None:
    path = small_gguf.edited(little_files["Q8_0"], tmp_path / "a.gguf", lambda model: model.set(key, Kind.F32, value))
    with pytest.raises(FormatError, match="impossible number") as caught:
        opened(path)
    details = caught.value.details
    assert (details["file"], details["key"], str(details["found"])) == (path, key, str(value))


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize(("kind", "value"), [(Kind.U32, 2), (Kind.F64, 2.0), (Kind.STRING, "2"), (Kind.BOOL, True)])
def test_a_number_of_another_kind_is_refused(
    little_files: dict[str, Path], tmp_path: Path, key: str, kind: Kind, value: object
) -> None:
    path = small_gguf.edited(little_files["Q8_0"], tmp_path / "a.gguf", lambda model: model.set(key, kind, value))
    with pytest.raises(FormatError, match="wrong type") as caught:
        opened(path)
    assert caught.value.details == {"file": path, "key": key, "expected": "F32", "found": kind.name}


@pytest.mark.parametrize("value", [1e39, 1e-60], ids=["infinite as float32", "zero as float32"])
def test_a_number_of_a_checkpoint_that_float32_lacks_is_refused(tmp_path: Path, value: float) -> None:
    folder = small.write(tmp_path / "a", edit_config=lambda config: config.update(rms_norm_eps=value))
    with pytest.raises(FormatError, match="layer_norm_rms_epsilon"):
        opened(folder)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_rope_factors_that_cannot_divide_are_refused(
    little_files: dict[str, Path], tmp_path: Path, value: float
) -> None:
    name = "rope_factors_short.weight"

    def edit(model: small_gguf.Model) -> None:
        factors = np.ones(small.HIDDEN // small.HEADS // 2, np.float32)
        factors[5] = value
        model.tensors[name] = (factors.shape, F32, factors.tobytes())

    path = small_gguf.edited(little_files["Q8_0"], tmp_path / "a.gguf", edit)
    with pytest.raises(TensorError, match="no positive number") as caught:
        opened(path)
    assert (caught.value.details["file"], caught.value.details["tensor"]) == (path, name)


def test_without_its_key_the_rotation_has_no_factor(little_files: dict[str, Path], tmp_path: Path) -> None:
    edit = lambda model: model.set("phi3.rope.scaling.attn_factor", Kind.F32, 1.25)  # noqa: E731
    with (
        opened(little_files["Q8_0"]) as without,
        opened(small_gguf.edited(little_files["Q8_0"], tmp_path / "a.gguf", edit)) as with_one,
    ):
        assert (without.rotation.factor, with_one.rotation.factor) == (1.0, 1.25)
