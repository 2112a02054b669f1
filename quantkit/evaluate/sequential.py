"""Second moments behind matrices that are packed already, and what is to be added to the next to make good for them.

Two streams go through the layers side by side: that of the model itself, and that of the file it will be, in which each
matrix is packed as soon as its moments are there.  With a and b what a matrix W is multiplied by in the one and in the
other, and d the difference of the hidden states that its product is added to (0 for the first matrix of a half layer),

    H = sum b b^T,      G = sum (W (a - b) + d) b^T,      correction = STRENGTH G (H + RIDGE mean(diag H) I)^-1

over the tokens.  (W + G H^-1) b is the nearest to W a + d that any matrix makes of b: what was lost before is made good
as far as it can be told from b.  It is done by halves, for not all of it holds for the next text.  W + correction is
packed in place of W, with error feedback through H.

Sources: Arai and Ichikawa 2025 (https://arxiv.org/abs/2504.09629), Li et al. 2025 (https://arxiv.org/abs/2504.02692).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantkit import kernels
from quantkit.arch import EMBEDDING
from quantkit.errors import FormatError, MagnitudeError, NotFiniteError
from quantkit.evaluate.collect import Halves, SquareSums
from quantkit.evaluate.model import F32Array, Model
from quantkit.evaluate.network import (
    HALVES,
    Arithmetic,
    Half,
    Layer,
    Turn,
    check_finite,
    embedded,
    last_states,
    multiplication,
    summed_over_tokens,
    windows_at_once,
)
from quantkit.imatrix import ColumnSums
from quantkit.kernels.feedback import CODINGS
from quantkit.moments import Collected, F16Array, Moments, Packed, types_sha256, unpack, write_layer
from quantkit.osio import cpu_count
from quantkit.qtypes import QType
from quantkit.recipe import Facts, Recipe
from quantkit.strategy import FEEDBACK_ROWS, REFERENCE, Matrix, fed_back

STRENGTH = 0.5
RIDGE = 0.03

Types = Mapping[str, QType]  # of matrices, by GGUF name


def types_of(model: Model, recipe: Recipe) -> dict[str, QType]:
    """Those that a recipe gives the matrices of a model in a conversion with an importance matrix, by GGUF name.

    raises  UsageError  the recipe is not for such a model
    """
    network = model.network
    facts = Facts(n_layers=network.layers, n_gqa=network.n_gqa, imatrix=True, tied=network.tied)
    recipe.check(facts)
    return {name: recipe.type_of(name, shape, facts) for name, shape in model.tensors.items() if len(shape) > 1}


def packed_by(model: Model, recipe: Recipe) -> Packed:
    """What files of second moments say that are collected behind a model's layers packed by a recipe."""
    return Packed(recipe.name, types_sha256(types_of(model, recipe)))


def n_sequential_steps(model: Model) -> int:
    """How often collect_sequential() will call progress."""
    return model.network.layers * len(HALVES) * 2


def collect_sequential(
    model: Model,
    windows: npt.NDArray[np.int64],
    recipe: Recipe,
    *,
    how: Arithmetic,
    folder: Path,
    text_sha256: str,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, ColumnSums]:
    """Write the second moments of each layer of the file that a recipe makes, and corrections, one file a layer.

    All windows run side by side, with the inputs and the outputs of a half layer: of a token of Phi-4 that is 0.25 MB.

    windows      int64 (n, positions) of tokens; every position counts
    text_sha256  kept in the files
    progress     called once for each matrix of the layers
    returns      the sums of squares of every column's inputs in the model itself, as collect() does
    raises       UsageError                 the recipe is not for such a model
                 NotFiniteError             values stop being finite
                 FormatError, MagnitudeError   moments, or weights, that cannot be worked with
                 OutputError, DiskError
    """
    types, packed = types_of(model, recipe), packed_by(model, recipe)
    turn = Turn(model.rotation, windows.shape[1], how)
    size = windows_at_once(model.network, windows.shape[1])
    sums = SquareSums()
    with torch.inference_mode(), ThreadPoolExecutor(cpu_count()) as pool:
        exact = embedded(model, windows, how)
        lossy = torch.from_numpy(_packed_embedding(model, windows, types)).to(how.device)
        for i in range(model.network.layers):
            layer = _Layer(Layer(model, i, how, turn), model, types, how, pool, sums, progress)
            for half in HALVES.values():
                layer.compute(half, exact.split(size), lossy.split(size))
            for x in (exact, lossy):
                check_finite(x, model, f"blk.{i}")
            write_layer(folder, f"blk.{i}", layer.collected, windows.size, text_sha256, packed)
        sums.add(model.head, last_states(model, exact, how, slice(None)).flatten(0, 1))
    return sums.by_name


