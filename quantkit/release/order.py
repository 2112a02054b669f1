"""What is asked of a release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Lora
from quantkit.checkpoint.index import is_plain_name
from quantkit.errors import UsageError
from quantkit.evaluate import Arithmetic, Text
from quantkit.release.names import NAME, REPOSITORY


@dataclass(frozen=True)
class Order:
    """What is to be released.

    source, types, recipe, imatrix, lora   as convert takes them
    out           the folder
    description   name (of the files, too), overrides, chat_template and fix_special_tokens as make_plan takes them
    split_max_bytes   as make_plan takes it
    vram_bytes    of the card that the report is about; None for one on which all the files fit
    context, text, window, windows, how   of the measurement, as a sweep's Request has them
    repo          "ORG/NAME" that the release will be published as, for the commands of its card
    base_model    "ORG/NAME" of what is quantized, adapters and all; None for what the source tells
    license       in place of the one that the source's card names
    quantized_by  name or None
    tags          of the card beside the usual ones
    """

    source: Path
    out: Path
    types: Sequence[str] = ()
    recipe: str = "llama.cpp"
    imatrix: Path | None = None
    lora: Sequence[Lora] = ()
    description: Mapping[str, Any] = field(default_factory=dict)
    split_max_bytes: int | None = None
    vram_bytes: int | None = None
    context: int | None = None
    text: Text | None = None
    window: int = 512
    windows: int | None = None
    how: Arithmetic = field(default_factory=Arithmetic)
    repo: str | None = None
    base_model: str | None = None
    license: str | None = None
    quantized_by: str | None = None
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raises UsageError for names that none can have."""
        name = self.description.get("name")
        if name is not None and not (NAME.fullmatch(name) and is_plain_name(name)):
            raise UsageError("--name names the files, and no file can be called so", found=ascii(name))
        for option, value in (("--repo", self.repo), ("--base-model", self.base_model)):
            if value is not None and not REPOSITORY.fullmatch(value):
                raise UsageError(f"{option} takes ORG/NAME", found=ascii(value))
