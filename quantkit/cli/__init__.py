"""The command line.  Commands are modules of this package, loaded when they are called: `--help` loads none of them."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from quantkit import __version__
from quantkit.errors import BugError, DiskError, Interrupted, QuantkitError, UsageError

# name: (module, one line of help)
COMMANDS = {
    "convert": ("quantkit.cli.convert", "Turn a checkpoint into GGUF files."),
    "plan": ("quantkit.cli.plan", "Say how large the files will be."),
    "verify": ("quantkit.cli.verify", "Make a file again from its source, and compare."),
    "inspect": ("quantkit.cli.inspect", "Show what a GGUF file holds."),
    "eval": ("quantkit.cli.eval", "Measure what a quantized file lost."),
    "sweep": ("quantkit.cli.sweep", "Measure every type and pick the best that fits."),
    "report": ("quantkit.cli.report", "Draw the pages and plots of a sweep again."),
    "imatrix": ("quantkit.cli.imatrix", "Collect how much each column of a matrix counts."),
    "release": ("quantkit.cli.release", "Make a folder to publish."),
    "push": ("quantkit.cli.push", "Upload a release to the hub."),
    "bench": ("quantkit.cli.bench", "Measure the kernels on this machine."),
    "doctor": ("quantkit.cli.doctor", "Look for what is wrong, with this machine or a file."),
    "completion": ("quantkit.cli.completion", "Print a shell's completion script."),
}


class _Commands(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quantkit")
def cli() -> None:
    """Fine-tuned checkpoints to GGUF files, in one pass, with llama.cpp's own bytes.

    \b
    quantkit convert my-phi-4 -t Q4_K_M -t Q8_0     two files from one reading
    quantkit inspect my-phi-4-Q4_K_M.gguf           what a file holds
    quantkit eval my-phi-4-Q4_K_M.gguf --base my-phi-4     what it lost
    quantkit sweep my-phi-4 --vram 12GiB -o out/    the best file for a card
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code: the table of codes is in README.md."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        cli.main(arguments, prog_name="quantkit", standalone_mode=False)
        sys.stdout.flush()
    except QuantkitError as error:
        _say_error(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say_error(Interrupted("stopped; nothing was written under a final name"))
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # stdout on a full disk, for one; what the layers below meet is typed there
        _say_error(DiskError(f"writing the output failed: {error.strerror}"))
        sys.exit(DiskError.exit_code)
    except Exception:
        traceback.print_exc()
        print("quantkit: this is a bug in quantkit; please report the lines above", file=sys.stderr)
        sys.exit(BugError.exit_code)
    sys.exit(0)


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _say_error(error: QuantkitError) -> None:
    print(f"quantkit: error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
