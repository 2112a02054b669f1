"""Whatever stands in a tokenizer's files, the answer is a vocabulary or a typed error."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

from quantkit.errors import QuantkitError

ROUNDS = 1500
SEED = 20250101
ODD = [None, True, False, -1, 0, 7, 2**70, 1.5, "", "x", "\0", "<|im_end|>", [], [[]], ["x", "y"], {}, {"type": "x"}]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in value with each of its keys; of long ones only the first few."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in [*keys][:12]:
        yield value, key
        yield from places(value[key])


def test_every_mutation_is_loaded_or_refused(made: Any) -> None:
    sequence = [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|im_end|>"}}, {"Sequence": {"id": "B"}}]
    ends = {"type": "TemplateProcessing", "single": sequence, "pair": sequence}
    post = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, ends]}
    flags = {"content": "<|im_end|>", "special": True, "normalized": False}
    files = {
        "document": made.document(made.token(262, "foo", special=False), post_processor=post),
        "settings": {
            "bos_token": "<|endoftext|>",
            "eos_token": flags,
            "add_bos_token": False,
            "extra_special_tokens": ["<a>"],
            "added_tokens_decoder": {"261": flags, "262": {"content": "foo"}},
            "chat_template": [{"name": "default", "template": "{{ message['content'] }}<|im_end|>"}],
        },
        "config": {"vocab_size": made.N_ROWS, "pad_token_id": 5, "eos_token_id": [1]},
    }
    chance = random.Random(SEED)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(ROUNDS):
        mutated = copy.deepcopy(files)
        for _ in range(chance.choice((1, 1, 2))):
            container, key = chance.choice([*places(mutated)])
            if chance.random() < 0.2:
                del container[key]
            else:
                container[key] = copy.deepcopy(chance.choice(ODD))
        if not all(isinstance(mutated.get(name), dict) for name in ("settings", "config")):
            continue
        try:
            made.load(mutated.get("document"), mutated["settings"], config=mutated["config"])
            outcomes["loaded"] += 1
        except QuantkitError as error:
            assert str(made.folder) in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > ROUNDS // 5, outcomes
