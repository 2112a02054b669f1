"""README.md of a release: the model card, with what was measured of each file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit import __version__
from quantkit.units import size

# mean KL divergence in nats below which a file is said to be so; a file above them all is the last
ADVICE = (
    (0.005, "as good as the original"),
    (0.02, "hard to tell from the original"),
    (0.07, "very close to the original"),
    (0.2, "a good choice where memory is short"),
    (0.5, "noticeably worse; for small cards"),
    (float("inf"), "only where nothing larger fits"),
)
TAGS = ("gguf", "llama.cpp", "quantkit")
# where YAML would take a word for something else than text, or a sign for its own
_PLAIN = re.compile(r"(?!(?:true|false|yes|no|on|off|null|y|n)$)[A-Za-z][A-Za-z0-9._/+-]*", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A file of the release and its figures.

    names   of the file, or of its shards
    sha256  of each
    figures of the sweep's report: file_bytes, bits_per_weight, memory, kld, same_top, ppl
    """

    names: Sequence[str]
    sha256: Sequence[str]
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Card:
    """What the card says beside the figures.

    name          of the release
    base_model    repository that was quantized, or of which that is a fine-tune; None where it is not known
    is_base       base_model is what was quantized
    commit        of it, where that is known
    license       {license, license_name, license_link}: those that are given
    repo          where the release will be, for the commands
    imatrix       its file's name
    described     options that the files were described with, as verify takes them
    chat          name of the chat template that Ollama's files have, None without one
    is_split      whether the files are in shards, which Ollama does not take
    picture       name of a picture of the figures, None without one
    """

    name: str
    base_model: str | None
    is_base: bool
    commit: str | None
    license: Mapping[str, str]
    quantized_by: str | None
    tags: Sequence[str]
    languages: Sequence[str]
    repo: str | None
    imatrix: str | None
    described: Sequence[str]
    chat: str | None
    is_split: bool
    picture: str | None


def card(about: Card, rows: Sequence[Row], report: Mapping[str, Any]) -> str:
    """The text of README.md; report is the sweep's."""
    parts = [
        _front_matter(about),
        _heading(about),
        _files(about, rows, report),
        _measured(report),
        _running(about, rows),
    ]
    return "\n\n".join([*parts, _checking(about, rows)]) + "\n"


def _front_matter(about: Card) -> str:
    keys: dict[str, str | Sequence[str] | None] = {
        "base_model": about.base_model,
        "base_model_relation": about.base_model and ("quantized" if about.is_base else "finetune"),
        "quantized_by": about.quantized_by,
        **about.license,
        "language": about.languages,
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "tags": list(dict.fromkeys((*TAGS, *(["imatrix"] if about.imatrix else []), *about.tags))),
    }
    lines = []
    for key, value in keys.items():
        if isinstance(value, str):
            lines.append(f"{key}: {_yaml(value)}")
        elif value:
            lines += [f"{key}:", *(f"- {_yaml(item)}" for item in value)]
    return "\n".join(["---", *lines, "---"])


def _yaml(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())  # JSON escapes an emoji as two halves, YAML does not


def _heading(about: Card) -> str:
    of = f"[{about.base_model}](https://huggingface.co/{about.base_model})" if about.base_model else about.name
    made = f"GGUF files of {of if about.is_base else about.name}"
    if about.base_model and not about.is_base:
        made += f", a fine-tune of {of},"
    at = f" (commit `{about.commit[:12]}`)" if about.commit else ""
    return (
        f"# {about.name} in GGUF\n\n"
        f"{made}{at} for llama.cpp, Ollama and LM Studio, made by quantkit {__version__}. What each file loses was "
        "measured, and stands in the table."
    )


def _files(about: Card, rows: Sequence[Row], report: Mapping[str, Any]) -> str:
    context = report["run"]["context"] * report["run"]["parallel"]
    figures = ("size", "bits/weight", f"memory, {context:,} tokens", "KLD", "99 %", "same top", "PPL")
    head = ("file", *figures, "advice", "SHA-256")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        found, first = row.figures, row.names[0]
        digest = f"`{row.sha256[0]}`" if len(row.names) == 1 else f"of its {len(row.names)} files: see SHA256SUMS"
        lines.append(
            (
                f"[{first}]({first})",
                size(found["file_bytes"]),
                f"{found['bits_per_weight']:.2f}",
                size(found["memory"]["card_bytes"]),
                f"{found['kld']['mean']:.5f} ± {found['kld']['stderr']:.5f}",
                f"{found['kld']['p99']:.4f}",
                f"{100 * found['same_top']:.2f} %",
                f"{found['ppl']:.4f}",
                advice(found["kld"]["mean"]),
                digest,
            )
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    picture = f"![size against KLD]({about.picture})\n\n" if about.picture else ""
    return (
        f"## Which file\n\n{table}\n\n{picture}"
        "Take the largest whose memory your card has. KLD is the mean Kullback-Leibler divergence of its predictions "
        "from the original's, in nats a token: lower is better. One token in a hundred exceeds *99 %*; *same top* "
        "is how often both would have said the same token. The original has a PPL of "
        f"{report['base']['ppl']:.4f}."
    )


def advice(kld: float) -> str:
    """One line on a file with that mean KL divergence."""
    return next(line for limit, line in ADVICE if kld < limit)


def _measured(report: Mapping[str, Any]) -> str:
    names = ", ".join(json.dumps(name).replace("|", "\\|").replace("`", "'") for name in report["text"])
    how = "with an importance matrix" if report["imatrix_sha256"] else "without an importance matrix"
    return (
        f"Measured on {report['windows']} windows of {report['window']} tokens, the second half of each scored, of the "
        f"text {names} (SHA-256 `{report['text_sha256']}`), in {report['dtype']}, {how}; `report.json` has all the "
        "figures. Those of another text cannot be compared with them."
    )


def _running(about: Card, rows: Sequence[Row]) -> str:
    usual = usual_of([row.figures["type"] for row in rows])
    file = next(row.names[0] for row in rows if row.figures["type"] == usual)
    llama, ollama = [f"llama-server -m {file}"], [f"ollama create {about.name.lower()} -f Modelfile"]
    if about.repo:
        llama.insert(0, f"llama-server -hf {about.repo}:{usual}")
        ollama.insert(0, f"ollama run hf.co/{about.repo}:{usual}")
    lines = llama if about.is_split else llama + ollama
    text = "## How to run\n\n" + "\n".join(f"    {line}" for line in lines)
    if about.is_split:
        return f"{text}\n\nOllama takes no split files: `llama-gguf-split --merge` joins them."
    if about.chat:
        return f"{text}\n\nThe Modelfile has the chat template in Ollama's language ({about.chat}) and its stops."
    return f"{text}\n\nThe chat template is none that could be written in Ollama's language: the Modelfile has none."


def usual_of(types: Sequence[str]) -> str:
    """The type to name first: Q4_K_M, which Ollama takes by itself, or else the one in the middle."""
    return "Q4_K_M" if "Q4_K_M" in types else types[len(types) // 2]


def _checking(about: Card, rows: Sequence[Row]) -> str:
    source = f"{about.base_model}@{about.commit}" if about.is_base and about.commit else "SOURCE"
    imatrix = ["--imatrix", about.imatrix] if about.imatrix else []
    verify = shlex.join(["quantkit", "verify", rows[0].names[0], "--source", source, *imatrix, *about.described])
    return (
        f"## How to check\n\n    sha256sum -c SHA256SUMS\n    {verify}\n\n"
        "The first compares what you have with what was released. The second makes the file again from the source, and "
        "compares every byte. The mixes of types are in `recipes`."
    )
