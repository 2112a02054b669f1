"""quantkit release: a folder whose every figure and digest is true, made once and gone on with."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import synthetic_imatrix
import yaml
from safetensors.numpy import save_file

from quantkit.checkpoint import Lora
from quantkit.cli import cli
from quantkit.convert import convert
from quantkit.errors import ConfigError, OutputError, QuantkitError, UsageError
from quantkit.evaluate import arithmetic, evaluate, open_model, sample, shipped
from quantkit.gguf_io import read_gguf
from quantkit.plan import make_plan, output_paths
from quantkit.recipe import preset
from quantkit.release import read_settings
from quantkit.release.release import Order, Release
from quantkit.source import open_source

LICENCE = "MIT License\n\nAs is.\n"
CARD = "---\nlicense: mit\nlanguage:\n- en\n- de\nbase_model: org/base\n---\n# Little\n"
COLUMNS = {
    "attn_qkv": small.HIDDEN,
    "attn_output": small.HIDDEN,
    "ffn_up": small.HIDDEN,
    "ffn_down": small.FEED_FORWARD,
}
TYPES = ("Q4_K_M", "Q8_0")
BESIDE = {
    *("LICENSE", "Modelfile", "README.md", "SHA256SUMS", "params", "template"),
    *("report.csv", "report.html", "report.json", "report.md"),
    *(f"recipes/{name}.toml" for name in TYPES),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = small.write(tmp_path_factory.mktemp("release") / "little", edit_tensors=small.lively)
    (folder / "LICENSE").write_text(LICENCE)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def imatrix(source: Path) -> Path:
    path = source.parent / "of me.gguf"
    names = [(f"blk.{i}.{name}.weight", k) for i in range(small.LAYERS) for name, k in COLUMNS.items()]
    synthetic_imatrix.write(path, "gguf", names)
    return path


def make(order: Order, warn: Callable[[str], None] = pytest.fail) -> tuple[dict[str, Any], list[str], int]:
    """Make a release: what it says, the types that were converted, and how many measurements were made."""
    with Release.open(order, warn) as release:
        converted = [output.name for output in release.unwritten.outputs]
        release.convert(lambda nbytes: None)
        n_missing = release.sweep.n_missing()
        release.sweep.measure()
        return release.publish(), converted, n_missing


@pytest.fixture(scope="module")
def order(source: Path, imatrix: Path) -> Order:
    return Order(
        source,
        source.parent / "out",
        TYPES,
        imatrix=imatrix,
        window=32,
        windows=4,
        repo="me/little-GGUF",
        quantized_by="Dr. Who: 'me' 😀",
        tags=("conversational", "gguf"),
    )


@pytest.fixture(scope="module")
def made(order: Order) -> Path:
    result, converted, n_missing = make(order)
    assert converted == list(TYPES) and n_missing == 3
    assert result["chat"] == "Phi-4"
    return order.out


def files(folder: Path) -> dict[str, bytes]:
    """The contents of a release, without what is kept for the next run."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".quantkit" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_folder_is_whole_and_its_sums_are_true(made: Path) -> None:
    found = files(made)
    gguf = {f"little-{name}.gguf" for name in TYPES}
    plots = {name for name in found if name.startswith("plots/")}
    assert found.keys() - plots == BESIDE | gguf | {"little.imatrix.gguf"}
    digests = dict(reversed(line.split("  ")) for line in found["SHA256SUMS"].decode().splitlines())
    assert digests == {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if name != "SHA256SUMS"}
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=made, check=True)


