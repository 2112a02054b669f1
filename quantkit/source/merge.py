"""Adapters merged into a source: which rows of which tensor each of their tensors belongs to.

A module is found by its name in transformers' layouts, fused (qkv_proj, gate_up_proj) or split (q_proj, k_proj, v_proj,
gate_proj, up_proj), whichever of the two the source has: its place is among the rows of a GGUF tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantkit.arch import EMBEDDING, FAMILIES, HEAD, Family, Network, find_family
from quantkit.checkpoint import CONFIG, Adapter, Checkpoint, Pair, TensorInfo, Whole
from quantkit.errors import TensorError, UnsupportedError
from quantkit.source.change import LowRank
from quantkit.source.gguf import GGUFWeights, find_gguf_family, read_gguf_network
from quantkit.tokenizer import has_tokenizer

_MERGE_FIRST = "merge the adapter with PEFT (merge_and_unload), and convert what that saves"

Wholes = dict[str, Whole]  # by the name that the tensor has in the source
Changes = dict[str, list[LowRank]]  # by the name of the tensor of the output


@dataclass(frozen=True)
class Place:
    """Where a tensor of a layout is in an output: rows of a GGUF tensor.

    shape  NumPy order, of these rows
    """

    tensor: str
    first: int
    shape: tuple[int, ...]


def merge(weights: Checkpoint | GGUFWeights, adapters: Sequence[Adapter]) -> None:
    """Make the weights those of the model with the adapters, one after another; they are closed with the weights.

    raises  TensorError, ConfigError, UnsupportedError  an adapter does not fit the model, or another adapter
    """
    weights.adopt(adapters)
    family, network = _identify(weights)
    wholes = _wholes(weights, adapters, places(family, network))
    _grow(weights, network, wholes)
    family, network = _identify(weights)
    changes = _changes(adapters, places(family, network))
    weights.warnings = tuple(warning for adapter in adapters for warning in _warnings(adapter))
    if network.tied:
        _untie(weights, wholes, changes)
    weights.tensors |= {name: whole.tensor for name, whole in wholes.items()}
    weights.changes = changes
    if isinstance(weights, Checkpoint):
        _choose_tokenizer(weights)


def _identify(weights: Checkpoint | GGUFWeights) -> tuple[Family, Network]:
    if isinstance(weights, GGUFWeights):
        family = find_gguf_family(weights)
        return family, read_gguf_network(weights, family)
    family = find_family(weights.config, weights.path / CONFIG)
    return family, family.read_network(weights.config, weights.path / CONFIG)


def places(family: Family, network: Network) -> dict[str, Place]:
    """The place of every tensor of every layout of the family, by its name there; the output matrix is among them."""
    found = {}
    for layout in (one for one in FAMILIES if one.gguf_name == family.gguf_name):
        for mapped in layout.map_tensors(replace(network, tied=False)):
            first = 0
            for name, shape in mapped.sources:
                found[name] = Place(mapped.gguf, first, shape)
                first += shape[0]
    return found


# ---- whole tensors


def _wholes(weights: Checkpoint | GGUFWeights, adapters: Sequence[Adapter], known: Mapping[str, Place]) -> Wholes:
    """The tensors that take the place of the source's."""
    wholes: Wholes = {}
    for adapter in adapters:
        for name, whole in adapter.wholes.items():
            if name not in known:
                raise _no_such_module(whole.tensor, known)
            own = known[name].tensor if isinstance(weights, GGUFWeights) else name
            if known[name].tensor not in (EMBEDDING, HEAD):  # of which there may be more rows, or none yet
                _check_whole(weights, own, known[name], whole.tensor)
            if own in wholes:
                raise UnsupportedError(
                    "two adapters have this tensor, and one alone can take its place",
                    file=whole.tensor.file,
                    tensor=whole.tensor.name,
                    found=str(wholes[own].tensor.file),
                )
            wholes[own] = whole
    return wholes


