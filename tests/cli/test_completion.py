"""Shell completion: the scripts, and what a shell is answered when it asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.cli.completion import SHELLS
from quantkit.recipe import families, presets

COMMAND = (sys.executable, "-m", "quantkit")
# what is typed before the cursor: the values offered
ANSWERS = {
    "con": ["convert"],
    "completion ": list(SHELLS),
    "ev": ["eval"],
    "eval a.gguf --act": ["--activations"],
    "eval a.gguf --activations ": ["f32", "q8"],
    "imatrix folder --dtype b": ["bf16"],
    "sw": ["sweep"],
    "sweep folder --sh": ["--shard"],
    "sweep folder --kv-type q": ["q8_0", "q4_0"],
    "sweep folder --recipe classic -t Q2": ["Q2_K", "Q2_K_S"],
    "rel": ["release"],
    "release folder --quan": ["--quantized-by"],
    "release folder -t Q8": ["Q8_0"],
    "pu": ["push"],
    "bench -t q4": ["Q4_0", "Q4_1", "Q4_K"],
    "convert --spl": ["--split-max-size"],
    "convert -t Q4": ["Q4_0", "Q4_1", "Q4_K_M", "Q4_K_S"],
    "convert -t ": presets(),
    "convert folder -t Q8_0 --type q5_k": ["Q5_K_M", "Q5_K_S"],
    "convert --recipe classic -t Q2": ["Q2_K", "Q2_K_S"],
    "convert --recipe mine.toml -t Q": [],
    "convert --recipe ": families(),
    "convert --recipe c": ["classic"],
}
FILES = (
    "convert fold",
    "convert --recipe ./mi",
    "convert --imatrix i",
    "convert folder -o ",
    "inspect m",
    "verify m",
    "doctor m",
    "verify m --source s",
    "verify m --statement s",
    "eval m",
    "eval m --base b",
    "eval m --check c",
    "imatrix f -o i",
    "sweep f",
    "sweep folder -o o",
    "sweep folder --imatrix i",
    "release f",
    "release --config r",
    "push f",
)


def ask(shell: str, typed: str) -> list[str]:
    """The lines that the script of a shell gets for a command line with the cursor at its end."""
    words = f"quantkit {typed}".split(" ")
    cursor = words[-1] if shell == "fish" else str(len(words) - 1)  # fish hands over the word itself
    asked = {"_QUANTKIT_COMPLETE": f"{shell}_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": cursor}
    run = subprocess.run(COMMAND, capture_output=True, text=True, env=os.environ | asked, timeout=60)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize("typed", ANSWERS)
def test_commands_options_and_their_values(typed: str) -> None:
    assert ask("bash", typed) == ([f"plain,{value}" for value in ANSWERS[typed]] or [""])


@pytest.mark.parametrize("typed", FILES)
def test_files_are_left_to_the_shell(typed: str) -> None:
    assert ask("bash", typed) == [f"file,{typed.rpartition(' ')[2]}"]


def test_other_shells_are_answered_in_their_form() -> None:
    assert ask("fish", "convert -t Q4_K") == ["plain,Q4_K_M", "plain,Q4_K_S"]
    assert ask("zsh", "convert -t Q4_K") == ["plain", "Q4_K_M", "_", "plain", "Q4_K_S", "_"]


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_ask_quantkit_and_say_how_to_keep_them(shell: str) -> None:
    run = subprocess.run([*COMMAND, "completion", shell], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert f"_QUANTKIT_COMPLETE={shell}_complete" in run.stdout
    assert run.stdout.splitlines()[-1] == f"# in every session: {SHELLS[shell]}"
    if shell == "zsh":  # a file of its functions is known by its first line
        assert run.stdout.startswith("#compdef quantkit\n")


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "quantkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quantkit "$@"\n')
    program.chmod(0o755)
    typed = (
        'eval "$(quantkit completion bash)"\n'
        "COMP_WORDS=(quantkit convert folder -t q6)\n"
        "COMP_CWORD=4\n"
        "_quantkit_completion quantkit\n"
        'echo "${COMPREPLY[@]}"\n'
        "complete -p quantkit\n"
    )
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.splitlines() == ["Q6_K", "complete -o nosort -F _quantkit_completion quantkit"]


def test_answers_come_without_the_heavy_libraries() -> None:
    code = (
        "import json, sys\n"
        "from quantkit.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(json.dumps([name for name in ('numpy', 'gguf', 'rich') if name in sys.modules]), file=sys.stderr)"
    )
    asked = {"_QUANTKIT_COMPLETE": "bash_complete", "COMP_WORDS": "quantkit convert -t Q6", "COMP_CWORD": "3"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked)
    assert (run.stdout, json.loads(run.stderr)) == ("plain,Q6_K\n", [])
