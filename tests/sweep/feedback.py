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
from dataclasses import replace
from pathlib import Path

import numpy as np
from optimum import PRESETS, unlike

from quantkit.cli import main as quantkit
from quantkit.evaluate import Scores, Text, read_text
from quantkit.strategy import REFERENCE, Strategy, by_name
from quantkit.sweep import Request, Sweep, optimize

UNIFORM = ("Q4_K", "Q3_K", "Q2_K")
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


def one(request: Request) -> Scores:
    """Of the request's only candidate, against the source."""
    with Sweep.open(request, print) as sweep:
        (candidate,) = sweep.candidates
        sweep.measurements.measure([candidate.types])
        return sweep.measurements.scores(candidate.types)


def beside(title: str, first: tuple[str, Request], others: Sequence[tuple[str, Request]]) -> None:
    """Measure candidates on a text, and print them beside the first."""
    name, asked = first
    base = one(asked)
    assert base.kld is not None
    print(f"{title}  {name}: KLD {base.kld.mean():.4f}, PPL {np.exp(base.nll.mean()):.2f}", flush=True)
    for name, asked in others:
        scores = one(asked)
        assert scores.kld is not None
        ratio = scores.kld.mean() / base.kld.mean()
        error = (scores.kld - base.kld * ratio).std() / len(base.kld) ** 0.5 / base.kld.mean()
        kld, ppl = f"{scores.kld.mean():.4f}", f"{np.exp(scores.nll.mean()):.2f}"
        print(f"    {name}: KLD {kld}, {ratio:.2f} ± {error:.2f} of it, PPL {ppl}", flush=True)


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

    def fed(path: Path, what: str) -> Iterator[tuple[str, Request]]:
        mixed = replace(request, recipe=str(path))
        yield f"{what}with feedback", replace(mixed, strategy=material.plain)
        yield f"{what}with feedback behind packed layers", replace(mixed, strategy=material.behind(str(path)))

    for title, text in texts(material, folder):
        print(f"\n{title}")
        on = replace(request, text=text)
        for name, path in recipes.items():
            alike = replace(on, recipe=str(path))
            others = [(what, replace(other, text=text)) for what, other in fed(path, "")]
            beside(name, ("importance", replace(alike, strategy=REFERENCE)), others)
        for name, path in mixes.items():
            others = [(what, replace(other, text=text)) for what, other in fed(path, "mix ")]
            mix = ("mix", replace(on, recipe=str(path)))
            beside(name, ("preset, importance", replace(on, types=(name,))), [mix, *others])


if __name__ == "__main__":
    main()
