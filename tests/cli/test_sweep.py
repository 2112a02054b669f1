"""`quantkit sweep` as a user meets it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small

from quantkit import report
from quantkit.cli import main, plan
from quantkit.errors import BugError
from quantkit.gguf_io import read_gguf
from quantkit.sweep import request

CARD = ("--vram", "3MiB", "--overhead", "0MiB", "--ubatch", "64", "--ctx", "1024")
QUICK = (*CARD, "--window", "32", "--windows", "4")
TYPES = ("-t", "Q2_K", "-t", "Q4_K_M", "-t", "Q8_0")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("sweep") / "small", edit_tensors=small.lively)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra is not installed: drawing takes longer than the sweep of so small a model."""
    monkeypatch.setattr(report, "find_spec", lambda name: None)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["sweep", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_table_and_the_file(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_folder = tmp_path / "out"
    code, out, err = run(capsys, source, *TYPES, *QUICK, "-o", out_folder)
    assert code == 0, err
    title, base, q2_k, q4_k_m, q8_0, how, _, sentence = out.splitlines()
    assert title.startswith("type") and "KLD" in title and "on the card" in title
    assert [line.split()[0] for line in (base, q2_k, q4_k_m, q8_0)] == ["base", "Q2_K", "Q4_K_M", "Q8_0"]
    assert q4_k_m.endswith("picked") and q8_0.endswith("does not fit") and q2_k.endswith("%")
    assert how.startswith("4 windows of 32 tokens") and "eval.txt" in how
    assert sentence.startswith("Q4_K_M is the best that fits: 2.6 MiB of 3.0 MiB") and "Q8_0 would fit" in sentence
    file = out_folder / "small-Q4_K_M.gguf"
    first, page, wrote, following = err.splitlines()
    assert first.startswith("4 measurements to make, in about ")
    assert page == f"wrote {out_folder / 'report.html'}"
    assert (wrote, following) == (f"wrote {file}", f"next: llama-server -m {file} -c 1024 -ub 64")
    reports = {f"report.{kind}" for kind in ("json", "csv", "md", "html")}
    assert {path.name for path in out_folder.iterdir()} == {"measurements", "plots", file.name} | reports

    code, again, err = run(capsys, source, *TYPES, *QUICK, "-o", out_folder)
    assert (code, again) == (0, out)
    assert err.splitlines()[:3] == ["everything is measured already", page, f"{file} is there already"]


@pytest.mark.usefixtures("no_plots")
def test_json_is_the_only_thing_on_stdout(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, source, *TYPES, *QUICK, "-o", tmp_path / "out", "--json", "-q")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["schema"] == {"name": "quantkit.sweep", "version": 1}
    assert found == json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["run"] == {
        "context": 1024,
        "kv_type": "f16",
        "parallel": 1,
        "ubatch": 64,
        "gpu_layers": None,
        "overhead_bytes": 0,
    }
    assert found["pick"]["type"] == "Q4_K_M" and found["pick"]["runner_up"] == "Q2_K"


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("family", ["llama.cpp", "classic"])
def test_without_writing_it_says_the_command_that_does(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    out = tmp_path / "what comes"
    code, _, err = run(capsys, source, *TYPES, *QUICK, "-o", out, "--no-write", "--recipe", family)
    assert code == 0
    assert not list(out.glob("*.gguf"))
    said = shlex.split(err.splitlines()[-1].removeprefix("next: "))
    assert said[:2] == ["quantkit", "convert"]
    with pytest.raises(SystemExit) as ended:
        main([*said[1:], "-q"])
    assert not ended.value.code
    assert [path.name for path in out.glob("*.gguf")] == ["small-Q4_K_M.gguf"]
    written = (out / "small-Q4_K_M.gguf").read_bytes()
    run(capsys, source, *TYPES, *QUICK, "-o", out, "--recipe", family)
    assert (out / "small-Q4_K_M.gguf").read_bytes() == written


SHARD = {"name": "quantkit.sweep.shard", "version": 1}


@pytest.mark.usefixtures("no_plots")
def test_shards_and_merge(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = tmp_path / "merged"
    for shard in ("1/2", "2/2"):
        out_folder = tmp_path / shard[0]
        code, out, err = run(capsys, source, *TYPES, *QUICK, "-o", out_folder, "--shard", shard)
        assert (code, out) == (0, "")
        types = {"1/2": ["Q2_K", "Q8_0"], "2/2": ["Q4_K_M"]}[shard]
        assert f"shard {shard[0]} of 2 has measured {', '.join(types)}" in err
        code, out, _ = run(capsys, source, *TYPES, *QUICK, "-o", out_folder, "--shard", shard, "--json")
        assert (code, json.loads(out)) == (0, {"schema": SHARD, "shard": int(shard[0]), "shards": 2, "types": types})
        shutil.copytree(out_folder, merged, dirs_exist_ok=True)
        code, out, err = run(capsys, source, *TYPES, *QUICK, "-o", merged, "--merge")
        assert code == (65 if shard == "1/2" else 0), err
    code, whole, _ = run(capsys, source, *TYPES, *QUICK, "-o", tmp_path / "whole")
    assert (code, whole) == (0, out)
    for name in ("report.json", "report.csv", "small-Q4_K_M.gguf"):
        assert (tmp_path / "whole" / name).read_bytes() == (merged / name).read_bytes()


# case: (arguments, exit code, words)
CODES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no card": (("SOURCE", "-o", "TMP/out"), 2, "--vram"),
    "no folder": (("SOURCE", "--vram", "3MiB"), 2, "--output"),
    "a card without a unit": (("SOURCE", "--vram", "12", "-o", "TMP/out"), 2, "not a size"),
    "a run without a card": (("SOURCE", *CARD, "-o", "TMP/out", "--gpu-layers", "0"), 2, "--gpu-layers 0"),
    "a shard that is none": (("SOURCE", *CARD, "-o", "TMP/out", "--shard", "2"), 2, "takes I/N"),
    "a shard beyond": (("SOURCE", *CARD, "-o", "TMP/out", "--shard", "3/2"), 2, "no such shard"),
    "a shard and all": (("SOURCE", *CARD, "-o", "TMP/out", "--shard", "1/2", "--merge"), 2, "take one of them"),
    "no such type": (("SOURCE", *CARD, "-o", "TMP/out", "-t", "Q9"), 2, "unknown type"),
    "needs importance": (("SOURCE", *CARD, "-o", "TMP/out", "-t", "Q2_K_S"), 2, "importance matrix"),
    "nothing fits": (("SOURCE", "--vram", "1MiB", "-o", "TMP/out"), 3, "no candidate fits the card"),
    "no source": (("TMP/none", *CARD, "-o", "TMP/out"), 65, "none"),
    "no imatrix": (("SOURCE", *CARD, "-o", "TMP/out", "--imatrix", "TMP/none"), 65, "no such file"),
    "no text": (("SOURCE", *CARD, "-o", "TMP/out", "--text", "TMP/none"), 65, "no such file"),
    "a cluster with moments": (
        ("SOURCE", *QUICK, "-o", "TMP/out", "--ray", "local", "--strategy", "feedback", "--covariance", "TMP"),
        2,
        "packs as llama.cpp does",
    ),
    "moments for nothing": (
        ("SOURCE", *QUICK, "-o", "TMP/out", "--covariance", "TMP"),
        2,
        "not for --strategy reference",
    ),
    "a cluster to merge": (("SOURCE", *QUICK, "-o", "TMP/out", "--ray", "local", "--merge"), 2, "take one of them"),
    "no such cluster": (
        ("SOURCE", *QUICK, "-o", "TMP/out", "-t", "Q4_0", "--ray", "127.0.0.1:1"),
        69,
        "nothing answers",
    ),
    "nothing to merge": (("SOURCE", *QUICK, "-o", "TMP/out", "-t", "Q4_0", "--merge"), 65, "of the base, Q4_0"),
    "no place for the folder": (("SOURCE", *QUICK, "-o", "TMP/none/out"), 73, "cannot be made"),
}


@pytest.mark.parametrize("case", CODES)
def test_exit_codes(source: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, words = CODES[case]
    placed = [part.replace("TMP", str(tmp_path)).replace("SOURCE", str(source)) for part in arguments]
    found, out, err = run(capsys, *placed)
    assert (found, out) == (code, ""), err
    assert found != BugError.exit_code and words in err
    assert not list(tmp_path.rglob("report.*"))


# A signal to the process itself, as the second group of windows begins.
SECOND_GROUP = """
import os, signal, sys
from quantkit.cli import main
from quantkit.evaluate import measure
from quantkit.sweep import measurements as module
measure.GROUP_TOKENS = 2 * 32
measure_group, calls = module.measure_group, iter(range(9))
def signalled(*arguments, **options):
    if next(calls) == 1:
        os.kill(os.getpid(), signal.SIG{signal})
    return measure_group(*arguments, **options)
module.measure_group = signalled
main(sys.argv[1:])
"""


@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_stopped_it_goes_on(source: Path, tmp_path: Path, signal: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sweep", str(source), *TYPES, *QUICK, "-o", str(tmp_path / "out")]
    command = [sys.executable, "-c", SECOND_GROUP.format(signal=signal), *arguments]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (stopped.returncode, stopped.stdout) == (75, ""), stopped.stderr
    assert stopped.stderr.endswith("error: stopped\nhint: the same command goes on from what is measured\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"measurements"}
    went_on = subprocess.run(
        [sys.executable, "-c", SECOND_GROUP.replace("== 1", "== 8").format(signal=signal), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert went_on.returncode == 0, went_on.stderr
    assert went_on.stderr.startswith("4 measurements to make")
    assert (tmp_path / "out" / "report.json").exists()


# A signal to the process itself, where measuring is over.
CALLED = """
import os, signal, sys
from importlib import import_module
from quantkit.cli import main
module, name = import_module(sys.argv[1]), sys.argv[2]
function = getattr(module, name)
def signalled(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return function(*arguments, **options)
setattr(module, name, signalled)
main(sys.argv[3:])
"""


@pytest.mark.parametrize("place", ["quantkit.sweep.optimizer solve", "quantkit.sweep.report write_report"])
def test_stopped_where_nothing_is_measured_it_goes_on_too(source: Path, tmp_path: Path, place: str) -> None:
    arguments = ["sweep", str(source), "-t", "Q8_0", "--vram", "4MiB", *QUICK[2:], "--optimize", "-q"]
    command = [sys.executable, "-c", CALLED, *place.split(), *arguments, "-o", str(tmp_path / "out")]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (stopped.returncode, stopped.stdout) == (75, ""), stopped.stderr
    assert stopped.stderr.endswith("error: stopped\nhint: the same command goes on from what is measured\n")


@pytest.mark.usefixtures("no_plots")
def test_a_warning_is_said_once(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("-t", "Q4_0", "--optimize", "--no-write", "-q", *QUICK, "--vram", "12MiB", "--ctx", "4096")
    code, _, err = run(capsys, source, *asked, "-o", tmp_path / "out")
    assert code == 0 and err.splitlines() == [
        "quantkit: warning: the model is made for 2,048 tokens, and 4,096 are more"
    ]


def test_the_usual_context_is_that_of_plan() -> None:
    assert request.USUAL_CONTEXT == plan.USUAL_CONTEXT


@pytest.mark.parametrize("library", ["torch", "tokenizers"])
def test_without_the_extra_it_says_how_to_have_it(source: Path, tmp_path: Path, library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None\nfrom quantkit.cli import main\nmain(sys.argv[1:])"
    command = [sys.executable, "-c", code, "sweep", str(source), *QUICK, "-o", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"measuring needs {library}" in result.stderr and "quantkit[eval]" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_plots")
def test_without_the_plots_it_says_how_to_have_them(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, source, *TYPES, *QUICK, "-o", tmp_path / "out", "--no-write")
    assert code == 0
    page = f"wrote {tmp_path / 'out' / 'report.md'}; a page with plots needs jinja2 and matplotlib: "
    assert f"{page}pip install 'quantkit[report]'" in err.splitlines()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "measurements",
        "report.json",
        "report.csv",
        "report.md",
    }


@pytest.mark.parametrize("name", ["report.csv", "report.html"])
def test_the_report_does_not_replace_the_text(
    source: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / name
    text.write_text("the hen and the egg. " * 20)
    code, _, err = run(capsys, source, *TYPES, *QUICK, "-o", tmp_path, "--text", text)
    assert code == 2 and "would replace an input" in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("no_plots")
def test_a_mix_is_found_and_measured(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_folder = tmp_path / "out"
    wanted = ("-t", "Q4_K_M", "--optimize", "--keep", "output.weight=q6_k", "--min-type", "Q3_K", "--probes", "10")
    code, out, err = run(capsys, source, *wanted, "--same-type", "*ffn_up*", *QUICK, "-o", out_folder, "--no-write")
    assert code == 0, err
    title, _, mix, preset, *_ = out.splitlines()
    assert "KLD" in title and "predicted" in title
    assert mix.startswith("OPT-Q4_K_M") and mix.endswith("picked") and preset.startswith("Q4_K_M")
    said = [line for line in err.splitlines() if not line.startswith(("trying matrices", "measuring"))]  # progress
    tried, found, _, _, following = said
    recipe = out_folder / "OPT-Q4_K_M.toml"
    assert tried.startswith("10 matrices to try, in about ")
    assert found.startswith(f"{recipe}: ") and found.endswith("optimality gap 0.00 %")
    assert following.startswith(f"next: quantkit convert {source} --recipe {recipe} -o ")
    (candidate, _) = json.loads((out_folder / "report.json").read_text())["candidates"]
    types = candidate["tensor_types"]
    assert types["output.weight"] == "Q6_K" and len({types[f"blk.{i}.ffn_up.weight"] for i in (0, 1)}) == 1

    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), "--recipe", str(recipe), "-o", str(tmp_path / "mix.gguf"), "-q"])
    assert not ended.value.code
    assert {name: tensor.qtype.name for name, tensor in read_gguf(tmp_path / "mix.gguf").tensors.items()} == types


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep", "output.weight=Q6_K", "--probes", "10"), "--keep, --probes without --optimize"),
        (("--optimize", "--keep", "output.weight"), "--keep takes PATTERN=TYPE"),
        (("--optimize", "--keep", "outptu.weight=Q6_K"), "a pattern matches no matrix"),
        (("--optimize", "--shard", "1/2"), "--optimize is for one machine"),
        (("--optimize", "--merge"), "--optimize is for one machine"),
        (("--optimize", "--probes", "3"), "too few probes"),
        (("--optimize", "--keep", "output=Q9"), "unknown tensor type 'Q9'"),
        (("--optimize", "--min-type", "IQ4_XS"), "only read, not written"),
        (("--optimize", "--min-type", "F16"), "mixes are of Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0"),
    ],
)
def test_mixes_that_cannot_be_asked_for(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    code, out, err = run(capsys, source, *TYPES, *QUICK, *options, "-o", tmp_path / "out")
    assert (code, out) == (2, "") and words in err
