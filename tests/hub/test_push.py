"""quantkit push: the files of a release, and no others, to a hub that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import Hub, serving, sha256

from quantkit.errors import QuantkitError, UsageError
from quantkit.release import upload

FILES = {
    "README.md": b"---\nlicense: mit\n---\n# Tiny\n",
    "recipes/Q8_0.toml": b"file_type = 7\n",
    "tiny-Q8_0.gguf": b"GGUF" + bytes(range(256)) * 40,
}
TOKEN = {"HF_TOKEN": "hf_secret"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release, and what belongs to none."""
    path = tmp_path / "release"
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    lines = [f"{sha256(data)}  {name}\n" for name, data in FILES.items()]
    (path / "SHA256SUMS").write_text("".join(lines))
    (path / "secret.txt").write_text("of mine")
    (path / ".quantkit").mkdir()
    (path / ".quantkit/note").write_text("kept")
    return path


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving({}) as hub:
        yield hub


def test_a_release_is_uploaded_when_asked_to(hub: Hub, folder: Path, tmp_path: Path) -> None:
    dry = hub.run(tmp_path, "push", folder, "me/tiny-GGUF", "--json", **TOKEN)
    assert dry.returncode == 0, dry.stderr
    expected = FILES | {"SHA256SUMS": (folder / "SHA256SUMS").read_bytes()}
    assert json.loads(dry.stdout)["files"] == {name: len(data) for name, data in expected.items()}
    assert "--yes" in dry.stderr and hub.asked == []

    done = hub.run(tmp_path, "push", folder, "me/tiny-GGUF", "--yes", "--private", **TOKEN)
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["me/tiny-GGUF"]
    assert repository.files == expected and repository.private
    assert hub.messages == ["Release by quantkit 0.1.0"]
    assert hub.cards == [FILES["README.md"].decode()]
    assert any(asked.startswith("PUT /upload/") for asked in hub.asked), "the large file went its own way"
    assert f"{hub.endpoint}/me/tiny-GGUF/commit/1" in done.stderr

    again = hub.run(tmp_path, "push", folder, "me/tiny-GGUF", "--yes", **TOKEN)
    assert again.returncode == 0, again.stderr


def test_pushing_needs_no_torch(tmp_path: Path) -> None:
    code = "import json, sys; import quantkit.release; print(json.dumps('torch' in sys.modules))"
    assert Hub({}).python(tmp_path, code, None) is False


def test_nobody_pushes_without_being_known(hub: Hub, folder: Path, tmp_path: Path) -> None:
    done = hub.run(tmp_path, "push", folder, "me/tiny-GGUF", "--yes")
    assert done.returncode == 69 and "hf auth login" in done.stderr
    assert hub.repositories == {}


# what is done to the release; exit code and words of the error
SPOILT = {
    "a file was changed": ("tiny-Q8_0.gguf", b"GGUF", 65, "is not the file that was released"),
    "a file that leaves": ("SHA256SUMS", b"0" * 64 + b"  ../secret.txt\n", 77, "leaves the folder"),
    "a file from the root": ("SHA256SUMS", b"0" * 64 + b"  /etc/passwd\n", 77, "leaves the folder"),
    "a file that is not there": ("SHA256SUMS", b"0" * 64 + b"  other.gguf\n", 65, "no such file"),
    "no list": ("SHA256SUMS", b"hello\n", 65, "is no list of digests"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_was_not_released_is_not_pushed(folder: Path, case: str) -> None:
    name, data, code, words = SPOILT[case]
    (folder / name).write_bytes(data)
    with pytest.raises(QuantkitError, match=words) as caught:
        upload(folder, "me/tiny-GGUF")
    assert caught.value.exit_code == code


@pytest.mark.parametrize("repo", ["tiny", "me/tiny/GGUF", "../tiny", "me/", "https://huggingface.co/me/tiny"])
def test_a_repository_has_a_name(folder: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="ORG/NAME"):
        upload(folder, repo)
