"""How good the mixes of `sweep --optimize` are, on trained weights: `make optimum`.

For each preset, with the same importance matrix: its KL divergence, that of the mix of its size, what was predicted of
that, and of how many bytes a mix is that has the preset's own KL divergence.  Then mixes drawn at random between 3 and
6 bits per weight, predicted beside measured.  What decides the mixes is the calibration text alone; the figures are of
texts that had no part in it.  What is measured is kept in the folder, and a stopped run goes on.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import getdoc
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.evaluate import Text, read_text
from quantkit.qtypes import QType
from quantkit.sweep import Bounds, Optimizer, Request, Sweep
from quantkit.sweep.bounds import OFFERED
from quantkit.sweep.mix import Budget
from quantkit.sweep.sensitivity import Shapes

PRESETS = ("Q4_K_M", "Q3_K_M", "Q2_K")
LICENCES = Path("/usr/share/common-licenses")  # of Debian
N_RANDOM, SEED, LEAST_BITS, MOST_BITS = 12, 0, 3.0, 6.0
Types = Mapping[str, QType]


def unlike(folder: Path) -> Iterator[tuple[str, Text]]:
    """Texts that have little in common with those that come with quantkit."""
    parts = [np.linalg, np.fft, np.polynomial.Polynomial, np.polynomial.Chebyshev, np.random.Generator]
    documented = [getdoc(getattr(part, name)) for part in parts for name in sorted(vars(part)) if name[0] != "_"]
    mathematics = folder / "numpy.txt"
    mathematics.write_text("\n\n".join(text for text in documented if text))
    yield "NumPy's docstrings", read_text([str(mathematics)])
    if LICENCES.is_dir():
        yield "licences", read_text([str(path) for path in sorted(LICENCES.iterdir()) if not path.is_symlink()])
    else:
        print(f"left out: {LICENCES} is not here")


def beside_presets(request: Request, optimizer: Optimizer, title: str) -> None:
    """Measure presets and mixes of their sizes on a text, and print them beside each other."""
    mixes = {mix.budget.name.removeprefix("OPT-"): mix for mix in optimizer.optimized().mixes}
    with Sweep.open(request, print) as sweep:
        presets = {candidate.output.name: candidate.types for candidate in sweep.candidates}
        wanted = {name: dict(types) | dict(mixes[name].types) for name, types in presets.items()}
        measured = sweep.measurements
        measured.measure([*presets.values(), *wanted.values()])
        print(f"\n{title}: {len(measured.sample.windows)} windows")
        for name in PRESETS:
            preset, mix = (measured.scores(types).kld for types in (presets[name], wanted[name]))
            assert preset is not None and mix is not None
            change = mix.mean() / preset.mean() - 1
            error = (mix - preset * (1 + change)).std() / len(mix) ** 0.5 / preset.mean()
            print(f"{name:7} KLD {preset.mean():.4f}  mix {mix.mean():.4f}  {100 * change:+.1f} % ± {100 * error:.1f}")


def at_equal_quality(request: Request, optimizer: Optimizer) -> None:
    """Of each preset: the smallest mix that is thought to have its KL divergence, and what it turns out to have."""
    print("\nat equal KL divergence")
    mixes = {mix.budget.name.removeprefix("OPT-"): mix for mix in optimizer.optimized().mixes}
    with Sweep.open(request, print) as sweep:
        measured = sweep.measurements
        for candidate in sweep.candidates:
            mix = mixes[candidate.output.name]
            kld, own = (measured.scores(dict(candidate.types) | types).kld for types in ({}, dict(mix.types)))
            assert kld is not None and own is not None
            goal = float(kld.mean() / own.mean()) * mix.predicted  # as much above the prediction as the mix turned out
            low, high = 0, mix.budget.nbytes
            while high - low > 1 << 14:
                middle = (low + high) // 2
                found = predicted(optimizer, replace(mix.budget, nbytes=middle))
                low, high = (low, middle) if found is not None and found[1] <= goal else (middle, high)
            found = predicted(optimizer, replace(mix.budget, nbytes=high))
            assert found is not None
            types = dict(candidate.types) | found[0]
            measured.measure([types])
            kld_found = measured.scores(types).kld
            assert kld_found is not None
            fixed = candidate.output.tensor_bytes - mix.budget.nbytes
            smaller = 1 - (high + fixed) / candidate.output.tensor_bytes
            print(
                f"{candidate.output.name:7} KLD {kld.mean():.4f}  mix {kld_found.mean():.4f}  "
                f"{candidate.output.tensor_bytes:,} bytes  mix {high + fixed:,}  {100 * smaller:.1f} % smaller"
            )


def predicted(optimizer: Optimizer, budget: Budget) -> tuple[Types, float] | None:
    """The mix of a budget and its predicted KL divergence, or None where nothing fits."""
    choices = optimizer._choices_in(Bounds())
    least = sum(min(optimizer._nbytes(names, qtype) for qtype in types) for names, types in choices)
    if least > budget.nbytes:
        return None
    types = optimizer._solved(budget, choices)[1]
    return types, optimizer.response.predict(optimizer.sensitivity.total(types))


def drawn(rng: random.Random, shapes: Shapes, bits: float) -> dict[str, QType]:
    """Types drawn for each matrix, then changed one by one until all have so many bits per weight between them."""
    weights = {name: shape[0] * shape[1] for name, shape in shapes.items()}
    types = {name: rng.choice(OFFERED) for name in shapes}
    total = sum(weights.values())

    def missing() -> float:
        return bits - sum(qtype.bits_per_weight * weights[name] for name, qtype in types.items()) / total

    while abs(missing()) > 0.02:
        name = rng.choice(list(shapes))
        number = OFFERED.index(types[name]) + (1 if missing() > 0 else -1)
        types[name] = OFFERED[min(max(number, 0), len(OFFERED) - 1)]
    return types


def at_random(request: Request, optimizer: Optimizer) -> None:
    """Predict mixes that nobody chose, and measure them."""
    rng = random.Random(SEED)
    with Sweep.open(request, print) as sweep:
        measured, shapes = sweep.measurements, optimizer._shapes
        vectors = {name: tensor.qtype for name, tensor in optimizer._vectors.items()}
        aims = [LEAST_BITS + (MOST_BITS - LEAST_BITS) * i / (N_RANDOM - 1) for i in range(N_RANDOM)]
        mixes = [drawn(rng, shapes, bits) for bits in aims]
        measured.measure([mix | vectors for mix in mixes])
        pairs: list[tuple[float, float]] = []
        print(f"\nmixes drawn at random: {len(measured.sample.windows)} windows")
        for bits, mix in zip(aims, mixes, strict=True):
            kld: Any = measured.scores(mix | vectors).kld
            pairs.append((optimizer.response.predict(optimizer.sensitivity.total(mix)), float(kld.mean())))
            print(f"{bits:.2f} bits/weight  predicted {pairs[-1][0]:.4f}  KLD {pairs[-1][1]:.4f}")
    guesses, found = np.array(pairs).T
    ranks = [np.argsort(np.argsort(values)) for values in (guesses, found)]
    error = np.median(abs(guesses / found - 1))
    print(f"rank correlation {np.corrcoef(*ranks)[0, 1]:.3f}, median error {100 * error:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("imatrix", type=Path)
    parser.add_argument("folder", type=Path, help="for what is measured")
    parser.add_argument("--windows", type=int, default=16, help="of each text, at most")
    parser.add_argument("--probes", type=int, help="as of sweep")
    asked = parser.parse_args()
    like = Request(
        asked.source, asked.folder, 1 << 40, 2048, types=PRESETS, imatrix=asked.imatrix, windows=asked.windows
    )
    with Sweep.open(like, print) as sweep:
        optimizer = Optimizer(sweep, Bounds(), asked.probes)
        optimizer.measure()
        points = ", ".join(f"{cost:.4f} {kld:.4f}" for cost, kld in optimizer.response.points)
        print(f"{len(optimizer.sensitivity.probed)} matrices probed; sums of costs and KL divergences: {points}")
        predictions = ", ".join(f"{mix.recipe.name} {mix.predicted:.4f}" for mix in optimizer.optimized().mixes)
        print(f"predicted on eval.txt: {predictions}")
        beside_presets(like, optimizer, "eval.txt")
        for title, text in unlike(asked.folder):
            beside_presets(replace(like, text=text), optimizer, title)
        at_random(like, optimizer)
        at_equal_quality(like, optimizer)


if __name__ == "__main__":
    main()