def _check_whole(weights: Checkpoint | GGUFWeights, own: str, place: Place, tensor: TensorInfo) -> None:
    """The tensor has the shape of all of the source's tensor own; raises UnsupportedError, TensorError."""
    if own not in weights.tensors or weights.tensors[own].shape != place.shape:
        raise UnsupportedError(
            "the adapter has a whole tensor for some rows of one of the source",
            hint=_MERGE_FIRST,
            file=tensor.file,
            tensor=tensor.name,
        )
    if tensor.shape != place.shape:
        raise _unfit(tensor, place.shape, tensor.shape)


def _grow(weights: Checkpoint | GGUFWeights, network: Network, wholes: Wholes) -> None:
    """Let the vocabulary be as large as the adapter's embedding; raises TensorError, UnsupportedError."""
    embedding, head = (wholes.get(name) for name in _ends(weights))
    if embedding is None or embedding.tensor.n_rows == network.vocabulary:
        return
    rows, tensor = embedding.tensor.n_rows, embedding.tensor
    if isinstance(weights, GGUFWeights):
        raise UnsupportedError(
            "the adapter changes the number of tokens, and a GGUF file has its vocabulary already",
            hint="start from the checkpoint",
            file=tensor.file,
            tensor=tensor.name,
            expected=f"{network.vocabulary} rows",
            found=rows,
        )
    if not network.tied and (head is None or head.tensor.n_rows != rows):
        raise TensorError(
            "the adapter changes the number of tokens of the embedding, and not that of the output matrix",
            hint="save it again with PEFT: save_pretrained(DIR, save_embedding_layers=True)",
            file=tensor.file,
            tensor=tensor.name,
            expected=f"{network.vocabulary if head is None else head.tensor.n_rows} rows",
            found=rows,
        )
    weights.config = weights.config | {"vocab_size": rows}


def _ends(weights: Checkpoint | GGUFWeights) -> tuple[str, str]:
    """The names of the embedding and the output matrix in a source."""
    if isinstance(weights, GGUFWeights):
        return EMBEDDING, HEAD
    family = find_family(weights.config, weights.path / CONFIG)
    (embedding,) = (tensor.sources[0] for tensor in family.tensors if tensor.gguf == EMBEDDING)
    return embedding, family.head.sources[0]


# ---- pairs


def _changes(adapters: Sequence[Adapter], known: Mapping[str, Place]) -> Changes:
    changes: Changes = {}
    for adapter in adapters:
        for module, pair in adapter.pairs.items():
            place = known.get(f"{module}.weight")
            if place is None:
                raise _no_such_module(pair.a, known)
            _check_shapes(pair, place)
            others = changes.setdefault(place.tensor, [])
            change = LowRank(adapter, pair, place.first, place.shape[0])
            _check_alone(change, others)
            others.append(change)
    return changes


def _check_shapes(pair: Pair, place: Place) -> None:
    """Raises TensorError where the product does not have the shape of what it is added to, UnsupportedError for DoRA
    of an embedding."""
    product: tuple[int, ...] = (pair.b.shape[0], pair.a.shape[1])
    if pair.of_embedding:
        product = product[::-1]
    wrong: TensorInfo | None = pair.a if product != place.shape else None
    if pair.magnitude is not None:
        if pair.of_embedding:
            raise UnsupportedError(
                "DoRA of an embedding is not supported",
                hint=_MERGE_FIRST,
                file=pair.magnitude.file,
                tensor=pair.magnitude.name,
            )
        if pair.magnitude.shape != place.shape[:1]:
            wrong, product = pair.magnitude, pair.magnitude.shape
    if wrong is not None:
        raise _unfit(wrong, place.shape[: len(product)], product)


def _unfit(tensor: TensorInfo, expected: tuple[int, ...], found: tuple[int, ...]) -> TensorError:
    return TensorError(
        "the adapter does not fit the model",
        hint="it was trained on another base model",
        file=tensor.file,
        tensor=tensor.name,
        expected=list(expected),
        found=list(found),
    )


