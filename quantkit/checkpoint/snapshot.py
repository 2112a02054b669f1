"""A checkpoint on the hub: the files of one commit, fetched by huggingface_hub into its cache.

The cache has a folder for each commit, `models--ORG--NAME/snapshots/COMMIT`, which is read like any other; so a
snapshot that something else has fetched will do, and its place tells where it comes from.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quantkit.checkpoint.hub import translated
from quantkit.checkpoint.index import is_plain_name, shard_names
from quantkit.checkpoint.json_file import shown
from quantkit.errors import FormatError, HubError, InputError, Paused, UnsafeError
from quantkit.osio import is_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLE_HINT = (
    "convert it where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) of transformers "
    "writes safetensors"
)

# What is read beside the weights; of folders and patterns only those that follow.
_DESCRIPTION = (
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "README.md",
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    INDEX,
)
_TEMPLATES = "additional_chat_templates"
_ADAPTER = "adapter_model.safetensors"
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>(?![./])(?!.*\.\.)[^@\s\\]+))?")
# The commit of each hub id that this process has read: a source is opened more than once, and its branch may move.
_resolved: dict[str, str] = {}
_FILE = re.compile(r".*\.(gguf|safetensors|json)", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """Where a folder comes from.

    repo      "ORG/NAME"
    revision  the commit, 40 hexadecimal digits
    """

    repo: str
    revision: str

    @property
    def name(self) -> str:
        return self.repo.partition("/")[2]

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def origin_of(folder: Path) -> Origin | None:
    """Where a snapshot in the hub's cache comes from; None for any other folder."""
    *_, repository, snapshots, revision = ("", "", *folder.absolute().parts)
    kind, *names = repository.split("--")
    if (kind, snapshots, len(names)) == ("models", "snapshots", 2) and re.fullmatch("[0-9a-f]{40}", revision):
        return Origin("/".join(names), revision)
    return None


def is_hub_id(text: str) -> bool:
    """Whether text may be ORG/NAME or ORG/NAME@REVISION, and does not look like a file."""
    return _ID.fullmatch(text) is not None and _FILE.fullmatch(text) is None


def fetch_snapshot(hub_id: str, *, weights: bool = True) -> Path:
    """A local folder with one commit of a model, or of an adapter: what is read of it, and nothing else.

    The revision is resolved once in the life of a process.  What the cache has is not fetched again, and serves where
    the hub cannot be reached.

    hub_id   "ORG/NAME" or "ORG/NAME@REVISION": a branch, tag or commit
    weights  False leaves them out
    returns  the snapshot in huggingface_hub's cache, `.../snapshots/COMMIT`
    raises   UsageError   a name that no repository can have
             HubError     the hub cannot be reached, refuses, or gives files of different commits
             UnsafeError  weights only as pickles, or a name that leaves its folder
             InputError   the repository has no weights in safetensors
             FormatError  its index is none
             DiskError    the cache cannot be written
             Paused       KeyboardInterrupt came; files that were complete stay
    """
    found = _ID.fullmatch(hub_id)
    assert found is not None, "is_hub_id() was asked"
    repo, revision = found["repo"], _resolved.get(hub_id, found["revision"])
    folder = _fetch(repo, revision, _DESCRIPTION, hub_id, quiet=True)
    commit = _resolved[hub_id] = folder.name
    names = _listing(repo, commit, folder)
    wanted = [name for name in names if _describes(name)]
    if weights:
        wanted += _weight_files(folder, names, f"{repo}@{commit}")
    missing = [name for name in wanted if not is_file(folder / name)]
    if missing:
        _fetch(repo, commit, [glob.escape(name) for name in missing], f"{repo}@{commit}/{missing[0]}", quiet=False)
    for name in missing:
        if not is_file(folder / name):
            raise HubError(
                "the hub did not give this file at the commit that it named",
                hint="fetch it again; if that stays so, do not trust this mirror",
                file=f"{repo}@{commit}/{name}",
            )
    return folder


def _fetch(repo: str, revision: str | None, patterns: Sequence[str], place: str, *, quiet: bool) -> Path:
    """Fetch the files that match; place names them in an error, quiet shows no progress."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings | {"disable": True})  # type: ignore[no-untyped-call]

    try:
        bars = Silent if quiet else None
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), tqdm_class=bars))
    except KeyboardInterrupt:
        raise Paused("stopped while fetching", hint="the same command goes on from the files that are there") from None
    except Exception as error:
        raise translated(error, place, "model") from error


def _listing(repo: str, commit: str, folder: Path) -> list[str]:
    """All files of the commit; raises UnsafeError for a name that would leave the folder."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        names = sorted(file.path for file in get_cached_repo_tree(repo, revision=commit))
    except CachedRepoTreeNotFoundError:  # an older library fetched it, and the hub cannot be asked
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if is_file(path))
    for name in names:
        if {"", ".", ".."} & set(name.split("/")) or "\\" in name:
            raise UnsafeError(
                "the repository lists a file outside of itself",
                hint="do not trust this repository or mirror",
                file=f"{repo}@{commit}",
                found=shown(name),
            )
    return names


def _describes(name: str) -> bool:
    path = PurePosixPath(name)
    if not is_plain_name(path.name):
        return False
    if path.parent == PurePosixPath(_TEMPLATES):
        return path.suffix == ".jinja"
    return len(path.parts) == 1 and (name in _DESCRIPTION or path.suffix == ".tiktoken")


def _weight_files(folder: Path, names: Sequence[str], place: str) -> list[str]:
    """The files with weights among names, as open_checkpoint chooses them; for an adapter's repository its own."""
    if SINGLE in names:
        return [SINGLE]
    if INDEX in names:
        shards = shard_names(folder / INDEX)
        for shard in shards:
            if shard not in names:
                raise FormatError(
                    "the index names a shard that is missing", file=f"{place}/{INDEX}", found=shown(shard)
                )
        return shards
    if _ADAPTER in names:
        return [_ADAPTER]
    if any(name.endswith(".safetensors") for name in names):
        raise InputError("no weights of these names", file=place, expected=f"{SINGLE} or {INDEX}")
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise UnsafeError(
            "the weights are a pickle, which runs code when it is loaded",
            hint=PICKLE_HINT,
            file=place,
            found=shown(pickles[0]),
        )
    quantized = [name for name in names if name.endswith(".gguf")]
    raise InputError(
        "the repository has no weights in safetensors",
        hint="fetch its F32, F16 or BF16 file, if it has one, and name that" if quantized else None,
        file=place,
        found=shown(quantized[0]) if quantized else None,
    )