def test_files_are_those_of_convert(made: Path, source: Path, imatrix: Path, tmp_path: Path) -> None:
    from quantkit.imatrix import read_imatrix

    with open_source(source) as weights:
        recipes = [preset(name) for name in TYPES]
        by = {"general.quantized_by": "Dr. Who: 'me' 😀"}
        plan = make_plan(weights, recipes, imatrix=read_imatrix(imatrix), overrides=by, warn=pytest.fail)
        paths = [path for (path,) in output_paths(plan.outputs, "little", tmp_path)]
        convert(weights, plan, paths)
    for path in paths:
        assert (made / path.name).read_bytes() == path.read_bytes()
        recipe = read_gguf(path).fields["quantkit.recipe.sha256"].value
        toml = (made / "recipes" / f"{path.stem.removeprefix('little-')}.toml").read_bytes()
        assert hashlib.sha256(toml).hexdigest() == recipe


def test_figures_are_those_of_the_files(made: Path, source: Path) -> None:
    """To the last digit what `eval` finds in what was written."""
    report = json.loads((made / "report.json").read_text())
    with open_model(source, pytest.fail) as base:
        chosen = sample([base], shipped("eval.txt"), 32, 4)
        for entry in report["candidates"]:
            path = made / f"little-{entry['type']}.gguf"
            with open_model(path, pytest.fail) as model:
                result = evaluate([model], chosen, base=base, how=arithmetic("f32", "f32", "cpu"))
            (figures,) = result["models"]
            assert entry["kld"] == figures["kld"] and entry["ppl"] == figures["ppl"]
            assert entry["file_bytes"] == path.stat().st_size


def test_the_card(made: Path) -> None:
    text = (made / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "quantized_by": "Dr. Who: 'me' 😀",
        "license": "mit",
        "language": ["en", "de"],
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "tags": ["gguf", "llama.cpp", "quantkit", "imatrix", "conversational"],
    }
    report = {entry["type"]: entry for entry in json.loads((made / "report.json").read_text())["candidates"]}
    rows = [line for line in body.splitlines() if line.startswith("| [")]
    assert len(rows) == len(TYPES)
    for name, row in zip(TYPES, rows, strict=True):  # the smaller first
        file = made / f"little-{name}.gguf"
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == f"[{file.name}]({file.name})"
        assert cells[2] == f"{report[name]['bits_per_weight']:.2f}"
        assert cells[4].startswith(f"{report[name]['kld']['mean']:.5f} ±")
        assert cells[7] == f"{report[name]['ppl']:.4f}"
        assert cells[9] == f"`{hashlib.sha256(file.read_bytes()).hexdigest()}`"
    for command in ("llama-server -hf me/little-GGUF:Q4_K_M", "ollama run hf.co/me/little-GGUF:Q4_K_M"):
        assert f"    {command}\n" in body


def test_what_ollama_reads(made: Path) -> None:
    text, template = (made / "Modelfile").read_text(), (made / "template").read_text()
    assert text.startswith(f'FROM ./little-Q4_K_M.gguf\nTEMPLATE """{template}"""\n')
    assert re.findall('^PARAMETER stop "(.*)"$', text, re.MULTILINE) == ["<|im_start|>", "<|im_end|>", "<|im_sep|>"]
    assert f'LICENSE """{LICENCE}"""' in text
    assert json.loads((made / "params").read_text())["stop"] == ["<|im_start|>", "<|im_end|>", "<|im_sep|>"]


def test_nothing_tells_of_this_machine(made: Path, source: Path) -> None:
    local = [str(source.parent), "of me.gguf", f"{getpass.getuser()}@{socket.gethostname()}", f"/{getpass.getuser()}/"]
    for name, data in files(made).items():
        assert not [word for word in local if word.encode() in data], name


def test_a_second_run_makes_only_what_is_missing(made: Path, order: Order) -> None:
    before = files(made)
    moments = {name: (made / name).stat().st_mtime_ns for name in before if name.endswith(".gguf")}
    assert make(order)[1:] == ([], 0)
    assert files(made) == before
    assert all((made / f"little-{name}.gguf").stat().st_mtime_ns == moments[f"little-{name}.gguf"] for name in TYPES)

    (made / "little-Q8_0.gguf").unlink()
    spoilt = bytearray(before["little-Q4_K_M.gguf"])
    spoilt[-1] ^= 1
    (made / "little-Q4_K_M.gguf").write_bytes(spoilt)
    assert make(order)[1:] == (["Q4_K_M", "Q8_0"], 0)
    assert files(made) == before


