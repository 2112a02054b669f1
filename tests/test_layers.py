"""Imports go down: the layers of the package as a table, held against every import statement in it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import quantkit

PACKAGE = Path(quantkit.__file__).parent

# Facts first; each row stands on those above it.
LAYERS = (
    ("errors", "qtypes", "floats", "osio", "digests", "units"),
    ("checkpoint", "gguf_io"),
    ("arch", "tokenizer", "kernels"),
    ("recipe", "source", "imatrix", "moments", "journal"),
    ("strategy",),
    ("plan", "memory"),
    ("slabs",),
    ("convert", "check", "outline", "bench", "verify", "doctor", "sweep", "evaluate"),
    ("cli", "report", "release"),
)
DEPTH = {name: depth for depth, row in enumerate(LAYERS) for name in row}
# Within a row nothing imports its neighbour, but for these.
# A sweep is evaluate's measurements of many files, of which convert writes one; its table is the report's.
SIDEWAYS = {
    ("qtypes", "errors"),
    ("osio", "errors"),
    ("sweep", "evaluate"),
    ("cli", "report"),
    ("sweep", "convert"),
    ("release", "report"),
    ("cli", "release"),
}
FRONT = {"__init__", "__main__"}  # stand on everything, and nothing on them
# Who may import what is not ours.
LIBRARIES = {
    "click": {"cli"},
    "gguf": {"arch", "gguf_io", "kernels"},
    "highspy": {"sweep"},
    "httpx2": {"checkpoint"},  # what huggingface_hub speaks through
    "huggingface_hub": {"checkpoint", "release"},
    "jinja2": {"doctor", "report"},
    "matplotlib": {"report"},
    "numpy": {
        "checkpoint",
        "kernels",
        "imatrix",
        "moments",
        "source",
        "strategy",
        "slabs",
        "check",
        "bench",
        "verify",
        "doctor",
        "sweep",
        "evaluate",
    },
    "pydantic": {"recipe", "verify", "evaluate", "report", "release"},
    "ray": {"sweep"},
    "rich": {"cli"},
    "safetensors": {"checkpoint", "moments"},
    "tokenizers": {"evaluate"},
    "torch": {"evaluate"},
}
HEAVY = (
    "matplotlib",
    "jinja2",
    "torch",
    "highspy",
    "ray",
    "tokenizers",
    "numpy",
    "gguf",
    "rich",
    "huggingface_hub",
    "pydantic",
)


def imports() -> Iterator[tuple[str, str, str]]:
    """Every import in the package: (place, the importing part, what it imports).  A part of ours is quantkit.<part>."""
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        part = path.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")  # a relative one is nobody's library: refused below
                names = [f"quantkit.{alias.name}" for alias in node.names] if module == "quantkit" else [module]
            else:
                continue
            for name in names:
                top, *rest = name.split(".")
                target = f"quantkit.{rest[0]}" if top == "quantkit" and rest else top
                yield f"{path}:{node.lineno}", part, target


IMPORTS = list(imports())


def test_every_part_has_its_layer() -> None:
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__pycache__", "data", "recipes"} <= DEPTH.keys() | FRONT


def test_imports_go_down() -> None:
    wrong, sideways = [], set()
    for place, part, target in IMPORTS:
        package, _, other = target.partition(".")
        if package != "quantkit" or part in FRONT or other in (part, "__version__"):
            continue
        if other == "_native":
            if part != "kernels":
                wrong.append(f"{place}: {part} imports the C kernels past kernels")
        elif (part, other) in SIDEWAYS:
            sideways.add((part, other))
        elif other not in DEPTH or DEPTH[other] >= DEPTH[part]:
            wrong.append(f"{place}: {part} imports {other}")
    assert wrong == []
    assert sideways == SIDEWAYS, "an exception that nothing needs"


def test_libraries_stay_where_they_belong() -> None:
    wrong = [
        f"{place}: {part} imports {target}"
        for place, part, target in IMPORTS
        if not target.startswith("quantkit.")
        and target not in sys.stdlib_module_names
        and part not in LIBRARIES.get(target, ())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "code",
    ["import quantkit", "from quantkit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"],
    ids=["import quantkit", "quantkit --help"],
)
def test_starts_light(code: str) -> None:
    tail = f"\nimport json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    assert json.loads(run.stderr) == []
