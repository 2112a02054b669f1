"""release.toml: the options of `quantkit release` in a file, by their long names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pydantic

from quantkit.errors import ConfigError
from quantkit.osio import InputFile


class Settings(pydantic.BaseModel):
    """The keys; what each means, `quantkit release --help` says.  Files are named from release.toml's own folder."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    source: str | None = None
    types: list[str] | None = None
    recipe: str | None = None
    output: str | None = None
    imatrix: str | None = None
    lora: list[str] | None = None
    name: str | None = None
    metadata: list[str] | None = None
    chat_template: str | None = None
    fix_special_tokens: bool | None = None
    split_max_size: str | None = None
    vram: str | None = None
    ctx: int | None = None
    text: list[str] | None = None
    window: int | None = None
    windows: int | None = None
    dtype: str | None = None
    device: str | None = None
    repo: str | None = None
    base_model: str | None = None
    license: str | None = None
    quantized_by: str | None = None
    tags: list[str] | None = None


_FILES = ("source", "output", "imatrix", "chat_template")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that are given in a file; names of files are as seen from here.

    path    of release.toml
    raises  InputError, DiskError  it cannot be read
            ConfigError            it is no TOML, or a key is unknown or of the wrong type
    """
    with InputFile(path) as file:
        data = bytes(file.read(file.size))
    try:
        given = Settings.model_validate(tomllib.loads(data.decode("utf-8"))).model_dump(exclude_none=True)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"is not TOML: {error}", file=path) from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(first["msg"], file=path, key=key, found=ascii(first["input"])) from None
    for key in _FILES:
        if key in given:
            given[key] = _from_here(path.parent, given[key], optional=key == "source")
    if "recipe" in given and given["recipe"].endswith(".toml"):
        given["recipe"] = _from_here(path.parent, given["recipe"])
    for key in ("text", "lora"):
        if key in given:
            given[key] = [_from_here(path.parent, name, optional=True) for name in given[key]]
    return given


def _from_here(folder: Path, name: str, *, optional: bool = False) -> str:
    """A name in folder; optional leaves one that is not there, whatever follows a colon, for it may be on the hub."""
    inside = folder / name
    is_here = inside.exists() or ((folder / name.rpartition(":")[0]).exists() and ":" in name)
    return str(inside) if is_here or not optional else name
