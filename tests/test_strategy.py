"""Strategies: the factor of second moments, files made with error feedback, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import small
import small_moments
from numpy.typing import NDArray
from small_moments import COLUMNS, KEPT, RUN, TEXT, TOKENS, sums, write_one

from quantkit import kernels
from quantkit.cli import main
from quantkit.convert import convert as write_file
from quantkit.errors import FormatError, InputError, TensorError, UsageError
from quantkit.gguf_io import read_gguf
from quantkit.kernels.feedback import PANEL
from quantkit.moments import Collected, Packed, Run, layer_file, pack, write_layer
from quantkit.plan import make_plan
from quantkit.recipe import preset
from quantkit.source import open_source
from quantkit.strategy import DAMPING, STRATEGIES, Factor, by_name, factorize

F32 = NDArray[np.float32]


def made(matrix: F32, threads: int = 2) -> Factor:
    with ThreadPoolExecutor(threads) as pool:
        return factorize(matrix.copy(), TOKENS, KEPT, pool, threads)


@pytest.mark.parametrize("k", [32, 256, 416])
def test_the_factor_is_that_of_the_shrunk_moments(k: int) -> None:
    matrix = sums(k)
    factor = made(matrix)
    at = factor.order + np.arange(k) // PANEL * PANEL
    assert sorted(at) == list(range(k))
    own = matrix.diagonal().astype(np.float64)
    for first in range(0, k, PANEL):
        assert (np.diff(own[at[first : first + PANEL]]) <= 0).all()
    assert np.array_equal(factor.importance, matrix.diagonal() / np.float32(TOKENS))
    shrunk = (matrix * KEPT).astype(np.float64)
    np.fill_diagonal(shrunk, own + DAMPING * own.mean())
    reverse = np.linalg.cholesky(shrunk[np.ix_(at, at)][::-1, ::-1])[::-1, ::-1]
    expected = reverse / reverse.diagonal()
    scale = np.sqrt(shrunk.diagonal()[at])  # of columns of one size
    differ = np.triu(factor.matrix - expected, 1) * scale / scale[:, None]
    assert np.abs(differ).max() < 1e-4
    assert np.allclose(factor.matrix.diagonal(), reverse.diagonal() ** 2, rtol=1e-4)


def test_the_factor_has_the_same_bits_everywhere() -> None:
    matrix = sums(416)
    expected = made(matrix, 1)
    for backend in kernels.backends():
        with kernels.using(backend):
            for threads in (1, 3):
                found = made(matrix, threads)
                assert np.triu(found.matrix).tobytes() == np.triu(expected.matrix).tobytes(), backend
                assert found.order.tobytes() == expected.order.tobytes()


def test_what_no_second_moments_are_is_refused() -> None:
    matrix = sums(96)
    matrix[3, 7] = matrix[7, 3] = 2 * np.sqrt(matrix[3, 3] * matrix[7, 7])
    with pytest.raises(FormatError, match="not positive definite") as caught:
        made(matrix)
    assert caught.value.details["column"] in (3, 7)


def test_a_column_alone_and_a_text_of_zeros() -> None:
    nothing = made(np.zeros((64, 64), np.float32))
    assert np.array_equal(np.triu(nothing.matrix, 1), np.zeros((64, 64)))
    assert np.array_equal(nothing.importance, np.zeros(64))


# ---- files


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("strategy") / "small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strategy") / "moments"
    folder.mkdir()
    small_moments.write(folder)
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The moments, to be spoilt."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    yield tmp_path


def run(*arguments: object, exit_code: int = 0) -> str:
    """What the command line says, on both channels."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == exit_code, said.getvalue()
    return said.getvalue()


def convert(source: Path, folder: Path, out: Path, preset: str = "Q3_K_M", *more: object) -> Path:
    run("convert", source, "-t", preset, "--strategy", "feedback", "--covariance", folder, "-o", out, "-q", *more)
    return out


def test_a_file_is_made_and_verified(source: Path, folder: Path, tmp_path: Path) -> None:
    """The same for any backend and number of threads; verify makes it again; its keys say what went in."""
    file = convert(source, folder, tmp_path / "a.gguf")
    expected = file.read_bytes()
    for backend in kernels.backends():
        with kernels.using(backend):
            again = convert(source, folder, tmp_path / "b.gguf", "Q3_K_M", "--threads", 3)
        assert again.read_bytes() == expected, backend
    fields = read_gguf(file).fields
    assert fields["quantkit.strategy"].value == "feedback"
    assert fields["quantkit.covariance.text_sha256"].value == TEXT
    assert fields["quantkit.covariance.tokens"].value == TOKENS
    assert fields["quantkit.covariance.mean_kept"].value == pytest.approx(KEPT)
    assert fields["quantkit.covariance.damping"].value == pytest.approx(DAMPING)
    statement = tmp_path / "a.json"
    run("verify", file, "--source", source, "--covariance", folder, "--write-statement", statement)
    moments = json.loads(statement.read_text())["predicate"]["covariance"]["sha256"]
    assert moments == fields["quantkit.covariance.sha256"].value
    run("verify", file, "--statement", statement)
    statement.write_text(statement.read_text().replace(moments, TEXT))
    assert "contradicts" in run("verify", file, "--statement", statement, exit_code=3)
    assert "needs --covariance" in run("verify", file, "--source", source, exit_code=2)


