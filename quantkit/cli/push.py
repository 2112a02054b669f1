"""`quantkit push`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from quantkit.cli.talk import Talk, table
from quantkit.units import size

SCHEMA = {"name": "quantkit.push", "version": 1}


@click.command("push", short_help="Upload a release to the hub.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@click.option("--yes", is_flag=True, help="Do it.  Without this, only say what would go.")
@click.option("--private", is_flag=True, help="If the repository is new, let nobody else see it.")
@click.option("--json", "as_json", is_flag=True, help="What goes as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no table.")
def command(folder: Path, repo: str, yes: bool, private: bool, as_json: bool, quiet: bool) -> None:
    """Upload the FOLDER that `quantkit release` has made, as one commit: what its SHA256SUMS lists, each file checked.

    Log in with `hf auth login`, or set HF_TOKEN.

    \b
    quantkit push out/ me/my-phi-4-GGUF           what would go
    quantkit push out/ me/my-phi-4-GGUF --yes
    """
    from quantkit.release.push import push, upload

    talk = Talk(quiet)
    what = upload(folder, repo)
    commit = push(what, private=private) if yes else None
    result = {"schema": SCHEMA, "repo": repo, "files": what.files, "bytes": what.nbytes, "commit": commit}
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not quiet:
        click.echo(table([("size", "file"), *((size(nbytes), name) for name, nbytes in what.files.items())]))
    talk.say(
        f"uploaded {size(what.nbytes)}: {commit}"
        if commit
        else f"{size(what.nbytes)} would go to {repo}\nnext: the same command with --yes"
    )
