"""README's way from a training to users, line by line as it stands there, on a tiny checkpoint."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import adapters
import engine
import pytest
import small

from quantkit import report
from quantkit.cli import main

README = Path(__file__).parents[2] / "README.md"
N_LINES = 10


def lines() -> list[str]:
    """The commands of the block that README says is run here."""
    found = re.search(r"on a tiny checkpoint:\n\n((?:    .+\n)+)", README.read_text("utf-8"))
    assert found is not None
    return [line.strip() for line in found[1].splitlines()]


def run(command: str) -> None:
    """Run a line as a shell would; quantkit itself in this process, which has loaded torch already."""
    name, *arguments = shlex.split(command)
    if name == "cd":
        os.chdir(*arguments)
    elif name == "quantkit":
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, command
    elif reason := engine.missing():
        assert os.environ.get("QUANTKIT_REQUIRE_ENGINE") != "1", reason
        pytest.skip(f"all but the last line was run: {reason}")
    else:
        done = subprocess.run(command, shell=True, input="", capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert re.search(r"AI: .", done.stdout), "an answer"


def test_the_way_from_training_to_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.write(tmp_path / "my-phi-4", edit_tensors=small.lively)
    adapters.train(tmp_path / "my-phi-4", tmp_path / "my-adapter", r=8, target_modules=adapters.FUSED)
    (tmp_path / "node_modules").symlink_to(engine.FOLDER / "node_modules")
    monkeypatch.setattr(report, "find_spec", lambda name: None)  # drawing takes longer than all the rest
    monkeypatch.chdir(tmp_path)
    commands = lines()
    assert len(commands) == N_LINES and commands[-1].startswith("npx ")
    for command in commands:
        run(command)