class _Layer:
    """A layer in both streams.

    collected   of the matrices that are done, by GGUF name
    """

    def __init__(
        self,
        layer: Layer,
        model: Model,
        types: Types,
        how: Arithmetic,
        pool: ThreadPoolExecutor,
        sums: SquareSums,
        progress: Callable[[], None],
    ) -> None:
        self._layer, self._model, self._types, self._how, self._pool = layer, model, types, how, pool
        self._sums, self._progress = sums, progress
        self.collected: dict[str, Collected] = {}

    def compute(self, half: Half, exact: tuple[Tensor, ...], lossy: tuple[Tensor, ...]) -> None:
        """Add what a half layer computes to the hidden states of each stream, parts of (windows, positions, hidden)."""

        def between(y: Tensor) -> Tensor:
            return half.between(self._layer, y)

        inner = self._through(
            half.first, [*self._layer.normed(half, exact)], [*self._layer.normed(half, lossy)], between
        )
        missing = [x - y for x, y in zip(exact, lossy, strict=True)]
        added = self._through(half.last, *inner, lambda y: y, missing)
        for states, products in zip((exact, lossy), added, strict=True):
            for x, product in zip(states, products, strict=True):
                x += product

    def _through(
        self,
        which: str,
        exact: list[Tensor],
        lossy: list[Tensor],
        then: Callable[[Tensor], Tensor],
        missing: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Pack a matrix, and return then(product) of exact inputs with it, and of lossy ones with what it became.

        missing  by how much the states that the product is added to differ; None where it is added to none
        """
        name = self._layer.name(which)
        rows = self._model.matrix(name)
        n, k = rows.shape
        n_tokens = sum(a.shape[0] * a.shape[1] for a in exact)
        halves = Halves(k, n_tokens, exact[0].device)
        errors = torch.zeros(n, k, device=self._how.device)
        product = self._product(rows)
        results = []
        for part, (a, b) in enumerate(zip(exact, lossy, strict=True)):
            self._sums.add(name, a.flatten(0, -2))
            wanted = product(a)
            error = wanted - product(b)
            if missing is not None:
                error += missing[part]
            halves.add(b.flatten(0, -2))
            errors += summed_over_tokens(error.flatten(0, -2), b.flatten(0, -2))
            results.append(then(wanted))
        del product
        try:
            packed = self._pack(name, rows, halves, errors, n_tokens)
        except (FormatError, NotFiniteError, MagnitudeError) as error:
            details = error.details | {"file": self._model.path, "tensor": name}
            raise type(error)(error.message, hint=error.hint, **details) from None
        unpacked = self._product(packed)
        self._progress()
        return results, [then(unpacked(b)) for b in lossy]

    def _pack(self, name: str, rows: F32Array, halves: Halves, errors: Tensor, n_tokens: int) -> F32Array:
        """The rows as they will be read back from the file."""
        n, k = rows.shape
        qtype = self._types[name]
        matrix = Matrix(name, n, k, [qtype], None)
        found = halves.collected()
        if qtype.name in CODINGS:
            moments = unpack(found.triangle, k)
            found = replace(found, correction=_correction(torch.from_numpy(moments).to(errors.device), errors))
            prepared = fed_back(
                Moments(moments, n_tokens, found.kept, found.correction), matrix, self._pool, cpu_count()
            )
        else:
            prepared = REFERENCE.prepare(matrix, self._pool, cpu_count())
        self.collected[name] = found

        def repack(first: int) -> F32Array:
            some = rows[first : first + FEEDBACK_ROWS]
            blocks = np.empty((len(some), qtype.row_bytes(k)), np.uint8)
            prepared.encode(some, first, qtype, blocks)
            return kernels.decode(blocks, qtype)

        return np.concatenate([*self._pool.map(repack, range(0, n, FEEDBACK_ROWS))])

    def _product(self, rows: F32Array) -> Callable[[Tensor], Tensor]:
        """(..., k) -> (..., n), float32."""
        dtype = self._how.dtype
        multiply = multiplication(torch.from_numpy(rows).to(self._how.device, dtype))
        return lambda x: multiply(x.to(dtype)).float()


def _correction(moments: Tensor, errors: Tensor) -> F16Array:
    """STRENGTH G (H + RIDGE mean(diag H) I)^-1: float16 (n, k) of H (k, k) and G (n, k)."""
    ridge = RIDGE * float(moments.diagonal().mean()) or 1.0
    factor = torch.linalg.cholesky(moments + ridge * torch.eye(len(moments), device=moments.device))
    found = torch.cholesky_solve(errors.T, factor).T * STRENGTH
    return found.to(torch.float16).contiguous().cpu().numpy()


def _packed_embedding(model: Model, windows: npt.NDArray[np.int64], types: Types) -> F32Array:
    """What the first layer is given in the packed stream: float32 (windows, positions, hidden)."""
    distinct, place = np.unique(windows, return_inverse=True)
    rows, qtype = model.embed(distinct), types[EMBEDDING]
    unpacked = kernels.decode(kernels.encode(rows, qtype), qtype)
    return unpacked[place.reshape(-1)].reshape(*windows.shape, -1)
