"""A hub on this machine: the part of the real one's HTTP API that huggingface_hub speaks, over repositories in memory.

Small files are given where they are asked for.  Large ones (LFS) are redirected to a content network, which can break
off, and is asked for the rest then.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf")


@dataclass
class Repository:
    """files by path; what they belong to.

    gated    nobody may have the files
    refs     commits by branch or tag
    other    files that the server gives at another commit than it is asked for
    """

    files: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    refs: dict[str, str] = field(default_factory=lambda: {"main": "0123456789" * 4, "v1": "0123456789" * 4})
    other: set[str] = field(default_factory=set)

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.refs.values() else self.refs.get(revision)


@dataclass
class Hub:
    """The server's content, and what was asked of it: "METHOD /path", with the range that was wanted."""

    repositories: dict[str, Repository]
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)
    breaks_off: set[str] = field(default_factory=set)  # files whose first download ends in the middle
    blobs: dict[str, bytes] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """For a process that is to take this for the hub, with its cache in home."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return (
            kept
            | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
            | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
            | more
        )

    def python(self, home: Path, code: str, argument: Any, **environment: str) -> Any:
        """What Python code that finds an argument prints, both as JSON."""
        command = [sys.executable, "-c", code, json.dumps(argument)]
        variables = self.environment(home, **environment)
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run(self, home: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run quantkit with these arguments."""
        command = [sys.executable, "-m", "quantkit", *map(str, arguments)]
        variables = self.environment(home, **environment)
        return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


@contextmanager
def serving(repositories: Mapping[str, Repository]) -> Iterator[Hub]:
    """A hub with these repositories, by "ORG/NAME"."""
    hub = Hub(dict(repositories))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub)) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    # (method, pattern of the path): the name of the method below that answers
    ROUTES = (
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("HEAD|GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
        ("HEAD|GET", r"/content/(?P<digest>[0-9a-f]{64})", "content"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/main", "preupload"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/upload/(?P<digest>[0-9a-f]{64})", "upload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/main", "commit"),
    )

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        wanted = f" {self.headers['Range']}" if "Range" in self.headers else ""
        self.hub.asked.append(f"{self.command} {path}{wanted}")
        for methods, pattern, name in self.ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split("|"):
                getattr(self, name)(**found.groupdict())
                return
        self.send(404)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def send(self, status: int, body: bytes = b"", nbytes: int | None = None, /, **headers: str) -> None:
        """Answer; nbytes is what the Content-Length says, where that is not the body's."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if nbytes is None else nbytes))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), Content_Type="application/json")

    def find(self, repo: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and commit, or an error answered."""
        repository = self.hub.repositories.get(repo)
        if repository is None or repository.private:
            self.send(401 if repository else 404, X_Error_Code="RepoNotFound")
            return None
        commit = repository.commit(revision)
        if commit is None:
            self.send(404, X_Error_Code="RevisionNotFound")
            return None
        return repository, commit

    def info(self, repo: str, revision: str | None) -> None:
        if found := self.find(repo, revision or "main"):
            repository, commit = found
            siblings = [{"rfilename": path} for path in repository.files]
            self.send_json({"id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        if found := self.find(repo, revision):
            entries = []
            for path, data in found[0].files.items():
                oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
                if path.endswith(LARGE):
                    entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
                entries.append(entry)
            assert parse_qs(urlsplit(self.path).query)["recursive"] == ["true"]
            self.send_json(entries)

    def file(self, repo: str, revision: str, path: str) -> None:
        found = self.find(repo, revision)
        if found is None:
            return
        repository, commit = found
        if repository.gated:
            self.send(403, X_Error_Code="GatedRepo")
            return
        if path not in repository.files:
            self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        data = repository.files[path]
        if path in repository.other:
            commit = "f" * 40
        if path.endswith(LARGE):
            digest = sha256(data)
            self.hub.blobs[digest] = data
            linked = {"X_Linked_Etag": f'"{digest}"', "X_Linked_Size": str(len(data)), "X_Repo_Commit": commit}
            elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
            self.send(302, Location=f"{elsewhere}/content/{digest}", **linked)
        else:
            self.send(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit)

    def content(self, digest: str) -> None:
        data, first = self.hub.blobs[digest], 0
        if "Range" in self.headers:
            first = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
        body = data[first:]
        cut = digest in self.hub.breaks_off and self.command == "GET"
        if cut:
            self.hub.breaks_off.remove(digest)
            self.close_connection = True
        given = body[: len(body) // 2] if cut else body
        place = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.send(206 if first else 200, given, len(body), ETag=f'"{digest}"', Content_Range=place)

    # ---- uploads: which way each file goes; the large ones; then one commit

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def create(self) -> None:
        asked = json.loads(self.body())
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self.send(409, json.dumps({"url": f"{self.hub.endpoint}/{name}"}).encode())
        elif self.headers.get("Authorization") != "Bearer hf_secret":
            self.send(401)
        else:
            self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
            self.send_json({"url": f"{self.hub.endpoint}/{name}"})

    def validate(self) -> None:
        self.hub.cards.append(json.loads(self.body())["content"])
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, repo: str) -> None:
        files = json.loads(self.body())["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
        answer = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self.send_json({"files": answer})

    def batch(self, repo: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/upload/{one['oid']}", "header": {}}}}
            for one in json.loads(self.body())["objects"]
        ]
        self.send_json({"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        data = self.body()
        assert sha256(data) == digest
        self.hub.blobs[digest] = data
        self.send(200)

    def commit(self, repo: str) -> None:
        files = self.hub.repositories[repo].files
        for line in self.body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                self.hub.messages.append(value["summary"])
        self.send_json({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/1", "commitOid": "1" * 40})

    def log_message(self, *arguments: Any) -> None:
        """Nothing on stderr."""
