"""What a plan is made from, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantkit.arch import MappedTensor, Network
from quantkit.checkpoint import Weights
from quantkit.errors import TensorError
from quantkit.gguf_io import Field, Kind

QUANTIZATION_VERSION = Field("general.quantization_version", Kind.U32, 2)  # ggml's GGML_QNT_VERSION


@dataclass(frozen=True)
class Source:
    """Weights, and what they are.

    weights  where rows are read from
    network  what they make up
    tensors  of the output, in any order; weights has all their sources, in their shapes
    fields   (general.file_type) -> the keys of the output, in order, but for those of one conversion
    """

    weights: Weights
    network: Network
    tensors: Sequence[MappedTensor]
    fields: Callable[[int], Iterable[Field]]


def check_tensors(
    weights: Weights,
    tensors: Sequence[MappedTensor],
    *,
    stated_in: str,
    ignored: Callable[[str], bool] = lambda name: False,
    hints: Mapping[str, str] | None = None,
) -> None:
    """The weights are just the sources of tensors, in their shapes.

    stated_in  where the network is described, as an error says it
    ignored    (name) -> whether there may be a tensor of that name beside them
    hints      by name, for a tensor that is missing
    raises     TensorError
    """
    expected = {name: shape for tensor in tensors for name, shape in tensor.sources}
    for name, shape in expected.items():
        found = weights.tensors.get(name)
        if found is None:
            raise TensorError(
                "a tensor of the network is missing", hint=(hints or {}).get(name), file=weights.path, tensor=name
            )
        if found.shape != shape:
            raise TensorError(
                f"the shape contradicts {stated_in}",
                file=found.file,
                tensor=name,
                expected=list(shape),
                found=list(found.shape),
            )
    for name, found in weights.tensors.items():
        if name not in expected and not ignored(name):
            raise TensorError(
                "a tensor that the network does not have",
                file=found.file,
                tensor=found.name,
                hint=f"check the architecture and the number of layers in {stated_in}",
            )
