"""Will a GGUF file run, and stop?  What runtimes need of one, as a table of checks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from quantkit.doctor import render
from quantkit.doctor.finding import Check, Finding, failed, ok, skipped, warning
from quantkit.doctor.weights import check_weights
from quantkit.errors import InputError, UnsupportedError
from quantkit.gguf_io import Kind
from quantkit.source import read_source
from quantkit.source.gguf import open_gguf
from quantkit.tokenizer import TokenType
from quantkit.tokenizer.vocabulary import ROLE_KEYS

TOKENS, TYPES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
TEMPLATE, NAME = "tokenizer.chat_template", "general.name"
_AGAIN = "convert it again from its checkpoint"
_ANOTHER = "convert it again with another template: --chat-template FILE"
_REPAIR = "convert it again with --fix-special-tokens"
# Keys that runtimes read, with their kinds, and what becomes of a file without one.
_WANTED = (
    ("general.architecture", Kind.STRING, "nothing loads it"),
    ("general.file_type", Kind.U32, "runtimes guess its type"),
    ("general.quantization_version", Kind.U32, "runtimes cannot tell how old its blocks are"),
    (NAME, Kind.STRING, "it is listed without a name"),
    ("tokenizer.ggml.model", Kind.STRING, "text cannot be tokenized"),
    ("tokenizer.ggml.pre", Kind.STRING, "llama.cpp splits text by its default, and other tokens come out"),
    (TEMPLATE, Kind.STRING, "runtimes format a chat by a guess"),
)
_NEEDED = ("general.architecture", "tokenizer.ggml.model")  # without the others of the table it still runs
# A conversation of which each text is recognised in whatever a template makes of it.
_QUESTION, _ANSWER, _NEXT = "What is the capital of France?", "It is Paris.", "And that of Italy?"
CONVERSATION = (
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": _NEXT},
)


class Model:
    """An open GGUF file, or all shards of one, of whatever types; use it in a `with` block.

    raises  InputError in its kinds, as open_gguf does: its structure is not sound
    """

    def __init__(self, path: Path) -> None:
        self.weights = open_gguf(path, any_type=True)

    def value(self, key: str, kind: Kind, item_kind: Kind | None = None) -> Any:
        """The value of a key, None where there is none or one of another kind."""
        field = self.weights.fields.get(key)
        return field.value if field is not None and (field.kind, field.item_kind) == (kind, item_kind) else None

    @cached_property
    def tokens(self) -> list[str]:
        return self.value(TOKENS, Kind.ARRAY, Kind.STRING) or []

    @cached_property
    def control(self) -> dict[str, int]:
        """The control tokens: id by text."""
        return self._of_types(TokenType.CONTROL)

    @cached_property
    def matched(self) -> dict[str, int]:
        """The tokens that are found in a text before it is split: id by text."""
        return self._of_types(TokenType.CONTROL, TokenType.USER_DEFINED)

    def _of_types(self, *wanted: TokenType) -> dict[str, int]:
        types = self.value(TYPES, Kind.ARRAY, Kind.I32) or []
        pairs = enumerate(zip(self.tokens, types, strict=False))
        return {text: i for i, (text, kind) in pairs if text and kind in wanted}

    @cached_property
    def special(self) -> dict[str, int]:
        """The special ids by role, those that the vocabulary has."""
        ids = {role: self.value(key, Kind.U32) for role, key in ROLE_KEYS.items()}
        return {role: token for role, token in ids.items() if token is not None and token < len(self.tokens)}

    def named(self, role: str) -> str:
        """The text of a special token, "" for none."""
        return self.tokens[self.special[role]] if role in self.special else ""

    @cached_property
    def rendering(self) -> render.Rendering | None:
        """CONVERSATION by the file's template; None where there is none, or nothing to render it with."""
        template = self.value(TEMPLATE, Kind.STRING)
        if template is None or render.unavailable():
            return None
        return render.render(template, CONVERSATION, bos_token=self.named("bos"), eos_token=self.named("eos"))

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.weights.close()


def model_checks(model: Model, progress: Callable[[int], None]) -> tuple[tuple[str, Check], ...]:
    """The checks of a file whose structure is sound, in the order they are told.

    progress  called with the bytes of weights that were looked at
    """
    return (
        ("structure", lambda: _structure(model)),
        ("network", lambda: _network(model)),
        ("keys", lambda: _keys(model)),
        ("name", lambda: _name(model)),
        ("vocabulary", lambda: _vocabulary(model)),
        ("special tokens", lambda: _special_tokens(model)),
        ("chat template", lambda: _template(model)),
        ("stopping", lambda: _stopping(model)),
        ("weights", lambda: check_weights(model.weights, progress)),
    )


def _structure(model: Model) -> Finding:
    n_files, tensors = len(model.weights.shards), model.weights.tensors.values()
    types = Counter(tensor.dtype.name for tensor in tensors)
    mix = ", ".join(f"{count} {name}" for name, count in types.most_common())
    return ok(f"{len(model.weights.fields)} keys and {len(tensors)} tensors in {n_files} file(s): {mix}")


def _network(model: Model) -> Finding:
    """The keys describe a network, and the tensors are those of it."""
    try:
        network = read_source(
            model.weights, name=None, fix_special_tokens=False, chat_template=None, warn=lambda text: None
        ).network
    except UnsupportedError as error:
        return skipped(str(error), error.hint)
    except InputError as error:
        return failed(str(error), error.hint or _AGAIN)
    return ok(
        f"{network.layers} layers of {network.hidden}, {network.heads} heads on {network.kv_heads}, "
        f"{network.rope.context:,} tokens of context"
    )


