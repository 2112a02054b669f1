"""`quantkit completion`, and what the values of other commands' options complete to."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from quantkit import qtypes

# shell: how its users have the script in every session
SHELLS = {
    "bash": """echo 'eval "$(quantkit completion bash)"' >> ~/.bashrc""",
    "zsh": """echo 'eval "$(quantkit completion zsh)"' >> ~/.zshrc""",
    "fish": "quantkit completion fish > ~/.config/fish/completions/quantkit.fish",
}


@click.command("completion", short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(list(SHELLS)))
def command(shell: str) -> None:
    """Print the script with which SHELL completes commands, options, types, recipes and files.

    Its last line says how to have it in every session.
    """
    from quantkit.cli import cli

    completer = get_completion_class(shell)
    assert completer is not None, "click has every shell of the table"
    script = completer(cli, {}, "quantkit", "_QUANTKIT_COMPLETE").source().strip()
    click.echo(f"{script}\n\n# in every session: {SHELLS[shell]}")


def complete_type(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The presets for `-t`, of the family that --recipe has named so far; none beside a recipe file."""
    from quantkit.recipe import families, presets

    family = ctx.params.get("recipe") or families()[0]
    known = presets(family) if family in families() else []
    return [name for name in known if name.startswith(incomplete.upper())]


def complete_tensor_type(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The tensor types for `-t` of bench."""
    return [qtype.name for qtype in qtypes.ALL if qtype.name.startswith(incomplete.upper())]


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """The families for `--recipe`; where none starts so, files: a shell that is told of files offers nothing else."""
    from quantkit.recipe import families

    starting = [CompletionItem(name) for name in families() if name.startswith(incomplete)]
    return starting or [CompletionItem(incomplete, type="file")]
