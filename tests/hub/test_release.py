"""From a model on the hub to a release whose card can be followed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import small
import yaml
from local_hub import Repository, serving


def test_a_release_of_a_model_on_the_hub(tmp_path: Path) -> None:
    folder = small.write(tmp_path / "made", edit_tensors=small.lively)
    repository = Repository({path.name: path.read_bytes() for path in folder.iterdir()} | {"LICENSE": b"As is.\n"})
    out = tmp_path / "out"
    with serving({"org/tiny-1B": repository}) as hub:
        options = ("-t", "Q8_0", "--window", "32", "--windows", "2", "--license", "mit", "-o", out)
        done = hub.run(tmp_path, "release", "org/tiny-1B@v1", *options, "--json")
        assert done.returncode == 0, done.stderr
        assert len([asked for asked in hub.asked if asked.endswith("/revision/v1")]) == 1  # the tag may move meanwhile
        files = json.loads(done.stdout)["files"]
        card = (out / "README.md").read_text()
        commands = [line.strip() for line in card.splitlines() if line.startswith("    quantkit verify ")]
        assert len(commands) == 1
        _, *arguments = shlex.split(commands[0])
        arguments = [str(out / word) if word in files else word for word in arguments]
        verified = hub.run(tmp_path, *arguments)
        assert verified.returncode == 0, verified.stderr
    commit = repository.refs["v1"]
    assert f"--source org/tiny-1B@{commit}" in commands[0]
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("org/tiny-1B", "quantized")
    assert front["license"] == "mit"
    assert (out / "LICENSE").read_bytes() == b"As is.\n"