def test_verify_knows_other_moments(source: Path, folder: Path, copied: Path, tmp_path: Path) -> None:
    file = convert(source, folder, tmp_path / "a.gguf")
    write_one(copied, 1, seed=9)
    said = run("verify", file, "--source", source, "--covariance", copied, "--json", "-q", exit_code=3)
    found, _ = json.JSONDecoder().raw_decode(said)
    assert not found["equal"]
    assert "quantkit.covariance.sha256" in {difference.get("key") for difference in found["differences"]}
    tensors = {difference["tensor"] for difference in found["differences"] if "tensor" in difference}
    assert tensors
    assert all(name.startswith("blk.1.") for name in tensors)


def test_verify_compares_files_of_other_types_too(source: Path, tmp_path: Path) -> None:
    """With moments for one recipe, whatever types a file has: what is wrong with it is for verify to find."""
    small_moments.write(tmp_path, packed=Packed("Q3_K_M", "12" * 32))
    with open_source(source) as weights:
        strategy = by_name("feedback", tmp_path, any_types=True)
        plan = make_plan(weights, [preset("Q4_0")], strategy=strategy, warn=pytest.fail)
        write_file(weights, plan, [tmp_path / "a.gguf"])
    run("verify", tmp_path / "a.gguf", "--source", source, "--covariance", tmp_path)
    refused = ("convert", source, "-t", "Q4_0", "--strategy", "feedback", "--covariance", tmp_path)
    assert "matrices of other types" in run(*refused, "-o", tmp_path / "b.gguf", exit_code=65)


@pytest.mark.parametrize("type_name", ["Q2_K", "Q4_K_M", "Q6_K", "Q4_0", "Q5_1", "Q8_0"])
def test_every_kind_of_preset(source: Path, folder: Path, tmp_path: Path, type_name: str) -> None:
    """Fed back are the matrices of layers in types with codes; all else is the reference's."""
    fed = convert(source, folder, tmp_path / "fed.gguf", type_name)
    run("convert", source, "-t", type_name, "-o", tmp_path / "reference.gguf", "-q")
    ours, theirs = read_gguf(fed), read_gguf(tmp_path / "reference.gguf")
    assert ours.tensors.keys() == theirs.tensors.keys()
    data, other = fed.read_bytes(), (tmp_path / "reference.gguf").read_bytes()
    for name, entry in ours.tensors.items():
        assert entry == theirs.tensors[name]
        a, b = ours.data_offset + entry.offset, theirs.data_offset + entry.offset
        is_fed = len(entry.shape) == 2 and name.startswith("blk.") and entry.qtype.name != "Q8_0"
        assert (data[a : a + entry.nbytes] != other[b : b + entry.nbytes]) == is_fed, name


def test_what_does_not_fit_is_refused(source: Path, folder: Path, copied: Path, tmp_path: Path) -> None:
    columns = {f"blk.{i}.{name}.weight": k for i in range(2) for name, k in COLUMNS.items()}
    feedback = by_name("feedback", copied)
    assert len(feedback.check(columns, [], pytest.fail)) == 5
    with pytest.raises(TensorError, match="another size"):
        feedback.check(columns | {"blk.1.ffn_up.weight": 512}, [], pytest.fail)
    with pytest.raises(TensorError, match="not of one run"):
        write_one(copied, 1, run="ef" * 32)
        feedback.check(columns, [], pytest.fail)
    with pytest.raises(TensorError, match="not of one run"):
        feedback.check({"output.weight": 256}, [], pytest.fail)
    layer_file(copied, "blk.1").unlink()
    with pytest.raises(InputError, match="no such file"):
        feedback.check(columns, [], pytest.fail)
    assert "no such file" in run(
        "convert", source, "-t", "Q4_0", "--strategy", "feedback", "--covariance", copied, "-o", tmp_path / "x.gguf",
        exit_code=65,
    )  # fmt: skip
    assert not (tmp_path / "x.gguf").exists()


def test_moments_that_changed_since_are_refused(source: Path, copied: Path, tmp_path: Path) -> None:
    path = layer_file(copied, "blk.1")
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    arguments = ("-t", "Q4_0", "--strategy", "feedback", "--covariance", copied, "-o", tmp_path / "x.gguf")
    assert "not those that were collected" in run("convert", source, *arguments, exit_code=65)
    assert not (tmp_path / "x.gguf").exists()


def test_few_tokens_are_warned_of(folder: Path) -> None:
    said: list[str] = []
    columns = {"blk.0.ffn_down.weight": small.FEED_FORWARD}
    by_name("feedback", folder).check(columns, [], said.append)
    assert said == []
    for i in range(small.LAYERS):
        matrices = {"blk.0.ffn_down.weight": Collected(pack(sums(small.FEED_FORWARD)), KEPT)}
        write_layer(folder.parent, f"blk.{i}", matrices, Run(small.FEED_FORWARD - 1, TEXT, RUN))
    by_name("feedback", folder.parent).check(columns, [], said.append)
    assert len(said) == 1
    assert "511 tokens" in said[0]


def test_strategies_by_name(tmp_path: Path) -> None:
    assert STRATEGIES.keys() == {"reference", "feedback"}
    assert by_name("reference", None).name == "reference"
    with pytest.raises(UsageError, match="no strategy"):
        by_name("best", None)
    with pytest.raises(UsageError, match="needs --covariance"):
        by_name("feedback", None)
    with pytest.raises(UsageError, match="not for --strategy reference"):
        by_name("reference", tmp_path)
