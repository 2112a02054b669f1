"""How large outputs will be, before there are weights: from config.json alone, and to the byte with the tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.arch import MappedTensor, Network, find_family
from quantkit.checkpoint import CONFIG, INDEX, SINGLE, Checkpoint, Lora, TensorInfo, open_checkpoint
from quantkit.checkpoint.json_file import read_json
from quantkit.errors import ConfigError, InputError
from quantkit.gguf_io import TensorEntry, data_bytes, place
from quantkit.imatrix import Imatrix
from quantkit.osio import is_file, is_folder
from quantkit.plan import make_plan
from quantkit.qtypes import BF16
from quantkit.recipe import Facts, Recipe, layer_of
from quantkit.source import GGUFWeights, open_merged, open_source, read_source
from quantkit.tokenizer import has_tokenizer


@dataclass(frozen=True)
class Outline:
    """What one recipe would give.

    network        that the tensors make up
    file_bytes     None where it cannot be known: there is no tokenizer, or the recipe asks for an importance matrix
    needs_imatrix  the recipe cannot be used without one
    """

    name: str
    network: Network
    tensors: tuple[TensorEntry, ...]
    file_bytes: int | None
    needs_imatrix: bool

    @property
    def tensor_bytes(self) -> int:
        return data_bytes(self.tensors)

    @property
    def n_weights(self) -> int:
        return sum(tensor.n_weights for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / self.n_weights

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each type, most first."""
        return dict(Counter(tensor.qtype.name for tensor in self.tensors).most_common())


def outlines(
    path: Path,
    recipes: Sequence[Recipe],
    imatrix: Imatrix | None,
    warn: Callable[[str], None],
    lora: Sequence[Lora] = (),
) -> list[Outline]:
    """Outline each recipe's output for the checkpoint folder or GGUF file at path.

    Of a folder, config.json must be there; the weights need not, and then one index or one file is taken for granted.
    path    or else a hub id, of which no weights are fetched
    lora    adapters merged into it, as of open_source
    raises  InputError in its kinds; HubError, Paused
    """
    with open_merged(path, lora, _open, fetch_weights=False) as weights:
        has_vocabulary = isinstance(weights, GGUFWeights) or has_tokenizer(weights.tokenizer)
        ready = [recipe for recipe in recipes if has_vocabulary and (imatrix or not recipe.needs_imatrix)]
        planned = make_plan(weights, ready, imatrix=imatrix, warn=warn).outputs if ready else ()
        outputs = dict(zip(ready, planned, strict=True))
        network, mapped = _described(weights, warn)
        return [
            Outline(recipe.name, network, outputs[recipe].tensors, outputs[recipe].file_bytes, recipe.needs_imatrix)
            if recipe in outputs
            else Outline(
                recipe.name, network, _tensors(network, mapped, recipe, imatrix is not None), None, recipe.needs_imatrix
            )
            for recipe in recipes
        ]


def _open(path: Path) -> Checkpoint | GGUFWeights:
    """The weights at path, or those that a folder without weights promises."""
    if not is_folder(path) or is_file(path / SINGLE):
        return open_source(path)
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise ConfigError("is not an object", file=path / CONFIG)
    shards = _promised_shards(path)
    if all(is_file(shard) for shard in shards):
        return open_checkpoint(path)
    family = find_family(config, path / CONFIG)
    network = family.read_network(config, path / CONFIG)
    tensors = {
        name: TensorInfo(name, BF16, shape, shards[0], 0)
        for tensor in family.map_tensors(network)
        for name, shape in tensor.sources
    }
    promised = Checkpoint(path, config, tensors, {})
    promised.shards = shards
    return promised


def _promised_shards(folder: Path) -> tuple[Path, ...]:
    """The files that the index names, or the one that stands for all."""
    if not is_file(folder / INDEX):
        return (folder / SINGLE,)
    index = read_json(folder / INDEX)
    try:
        return tuple(folder / name for name in sorted(set(index["weight_map"].values())))
    except (TypeError, KeyError, AttributeError):
        raise InputError("is no index of shards", file=folder / INDEX) from None


def _described(
    weights: Checkpoint | GGUFWeights, warn: Callable[[str], None]
) -> tuple[Network, Sequence[MappedTensor]]:
    """The network that the weights make up, or would, and the tensors of an output."""
    if isinstance(weights, GGUFWeights):
        source = read_source(weights, name=None, fix_special_tokens=False, chat_template=None, warn=warn)
        return source.network, source.tensors
    family = find_family(weights.config, weights.path / CONFIG)
    network = family.read_network(weights.config, weights.path / CONFIG)
    return network, family.map_tensors(network)


def _tensors(
    network: Network, mapped: Sequence[MappedTensor], recipe: Recipe, imatrix: bool
) -> tuple[TensorEntry, ...]:
    """The tensors of an output whose header cannot be known, as if there were the importance matrix it asks for."""
    facts = Facts(network.layers, network.n_gqa, imatrix or recipe.needs_imatrix, network.tied)
    tensors = sorted(mapped, key=lambda tensor: (layer_of(tensor.gguf), tensor.gguf))
    return place((t.gguf, t.shape, recipe.type_of(t.gguf, t.shape, facts)) for t in tensors)
