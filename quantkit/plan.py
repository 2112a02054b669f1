"""Every byte of the outputs, decided before a weight is read: headers, types, offsets, and the work to fill them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit import __version__
from quantkit.arch import MappedTensor, find_family
from quantkit.arch.general import general_fields
from quantkit.checkpoint import Checkpoint, TensorInfo
from quantkit.errors import RecipeError, ShapeError, TensorError
from quantkit.gguf_io import Field, Kind, TensorEntry, data_bytes, header, place
from quantkit.qtypes import QType
from quantkit.recipe import Recipe, layer_of
from quantkit.tokenizer import fields as tokenizer_fields
from quantkit.tokenizer import load_vocabulary

QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION
STRATEGY = "reference"
# What trainers leave in checkpoints and no network needs (llama.cpp's converter drops the same).
_DROPPED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")


@dataclass(frozen=True)
class Output:
    """One file to be written.

    name     of its recipe
    header   all bytes before the data section
    tensors  in the order of their bytes
    """

    name: str
    header: bytes
    fields: tuple[Field, ...]
    tensors: tuple[TensorEntry, ...]

    @property
    def tensor_bytes(self) -> int:
        return data_bytes(self.tensors)

    @property
    def file_bytes(self) -> int:
        return len(self.header) + self.tensor_bytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / sum(tensor.n_weights for tensor in self.tensors)

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each type, most first."""
        return dict(Counter(tensor.qtype.name for tensor in self.tensors).most_common())


@dataclass(frozen=True)
class Target:
    """Where a tensor goes: the output's index, the type, and the offset of its first byte in that file."""

    output: int
    qtype: QType
    offset: int


@dataclass(frozen=True)
class Job:
    """One tensor: its rows, packed once for each distinct type among the targets.

    name      in GGUF
    sources   the checkpoint's tensors whose rows it has, one after another
    values    the whole tensor, float32, where there are no sources
    """

    name: str
    n_rows: int
    n_columns: int
    sources: tuple[TensorInfo, ...]
    values: tuple[float, ...]
    targets: tuple[Target, ...]

    def rows(self, start: int, stop: int) -> Iterator[tuple[TensorInfo, int, int]]:
        """Where rows start to stop come from: (tensor, first row, end row), in order."""
        first = 0
        for source in self.sources:
            low, high = max(start, first), min(stop, first + source.n_rows)
            if low < high:
                yield source, low - first, high - first
            first += source.n_rows

    def source_of(self, row: int) -> tuple[TensorInfo, int]:
        """The tensor that a row comes from, and its number there."""
        source, first, _ = next(self.rows(row, row + 1))
        return source, first


@dataclass(frozen=True)
class Plan:
    """The outputs, and a job for each tensor in the order of the outputs' bytes."""

    outputs: tuple[Output, ...]
    jobs: tuple[Job, ...]

    @property
    def source_bytes(self) -> int:
        return sum(source.nbytes for job in self.jobs for source in job.sources)


def make_plan(
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    *,
    name: str | None = None,
    fix_special_tokens: bool = False,
    warn: Callable[[str], None],
) -> Plan:
    """Plan one output for each recipe.

    name                general.name, in place of the one derived from the folder
    fix_special_tokens  repair eos and pad where they disagree with the chat template
    warn                called with each warning about the source
    raises              InputError in its kinds: whatever is wrong with the source or does not fit together
    """
    config_file = checkpoint.path / "config.json"
    family = find_family(checkpoint.config, config_file)
    network = family.read_network(checkpoint.config, config_file)
    tensors = sorted(family.map_tensors(network), key=lambda tensor: (layer_of(tensor.gguf), tensor.gguf))
    _check_tensors(checkpoint, tensors)
    n_weights = sum(math.prod(tensor.shape) for tensor in tensors)

    vocabulary = load_vocabulary(
        checkpoint.path,
        checkpoint.config,
        n_rows=network.vocabulary,
        fix_special_tokens=fix_special_tokens,
        warn=warn,
    )
    general = general_fields(checkpoint.path, family.gguf_name, n_weights, name)
    tokenizer = tokenizer_fields(vocabulary)

    def output(recipe: Recipe) -> Output:
        entries = place((t.gguf, t.shape, _type_of(recipe, t, network.layers)) for t in tensors)
        fields = (
            *general,
            *family.keys(checkpoint.config, network, config_file, recipe.file_type),
            Field("general.quantization_version", Kind.U32, QUANTIZATION_VERSION),
            *tokenizer,
            Field("quantkit.version", Kind.STRING, __version__),
            Field("quantkit.recipe.name", Kind.STRING, recipe.name),
            Field("quantkit.recipe.sha256", Kind.STRING, recipe.sha256),
            Field("quantkit.strategy", Kind.STRING, STRATEGY),
        )
        return Output(recipe.name, header(fields, entries), fields, entries)

    outputs = tuple(output(recipe) for recipe in recipes)
    jobs = tuple(
        Job(
            tensor.gguf,
            math.prod(tensor.shape[:-1]),
            tensor.shape[-1],
            tuple(checkpoint.tensors[source] for source, _ in tensor.sources),
            tensor.values,
            tuple(
                Target(index, out.tensors[i].qtype, len(out.header) + out.tensors[i].offset)
                for index, out in enumerate(outputs)
            ),
        )
        for i, tensor in enumerate(tensors)
    )
    return Plan(outputs, jobs)


def output_paths(outputs: Sequence[Output], checkpoint_name: str, wanted: Path | None) -> list[Path]:
    """The file of each output.

    wanted   None: `<checkpoint>-<TYPE>.gguf` in the current folder; a name with "{type}": that template; a folder
             (or, for several outputs, a name without it): those default names there; else the file itself
    """
    default = f"{checkpoint_name}-{{type}}.gguf"
    if wanted is None:
        template = Path(default)
    elif "{type}" not in wanted.name and (len(outputs) > 1 or wanted.is_dir()):
        template = wanted / default
    else:
        template = wanted
    return [template.with_name(template.name.replace("{type}", output.name)) for output in outputs]


def _type_of(recipe: Recipe, tensor: MappedTensor, n_layers: int) -> QType:
    """The recipe's type for a tensor; raises ShapeError where its rows do not divide into blocks."""
    try:
        qtype = recipe.type_of(tensor.gguf, tensor.shape, n_layers)
        qtype.row_bytes(tensor.shape[-1])
    except (RecipeError, ShapeError) as error:
        details = error.details | {"tensor": tensor.gguf}
        raise type(error)(error.message, hint=error.hint, **details) from None
    return qtype


def _check_tensors(checkpoint: Checkpoint, tensors: Sequence[MappedTensor]) -> None:
    """The checkpoint has just the tensors of the network, in their shapes; raises TensorError."""
    expected = {name: shape for tensor in tensors for name, shape in tensor.sources}
    for name, shape in expected.items():
        found = checkpoint.tensors.get(name)
        if found is None:
            raise TensorError("a tensor of the network is missing", file=checkpoint.path, tensor=name)
        if found.shape != shape:
            raise TensorError(
                "the shape contradicts config.json",
                file=found.file,
                tensor=name,
                expected=list(shape),
                found=list(found.shape),
            )
    for found in checkpoint.tensors.values():
        if found.name not in expected and not found.name.endswith(_DROPPED):
            raise TensorError(
                "a tensor that the network does not have",
                file=found.file,
                tensor=found.name,
                hint="check num_hidden_layers and architectures in config.json",
            )
