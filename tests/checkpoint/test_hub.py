"""Files from the hub: a server here speaks its protocol, and huggingface_hub asks it in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.hub import fetch_file
from quantkit.errors import UsageError

COMMIT = "0123456789" * 4
CONTENT = "Été, ein Text.\n".encode()
URL = "/datasets/org/texts/resolve"

# path: (status, headers) of the answer; every other path is a file with CONTENT
ANSWERS: dict[str, tuple[int, dict[str, str]]] = {
    "/datasets/org/none/resolve/main/a.txt": (404, {"X-Error-Code": "RepoNotFound"}),
    "/datasets/org/gated/resolve/main/a.txt": (403, {"X-Error-Code": "GatedRepo"}),
    "/datasets/org/private/resolve/main/a.txt": (401, {}),
    "/datasets/org/forbidden/resolve/main/a.txt": (403, {}),
    f"{URL}/v9/a.txt": (404, {"X-Error-Code": "RevisionNotFound"}),
    f"{URL}/main/none.txt": (404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}),
    f"{URL}/main/down.txt": (503, {}),
    f"{URL}/main/another.txt": (200, {}),  # a server that is no hub: no commit, no ETag
}
CUT = f"{URL}/main/cut.txt"  # ends before its Content-Length says

# (repository, file, revision): class, exit code and words of the error
REFUSED: dict[str, tuple[tuple[str, str, str | None], tuple[str, int, str]]] = {
    "no repository": (("org/none", "a.txt", None), ("HubError", 69, "no such dataset")),
    "a gated repository": (("org/gated", "a.txt", None), ("HubError", 69, "the repository is gated")),
    "a private repository": (
        ("org/private", "a.txt", None),
        ("HubError", 69, "the hub refuses (found Client error '401"),
    ),
    "a forbidden repository": (
        ("org/forbidden", "a.txt", None),
        ("HubError", 69, "the hub refuses (found Client error '403"),
    ),
    "no revision": (("org/texts", "a.txt", "v9"), ("HubError", 69, "no such revision")),
    "no file": (("org/texts", "none.txt", None), ("HubError", 69, "no such file")),
    "a server that is down": (
        ("org/texts", "down.txt", None),
        ("HubError", 69, "the hub refuses (found Server error '503"),
    ),
    "no hub": (("org/texts", "another.txt", None), ("HubError", 69, "HF_ENDPOINT")),
    "a connection cut": (("org/texts", "cut.txt", None), ("HubError", 69, "broke off")),
    "an impossible name": (("-/texts", "a.txt", None), ("UsageError", 2, "called so")),
}
FETCH = """
import json, sys, time
from quantkit.checkpoint.hub import fetch_file
from quantkit.errors import QuantkitError
time.sleep = lambda seconds: None  # between attempts
results = []
for repo_id, path, revision in json.loads(sys.argv[1]):
    try:
        results.append(str(fetch_file(repo_id, path, revision, repo_type="dataset")))
    except QuantkitError as error:
        results.append([type(error).__name__, error.exit_code, str(error), error.hint])
print(json.dumps(results))
"""


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, and notes what it is asked for."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(CONTENT)

    def answer(self, body: bytes) -> None:
        self.asked.append(f"{self.command} {self.path}")
        found = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.path.rpartition("/")[2]}"'}
        status, headers = ANSWERS.get(self.path, (200, found))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(CONTENT) + (self.path == CUT) if status == 200 else 0))
        self.end_headers()
        self.wfile.write(body if status == 200 else b"")
        self.close_connection = self.path == CUT

    def log_message(self, *arguments: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """The address of the server."""
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetch(endpoint: str, home: Path, files: list[tuple[str, str, str | None]], **environment: str) -> list[Any]:
    """For each file its path, or [class, exit code, text, hint] of the error."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", FETCH, json.dumps(files)]
    done = subprocess.run(command, capture_output=True, text=True, env=kept | variables | environment, timeout=120)
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def refusals(hub: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each of REFUSED, all in one process."""
    home = tmp_path_factory.mktemp("refusals")
    return dict(zip(REFUSED, fetch(hub, home, [file for file, _ in REFUSED.values()]), strict=True))


def test_a_file_is_fetched_once(hub: str, tmp_path: Path) -> None:
    files = [("org/texts", "raw/a b.txt", None), ("org/texts", "raw/a b.txt", "v1"), ("org/texts", "b.txt", None)]
    Hub.asked.clear()
    for path, (_, name, _) in zip(fetch(hub, tmp_path, files), files, strict=True):
        assert path.endswith(f"/{COMMIT}/{name}")
        assert path.startswith(str(tmp_path))
        assert Path(path).read_bytes() == CONTENT
    assert f"HEAD {URL}/v1/raw/a%20b.txt" in Hub.asked
    assert [asked for asked in Hub.asked if asked.startswith(f"GET {URL}")] == [
        f"GET {URL}/main/raw/a%20b.txt",
        f"GET {URL}/main/b.txt",
    ]


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_typed(refusals: dict[str, Any], case: str) -> None:
    (repo_id, path, revision), (kind, code, words) = REFUSED[case]
    found_kind, found_code, text, hint = refusals[case]
    assert (found_kind, found_code) == (kind, code)
    assert text.startswith(f"hub:{repo_id}/{path}{f'@{revision}' if revision else ''}: ")
    assert words in f"{text} {hint}"
    assert hint and "\n" not in text


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:  # a port that was free a moment ago
        endpoint = f"http://127.0.0.1:{server.server_port}"
    ((kind, code, text, hint),) = fetch(endpoint, tmp_path, [("org/texts", "a.txt", None)])
    assert (kind, code) == ("HubError", 69)
    assert "cannot be reached" in text and "refused" in text and "network" in hint


def test_what_was_fetched_before_serves_offline(hub: str, tmp_path: Path) -> None:
    files = [("org/texts", "a.txt", None), ("org/texts", "b.txt", None)]
    (first,) = fetch(hub, tmp_path, files[:1])
    again, other = fetch(hub, tmp_path, files, HF_HUB_OFFLINE="1")
    assert again == first
    assert other[:2] == ["HubError", 69] and "HF_HUB_OFFLINE" in other[2]


def test_a_cache_that_cannot_be_written(hub: str, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    ((kind, code, text, _),) = fetch(hub, tmp_path / "home", [("org/texts", "a.txt", None)])
    assert (kind, code) == ("DiskError", 74) and "cache" in text


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a.txt", "a/../../b.txt", "a//b.txt", "a/", "./a.txt"])
def test_paths_stay_in_the_repository(path: str) -> None:
    with pytest.raises(UsageError, match="names no file"):
        fetch_file("org/texts", path, repo_type="dataset")
