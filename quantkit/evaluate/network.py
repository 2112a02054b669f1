"""The network of the Phi-3 kind in torch, one layer at a time: a layer's matrices are there while they are used.

    x = embedding
    x += output(attention(rotate(qkv(norm(x)))));  x += down(silu(gate(norm(x))) * up(norm(x)))      each layer
    logits = head(norm(x))

Every norm is x / rms(x) times a weight, the heads of a query group share a key, and a position sees those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from quantkit.arch import EMBEDDING, LAST_NORM, Network
from quantkit.errors import NotFiniteError, UsageError
from quantkit.evaluate.activations import Activations, rounding
from quantkit.evaluate.model import F32Array, Rotation
from quantkit.osio import limit_cpus
from quantkit.qtypes import QType

BATCH_BYTES = 256 << 20  # the widest of what a layer computes at once

Observer = Callable[[str, Tensor], None]  # (GGUF name of a matrix, its exact input float32 (tokens, k))


class Weights(Protocol):
    """Where a network gets its weights: a Model, or what stands in for one."""

    path: Path
    network: Network
    epsilon: float
    rotation: Rotation

    @property
    def head(self) -> str: ...

    def qtype(self, name: str) -> QType: ...

    def matrix(self, name: str, start: int = 0, stop: int | None = None) -> F32Array: ...

    def embed(self, ids: npt.NDArray[np.int64]) -> F32Array: ...


@dataclass(frozen=True)
class Arithmetic:
    """How a network is computed.

    activations  what matrices are multiplied by: exact, or as llama.cpp's CPU backend rounds it
    dtype        of the layers' matrix products and attention; all else, and the head, is float32
    device       torch's name
    """

    activations: Activations = "f32"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


DTYPES: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}


def arithmetic(activations: Activations, dtype: str, device: str) -> Arithmetic:
    """An Arithmetic by the names of its parts, dtype one of DTYPES; raises UsageError where torch lacks the device."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (AssertionError, RuntimeError, TypeError) as error:
        raise UsageError(f"torch cannot use the device {device!r}", found=str(error).partition("\n")[0]) from None
    return Arithmetic(activations, DTYPES[dtype], device)


def use_cpus(n: int) -> None:
    """Compute on n processors in this process."""
    limit_cpus(n)
    torch.set_num_threads(n)


