"""A checkpoint's tokenizer as the record and the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import ConfigError
from quantkit.tokenizer import added, bpe, pre, sources, special, template
from quantkit.tokenizer.files import read_object
from quantkit.tokenizer.template import Templates
from quantkit.tokenizer.vocabulary import TokenType, Vocabulary, fields

__all__ = ["TokenType", "Vocabulary", "fields", "has_tokenizer", "load_vocabulary"]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files that load_vocabulary may read a vocabulary from."""
    return any(any(folder.glob(name)) for name in ("tokenizer.json", "vocab.json", "*.tiktoken"))


def load_vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    *,
    n_rows: int,
    fix_special_tokens: bool = False,
    chat_template: str | None = None,
    warn: Callable[[str], None],
) -> Vocabulary:
    """The vocabulary of a checkpoint, with the content that llama.cpp's converter gives a GGUF file, and eot.

    folder              with tokenizer.json, or what sources.read takes in its place, and, where there are,
                        tokenizer_config.json, chat_template.jinja, ...
    config              config.json
    n_rows              rows of the embedding; the vocabulary gets as many tokens
    fix_special_tokens  set eos and pad right where they disagree with the chat template (special.reconcile)
    chat_template       in place of the checkpoint's own
    warn                takes one sentence
    raises              ConfigError       a file or key is missing or of the wrong type
                        FormatError       a file is not what its name says
                        VocabularyError   the vocabulary contradicts itself or the embedding
                        UnsupportedError  not byte-level BPE, or not as llama.cpp does it
    """
    if config.get("vocab_size", n_rows) != n_rows:
        raise ConfigError(
            "vocab_size is not the number of the embedding's rows",
            file=folder / "config.json",
            key="vocab_size",
            expected=n_rows,
            found=config["vocab_size"],
        )
    settings = read_object(folder / "tokenizer_config.json")
    source = bpe.read(*sources.read(folder, settings))
    pre_name = pre.recognise(source.document.get("pre_tokenizer"), source.file)

    from_tokenizer = added.from_tokenizer(source.document, source.file)
    numbered = added.number(added.complete(from_tokenizer, settings, folder), source.vocab)
    tokens, types = bpe.table(source, numbered, n_rows)

    ids, flags = special.resolve(source.document, settings, config, from_tokenizer, n_rows, folder)
    templates = template.read(folder, settings, warn) if chat_template is None else Templates(chat_template, {})
    eot = None
    if templates.default is not None:
        control = {tokens[i]: i for i, kind in enumerate(types) if kind == TokenType.CONTROL}
        end = template.turn_end(templates.default, control, tokens[ids["eos"]] if "eos" in ids else None)
        eot = control.get(end) if end is not None else None
    ids = special.reconcile(ids, eot, tokens, types, templates.default, fix=fix_special_tokens, warn=warn)

    return Vocabulary(
        model="gpt2",
        pre=pre_name,
        tokens=tokens,
        types=types,
        merges=source.merges,
        scores=None,
        special_ids=ids,
        add_flags=flags,
        chat_template=templates.default,
        named_templates=templates.named,
    )