def _check_alone(change: LowRank, others: Sequence[LowRank]) -> None:
    """Raises UnsupportedError where a row would get a magnitude and something else: in which order is not said."""
    for other in others:
        overlap = change.first < other.first + other.n_rows and other.first < change.first + change.n_rows
        if overlap and (change.pair.magnitude is not None or other.pair.magnitude is not None):
            raise UnsupportedError(
                "a DoRA adapter and another one change the same rows",
                hint=_MERGE_FIRST,
                file=change.pair.a.file,
                tensor=change.pair.a.name,
                found=other.pair.a.name,
            )


def _no_such_module(tensor: TensorInfo, known: Mapping[str, Place]) -> TensorError:
    matrices = [name.removesuffix(".weight") for name, place in known.items() if len(place.shape) > 1]
    in_layers = sorted({re.sub(r"^(\D+)\.\d+\.", r"\1.N.", name) for name in matrices})
    last = max((int(number) for name in matrices for number in re.findall(r"\.(\d+)\.", name)), default=0)
    return TensorError(
        "the adapter changes a module that the model does not have",
        hint=f"the model has {', '.join(in_layers)}, N from 0 to {last}",
        file=tensor.file,
        tensor=tensor.name,
    )


def _warnings(adapter: Adapter) -> list[str]:
    modules = [*adapter.pairs, *(name.removesuffix(".weight") for name in adapter.wholes)]
    missing = [name for name in adapter.config.targets if not any(f".{it}".endswith(f".{name}") for it in modules)]
    found = list(adapter.config.warnings)
    if missing:
        found.append(f"{adapter.config.file}: {', '.join(missing)} is listed there, and no tensor is of that name")
    n_replaced = sum(not whole.under for whole in adapter.wholes.values())
    if n_replaced and adapter.scale != 1:
        found.append(f"{adapter.path}: {n_replaced} tensors are taken whole, without the scale")
    return found


# ---- an embedding that is the output matrix too


def _untie(weights: Checkpoint | GGUFWeights, wholes: Wholes, changes: Changes) -> None:
    """Let the output matrix be a tensor of its own where an adapter changes it or the embedding, and not both alike.

    Whichever of the two was not trained stays what it was, as it did in training.  (merge_and_unload of a tied model
    changes both, and PEFT warns of that.)
    """
    embedding, head = _ends(weights)
    whole, before = wholes.get(embedding), weights.tensors[embedding]
    alike = whole is not None and head in wholes and _same_bytes(weights.adapters, whole.tensor, wholes[head].tensor)
    if alike:
        del wholes[head]
    if whole is not None and (alike or whole.under or whole.tensor.n_rows != before.n_rows):
        before = whole.tensor
    head_changes = head in wholes or HEAD in changes
    embedding_changes = EMBEDDING in changes or (whole is not None and whole.tensor is not before)
    if not head_changes and (not embedding_changes or any(adapter.config.tied for adapter in weights.adapters)):
        return
    weights.tensors[head] = before
    if isinstance(weights, Checkpoint):
        weights.config = weights.config | {"tie_word_embeddings": False}
    weights.warnings += (
        f"the adapter changes {'the output matrix' if head_changes else 'the embedding'}, which were one: "
        f"they are two from now on, and {HEAD} is written",
    )


def _same_bytes(adapters: Sequence[Adapter], *tensors: TensorInfo) -> bool:
    """Whether two tensors of adapters are the same; raises DiskError."""
    owners = {file: adapter for adapter in adapters for file in adapter.shards}
    return len({(tensor.dtype, tensor.shape, owners[tensor.file].tensor_sha256(tensor)) for tensor in tensors}) == 1


# ---- the tokenizer


def _choose_tokenizer(weights: Checkpoint) -> None:
    """The tokenizer that training left beside an adapter, where it did: of the last one."""
    folders = [adapter.path for adapter in weights.adapters if has_tokenizer(adapter.path)]
    if folders:
        weights.tokenizer = folders[-1]
    if len(folders) > 1:
        weights.warnings += (f"the tokenizer is that of {folders[-1]}, the last of {len(folders)} adapters with one",)