def run(
    models: Sequence[Weights],
    ids: npt.NDArray[np.int64],
    how: Arithmetic,
    *,
    kept: slice = slice(None),
    observe: Observer | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """What the head of each model is given at every position.

    models    of one network.  They go through it side by side, half a layer at a time, so that what they share of it
              has to be read once; each computes what it would alone
    ids       int64 (windows, positions); each window starts from nothing
    kept      the positions that are returned
    observe   sees the input of every matrix of the layers, some windows at a time
    progress  called after each layer of each model
    returns   of each model float32 (windows, positions kept, hidden), after the last norm
    raises    NotFiniteError  values stop being finite (names where: a layer, or what comes before or after them)
    """
    network = models[0].network
    states = [embedded(weights, ids, how) for weights in models]
    turns = [Turn(weights.rotation, ids.shape[1], how) for weights in models]
    batch = windows_at_once(network, ids.shape[1])
    for i in range(network.layers):
        layers = [Layer(weights, i, how, turn, observe) for weights, turn in zip(models, turns, strict=True)]
        for half in HALVES.values():
            for layer, x in zip(layers, states, strict=True):
                layer.compute(half, x.split(batch))
        for x, weights in zip(states, models, strict=True):
            check_finite(x, weights, f"blk.{i}")
            progress()
    states.reverse()  # each is let go as soon as its last norm is taken
    return [last_states(weights, states.pop(), how, kept) for weights in models]


def windows_at_once(network: Network, n_positions: int) -> int:
    """How many windows a half layer computes at once, for BATCH_BYTES."""
    return max(1, BATCH_BYTES // (max(network.gate_up_rows, network.qkv_rows) * n_positions * 4))


def embedded(weights: Weights, ids: npt.NDArray[np.int64], how: Arithmetic) -> Tensor:
    """What the first layer is given: float32 (windows, positions, hidden) of int64 (windows, positions)."""
    x = torch.from_numpy(weights.embed(ids.reshape(-1))).to(how.device).view(*ids.shape, weights.network.hidden)
    check_finite(x, weights, EMBEDDING)
    return x


def last_states(weights: Weights, x: Tensor, how: Arithmetic, kept: slice) -> Tensor:
    """What the head is given at the positions kept, from what the last layer leaves."""
    last = _norm(x, _vector(weights, LAST_NORM, how), weights.epsilon)
    check_finite(last, weights, LAST_NORM)
    return last[:, kept].contiguous()


def check_finite(x: Tensor, weights: Weights, where: str) -> None:
    """Raises NotFiniteError, naming where."""
    if not bool(torch.isfinite(x).all()):
        raise NotFiniteError("here values stop being finite numbers", file=weights.path, tensor=where)


def head_rows(weights: Weights, how: Arithmetic, start: int, stop: int) -> Callable[[Tensor], Tensor]:
    """The head for tokens start to stop: float32 (n, hidden) -> logits float32 (n, stop - start)."""
    exact = replace(how, dtype=torch.float32)  # bfloat16 would keep three digits of each logit
    return _Matrix(weights, weights.head, exact, rows=(start, stop))


class _Matrix:
    """A matrix, or rows of one, ready to be multiplied by."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        how: Arithmetic,
        observe: Observer | None = None,
        rows: tuple[int, int | None] = (0, None),
    ) -> None:
        self._name = name
        self._observe = observe
        self._rounded = rounding(how.activations, weights.qtype(name))
        self._dtype = how.dtype
        self._multiply = multiplication(torch.from_numpy(weights.matrix(name, *rows)).to(how.device, how.dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., k) -> (..., n) in the dtype of the arithmetic."""
        x = x.float()
        if self._observe is not None:
            self._observe(self._name, x.flatten(0, -2))
        return self._multiply(self._rounded(x).to(self._dtype))


def multiplication(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """The product of an input (..., k) with the rows of a matrix (n, k): (..., n).

    For float32 on a processor torch asks MKL, which on others than Intel's is half as fast as oneDNN, which it asks for
    tensors in oneDNN's own layout alone.
    """
    if matrix.device.type != "cpu" or matrix.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return lambda x: linear(x, matrix)
    laid_out = matrix.to_mkldnn()
    return lambda x: linear(x.to_mkldnn(), laid_out).to_dense()


def summed_over_tokens(a: Tensor, b: Tensor) -> Tensor:
    """a^T b: float32 (n, k) of (tokens, n) and (tokens, k)."""
    return multiplication(b.T.contiguous())(a.T.contiguous())


@dataclass(frozen=True)
class Half:
    """Half a layer: x += last(between(first(norm(x)))).

    norm, first, last   names of its vector and its matrices
    between             of the layer, makes the input of the last of what the first gives
    """

    norm: str
    first: str
    between: Callable[[Layer, Tensor], Tensor]
    last: str


class Layer:
    """One layer. Its halves add what they compute to x, parts of (windows, positions, hidden); each loads its matrices
    and lets them go."""

    def __init__(self, weights: Weights, i: int, how: Arithmetic, turn: Turn, observe: Observer | None = None) -> None:
        self._weights, self._i, self._how, self._turn, self._observe = weights, i, how, turn, observe

    def compute(self, half: Half, parts: Sequence[Tensor]) -> None:
        first, last = self.matrix(half.first), self.matrix(half.last)
        for x, normed in zip(parts, self.normed(half, parts), strict=True):
            x += last(half.between(self, first(normed)))

    def normed(self, half: Half, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """What the half's first matrix is given."""
        vector = _vector(self._weights, self.name(half.norm), self._how)
        return (_norm(x, vector, self._weights.epsilon) for x in parts)

    def matrix(self, name: str) -> Callable[[Tensor], Tensor]:
        """The product with a matrix of this layer."""
        return _Matrix(self._weights, self.name(name), self._how, self._observe)

    def name(self, name: str) -> str:
        """In GGUF."""
        return f"blk.{self._i}.{name}.weight"

    def attention(self, qkv: Tensor) -> Tensor:
        network = self._weights.network
        heads = (network.heads, network.kv_heads, network.kv_heads)
        split = qkv.unflatten(-1, (sum(heads), network.head_width))
        query, key, value = split.transpose(1, 2).split(heads, dim=1)  # (windows, heads, positions, head_width)
        query, key = self._turn(query), self._turn(key)
        seen = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=network.n_gqa > 1)
        return seen.transpose(1, 2).flatten(-2)

    def gated(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up


HALVES = {
    "attn": Half("attn_norm", "attn_qkv", Layer.attention, "attn_output"),
    "ffn": Half("ffn_norm", "ffn_up", Layer.gated, "ffn_down"),
}


class Turn:
    """The rotation of queries and keys: of the pairs (i, i + rotated / 2) of each head, by position times frequency."""

    def __init__(self, rotation: Rotation, n_positions: int, how: Arithmetic) -> None:
        angles = np.outer(np.arange(n_positions), rotation.inverse_frequencies)
        self._cosine, self._sine = (
            torch.from_numpy((wave(angles) * rotation.factor).astype(np.float32)).to(how.device)
            for wave in (np.cos, np.sin)
        )
        self._half = angles.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., positions, head_width), likewise."""
        a, b, rest = x.float().split((self._half, self._half, x.shape[-1] - 2 * self._half), dim=-1)
        cosine, sine = self._cosine, self._sine
        return torch.cat((a * cosine - b * sine, b * cosine + a * sine, rest), dim=-1).to(x.dtype)


def _vector(weights: Weights, name: str, how: Arithmetic) -> Tensor:
    return torch.from_numpy(weights.matrix(name)[0]).to(how.device)


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) times a weight, in float32."""
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon))
