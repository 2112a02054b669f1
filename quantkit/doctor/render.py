"""A chat template is a program of a stranger's: it is rendered in a child process that has next to nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 2.0
MEMORY_BYTES = 256 << 20
_SECONDS_TO_START = 60.0  # Python and jinja2, on a busy machine
_PROGRAM = Path(__file__).with_name("sandbox.py")
_KEPT = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH")  # of the environment: what finds the libraries


@dataclass(frozen=True)
class Rendering:
    """text that the template gave; or None, and the problem in its place."""

    text: str | None
    problem: str | None = None


def unavailable() -> str | None:
    """Why no template can be rendered here, or None."""
    if importlib.util.find_spec("jinja2") is None:
        return "jinja2 is not installed"
    if importlib.util.find_spec("resource") is None:
        return "this system cannot limit a process"
    return None


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Rendering:
    """Render messages with the assistant's turn opened, as a runtime does before it generates.

    template          Jinja text
    messages          {"role": ..., "content": ...} each
    bos_token, eos_token  texts that templates may put out
    seconds           of processor and of wall time, from when the child is ready; then it is killed
    memory_bytes      of its address space, Python included

    The child has no file, socket or process of its own, and jinja2's sandbox for immutable values.
    """
    variables = {
        "messages": list(messages),
        "add_generation_prompt": True,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "tools": None,
        "documents": None,
    }
    job = {"template": template, "variables": variables, "seconds": seconds, "memory_bytes": memory_bytes}
    child = subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
    )
    with child:
        late = threading.Timer(_SECONDS_TO_START, child.kill)
        late.start()
        assert child.stdout is not None, "it is a pipe"
        ready = child.stdout.readline()
        late.cancel()
        if ready != b"ready\n":
            child.kill()
            return Rendering(None, "the process that renders templates did not start")
        try:
            answer, _ = child.communicate(json.dumps(job).encode() + b"\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            return Rendering(None, f"was stopped after {seconds:g} s")
    with contextlib.suppress(ValueError, TypeError):
        return Rendering(**{"text": None} | json.loads(answer))
    return Rendering(None, f"was stopped by its limits: {seconds:g} s, {memory_bytes >> 20} MiB")
