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

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantkit import __version__, kernels
from quantkit.arch import EMBEDDING
from quantkit.errors import FormatError, MagnitudeError, NotFiniteError, QuantkitError
from quantkit.evaluate.collect import Halves, SquareSums, collect
from quantkit.evaluate.evaluation import Sample
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
from quantkit.moments import Collected, F16Array, Moments, Packed, Run, types_sha256, unpack, write_layer
from quantkit.osio import cpu_count
from quantkit.qtypes import QType
from quantkit.recipe import Facts, Recipe
from quantkit.strategy import FEEDBACK_ROWS, REFERENCE, Matrix, with_feedback

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


def run_of(model: Model, chosen: Sample, how: Arithmetic, recipe: Recipe | None) -> Run:
    """What files of second moments say that are collected of a sample, behind packed layers if there is a recipe.

    It takes the SHA-256 of the model.
    """
    packed = Packed(recipe.name, types_sha256(types_of(model, recipe))) if recipe else None
    facts = [__version__, model.sha256, model.network_sha256, how.dtype, chosen.text.sha256, chosen.windows.shape]
    facts += [hashlib.sha256(chosen.windows.tobytes()).hexdigest()]
    facts += [packed.types_sha256, STRENGTH, RIDGE] if packed else []
    sha256 = hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()
    return Run(chosen.windows.size, chosen.text.sha256, sha256, packed)


def n_sequential_steps(model: Model) -> int:
    """How often collect_sequential() will call progress."""
    return model.network.layers * len(HALVES) * 2


def collect_sequential(
    model: Model,
    windows: npt.NDArray[np.int64],
    recipe: Recipe,
    *,
    how: Arithmetic,
    moments: tuple[Path, Run],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, ColumnSums]:
    """Write the second moments of each layer of the file that a recipe makes, and corrections, one file a layer.

    All windows run side by side, with the inputs and the outputs of a half layer: of a token of Phi-4 that is 0.25 MB.

    windows      int64 (n, positions) of tokens; every position counts
    moments      the folder, and what the files record
    progress     called once for each matrix of the layers
    returns      the sums of squares of every column's inputs in the model itself, as collect() does
    raises       UsageError                 the recipe is not for such a model
                 NotFiniteError             values stop being finite
                 FormatError, MagnitudeError   moments, or weights, that cannot be worked with
                 OutputError, DiskError
    """
    types, (folder, of_run) = types_of(model, recipe), moments
    turn = Turn(model.rotation, windows.shape[1], how)
    size = windows_at_once(model.network, windows.shape[1])
    sums = SquareSums()
    with torch.inference_mode(), ThreadPoolExecutor(cpu_count()) as pool:
        exact = embedded(model, windows, how)
        lossy = torch.from_numpy(_packed_embedding(model, windows, types, how)).to(how.device)
        for i in range(model.network.layers):
            layer = _Layer(Layer(model, i, how, turn), model, types, how, pool, sums, progress)
            for half in HALVES.values():
                layer.compute(half, exact.split(size), lossy.split(size))
            for x in (exact, lossy):
                check_finite(x, model, f"blk.{i}")
            write_layer(folder, f"blk.{i}", layer.collected, of_run)
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
            wanted = product(a)
            error = wanted.float() - product(b)
            if missing is not None:
                error += missing[part]
            self._sums.add(name, a.float().flatten(0, -2))
            inputs = b.float().flatten(0, -2)
            halves.add(inputs)
            errors += summed_over_tokens(error.flatten(0, -2), inputs)
            results.append(then(wanted))
        del product
        try:
            packed = self._pack(name, rows, halves, errors, n_tokens)
        except (FormatError, NotFiniteError, MagnitudeError) as error:
            raise _placed(error, file=self._model.path, tensor=name) from None
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
            prepared = with_feedback(
                Moments(moments, n_tokens, found.kept, found.correction), matrix, self._pool, cpu_count()
            )
        else:
            prepared = REFERENCE.prepare(matrix, self._pool, cpu_count())
        self.collected[name] = found

        def repack(first: int) -> F32Array:
            some = rows[first : first + FEEDBACK_ROWS]
            blocks = np.empty((len(some), qtype.row_bytes(k)), np.uint8)
            try:
                prepared.encode(some, first, qtype, blocks)
            except (NotFiniteError, MagnitudeError) as error:
                raise _placed(error, row=first + error.details["row"]) from None
            return kernels.decode(blocks, qtype)

        return np.concatenate([*self._pool.map(repack, range(0, n, FEEDBACK_ROWS))])

    def _product(self, rows: F32Array) -> Callable[[Tensor], Tensor]:
        """(..., k) -> (..., n) in the dtype of the arithmetic."""
        dtype = self._how.dtype
        multiply = multiplication(torch.from_numpy(rows).to(self._how.device, dtype))
        return lambda x: multiply(x.to(dtype))


def _correction(moments: Tensor, errors: Tensor) -> F16Array:
    """STRENGTH G (H + RIDGE mean(diag H) I)^-1: float16 (n, k) of H (k, k) and G (n, k).

    raises  NotFiniteError  there is none
    """
    damped = moments.clone()
    damped.diagonal().add_(RIDGE * float(moments.diagonal().mean()) or 1.0)
    factor, failed = torch.linalg.cholesky_ex(damped)
    found = torch.cholesky_solve(errors.T, factor).T.mul_(STRENGTH).to(torch.float16).contiguous()
    if failed or not bool(torch.isfinite(found).all()):
        raise NotFiniteError("this matrix, or what it is multiplied by, has a value that is not finite, or too large")
    return found.cpu().numpy()


def _packed_embedding(model: Model, windows: npt.NDArray[np.int64], types: Types, how: Arithmetic) -> F32Array:
    """What the first layer is given in the packed stream: float32 (windows, positions, hidden).

    An embedding that is the head as well has importance, as the importance matrix of the same text will have it.
    """
    distinct, place = np.unique(windows, return_inverse=True)
    rows, qtype, importance = model.embed(distinct), types[EMBEDDING], None
    if model.head == EMBEDDING:
        sums = collect(model, windows, how=how)[EMBEDDING]
        importance = (sums.sums / sums.count).astype(np.float32)
    try:
        unpacked = kernels.decode(kernels.encode(rows, qtype, importance), qtype)
    except (NotFiniteError, MagnitudeError) as error:
        token = int(distinct[error.details["row"]])
        raise _placed(error, file=model.path, tensor=EMBEDDING, row=token) from None
    return unpacked[place.reshape(-1)].reshape(*windows.shape, -1)


def _placed(error: QuantkitError, **place: object) -> QuantkitError:
    """The same error with more of where it is."""
    return type(error)(error.message, hint=error.hint, **error.details | place)
