"""What error feedback gains, on trained weights: `make feedback`.

All matrices of the layers in one type and the head in Q6_K, with the importance matrix and with error feedback, both
from the calibration text and Python's own documentation; the figures are of texts that had no part in it.  What is
measured is kept in the folder, and a stopped run goes on.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from dataclasses import replace
from pathlib import Path

import numpy as np
from optimum import Types, unlike

from quantkit.cli import main as quantkit
from quantkit.evaluate import Scores
from quantkit.evaluate.text import SHIPPED
from quantkit.qtypes import Q2_K, Q3_K, Q4_K, Q6_K, Q8_0, QType
from quantkit.strategy import by_name
from quantkit.sweep import Request, Sweep

UNIFORM = (Q4_K, Q3_K, Q2_K)
DOCUMENTATION_CHARS = 200_000


def collect(source: Path, folder: Path) -> tuple[Path, Path]:
    """The importance matrix and the second moments, of the same text."""
    imatrix, moments, text = folder / "imatrix.gguf", folder / "moments", folder / "documentation.txt"
    topics = pydoc_data.topics.topics
    text.write_text("\n\n".join(topics[name] for name in sorted(topics))[:DOCUMENTATION_CHARS])
    if not imatrix.exists():
        texts = ("--text", str(SHIPPED / "calibration.txt"), "--text", str(text))
        try:
            quantkit(["imatrix", str(source), *texts, "-o", str(imatrix), "--covariance", str(moments)])
        except SystemExit as ended:
            assert not ended.code
    return imatrix, moments


def uniform(tensors: Types, qtype: QType) -> Types:
    """Types of a file whose layers are all in one, beside the embedding in Q8_0 and vectors as they are."""
    special = {"output.weight": Q6_K, "token_embd.weight": Q8_0}
    return {
        name: special.get(name, qtype if planned.block_weights > 1 else planned) for name, planned in tensors.items()
    }


def measured(request: Request) -> list[Scores]:
    """Of each type in UNIFORM, against the source."""
    with Sweep.open(request, print) as sweep:
        wanted = [uniform(sweep.candidates[0].types, qtype) for qtype in UNIFORM]
        sweep.measurements.measure(wanted)
        return [sweep.measurements.scores(types) for types in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path, help="for all that comes of it")
    parser.add_argument("--windows", type=int, default=16, help="of each text, at most")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    imatrix, moments = collect(asked.source, asked.folder)
    out = asked.folder / "measured"
    like = Request(asked.source, out, 1 << 40, 2048, types=("Q4_K_M",), imatrix=imatrix, windows=asked.windows)
    for title, text in (("eval.txt", None), *unlike(asked.folder)):
        request = replace(like, text=text)
        plain, fed = measured(request), measured(replace(request, strategy=by_name("feedback", moments)))
        print(f"\n{title}")
        for qtype, one, other in zip(UNIFORM, plain, fed, strict=True):
            assert one.kld is not None and other.kld is not None
            ratio = other.kld.mean() / one.kld.mean()
            error = (other.kld - one.kld * ratio).std() / len(one.kld) ** 0.5 / one.kld.mean()
            perplexities = ", ".join(f"{np.exp(scores.nll.mean()):.2f}" for scores in (one, other))
            print(
                f"{qtype.name}  KLD {one.kld.mean():.4f}  with feedback {other.kld.mean():.4f}, "
                f"{ratio:.2f} ± {error:.2f} of it  PPL {perplexities}"
            )


if __name__ == "__main__":
    main()
