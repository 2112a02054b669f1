"""SOURCE on the hub: every command takes it, one commit of it, and only what is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from local_hub import Hub, Repository, serving, sha256
from safetensors.numpy import save

from quantkit.checkpoint.snapshot import Origin, is_hub_id, origin_of
from quantkit.gguf_io import read_gguf

COMMIT = "0123456789" * 4
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
CARD = b"---\nlicense: mit\nbase_model: org/base\n---\n# Tiny\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of two shards, with a model card."""
    path: Path = small.write(tmp_path_factory.mktemp("made") / "tiny-1B")
    tensors = small.tensors()
    (path / "model.safetensors").unlink()
    weight_map = {name: SHARDS["layers.1" in name] for name in tensors}
    for shard in SHARDS:
        (path / shard).write_bytes(save({name: data for name, data in tensors.items() if weight_map[name] == shard}))
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (path / "README.md").write_bytes(CARD)
    return path


@pytest.fixture
def tiny(folder: Path) -> Repository:
    """The checkpoint as a repository, beside what nobody needs."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    extra = {"pytorch_model.bin": b"\x80", "onnx/model.onnx": b"onnx", "figure.png": b"png", "sub/config.json": b"{}"}
    return Repository(files | extra)


@pytest.fixture
def hub(tiny: Repository) -> Iterator[Hub]:
    with serving({"org/tiny-1B": tiny}) as hub:
        yield hub


def fetched(hub: Hub) -> set[str]:
    """The files that were given, to be told from those that were only looked up."""
    names = {
        digest: path
        for repo in hub.repositories.values()
        for path, data in repo.files.items()
        for digest in [sha256(data)]
    }
    got = set()
    for asked in hub.asked:
        if found := re.match(r"GET /org/[^/]+/resolve/[^/]+/(.+)", asked):
            got.add(found[1])
        elif found := re.match(r"GET /content/(\w+)", asked):
            got.add(names[found[1]])
    return got


def test_a_hub_id_gives_the_bytes_of_a_clone(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """But for the two keys that say where it comes from; and nothing is fetched that is not read."""
    done = hub.run(tmp_path, "convert", "org/tiny-1B", "-t", "Q8_0", "-o", f"{tmp_path}/out/", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == "org/tiny-1B"
    (from_hub,) = (tmp_path / "out").iterdir()
    assert from_hub.name == "tiny-1B-Q8_0.gguf"

    local = tmp_path / "local.gguf"
    assert hub.run(tmp_path, "convert", folder, "-t", "Q8_0", "-o", local).returncode == 0
    ours, theirs = read_gguf(from_hub), read_gguf(local)
    keys = {key: field.value for key, field in ours.fields.items()}
    assert keys.pop("quantkit.source.repo") == "org/tiny-1B"
    assert keys.pop("quantkit.source.revision") == COMMIT
    assert keys == {key: field.value for key, field in theirs.fields.items()}
    assert keys["general.license"] == "mit"
    assert from_hub.read_bytes()[ours.data_offset :] == local.read_bytes()[theirs.data_offset :]

    read = {path.name for path in folder.iterdir()}
    assert fetched(hub) == read
    resolved = [asked for asked in hub.asked if "/resolve/" in asked]
    assert resolved and all(f"/resolve/{COMMIT}/" in asked for asked in resolved)
    assert [asked for asked in hub.asked if "/revision/" in asked] == ["GET /api/models/org/tiny-1B/revision/main"]


def test_a_plan_fetches_no_weights_and_a_cache_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    plan = ("plan", "org/tiny-1B@v1", "-t", "Q8_0", "--json")
    first = hub.run(tmp_path, *plan)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["types"][0]["file_bytes"] > 0
    assert not any(name.endswith((".safetensors", ".bin")) for name in fetched(hub))

    hub.asked.clear()
    offline = hub.run(tmp_path, *plan, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, first.stdout)
    lacking = f"org/tiny-1B@{COMMIT}/{SHARDS[0]}: the hub cannot be reached"
    for unknown, words in (("org/tiny-1B@v1", lacking), ("org/other", "org/other: the hub cannot be reached")):
        done = hub.run(tmp_path, "convert", unknown, "-t", "Q8_0", "-o", tmp_path / "no.gguf", HF_HUB_OFFLINE="1")
        assert done.returncode == 69 and words in done.stderr
    assert hub.asked == []

    assert hub.run(tmp_path, "convert", "org/tiny-1B@v1", "-t", "Q8_0", "-o", tmp_path / "a.gguf").returncode == 0
    hub.asked.clear()
    snapshot = tmp_path / "hub/models--org--tiny-1B/snapshots" / COMMIT
    sources: list[str | Path] = [f"org/tiny-1B@{COMMIT}", snapshot]
    for number, source in enumerate(sources):
        out = tmp_path / f"{number}.gguf"
        done = hub.run(tmp_path, "convert", source, "-t", "Q8_0", "-o", out, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert hub.asked == []


# changes of a sound repository; what is asked for; class, exit code and words of the error
REFUSED: dict[str, tuple[dict[str, Any], str, tuple[str, int, str]]] = {
    "no repository": ({}, "org/nobody", ("HubError", 69, "no such model")),
    "a private one": ({"private": True}, "", ("HubError", 69, "if it is private, log in")),
    "a gated one": ({"gated": True}, "", ("HubError", 69, "the repository is gated")),
    "no revision": ({}, "@v9", ("HubError", 69, "no such revision")),
    "pickles": ({"files": {"pytorch_model.bin": b""}}, "", ("UnsafeError", 77, "save_pretrained")),
    "a pickled adapter": ({"files": {"adapter_model.bin": b""}}, "", ("UnsafeError", 77, "a pickle")),
    "GGUF files": ({"files": {"tiny-Q4_K_M.gguf": b""}}, "", ("InputError", 65, "no weights in safetensors")),
    "no weights": ({"files": {}}, "", ("InputError", 65, "no weights in safetensors")),
    "other names": ({"files": {"consolidated.safetensors": b""}}, "", ("InputError", 65, "no weights of these names")),
    "files of another commit": (
        {"other": {"model.safetensors"}},
        "",
        ("HubError", 69, f"@{COMMIT}/model.safetensors: the hub did not give this file at the commit"),
    ),
    "a listing that leaves": ({"files": {"../../x.tiktoken": b""}}, "", ("UnsafeError", 77, "outside")),
    "a listing from the root": ({"files": {"/etc/x.tiktoken": b""}}, "", ("UnsafeError", 77, "outside")),
    "a listing for Windows": ({"files": {"..\\x.tiktoken": b""}}, "", ("UnsafeError", 77, "outside")),
    "an index that leaves": (
        {"files": {INDEX: b'{"weight_map": {"a": "../b"}}'}},
        "",
        ("UnsafeError", 77, "not a plain file name"),
    ),
    "an index of what is not there": (
        {"files": {INDEX: b'{"weight_map": {"a": "b.safetensors"}}'}},
        "",
        ("FormatError", 65, "the index names a shard that is missing (found 'b.safetensors')"),
    ),
    "no index": ({"files": {INDEX: b"[]"}}, "", ("FormatError", 65, "is not an index of shards")),
}
FETCH = """
import json, sys
from quantkit.checkpoint.snapshot import fetch_snapshot
from quantkit.errors import QuantkitError
results = []
for source in json.loads(sys.argv[1]):
    try:
        results.append(str(fetch_snapshot(source)))
    except QuantkitError as error:
        results.append([type(error).__name__, error.exit_code, f"{error} hint: {error.hint}"])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each of REFUSED, all in one process."""
    home = tmp_path_factory.mktemp("home")
    repositories, sources = {}, []
    for number, (changes, source, _) in enumerate(REFUSED.values()):
        repository = replace(Repository({"model.safetensors": b"0"}), **changes)
        repository.files = {"config.json": b"{}"} | repository.files
        repositories[f"org/case-{number}"] = repository
        sources.append(source if "/" in source else f"org/case-{number}{source}")
    with serving(repositories) as hub:
        results = dict(zip(REFUSED, hub.python(home, FETCH, sources), strict=True))
    assert not list(home.rglob("*x.tiktoken*"))
    return results


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(refusals: dict[str, Any], case: str) -> None:
    kind, code, words = REFUSED[case][2]
    assert refusals[case][:2] == [kind, code]
    assert words in refusals[case][2]


def test_a_download_that_breaks_off_goes_on(tmp_path: Path) -> None:
    large = bytes(range(256)) * (24 << 12)
    with serving({"org/large": Repository({"config.json": b"{}", "model.safetensors": large})}) as hub:
        hub.breaks_off.add(sha256(large))
        (folder,) = hub.python(tmp_path, FETCH, ["org/large"])
        assert (Path(folder) / "model.safetensors").read_bytes() == large
    assert any(re.fullmatch(r"GET /content/\w+ bytes=[1-9]\d*-", asked) for asked in hub.asked)


def test_a_local_path_wins(hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org/tiny-1B").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    done = hub.run(tmp_path, "plan", "org/tiny-1B", "-t", "Q8_0")
    assert done.returncode == 0, done.stderr
    assert hub.asked == []


def test_what_may_be_on_the_hub() -> None:
    for text in ("microsoft/phi-4", "a/b@v1.0", "a/b@refs/pr/3", f"a/b@{COMMIT}"):
        assert is_hub_id(text)
    for text in (
        "phi-4",
        "./a/b",
        "../a",
        "/a/b",
        "a/b/c",
        "a/..",
        "a/b@",
        "a/b@../x",
        "a/b@x/../y",
        "a/b.gguf",
        "a/b c",
    ):
        assert not is_hub_id(text)


def test_a_snapshot_tells_where_it_comes_from() -> None:
    cache = Path("/home/of/models--org--my-model/snapshots")
    assert origin_of(cache / COMMIT) == Origin("org/my-model", COMMIT)
    for other in (
        cache / "main",
        cache.parent / COMMIT,
        Path(COMMIT),
        Path("/"),
        Path("datasets--a--b/snapshots") / COMMIT,
    ):
        assert origin_of(other) is None


def adapter(**config: object) -> Repository:
    """An adapter of rank 1 for the checkpoint."""
    module = "base_model.model.model.layers.0.self_attn.o_proj"
    tensors = {
        f"{module}.lora_A.weight": np.ones((1, small.HIDDEN), np.float32),
        f"{module}.lora_B.weight": np.ones((small.HIDDEN, 1), np.float32),
    }
    settings = {"base_model_name_or_path": "org/tiny-1B", "lora_alpha": 1, "peft_type": "LORA", "r": 1} | config
    files = {"adapter_config.json": json.dumps(settings).encode(), "adapter_model.safetensors": save(tensors)}
    return Repository(files)


def test_an_adapter_on_the_hub_finds_its_base_there(tiny: Repository, tmp_path: Path) -> None:
    """At the revision that it names; alone, or merged by its id."""
    repositories = {"org/tiny-1B": tiny, "org/mine": adapter(revision="v1"), "org/off": adapter(revision="v9")}
    with serving(repositories) as hub:
        planned = hub.run(tmp_path, "plan", "org/mine", "-t", "Q8_0", "--json")
        assert planned.returncode == 0, planned.stderr
        assert not any(name.startswith("model-") for name in fetched(hub))
        for arguments in (("org/mine",), ("org/tiny-1B@v1", "--lora", "org/mine")):
            done = hub.run(tmp_path, "convert", *arguments, "-t", "Q8_0", "-o", f"{tmp_path}/{len(arguments)}/")
            assert done.returncode == 0, done.stderr
        alone, merged = tmp_path / "1" / "mine-Q8_0.gguf", tmp_path / "3" / "tiny-1B-mine-Q8_0.gguf"
        one, other = read_gguf(alone), read_gguf(merged)
        assert one.fields["quantkit.source.repo"].value == "org/tiny-1B"
        assert one.fields["general.base_model.0.repo_url"].value == "https://huggingface.co/org/tiny-1B"
        assert one.fields["quantkit.lora.0.sha256"] == other.fields["quantkit.lora.0.sha256"]
        assert alone.read_bytes()[one.data_offset :] == merged.read_bytes()[other.data_offset :]
        assert json.loads(planned.stdout)["types"][0]["tensor_bytes"] == alone.stat().st_size - one.data_offset
        refused = hub.run(tmp_path, "convert", "org/off", "-t", "Q8_0", "-o", tmp_path / "no.gguf")
        assert refused.returncode == 69 and "org/tiny-1B@v9" in refused.stderr
