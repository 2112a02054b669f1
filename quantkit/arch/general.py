"""The `general.*` fields: names, licence, base models, as llama.cpp's converter derives them.

Its own heuristics run, from the `gguf` package: folder name, config.json and the model card's front matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf

from quantkit.errors import FormatError
from quantkit.gguf_io import Field, Kind


def general_fields(
    folder: Path,
    architecture: str,
    n_weights: int,
    name: str | None = None,
    early: Sequence[Field] = (),
    *,
    called: str,
    base_model: str | None = None,
) -> list[Field]:
    """The fields before the network's own.

    folder      the checkpoint
    n_weights   all of them, for the size label ("15B")
    name        general.name, in place of the one derived
    early       fields of the network that the converter writes behind general.architecture
    called      the name to derive from, a folder's: of a snapshot from the hub its repository's, not the commit
    base_model  hub id or name of what the model was made from, in place of what the model card says
    raises      FormatError  the model card's front matter cannot be read
    """
    try:
        metadata = _metadata(folder, called, n_weights)
    except Exception as error:  # YAML, encoding or shape: whatever the model card's author did
        raise FormatError(f"the model card cannot be read: {error}", file=folder / "README.md") from error
    if name is not None or metadata.name is None:
        metadata.name = called if name is None else name
    if base_model is not None:
        card = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), {"base_model": base_model})
        metadata.base_models = card.base_models
    if metadata.size_label is None:
        metadata.size_label = gguf.size_label(n_weights, 0, 0, 0)
    recorder = gguf.GGUFWriter(None, architecture)
    recorder.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(recorder)
    first, *others = (_field(key, value) for key, value in recorder.kv_data[0].items())
    return [first, *early, *others]


def _metadata(folder: Path, called: str, n_weights: int) -> gguf.Metadata:
    """gguf.Metadata.load, as if the folder were called so."""
    sampling = vars(gguf.Metadata.load(None, folder, None, n_weights))
    card, config = gguf.Metadata.load_model_card(folder), gguf.Metadata.load_hf_parameters(folder)
    named = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, config, Path(called), n_weights)
    return replace(named, **{key: value for key, value in sampling.items() if key.startswith("sampling_")})


def _field(key: str, value: gguf.GGUFValue) -> Field:
    if value.type is not gguf.GGUFValueType.ARRAY:
        return Field(key, Kind(value.type), value.value)
    item_kind = value.sub_type or gguf.GGUFValueType.get_type(value.value[0])
    return Field(key, Kind.ARRAY, list(value.value), Kind(item_kind))
