"""`quantkit verify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.described import describing, description
from quantkit.cli.lora import lora_option
from quantkit.cli.source import SOURCE
from quantkit.cli.talk import Talk
from quantkit.errors import UsageError
from quantkit.osio import refuse_replacing

if TYPE_CHECKING:
    from quantkit.checkpoint import Lora
    from quantkit.verify import Difference, Recorded, Remaking, Verification

SCHEMA = {"name": "quantkit.verify", "version": 1}
_SHOWN = 10  # differences; --json has all
_HINT = "give --name, --metadata, --chat-template and --fix-special-tokens as the conversion was given them"


@click.command("verify", short_help="Make a file again from its source, and compare.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--source", type=SOURCE, help="What the file was made from.")
@click.option("--imatrix", type=click.Path(path_type=Path), help="The importance matrix that went in.")
@lora_option("the source")
@click.option("--covariance", type=click.Path(path_type=Path), help="The second moments that went in.")
@describing
@click.option("--write-statement", type=click.Path(path_type=Path), help="If all is equal, attest it in this file.")
@click.option("--statement", type=click.Path(path_type=Path), help="Hold FILE against this statement instead.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Slabs worked on at once.  [default: all processors]")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, nothing said where all is equal.")
def command(
    file: Path,
    source: Path | None,
    imatrix: Path | None,
    lora: tuple[Lora, ...],
    covariance: Path | None,
    name: str | None,
    metadata: Sequence[str],
    chat_template: Path | None,
    fix_special_tokens: bool,
    write_statement: Path | None,
    statement: Path | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the GGUF file FILE (of a split one, the first shard) again from its source, and compare every byte.

    The types are those of its own table.  The other options are those that its conversion was given.  Files of
    llama.cpp's tools are compared too; of their keys, those that quantkit writes as well.

    \b
    quantkit verify my-phi-4-Q4_K_M.gguf --source my-phi-4
    quantkit verify my-phi-4-Q4_K_M.gguf --source my-phi-4 --write-statement my-phi-4-Q4_K_M.json
    quantkit verify my-phi-4-Q4_K_M.gguf --statement my-phi-4-Q4_K_M.json
    """
    if (source is None) == (statement is None):
        raise UsageError("verify needs either --source or --statement", hint="--source makes the file again")
    if statement is not None:
        _refuse((imatrix, lora, name, metadata, chat_template, fix_special_tokens, write_statement))
    from quantkit.verify import Recorded, check_statement, compare, read_statement, remake, state
    from quantkit.verify import write_statement as write

    talk = Talk(quiet)
    with Recorded(file) as recorded:
        if source is None:
            assert statement is not None, "one of them is given"
            stated = read_statement(statement)
            differences = check_statement(recorded, stated)
            _report(file, differences, {"statement": str(statement)}, as_json)
            talk.say(f"{file} is the file of this statement; the statement is not signed")
            return
        from quantkit.imatrix import read_imatrix
        from quantkit.source import open_source

        with open_source(source, lora=lora) as weights:
            importance = read_imatrix(imatrix) if imatrix else None
            described = description(name, metadata, chat_template, fix_special_tokens)
            remaking = remake(weights, recorded, imatrix=importance, covariance=covariance, warn=talk.warn, **described)
            if write_statement:
                inputs = (*weights.files, *(opened.path for opened in recorded.files), imatrix, chat_template)
                refuse_replacing([write_statement], [path for path in inputs if path])
            with talk.progress("verifying", remaking.source_bytes) as progress:
                found = compare(weights, recorded, remaking, threads=threads, progress=progress)
        _report(file, found.differences, _facts(recorded, remaking, found), as_json)
        talk.say(_told(recorded, remaking, found))
        if write_statement:
            write(write_statement, state(recorded, found, imatrix=importance, adapters=weights.adapters))
            talk.say(f"wrote {write_statement}")


def _refuse(of_source: Sequence[object]) -> None:
    """Raise UsageError where an option is given that only a --source has a use for."""
    if any(of_source):
        raise UsageError("with --statement nothing is made again", hint="leave out what goes with --source")


def _facts(recorded: Recorded, remaking: Remaking, found: Verification) -> dict[str, Any]:
    return {
        "files": [{"name": name, "sha256": sha256} for name, sha256 in found.subjects.items()],
        "source": [{"name": name, "tensors_sha256": sha256} for name, sha256 in found.sources.items()],
        "made_by": recorded.maker,
        "recipe": remaking.recipe.name if remaking.recipe else None,
        "tensors": found.n_tensors,
    }


def _told(recorded: Recorded, remaking: Remaking, found: Verification) -> str:
    """What was compared, in one sentence."""
    keys = "all keys" if recorded.maker else "the keys that llama.cpp's converter writes too"
    types = f"types of the recipe {remaking.recipe.name}" if remaking.recipe else "types as the file has them"
    maker = recorded.maker or "another program than quantkit"
    return f"equal: {found.n_tensors} tensors, {keys}, padding and size; {types}; made by {maker}"


def _report(file: Path, differences: Sequence[Difference], facts: dict[str, Any], as_json: bool) -> None:
    """The result on stdout if asked for; each difference on stderr, the first as the GateError that is raised."""
    if as_json:
        listed = [{"message": difference.message} | _plain(difference.place) for difference in differences]
        result = {"schema": SCHEMA, "file": str(file), "equal": not differences, **facts, "differences": listed}
        click.echo(json.dumps(result, indent=2))
    for difference in differences[1:_SHOWN]:
        click.echo(str(difference), err=True)
    if len(differences) > _SHOWN:
        click.echo(f"and {len(differences) - _SHOWN} more differences: --json has them all", err=True)
    if differences:
        raise differences[0].error(_HINT if _described(differences[0]) else None)


def _described(difference: Difference) -> bool:
    """Whether an option of the conversion may have made the difference."""
    key = difference.place.get("key", "quantkit.")
    return not key.startswith("quantkit.")


def _plain(place: Any) -> dict[str, Any]:
    return {key: value if isinstance(value, int | list) else str(value) for key, value in place.items()}