def test_shards_have_the_names_that_the_hub_knows(order: Order, tmp_path: Path) -> None:
    warnings: list[str] = []
    make(replace(order, out=tmp_path / "out", types=["Q8_0"], split_max_bytes=10**6, repo=None), warnings.append)
    found = files(tmp_path / "out")
    shards = sorted(name for name in found if name.endswith(".gguf") and "imatrix" not in name)
    assert len(shards) == 2 and all(re.fullmatch(r"(.*?)-(\d{5})-of-(\d{5})\.gguf", name) for name in shards)
    assert "Modelfile" not in found and "Ollama takes no split files" in warnings[0]
    card = found["README.md"].decode()
    assert (
        "of its 2 files: see SHA256SUMS" in card and "ollama" not in card.split("## How to run")[1].split("Ollama")[0]
    )
    assert f"llama-server -m {shards[0]}" in card


def test_an_adapter_is_part_of_what_is_released(source: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "tuned"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    rng = np.random.default_rng(1)
    shapes = {"A": (2, small.HIDDEN), "B": (small.HIDDEN, 2)}
    module = "base_model.model.model.layers.0.self_attn.o_proj"
    weights = {f"{module}.lora_{part}.weight": rng.standard_normal(shape, np.float32) for part, shape in shapes.items()}
    save_file(weights, adapter / "adapter_model.safetensors")
    lora = Lora(adapter, 1 / 3)
    out = tmp_path / "out"
    make(Order(source, out, ["Q8_0"], lora=[lora], window=32, windows=2))
    file = out / "little-tuned-Q8_0.gguf"
    assert read_gguf(file).fields["quantkit.lora.0.scale"].value == np.float32(1 / 3)
    with open_model(source, pytest.fail, [lora]) as base, open_model(file, pytest.fail) as model:
        chosen = sample([base], shipped("eval.txt"), 32, 2)
        result = evaluate([model], chosen, base=base, how=arithmetic("f32", "f32", "cpu"))
    (entry,) = json.loads((out / "report.json").read_text())["candidates"]
    assert entry["kld"] == result["models"][0]["kld"] and entry["kld"]["mean"] < 0.1
    card = (out / "README.md").read_text()
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])  # a folder here is no repository
    command = re.search("quantkit (verify little-tuned-Q8_0.gguf --source SOURCE --lora tuned:.*)", card)
    assert command is not None and str(tmp_path) not in card
    places = {"SOURCE": str(source), file.name: str(file), f"tuned:{1 / 3}": str(lora)}
    cli.main([places.get(word, word) for word in shlex.split(command[1])], standalone_mode=False)

    settings["base_model_name_or_path"] = str(source)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    make(Order(adapter, tmp_path / "alone", ["Q8_0"], window=32, windows=2))
    assert "--source SOURCE\n" in (tmp_path / "alone/README.md").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"description": {"name": "../out"}},
        {"description": {"name": "a b"}},
        {"description": {"name": "con"}},
        {"repo": "little"},
        {"base_model": "a\nlicense: other/b"},
        {"types": ["Q9"]},
        {"types": []},
        {"description": {"overrides": {"phi3.rope.freq_base": "10000"}}},  # another network than is measured
    ],
)
def test_orders_are_refused(order: Order, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError), Release.open(replace(order, out=tmp_path / "out", **change), pytest.fail):
        pass
    assert not (tmp_path / "out").exists()


