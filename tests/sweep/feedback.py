"""What error feedback gains, on trained weights: `make feedback`.

Files of the same bytes: as llama.cpp packs them with an importance matrix, with error feedback, and with error feedback
behind packed layers (`imatrix --sequential`).  First with all matrices of the layers in one type and the head in Q6_K,
then three presets beside the mixes of their sizes.  Importance and moments are of the shipped texts and of half of
Python's own documentation, and decide the mixes too; the figures are of texts that had no part in it.  What is measured
is kept in the folder, and a stopped run goes on.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from optimum import PRESETS, unlike

from quantkit.cli import main as quantkit
from quantkit.evaluate import Scores, Text, read_text
from quantkit.strategy import Strategy, by_name
from quantkit.sweep import Request, Sweep, optimize

UNIFORM = ("Q4_K", "Q3_K", "Q2_K")
CASES = {
    3: ("importance", "feedback", "feedback behind packed layers"),
    4: ("preset, importance", "mix, importance", "mix, feedback", "mix, feedback behind packed layers"),
}
RECIPE = """file_type = 1
[[rule]]
match = "blk.*"
type = "{type}"
[[rule]]
match = "output.weight"
type = "Q6_K"
[[rule]]
match = "*"
type = "Q8_0"
"""


class Material:
    """What is collected: the importance matrix and the moments, of one text and of the same windows of it.

    windows   of that text, at most
    """

    def __init__(self, source: Path, folder: Path, windows: int) -> None:
        self._source, self._folder, self._windows = source, folder, windows
        self._text, self.like = folder / "documentation.txt", folder / "documentation-rest.txt"
        topics = pydoc_data.topics.topics
        names = sorted(topics)
        for path, some in ((self._text, names[::2]), (self.like, names[1::2])):
            path.write_text("\n\n".join(topics[name] for name in some))
        self.imatrix = folder / "imatrix.gguf"
        self.plain = by_name("feedback", self._collected(self.imatrix, folder / "moments"))

    def behind(self, recipe: str) -> Strategy:
        """Error feedback by moments behind layers that are packed by this preset or recipe's file."""
        name = Path(recipe).stem
        moments = self._folder / f"behind-{name}"
        return by_name("feedback", self._collected(moments.with_suffix(".gguf"), moments, "--sequential", recipe))

    def _collected(self, imatrix: Path, moments: Path, *options: str) -> Path:
        if not imatrix.exists():
            texts = ["--text", str(self._text), "--windows", str(self._windows)]
            try:
                quantkit(
                    ["imatrix", str(self._source), *texts, "-o", str(imatrix), "--covariance", str(moments), *options]
                )
            except SystemExit as ended:
                assert not ended.code
        return moments


def texts(material: Material, folder: Path) -> Iterator[tuple[str, Text | None]]:
    """Two that are like what was collected on, and two that are not."""
    yield "documentation", read_text([str(material.like)])
    yield "eval.txt", None
    yield from unlike(folder)


def scores_of(requests: Sequence[Request]) -> list[Scores]:
    """Of the only candidate of each, against the source; those of one strategy are measured side by side."""
    with ExitStack() as stack:
        sweeps = [stack.enter_context(Sweep.open(request, print)) for request in requests]
        types = [sweep.candidates[0].types for sweep in sweeps]
        for strategy in dict.fromkeys(request.strategy for request in requests):
            alike = [i for i, request in enumerate(requests) if request.strategy is strategy]
            sweeps[alike[0]].measurements.measure([types[i] for i in alike])
        return [sweep.measurements.scores(own) for sweep, own in zip(sweeps, types, strict=True)]


def report(name: str, cases: Sequence[str], found: Sequence[Scores]) -> None:
    """Print the scores of some files of the same bytes, beside those of the first."""
    first = found[0].kld
    assert first is not None
    for case, scores in zip(cases, found, strict=True):
        assert scores.kld is not None
        ratio = scores.kld.mean() / first.mean()
        error = (scores.kld - first * ratio).std() / len(first) ** 0.5 / first.mean()
        part = "" if scores is found[0] else f" {ratio:.2f} ± {error:.2f} of it"
        print(f"{name:15} {case:34} KLD {scores.kld.mean():.4f}{part}  PPL {np.exp(scores.nll.mean()):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path, help="for all that comes of it")
    parser.add_argument("--windows", type=int, default=16, help="of each text to measure on, at most")
    parser.add_argument("--collected", type=int, default=64, help="windows to collect from, at most")
    asked = parser.parse_args()
    folder: Path = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    material = Material(asked.source, folder, asked.collected)
    request = Request(asked.source, folder / "measured", 1 << 40, 2048, imatrix=material.imatrix, windows=asked.windows)

    recipes = {name: folder / f"{name}.toml" for name in UNIFORM}
    for name, path in recipes.items():
        path.write_text(RECIPE.format(type=name))
    sought = optimize(replace(request, types=PRESETS, strategy=material.plain), warn=print)
    assert sought.optimized is not None
    mixes = {
        mix.budget.name.removeprefix("OPT-"): request.out / f"{mix.recipe.name}.toml" for mix in sought.optimized.mixes
    }

    def fed(path: Path) -> list[Request]:
        mixed = replace(request, recipe=str(path))
        return [replace(mixed, strategy=strategy) for strategy in (material.plain, material.behind(str(path)))]

    rows = {f"all {name}": [replace(request, recipe=str(path)), *fed(path)] for name, path in recipes.items()}
    for name, path in mixes.items():
        rows[f"size of {name}"] = [replace(request, types=(name,)), replace(request, recipe=str(path)), *fed(path)]
    for title, text in texts(material, folder):
        print(f"\n{title}")
        found = iter(scores_of([replace(asked, text=text) for row in rows.values() for asked in row]))
        for name, row in rows.items():
            report(name, CASES[len(row)], [next(found) for _ in row])


if __name__ == "__main__":
    main()
