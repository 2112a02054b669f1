"""SOURCE on the command line."""

from __future__ import annotations

from pathlib import Path

import click

# A path that is there, else ORG/NAME[@REVISION] on the hub: told apart, and fetched, when it is opened.
SOURCE = click.Path(path_type=Path)
