"""`quantkit eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.lora import lora_option
from quantkit.cli.measuring import measuring_options
from quantkit.cli.source import SOURCE
from quantkit.cli.talk import Talk, table
from quantkit.errors import GateError, Interrupted, UsageError
from quantkit.osio import AtomicFile, make_folder, refuse_replacing
from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.checkpoint import Lora
    from quantkit.evaluate import Activations, Finding


@click.command("eval", short_help="Measure what a quantized file lost.")
@click.argument("models", nargs=-1, required=True, type=SOURCE)
@click.option("--base", type=SOURCE, help="Checkpoint or GGUF file to hold the models against.")
@lora_option("the base")
@measuring_options("eval.txt")
@click.option(
    "--activations",
    type=click.Choice(["f32", "q8"]),
    default="f32",
    show_default=True,
    help="What matrices are multiplied by: exact, or rounded as llama.cpp's CPU backend does.",
)
@click.option("--check", type=click.Path(path_type=Path), help="Baseline; exit 3 if a figure is worse than there.")
@click.option("--update", is_flag=True, help="Write the baseline anew instead.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no table.")
def command(
    models: Sequence[Path],
    base: Path | None,
    lora: tuple[Lora, ...],
    texts: Sequence[str],
    window: int,
    windows: int | None,
    dtype: str,
    device: str,
    activations: Activations,
    check: Path | None,
    update: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Perplexity of each MODEL on a text, and with --base how far its predictions are from the base's.

    A MODEL is a GGUF file of any type, a checkpoint folder, or ORG/NAME on the hub.  Weights are read layer by layer:
    memory is that of one layer, whatever the model's size.

    \b
    quantkit eval my-phi-4-Q4_K_M.gguf my-phi-4-Q6_K.gguf --base my-phi-4
    quantkit eval my-phi-4-Q4_K_M.gguf --base my-phi-4 --check baselines/my-phi-4.json
    """
    if lora and base is None:
        raise UsageError("--lora is merged into the base: it needs --base")
    if update and check is None:
        raise UsageError("--update needs --check FILE, the baseline to write")
    names = [path.name for path in models]
    if update and len(set(names)) < len(names):
        raise UsageError("a baseline knows models by their files' names, and two have the same", found=", ".join(names))
    from quantkit.evaluate import (
        arithmetic,
        conditions,
        evaluate,
        n_steps,
        open_model,
        read_baseline,
        read_text,
        sample,
        shipped,
        write_baseline,
    )

    talk = Talk(quiet)
    how = arithmetic(activations, dtype, device)
    text = read_text(texts) if texts else shipped("eval.txt")
    with ExitStack() as stack:
        baseline = read_baseline(check) if check and not update else None
        opened = [stack.enter_context(open_model(path, talk.warn)) for path in models]
        opened_base = stack.enter_context(open_model(base, talk.warn, lora)) if base else None
        every = [opened_base, *opened] if opened_base else opened
        chosen = sample(every, text, window, windows)
        recording = None
        if check and update:
            refuse_replacing([check], [*(file for model in every for file in model.files), *map(Path, texts)])
            make_folder(check.parent)
            recording = stack.enter_context(AtomicFile(check))
        if check and baseline:
            baseline.check_comparable(conditions(chosen, how, opened_base), len(chosen.windows), names, check)
        with talk.progress("measuring", n_steps(every, chosen.windows), of_bytes=False) as progress:
            result = evaluate(opened, chosen, base=opened_base, how=how, progress=lambda: progress(1))
        findings: list[Finding] = []
        if baseline and result["complete"]:
            findings = baseline.compare(result)
            result["gate"] = list(map(_as_json, findings))
        if as_json:
            click.echo(json.dumps(result, indent=2))
        elif not quiet:
            _show(result)
        if not result["complete"]:
            raise Interrupted(f"stopped; these figures are of the first {result['windows']} windows")
        if recording:
            write_baseline(recording, result)
            talk.say(f"wrote {check}")
    _hold(findings, talk)


def _as_json(finding: Finding) -> dict[str, Any]:
    verdict = "worse" if finding.worse else "moved" if finding.moved else "as recorded"
    return asdict(finding) | {"verdict": verdict}


def _hold(findings: Sequence[Finding], talk: Talk) -> None:
    """Say what became of each figure; raises GateError, with those in it that are worse than their records."""
    worse = [finding for finding in findings if finding.worse]
    for finding in findings:
        if not finding.worse:
            talk.say(str(finding))
    if worse:
        raise GateError(
            f"{len(worse)} of {len(findings)} figures are worse than recorded: {'; '.join(map(str, worse))}",
            hint="if this is meant, record the new figures: --check FILE --update",
        )


def _show(result: dict[str, Any]) -> None:
    against = ("KLD", "99 %", "same top", "PPL ratio") if result["base"] else ()
    rows = [("model", "size", "PPL", *against)]
    for model in [result["base"], *result["models"]] if result["base"] else result["models"]:
        row = [model["name"], size(model["file_bytes"]), f"{model['ppl']:.4f} ± {model['ppl_stderr']:.4f}"]
        if "kld" in model:
            row += [
                f"{model['kld']['mean']:.5f} ± {model['kld']['stderr']:.5f}",
                f"{model['kld']['p99']:.4f}",
                f"{100 * model['same_top']:.2f} %",
                f"{model['ppl_ratio']:.4f} ± {model['ppl_ratio_stderr']:.4f}",
            ]
        rows.append((*row, *[""] * (len(rows[0]) - len(row))))
    click.echo(table(rows))
    click.echo(
        f"{result['windows']} windows of {result['window']} tokens, the second half of each scored; text "
        f"{', '.join(result['text'])} (sha256 {result['text_sha256'][:16]}); activations {result['activations']}, "
        f"{result['dtype']} on {result['device']}; KLD in nats"
    )