def test_a_commit_is_named_with_its_own_repository_only(source: Path, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    snapshot = shutil.copytree(source, tmp_path / "models--org--little" / "snapshots" / commit)
    for base_model, told in ((None, f"org/little@{commit}"), ("me/other", "SOURCE")):
        order = Order(snapshot, tmp_path / told[:3], ["Q8_0"], window=32, windows=2, base_model=base_model)
        make(order)
        card = (order.out / "README.md").read_text()
        assert f"--source {told}\n" in card and (commit[:12] in card) == (base_model is None)


def test_what_is_there_and_no_release_is_not_written_over(order: Order, source: Path, tmp_path: Path) -> None:
    ours = tmp_path / "project"
    ours.mkdir()
    (ours / "README.md").write_text("What we do\n")
    for folder in (ours, source):
        before = files(folder)
        with (
            pytest.raises(OutputError, match=r"README.md: is there already"),
            Release.open(replace(order, out=folder), pytest.fail),
        ):
            pass
        assert files(folder) == before and not (folder / ".quantkit").exists()


def test_an_importance_matrix_that_names_a_file_is_told_of(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic_imatrix, "DATASET", "/home/me/calibration.txt")
    imatrix = tmp_path / "of.gguf"
    names = [(f"blk.{i}.{name}.weight", k) for i in range(small.LAYERS) for name, k in COLUMNS.items()]
    synthetic_imatrix.write(imatrix, "gguf", names)
    said: list[str] = []
    with Release.open(replace(order, out=tmp_path / "out", imatrix=imatrix), said.append):
        pass
    assert "/home/me/calibration.txt" in said[0] and "published" in said[0]


SETTINGS = """
source = "little"
types = ["Q4_K_M", "Q8_0"]
output = "out"
imatrix = "of me.gguf"
lora = ["adapter:0.5", "adapter", "org/adapter"]
ctx = 512
text = ["text.txt", "hub:org/texts/a.txt"]
split_max_size = "4G"
tags = ["a"]
"""


def test_a_file_of_settings(tmp_path: Path) -> None:
    """Files are named from where it is; what is not there may be on the hub."""
    (tmp_path / "little").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "release.toml").write_text(SETTINGS)
    assert read_settings(tmp_path / "release.toml") == {
        "source": f"{tmp_path}/little",
        "types": ["Q4_K_M", "Q8_0"],
        "output": f"{tmp_path}/out",
        "imatrix": f"{tmp_path}/of me.gguf",
        "lora": [f"{tmp_path}/adapter:0.5", f"{tmp_path}/adapter", "org/adapter"],
        "ctx": 512,
        "text": [f"{tmp_path}/text.txt", "hub:org/texts/a.txt"],
        "split_max_size": "4G",
        "tags": ["a"],
    }
    (tmp_path / "release.toml").write_text('source = "microsoft/phi-4"')
    assert read_settings(tmp_path / "release.toml") == {"source": "microsoft/phi-4"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("types = 'Q8_0'", "types"),
        ("window = '32'", "window"),
        ("fix_special_tokens = 1", "fix_special_tokens"),
        ("unknown = 1", "unknown"),
        ("types = ", "is not TOML"),
        ("\xff", "is not TOML"),
    ],
)
def test_settings_are_strict(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "release.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=words):
        read_settings(tmp_path / "release.toml")


def test_options_win_over_settings(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Order] = []

    def open_(order: Order, warn: Callable[[str], None]) -> Any:
        asked.append(order)
        raise QuantkitError("enough")

    monkeypatch.setattr(Release, "open", open_)
    (tmp_path / "release.toml").write_text(
        f'source = "{source}"\ntypes = ["Q8_0"]\noutput = "out"\nwindow = 64\nctx = 99'
    )
    for options in ([], ["-t", "Q6_K", "--window", "32", "-o", "elsewhere"]):
        with pytest.raises(QuantkitError, match="enough"):
            cli.main(["release", *options, "--config", str(tmp_path / "release.toml")], standalone_mode=False)
    first, second = asked
    assert (first.source, first.types, first.out, first.window, first.context) == (
        *(source, ("Q8_0",), tmp_path / "out", 64, 99),
    )
    assert (second.types, second.out, second.window, second.context) == (("Q6_K",), Path("elsewhere"), 32, 99)
