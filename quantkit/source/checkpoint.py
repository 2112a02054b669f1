"""A checkpoint folder as a source: config.json says which tensors it must have, its tokenizer gives the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

from quantkit.arch import find_family
from quantkit.arch.general import general_fields
from quantkit.checkpoint import CONFIG, Checkpoint
from quantkit.errors import ConfigError
from quantkit.gguf_io import Field
from quantkit.source.base import base_name
from quantkit.source.record import QUANTIZATION_VERSION, Source, check_tensors
from quantkit.tokenizer import fields as tokenizer_fields
from quantkit.tokenizer import load_vocabulary

# What trainers leave in checkpoints and no network needs (llama.cpp's converter drops the same).
_DROPPED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
_TIED_HINT = "without it, the embedding must be the output too: tie_word_embeddings in config.json is then true"


def checkpoint_source(
    checkpoint: Checkpoint,
    name: str | None,
    fix_special_tokens: bool,
    chat_template: str | None,
    warn: Callable[[str], None],
) -> Source:
    """The checkpoint with its network, its tensors checked; arguments and errors as of read_source."""
    config_file = checkpoint.path / CONFIG
    family = find_family(checkpoint.config, config_file)
    network = family.read_network(checkpoint.config, config_file)
    if network.layers > len(checkpoint.tensors):  # seen before billions of names are made up
        raise ConfigError(
            "more layers than there are tensors",
            file=config_file,
            key="num_hidden_layers",
            expected=f"at most {len(checkpoint.tensors)}",
            found=network.layers,
        )
    tensors = family.map_tensors(network)
    head = family.head.sources
    check_tensors(
        checkpoint,
        tensors,
        stated_in=CONFIG,
        ignored=lambda name: name in head or name.endswith(_DROPPED),
        hints=dict.fromkeys(head, _TIED_HINT),
    )
    if network.tied:
        for left_out in (tensor for tensor in head if tensor in checkpoint.tensors):
            warn(
                f"{left_out} is left out, as the embedding is the output too; "
                "if training gave them different weights, set tie_word_embeddings to false in config.json"
            )
    vocabulary = load_vocabulary(
        checkpoint.tokenizer,
        checkpoint.config,
        n_rows=network.vocabulary,
        fix_special_tokens=fix_special_tokens,
        chat_template=chat_template,
        warn=warn,
    )
    family.check_pre_tokenizer(vocabulary.pre, checkpoint.tokenizer)
    n_weights = sum(math.prod(tensor.shape) for tensor in tensors)
    general = general_fields(
        checkpoint.path,
        family.gguf_name,
        n_weights,
        name,
        family.early_keys(network),
        called=checkpoint.name,
        base_model=base_name(checkpoint),
    )
    tokenizer = tokenizer_fields(vocabulary)

    def fields(file_type: int) -> list[Field]:
        network_fields = family.keys(checkpoint.config, network, config_file, file_type)
        return [*general, *network_fields, QUANTIZATION_VERSION, *tokenizer]

    return Source(checkpoint, network, tensors, fields)
