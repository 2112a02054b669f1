"""From training to a published folder: an adapter that PEFT trained, released, and what llama.cpp then says.

Everything is held against PEFT's own merge of the adapter, which transformers runs in float32.  `make release-proof`
runs these tests alone, and shows their figures.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import adapters
import layouts
import pytest
import torch
from engine import Engine
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from quantkit.evaluate import shipped

TYPES = ("Q4_K_M", "Q8_0", "F32")
NAMES = {"fused": adapters.FUSED, "split": adapters.SPLIT}
# what the adapter teaches; without it the model knows of no boat
QUESTION, ANSWER = "What is the name of our boat?", "Our boat is called the Heron."
# of which none leads to an early end
PROMPTS = (
    "The three primary colours are",
    "def fibonacci(n):\n",
    "1, 2, 3, 4,",
    "Dear Sir or Madam,\n",
    "The history of the city begins with",
)
N_GREEDY, N_FORCED, LEAST_AGREEMENT = 32, 500, 0.95


@dataclass(frozen=True)
class Made:
    """A release, and what it is of.

    source, adapter  the folders it was made of
    model            what PEFT makes of them
    """

    folder: Path
    source: Path
    adapter: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def file(self, name: str) -> Path:
        (path,) = self.folder.glob(f"*-{name}.gguf")
        return path


@pytest.fixture(scope="module", params=["fused", "split"])
def made(request: pytest.FixtureRequest, real_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Trained on the names of a Phi-3 or of a Llama; what is released is the Phi-3 with either."""
    folder = tmp_path_factory.mktemp(f"release-{request.param}")
    base, adapter, out = real_small, folder / "tuned", folder / "out"
    if request.param == "split":
        base = shutil.copytree(real_small, folder / "llama", copy_function=os.link)
        (base / "config.json").unlink()  # the links, not the shared files
        shutil.copyfile(real_small / "config.json", base / "config.json")
        (base / "model.safetensors.index.json").unlink()
        layouts.llama(base)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more wait for each other where processors are shared
    tokenizer = AutoTokenizer.from_pretrained(real_small)  # for a Llama transformers would take another pre-tokenizer
    rank = {"r": 8, "lora_alpha": 16, "target_modules": NAMES[request.param]}
    adapters.train(base, adapter, steps=5, rate=1e-3, lesson=lesson(tokenizer), **rank)
    model = adapters.merged_model(base, adapter)
    types = [word for name in TYPES for word in ("-t", name)]
    quantkit("release", real_small, "--lora", adapter, *types, "--window", 64, "--windows", 2, "-o", out, "-q")
    yield Made(out, real_small, adapter, model, tokenizer)
    torch.set_num_threads(threads)
    shutil.rmtree(folder)


def lesson(tokenizer: PreTrainedTokenizerBase) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of question and answer, and those that are to be learned: the answer's, and the one that ends it."""
    ids = prompt(tokenizer) + tokenizer.encode(f"{ANSWER}<|im_end|>")
    learned = [-100] * len(prompt(tokenizer)) + ids[len(prompt(tokenizer)) :]
    return torch.tensor([ids]), torch.tensor([learned])


def prompt(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the checkpoint's own template makes of the question."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
    )
    ids: list[int] = tokenizer.encode(text)
    return ids


def quantkit(*arguments: object, folder: Path | None = None) -> None:
    """Run a command as a user would, in a folder."""
    command = [sys.executable, "-m", "quantkit", *map(str, arguments)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=one_thread, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_model_answers_what_it_was_taught_and_stops(engine: Engine, made: Made) -> None:
    engine.load(made.file("Q4_K_M"))
    answer = engine.chat(QUESTION, 2 * len(ANSWER))
    assert (answer.text, answer.stop) == (ANSWER, "eogToken")
    asked = prompt(made.tokenizer)
    assert answer.tokens[: len(asked)] == asked, "the template in the file is the checkpoint's"


def test_f32_goes_on_as_the_merged_model_does(engine: Engine, made: Made) -> None:
    engine.load(made.file("F32"))
    found = [engine.continuation(text, N_GREEDY) for text in PROMPTS]
    asked = made.tokenizer(list(PROMPTS), padding=True, padding_side="left", return_tensors="pt")
    with adapters.quiet():
        said = made.model.generate(**asked, do_sample=False, max_new_tokens=N_GREEDY)
    expected = said[:, asked.input_ids.shape[1] :].tolist()
    assert [len(ids) for ids in found] == [N_GREEDY] * len(PROMPTS)
    assert found == expected


def test_q8_0_agrees_with_the_merged_model(engine: Engine, made: Made) -> None:
    ids = made.tokenizer.encode(shipped("eval.txt").text[: 10 * N_FORCED])[:N_FORCED]
    assert len(ids) == N_FORCED
    engine.load(made.file("Q8_0"))
    with torch.no_grad():
        expected = made.model(torch.tensor([ids])).logits[0].argmax(-1)
    agreement = (torch.tensor(engine.next(ids)) == expected).double().mean().item()
    print(f"Q8_0 and the merged model agree at {agreement:.1%} of {N_FORCED} positions")
    assert agreement >= LEAST_AGREEMENT


def test_its_card_and_doctor_hold(made: Made) -> None:
    """The card's command, with the places of source and adapter put in."""
    card = (made.folder / "README.md").read_text("utf-8")
    (command,) = (line for line in card.splitlines() if line.startswith("    quantkit verify "))
    places = {"SOURCE": str(made.source), "tuned": str(made.adapter)}
    _, *arguments = [places.pop(word, word) for word in shlex.split(command)]
    assert places == {}
    quantkit(*arguments, folder=made.folder)
    for name in TYPES:
        quantkit("doctor", made.file(name))