def _keys(model: Model) -> Finding:
    missing = [(key, consequence) for key, kind, consequence in _WANTED if model.value(key, kind) is None]
    told = "; ".join(f"without {key} {consequence}" for key, consequence in missing)
    if any(key in _NEEDED for key, _ in missing):
        return failed(told, _AGAIN)
    return warning(told, _AGAIN) if missing else ok("all that runtimes ask for")


def _name(model: Model) -> Finding:
    """llama.cpp tells models that strip the blanks behind special tokens by their name (src/llama-vocab.cpp:3152)."""
    name = model.value(NAME, Kind.STRING) or ""
    found = re.search("phi-?3", name, re.IGNORECASE)
    if found and model.value("tokenizer.ggml.model", Kind.STRING) == "gpt2":  # Phi-3's own vocabulary wants it so
        return warning(
            f"{name!r} has {found[0]!r} in it: llama.cpp then drops the blanks behind special tokens",
            "convert it again with another --name",
        )
    return ok(repr(name))


def _vocabulary(model: Model) -> Finding:
    tokens, types = model.tokens, model.value(TYPES, Kind.ARRAY, Kind.I32)
    if not tokens:
        return failed("there are no tokens", _AGAIN)
    if types is not None and len(types) != len(tokens):
        return failed(f"{len(tokens)} tokens have {len(types)} types", _AGAIN)
    twice = [text for text, count in Counter(tokens).items() if text and count > 1]
    if twice:  # llama.cpp aborts (src/llama-vocab.cpp:2578)
        return failed(f"{len(twice)} texts are those of several tokens, {twice[0]!r} for one: llama.cpp stops", _AGAIN)
    if model.value("tokenizer.ggml.model", Kind.STRING) == "gpt2":
        merges = model.value(MERGES, Kind.ARRAY, Kind.STRING)
        if not merges:
            return failed("there are no merges: every text falls into single bytes", _AGAIN)
        known = set(tokens)
        if strange := [merge for merge in merges if not _makes_a_token(merge, known)]:
            return failed(f"{len(strange)} of {len(merges)} merges make no token, {strange[0]!r} for one", _AGAIN)
    unused = sum(kind == TokenType.UNUSED for kind in types or ())
    return ok(f"{len(tokens):,} tokens, {len(model.control)} of them control tokens, {unused} unused")


def _makes_a_token(merge: str, known: set[str]) -> bool:
    """Whether the halves of a merge "left right" and the whole are tokens; a blank is never part of one."""
    left, _, right = merge.partition(" ")
    return left in known and right in known and left + right in known


def _special_tokens(model: Model) -> Finding:
    stated = {role: model.value(key, Kind.U32) for role, key in ROLE_KEYS.items() if key in model.weights.fields}
    outside = [role for role, token in stated.items() if token is None or token >= len(model.tokens)]
    if outside:
        return failed(f"{', '.join(outside)} are not in the vocabulary", _AGAIN)
    told = ", ".join(f"{role} is {token} {model.tokens[token]}" for role, token in model.special.items())
    if "eos" not in model.special:
        return failed(f"there is no eos; {told or 'nor any other'}", _AGAIN)
    visible = [role for role in ("eos", "eot") if role in model.special and model.named(role) not in model.control]
    if visible:
        return warning(f"{' and '.join(visible)} would be printed, being no control token; {told}", _AGAIN)
    if model.special.get("pad") == model.special["eos"]:
        return warning(f"pad is eos, so training on this file would unlearn to stop; {told}", _REPAIR)
    return ok(told)


def _template(model: Model) -> Finding:
    if (lacking := _no_rendering(model)) is not None:
        return lacking
    assert model.rendering is not None, "there is one"
    text = model.rendering.text
    if text is None:
        return failed(f"the template {model.rendering.problem}", _ANOTHER)
    at = -1
    for message in CONVERSATION:
        at = text.find(message["content"], at + 1)
        if at < 0:
            return failed(f"the template loses what the {message['role']} said", _ANOTHER)
    if strange := [piece for piece in re.findall(r"<\|[^<>|]{1,40}\|>", text) if piece not in model.matched]:
        return warning(f"{strange[0]} is no special token: it is read as ordinary text", _AGAIN)
    return ok(f"a chat of three messages becomes {len(text)} characters, and opens the answer with {text[-24:]!r}")


def _stopping(model: Model) -> Finding:
    """The token that the template puts behind what the assistant said is one that runtimes stop at."""
    if (lacking := _no_rendering(model)) is not None:
        return lacking
    text = model.rendering.text if model.rendering else None
    if text is None or _ANSWER not in text:
        return skipped("no turn of the assistant was rendered")
    behind = text.split(_ANSWER, 1)[1].split(_NEXT, 1)[0]
    words = sorted(model.control, key=len, reverse=True)
    found = re.search("|".join(map(re.escape, words)), behind) if words else None
    if found is None:
        return failed("the template ends the assistant's turn with no control token: an answer never ends", _AGAIN)
    end = model.control[found[0]]
    stops = [role for role in ("eos", "eot") if model.special.get(role) == end]
    said = f"the template ends a turn with {end} {found[0]}"
    if not stops:
        return failed(f"{said}, and that is neither eos nor eot: runtimes run on", _REPAIR)
    if stops == ["eot"]:
        return warning(f"{said}, which is eot and not eos: runtimes that know only eos run on", _REPAIR)
    if "eot" not in model.special:
        return ok(f"{said}, which is eos; there is no eot, and llama.cpp takes one by its text")
    return ok(f"{said}, which is {' and '.join(stops)}")


def _no_rendering(model: Model) -> Finding | None:
    if model.value(TEMPLATE, Kind.STRING) is None:
        return skipped("the file has no chat template")
    lacking = render.unavailable()
    return skipped(f"the template was not rendered: {lacking}", "pip install 'quantkit[report]'") if lacking else None
