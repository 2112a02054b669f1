"""llama.cpp itself, as a program that answers questions about a GGUF file: engine.mjs run by node."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FOLDER = Path(__file__).parent
ANSWER_SECONDS = 60  # a load of the real small model takes 1 s, a whole test's worth of answers 10 s


class EngineError(Exception):
    """The engine refused a request or died; carries what it said."""


def missing() -> str | None:
    """Why the engine cannot run here, or None."""
    if shutil.which("node") is None:
        return "there is no node"
    if not (FOLDER / "node_modules" / "node-llama-cpp").is_dir():
        return "node-llama-cpp is not installed: npm install --ignore-scripts --prefix tests/engine"
    return None


@dataclass(frozen=True)
class Answer:
    """What a model says to a question.

    text    without the markup around it
    stop    why it ends: "eogToken" where the model ended its turn, "maxTokens" where it was cut off
    tokens  ids of question and answer, with their markup
    """

    text: str
    stop: str
    tokens: list[int]


class Engine:
    """A running engine; use it in a `with` block.  After an EngineError it is dead."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            ["node", FOLDER / "engine.mjs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            encoding="utf-8",
        )

    def load(self, gguf: Path) -> int | None:
        """Make gguf the model of the requests that follow; the id it puts before every prompt, or None."""
        bos: int | None = self._ask(load=str(gguf))["bos"]
        return bos

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text, nothing put before or after it.

        special  markup such as <|im_end|> becomes its token
        """
        ids: list[int] = self._ask(tokenize=text, special=special)["tokens"]
        return ids

    def complete(self, prompt: str, n_tokens: int) -> str:
        """The likeliest continuation of a prompt, at most n_tokens of it; bos goes first if the file asks for it."""
        text: str = self._ask(complete=prompt, max_tokens=n_tokens)["text"]
        return text

    def continuation(self, prompt: str, n_tokens: int) -> list[int]:
        """The ids of what `complete` gives."""
        ids: list[int] = self._ask(complete=prompt, max_tokens=n_tokens)["tokens"]
        return ids

    def next(self, tokens: list[int]) -> list[int]:
        """The likeliest id behind each of the tokens, with those before it."""
        ids: list[int] = self._ask(next=tokens)["tokens"]
        return ids

    def chat(self, question: str, n_tokens: int) -> Answer:
        """The likeliest answer, at most n_tokens of it, by the chat template in the file."""
        return Answer(**self._ask(chat=question, max_tokens=n_tokens))

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        watchdog = threading.Timer(ANSWER_SECONDS, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if not line:
            code = self._process.wait(ANSWER_SECONDS)
            self._said.seek(0)
            said = self._said.read().decode("utf-8", "replace").strip()
            raise EngineError(f"exit code {code} on {json.dumps(request)[:200]}: {said or 'nothing said'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()
