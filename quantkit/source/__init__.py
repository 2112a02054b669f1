"""What is converted or measured: a checkpoint folder, or a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from quantkit.checkpoint import INDEX, SINGLE, Checkpoint, Lora, is_adapter, locate, open_adapter, open_checkpoint
from quantkit.errors import UsageError
from quantkit.gguf_io import MAGIC
from quantkit.osio import InputFile, is_file
from quantkit.source.base import base_of
from quantkit.source.checkpoint import checkpoint_source
from quantkit.source.gguf import GGUFWeights, gguf_source, open_gguf
from quantkit.source.merge import merge
from quantkit.source.record import Source

__all__ = ["GGUFWeights", "Source", "open_merged", "open_source", "read_source"]


def open_source(path: Path, *, lora: Sequence[Lora] = (), any_type: bool = False) -> Checkpoint | GGUFWeights:
    """Open what is at path, a GGUF file or a checkpoint folder, and check all that can be checked without its weights.

    path      or else a hub id, ORG/NAME or ORG/NAME@REVISION, which is fetched; what is found may be an adapter, whose
              config names the source, and which is merged into it before all others
    lora      adapters to merge into the weights, one after another; hub ids too
    any_type  let a GGUF file be quantized; else its tensors are F32, F16 or BF16
    raises    InputError in its kinds, UnsafeError, DiskError, as open_checkpoint, open_gguf, open_adapter and merge do;
              HubError, Paused
    """
    return open_merged(path, lora, lambda base: _open(base, any_type))


def open_merged(
    path: Path,
    lora: Sequence[Lora],
    open_base: Callable[[Path], Checkpoint | GGUFWeights],
    *,
    fetch_weights: bool = True,
) -> Checkpoint | GGUFWeights:
    """open_source, with the weights that the adapters are merged into opened by open_base.

    fetch_weights  those from the hub; else a folder without them is what open_base gets
    """
    folder = locate(path, weights=fetch_weights)
    alone = is_adapter(folder) and not any(is_file(folder / name) for name in (SINGLE, INDEX))
    with ExitStack() as on_failure:
        wanted = [Lora(path), *lora] if alone else lora
        adapters = [on_failure.enter_context(open_adapter(replace(one, path=locate(one.path)))) for one in wanted]
        weights = open_base(locate(base_of(adapters[0]), weights=fetch_weights) if alone else folder)
        on_failure.callback(weights.close)
        if adapters:
            merge(weights, adapters)
            weights.name = "-".join(one.name for one in (adapters if alone else (weights, *adapters)))
        on_failure.pop_all()
    return weights


def _open(path: Path, any_type: bool) -> Checkpoint | GGUFWeights:
    return open_gguf(path, any_type=any_type) if _is_gguf(path) else open_checkpoint(path)


def _is_gguf(path: Path) -> bool:
    if not is_file(path):
        return False
    with InputFile(path) as file:
        return file.read(min(len(MAGIC), file.size)) == MAGIC


def read_source(
    weights: Checkpoint | GGUFWeights,
    *,
    name: str | None,
    fix_special_tokens: bool,
    chat_template: str | None,
    warn: Callable[[str], None],
) -> Source:
    """Read what the weights are, and check that they are all there.

    name                general.name, in place of the source's own
    fix_special_tokens  repair eos and pad where they disagree with the chat template
    chat_template       in place of the source's own; eot follows it
    warn                called with each warning
    raises              InputError in its kinds: whatever is wrong with the source or does not fit together
                        UsageError: a repair of the tokens of a GGUF file
    """
    for warning in weights.warnings:
        warn(warning)
    if not isinstance(weights, GGUFWeights):
        return checkpoint_source(weights, name, fix_special_tokens, chat_template, warn)
    if fix_special_tokens:
        raise UsageError(
            "special tokens are repaired from a checkpoint's tokenizer files, and a GGUF file has none",
            hint="start from the checkpoint, or set the keys: --metadata tokenizer.ggml.eos_token_id=ID",
            file=weights.path,
        )
    if chat_template is not None:
        raise UsageError(
            "what ends a turn is found in a checkpoint's tokenizer files, and a GGUF file has none",
            hint="start from the checkpoint, or set the keys: --metadata tokenizer.chat_template=TEXT",
            file=weights.path,
        )
    return gguf_source(weights, name)
