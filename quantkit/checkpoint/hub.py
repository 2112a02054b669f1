"""Files of repositories on the hub: fetched by huggingface_hub into its cache, and read from there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from quantkit.errors import DiskError, HubError, QuantkitError, UsageError

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def fetch_file(repo_id: str, path: str, revision: str | None = None, *, repo_type: Literal["model", "dataset"]) -> Path:
    """A local copy of a file on the hub; where the hub cannot be reached, the one that was fetched last.

    repo_id    "ORG/NAME"
    path       of the file in the repository
    revision   branch, tag or commit; None for the main branch
    repo_type  of the repository
    returns    the file in huggingface_hub's cache
    raises     UsageError  a name that no repository or file can have
               HubError    the hub cannot be reached, or does not give the file
               DiskError   the cache cannot be written
    """
    from huggingface_hub import hf_hub_download

    place = f"hub:{repo_id}/{path}" + (f"@{revision}" if revision else "")
    if {"", ".", ".."} & set(path.split("/")):
        raise UsageError("names no file of a repository", file=place)
    try:
        return Path(hf_hub_download(repo_id, path, repo_type=repo_type, revision=revision))
    except Exception as error:
        raise translated(error, place, repo_type) from error


def translated(error: Exception, place: str, repo_type: str) -> QuantkitError:
    """What an exception of huggingface_hub means; raises it again where that is not known.

    place      the file or repository that was asked for
    repo_type  "model" or "dataset"
    """
    from httpx2 import HTTPError
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # it would have taken a copy in the cache instead
    # the narrower first
    meanings: tuple[tuple[type[Exception], type[QuantkitError], str, str], ...] = (
        (errors.HFValidationError, UsageError, "no repository can be called so", "ORG/NAME, as on its page"),
        (errors.GatedRepoError, HubError, "the repository is gated", f"ask for access on its page, then {_LOG_IN}"),
        (errors.RepositoryNotFoundError, HubError, f"no such {repo_type}", f"if it is private, {_LOG_IN}"),
        (errors.RevisionNotFoundError, HubError, "no such revision", "name a branch, tag or commit"),
        (errors.RemoteEntryNotFoundError, HubError, "no such file in the repository", "its page lists its files"),
        (errors.HfHubHTTPError, HubError, "the hub refuses", f"{_LOG_IN}; or try again later"),
        (errors.LocalEntryNotFoundError, HubError, "the hub cannot be reached", "check the network and HF_ENDPOINT"),
        (HTTPError, HubError, "the hub broke off", "try again"),
        (OSError, DiskError, "cannot be put into the cache", "HF_HOME names the folder that it is in"),
    )
    for kind, ours, message, hint in meanings:
        if isinstance(error, kind):
            lines = str(error.__cause__ or error).splitlines()
            return ours(message, hint=hint, file=place, found=next(filter(None, lines), None))
    raise error
