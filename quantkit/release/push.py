"""`quantkit push`: the files of a release, and no others, into a repository on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantkit import __version__
from quantkit.checkpoint.hub import translated
from quantkit.errors import UsageError
from quantkit.release import sums
from quantkit.release.names import REPOSITORY


@dataclass(frozen=True)
class Upload:
    """What would go: sizes in bytes by name."""

    folder: Path
    repo: str
    files: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        return sum(self.files.values())


def upload(folder: Path, repo: str) -> Upload:
    """The files that SHA256SUMS lists, all as it says, and itself.

    folder  of a release
    repo    "ORG/NAME"
    raises  UsageError   repo is no name of a repository
            InputError   a file is missing, or is not the one that was released
            FormatError, UnsafeError, DiskError
    """
    if not REPOSITORY.fullmatch(repo):
        raise UsageError("a repository is named ORG/NAME", found=ascii(repo))
    digests = sums.read(folder)
    sums.check(folder, digests)
    return Upload(folder, repo, {name: (folder / name).stat().st_size for name in (*digests, sums.NAME)})


def push(what: Upload, *, private: bool) -> str:
    """Make the repository if there is none, and upload everything as one commit.

    what     of upload()
    private  whether a new one is
    returns  the address of the commit
    raises   HubError, UsageError, DiskError
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi()
        api.create_repo(what.repo, private=private, exist_ok=True)
        commit = api.create_commit(
            what.repo,
            [CommitOperationAdd(name, str(what.folder / name)) for name in what.files],
            commit_message=f"Release by quantkit {__version__}",
        )
    except Exception as error:
        raise translated(error, what.repo, "model") from error
    return str(commit.commit_url)
