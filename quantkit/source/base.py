"""The model that an adapter was trained on, by the name in its adapter_config.json."""

from __future__ import annotations

import re
from pathlib import Path

from quantkit.checkpoint import Adapter, Checkpoint, is_hub_id
from quantkit.checkpoint.json_file import shown
from quantkit.errors import InputError, UnsafeError
from quantkit.osio import is_folder

_KEY = "base_model_name_or_path"


def base_of(adapter: Adapter) -> Path:
    """The adapter's base as a source: a folder as it stands or from the current one, or else a hub id.

    raises  InputError   its config names none, or neither of these
            UnsafeError  the name climbs out of where it begins, or cannot be shown: an adapter is from outside
    """
    base, file = adapter.config.base, adapter.config.file
    hint = f"name the base yourself: quantkit ... BASE --lora {adapter.path}"
    if base is None:
        raise InputError("the adapter does not say what it was trained on", hint=hint, file=file, key=_KEY)
    if ".." in re.split(r"[/\\]", base) or not base.isprintable():
        raise UnsafeError("the name of the base climbs out", hint=hint, file=file, key=_KEY, found=shown(base))
    if is_folder(Path(base)):
        return Path(base)
    revision = adapter.config.base_revision
    hub_id = base if revision is None else f"{base}@{revision}"
    if not is_hub_id(hub_id):
        raise InputError("the adapter's base is not here", hint=hint, file=file, key=_KEY, found=shown(base))
    return Path(hub_id)


def base_name(checkpoint: Checkpoint) -> str | None:
    """What adapters were merged into: its id on the hub if that is known, else its folder's name; None without any."""
    if not checkpoint.adapters:
        return None
    if checkpoint.origin is not None:
        return checkpoint.origin.repo
    stated = checkpoint.adapters[0].config.base
    if stated is not None and is_hub_id(stated) and not is_folder(Path(stated)):
        return stated
    return checkpoint.path.resolve().name
