"""A network whose weights stay in their files: its numbers, and any matrix of it as float32 when it is asked for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit import kernels
from quantkit.arch import EMBEDDING, HEAD, MappedTensor
from quantkit.checkpoint import Lora
from quantkit.errors import FormatError, TensorError, UnsupportedError
from quantkit.gguf_io import Field, Kind
from quantkit.osio import cpu_count, file_sha256
from quantkit.qtypes import F32, QType
from quantkit.source import Source, open_source, read_source
from quantkit.source.gguf import needed

F32Array = npt.NDArray[np.float32]

SLAB_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Rotation:
    """How positions turn the queries and keys.

    inverse_frequencies  float64 (rotated / 2,), radians a position
    factor               of cosine and sine
    """

    inverse_frequencies: npt.NDArray[np.float64]
    factor: float


class Model:
    """An open model; use it in a `with` block.

    path      the file or folder
    name      without its folder; of one on the hub, that of its repository; with adapters, of all of these
    network   its sizes
    epsilon   of its norms
    rotation  within the original context
    fields    the keys of its GGUF file, or of the one it would be converted to
    """

    def __init__(self, source: Source) -> None:
        self._weights = source.weights
        self._tensors = {tensor.gguf: tensor for tensor in source.tensors}
        self.path = source.weights.path
        ours = source.weights.origin or source.weights.adapters
        self.name = source.weights.name if ours else self.path.name
        self.network = source.network
        self.fields: Mapping[str, Field] = {field.key: field for field in source.fields(0)}
        self._family = str(self.fields["general.architecture"].value)
        _refuse_other_scaling(self.fields, self._family, self.path)
        self.epsilon = self._number("attention.layer_norm_rms_epsilon")
        self.rotation = self._rotation()

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes, NumPy order, by GGUF name."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    @property
    def head(self) -> str:
        """The output matrix: the embedding, where that is both."""
        return HEAD if HEAD in self._tensors else EMBEDDING

    def qtype(self, name: str) -> QType:
        """The type that a tensor is stored in; F32 for one that an adapter changes."""
        sources = self._tensors[name].sources
        merged = name in self._weights.changes
        return self._weights.tensors[sources[0][0]].dtype if sources and not merged else F32

    def matrix(self, name: str, start: int = 0, stop: int | None = None) -> F32Array:
        """Rows start to stop of a tensor, decoded on all processors.

        name     GGUF name
        returns  float32 (n, k); a vector is one row
        raises   DiskError  reading fails
        """
        tensor = self._tensors[name]
        n_rows, n_columns = _as_matrix(tensor.shape)
        stop = n_rows if stop is None else stop
        if tensor.values:
            return np.array(tensor.values, np.float32).reshape(n_rows, n_columns)[start:stop]
        rows = np.empty((stop - start, n_columns), np.float32)
        step = max(1, SLAB_WEIGHTS // n_columns)
        firsts = range(start, stop, step)
        with ThreadPoolExecutor(cpu_count()) as pool:
            for _ in pool.map(
                lambda first: self._fill(tensor, first, rows[first - start : min(first + step, stop) - start]), firsts
            ):
                pass
        return rows

    def embed(self, ids: npt.NDArray[np.int64]) -> F32Array:
        """The embeddings of tokens: float32 (n, hidden) of int64 (n,)."""
        distinct, place = np.unique(ids, return_inverse=True)
        rows = np.empty((len(distinct), self.network.hidden), np.float32)
        for i, token in enumerate(distinct):
            self._fill(self._tensors[EMBEDDING], int(token), rows[i : i + 1])
        return rows[place.reshape(-1)]

    @property
    def file_bytes(self) -> int:
        """Of all its files with weights."""
        adapters = (shard for adapter in self._weights.adapters for shard in adapter.shards)
        return sum(shard.stat().st_size for shard in (*self._weights.shards, *adapters))

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files with weights, and what else decides what these are: the configs of its adapters."""
        return self._weights.files

    @property
    def lora(self) -> tuple[Lora, ...]:
        """The adapters that were merged into it."""
        return tuple(Lora(adapter.path.resolve(), adapter.scale) for adapter in self._weights.adapters)

    @property
    def stats(self) -> tuple[tuple[str, int, int], ...]:
        """Of each of its files: path, with an adapter's scale, bytes and nanosecond of the last change."""
        adapters = [(file, f" * {one.scale!r}") for one in self._weights.adapters for file in one.files]
        return tuple(
            (f"{file.resolve()}{scale}", status.st_size, status.st_mtime_ns)
            for file, scale in [*((shard, "") for shard in self._weights.shards), *adapters]
            for status in [file.stat()]
        )

    @cached_property
    def network_sha256(self) -> str:
        """Of all that decides what is computed with the weights: the network's keys, and its rotation."""
        keys = {key: field.value for key, field in self.fields.items() if key.startswith(f"{self._family}.")}
        facts = [self._family, keys, self.rotation.inverse_frequencies.tolist(), self.rotation.factor]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def sha256(self) -> str:
        """Of the file; of several, of the lines "<sha256 of it>  <its name>" in the order of names.

        With adapters: behind these the same lines of the files of each, and after them "scale " and its scale.
        """
        lines = [f"{file_sha256(shard)}  {shard.name}\n" for shard in sorted(self._weights.shards)]
        for adapter in self._weights.adapters:
            lines += [f"{file_sha256(file)}  {file.name}\n" for file in adapter.files] + [f"scale {adapter.scale!r}\n"]
        if len(lines) == 1:
            return lines[0].partition(" ")[0]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def close(self) -> None:
        self._weights.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fill(self, tensor: MappedTensor, start: int, out: F32Array) -> None:
        """Decode rows start to start + len(out) of a tensor whose rows are those of its sources, one after another."""
        first, stop = 0, start + len(out)
        for name, shape in tensor.sources:
            n_rows = _as_matrix(shape)[0]
            a, b = max(start, first), min(stop, first + n_rows)
            if a < b:
                info = self._weights.tensors[name]
                raw = np.empty((b - a, info.row_bytes), np.uint8)
                self._weights.read_rows(info, a - first, b - first, raw)
                kernels.decode(raw, info.dtype, out=out[a - start : b - start])
            first += n_rows
        self._weights.transform(tensor.gguf, start, out)

    def _number(self, key: str) -> float:
        """The value of a key "<family>.<key>", float32 as files have it: a checkpoint's own may have more digits.

        raises  FormatError  no such key, or a value that is no positive float32 number
        """
        name = f"{self._family}.{key}"
        value = needed(self.fields, name, Kind.F32, self.path)
        with np.errstate(over="ignore"):
            number = float(np.float32(value))
        if not 0 < number < math.inf:
            raise FormatError("an impossible number", file=self.path, key=name, expected="above 0", found=value)
        return number

    def _rotation(self) -> Rotation:
        rope = self.network.rope
        exponents = np.arange(0, rope.rotary, 2, dtype=np.float64) / rope.rotary
        inverse = self._number("rope.freq_base") ** -exponents
        factors = "rope_factors_short.weight"  # windows are no longer than the original context
        if factors in self._tensors:
            divisors = self.matrix(factors)[0]
            for divisor in divisors:
                if not 0 < divisor < math.inf:
                    raise TensorError(
                        "a factor is no positive number", file=self.path, tensor=factors, found=float(divisor)
                    )
            inverse = inverse / divisors
        factor = "rope.scaling.attn_factor"
        return Rotation(inverse, self._number(factor) if f"{self._family}.{factor}" in self.fields else 1.0)


def open_model(path: Path, warn: Callable[[str], None], lora: Sequence[Lora] = ()) -> Model:
    """Open a checkpoint folder or a GGUF file of any type, with adapters merged into it.

    raises  InputError in its kinds, UnsafeError, DiskError
    """
    weights = open_source(path, lora=lora, any_type=True)
    try:
        source = read_source(weights, name=None, fix_special_tokens=False, chat_template=None, warn=warn)
        return Model(source)
    except BaseException:
        weights.close()
        raise


def _refuse_other_scaling(fields: Mapping[str, Field], family: str, path: Path) -> None:
    """Of the ways to stretch the rotation only the one whose factors are tensors of the file is known."""
    field = fields.get(f"{family}.rope.scaling.type")
    if field is not None and field.value not in ("none", "longrope"):
        raise UnsupportedError(
            "this scaling of the rotary embedding is not supported",
            file=path,
            key=field.key,
            expected="none or longrope",
            found=field.value,
        )


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (math.prod(shape[:-1]), shape[-1])
