"""`quantkit release` step by step: convert, measure, and write what goes beside the files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.json_file import shown
from quantkit.convert import convert
from quantkit.errors import OutputError, UsageError
from quantkit.imatrix import Imatrix, read_imatrix
from quantkit.memory import Run, memory_use
from quantkit.osio import AtomicFile, InputFile, file_sha256, is_file, is_folder, make_folder, refuse_replacing
from quantkit.plan import Plan, make_plan, output_paths
from quantkit.recipe import Recipe, choose
from quantkit.release import sums
from quantkit.release.card import Card, Row, card, usual_of
from quantkit.release.chat import recognised
from quantkit.release.names import NAME, REPOSITORY
from quantkit.release.ollama import Chat, modelfile, params
from quantkit.release.order import Order
from quantkit.report import read_report, write_pages
from quantkit.source import GGUFWeights, open_source, read_source
from quantkit.sweep import Request, Sweep
from quantkit.sweep.report import write_report
from quantkit.sweep.request import USUAL_CONTEXT
from quantkit.sweep.store import Store, key

__all__ = ["Order", "Release"]

WORK = ".quantkit"  # the folder within the release for what is kept between runs; it is not published
PICTURE = "plots/pareto.png"  # of the report, for the card
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
_LICENCE_KEYS = {"license": "license", "license_name": "license.name", "license_link": "license.link"}
_GIB = 1 << 30


class Release:
    """A release that is being made; made by Release.open.

    name     of the release
    recipes  one for each file
    paths    of the shards of each
    """

    def __init__(
        self, order: Order, weights: Checkpoint | GGUFWeights, imatrix: Imatrix | None, warn: Callable[[str], None]
    ) -> None:
        self.order, self._weights, self._imatrix, self._warn = order, weights, imatrix, warn
        self.recipes: list[Recipe] = choose(order.types, order.recipe)
        self.name: str = order.description.get("name") or weights.name
        if not NAME.fullmatch(self.name):
            raise UsageError("files cannot be called after this source", hint="name them: --name NAME", found=self.name)
        _refuse_writing_over(order.out)
        self.plan = self._plan_of(self.recipes, warn)
        self._check_overrides()
        self.paths = output_paths(self.plan.outputs, self.name, order.out, is_folder=True)
        for folder in (order.out, order.out / WORK, order.out / WORK / "measurements", order.out / "recipes"):
            make_folder(folder)
        inputs = [*weights.files, *([order.imatrix] if order.imatrix else []), Path(order.recipe)]
        refuse_replacing([path for shards in self.paths for path in shards], inputs)
        self._store = Store(order.out / WORK / "measurements", warn)
        for dataset in imatrix.datasets if imatrix else ():
            if "/" in dataset or "\\" in dataset:
                warn(f"the importance matrix is published as it is, and names what it is of: {shown(dataset)}")

    @classmethod
    @contextmanager
    def open(cls, order: Order, warn: Callable[[str], None]) -> Iterator[Release]:
        """The release of an order, for a `with` block; raises what convert and sweep do of their inputs."""
        imatrix = read_imatrix(order.imatrix) if order.imatrix else None
        with open_source(order.source, lora=order.lora) as weights:
            release = cls(order, weights, imatrix, warn)
            with Sweep.open(release._request(), lambda text: None) as sweep:
                release.sweep = sweep
                yield release

    sweep: Sweep

    def _plan_of(self, recipes: Sequence[Recipe], warn: Callable[[str], None]) -> Plan:
        order = self.order
        description = {**order.description, "overrides": self._overrides}
        return make_plan(
            self._weights,
            recipes,
            **description,
            imatrix=self._imatrix,
            split_max_bytes=order.split_max_bytes,
            warn=warn,
        )

    @property
    def _overrides(self) -> dict[str, str]:
        by = self.order.quantized_by
        return ({"general.quantized_by": by} if by else {}) | dict(self.order.description.get("overrides", {}))

    def _check_overrides(self) -> None:
        """Raise UsageError where a key of the network is set: the network that is measured is the source's."""
        network = f"{self._text_of('general.architecture')}."
        for name in self._overrides:
            if name.startswith(network):
                raise UsageError("a release has the network of its source", hint=f"leave out --metadata {name}=...")

    def _described(self) -> Iterator[str]:
        """The options with which `verify` makes the same keys."""
        given = self.order.description
        adapters = self._weights.adapters
        for one, adapter in zip(self.order.lora, adapters[len(adapters) - len(self.order.lora) :], strict=True):
            yield from ("--lora", str(replace(one, path=Path(adapter.name))))  # SOURCE itself may be one before these
        if given.get("name"):
            yield from ("--name", given["name"])
        for name, value in self._overrides.items():
            yield from ("--metadata", f"{name}={value}")
        if given.get("chat_template"):
            yield from ("--chat-template", "FILE")
        if given.get("fix_special_tokens"):
            yield "--fix-special-tokens"

    def _request(self) -> Request:
        """The sweep that measures what is released."""
        order = self.order
        source = read_source(
            self._weights, name=None, fix_special_tokens=False, chat_template=None, warn=lambda text: None
        )
        context = min(source.network.rope.context, USUAL_CONTEXT) if order.context is None else order.context
        most = max(memory_use(source.network, out.tensors, Run(context)).card_bytes for out in self.plan.outputs)
        return Request(
            order.source,
            order.out / WORK,
            order.vram_bytes or -(-most // _GIB) * _GIB,
            context,
            types=order.types,
            recipe=order.recipe,
            imatrix=order.imatrix,
            lora=order.lora,
            text=order.text,
            window=order.window,
            windows=order.windows,
            how=order.how,
        )

    # ---- the files

    @cached_property
    def unwritten(self) -> Plan:
        """What is to be converted: all that no earlier run has written, and what somebody has touched since."""
        pairs = zip(self.recipes, self.paths, strict=True)
        left = [recipe for recipe, shards in pairs if not self._is_written(shards)]
        return self._plan_of(left, lambda text: None) if left else Plan((), ())

    def convert(self, progress: Callable[[int], None]) -> None:
        """Write the files of `unwritten`, in one pass; raises what convert() does."""
        paths = output_paths(self.unwritten.outputs, self.name, self.order.out, is_folder=True)
        convert(self._weights, self.unwritten, [path for shards in paths for path in shards], progress=progress)
        for shards in paths:
            self._store.remember(_question(shards), self._answer(shards))

    def _is_written(self, shards: Sequence[Path]) -> bool:
        return all(map(is_file, shards)) and self._store.recall(_question(shards)) == self._answer(shards)

    def _answer(self, shards: Sequence[Path]) -> str:
        """SHA-256 of what tells files from others: their planned headers, the source, their sizes and moments."""
        output = self.plan.outputs[self.paths.index(list(shards))]
        headers = [hashlib.sha256(file.header).hexdigest() for file in output.files]
        stats = [(status.st_size, status.st_mtime_ns) for path in shards for status in [path.stat()]]
        return key({"headers": headers, "source_sha256": self.sweep.source_sha256, "stats": stats})

    # ---- what goes beside them

    def publish(self) -> dict[str, Any]:
        """Write all the rest; every file is converted, and every measurement made.

        returns  the result of `quantkit release`: see README.md
        raises   OutputError, DiskError
        """
        out, report = self.order.out, self._report()
        write_report(out, report)
        names = ["report.json", "report.csv"]
        names += [path.relative_to(out).as_posix() for path in write_pages(read_report(out), out)]
        chat = recognised(self._text_of("tokenizer.chat_template"), self._token("bos"), self._token("eos"), self._warn)
        names += self._write(self._beside(report, chat))
        digests = {name: file_sha256(out / name) for name in names}
        rows = []
        for shards, output in zip(self.paths, self.plan.outputs, strict=True):
            found = [file_sha256(path) for path in shards]
            digests |= {path.name: digest for path, digest in zip(shards, found, strict=True)}
            figures = next(entry for entry in report["candidates"] if entry["type"] == output.name)
            rows.append(Row([path.name for path in shards], found, figures))
        rows.sort(key=lambda row: int(row.figures["file_bytes"]))
        about = self._about(chat, PICTURE if PICTURE in names else None)
        self._write({"README.md": card(about, rows, report).encode()})
        digests["README.md"] = file_sha256(out / "README.md")
        self._write({sums.NAME: sums.as_text(digests).encode()})
        return {"name": self.name, "folder": str(out), "files": digests, "chat": chat.style.name if chat else None}

    def _report(self) -> dict[str, Any]:
        """The sweep's, of the files as they are here: with this name and in these shards."""
        report = self.sweep.report()
        nbytes = {output.name: output.file_bytes for output in self.plan.outputs}
        entries = [entry | {"file_bytes": nbytes[entry["type"]]} for entry in report["candidates"]]
        return report | {"source": self.name, "candidates": entries}

    def _beside(self, report: Mapping[str, Any], chat: Chat | None) -> dict[str, bytes]:
        """What is written beside the GGUF files and the report, by name."""
        files = {f"recipes/{recipe.name}.toml": recipe.toml for recipe in self.recipes}
        if self.order.imatrix:
            files[self._imatrix_name] = _content(self.order.imatrix)
        licence = self._licence()
        if licence is not None:
            files["LICENSE"] = licence
        if self.order.split_max_bytes is not None:
            self._warn("Ollama takes no split files, so there is no Modelfile")
            return files
        first = {recipe.name: shards[0].name for recipe, shards in zip(self.recipes, self.paths, strict=True)}
        context = report["run"]["context"]
        text = licence.decode("utf-8", errors="replace") if licence is not None else None
        files["Modelfile"] = modelfile(first[usual_of(list(first))], chat, context, text).encode()
        files["params"] = params(chat, context).encode()
        if chat:
            files["template"] = chat.go().encode()
        return files

    @property
    def _imatrix_name(self) -> str:
        suffix = ".dat" if self.order.imatrix and self.order.imatrix.suffix == ".dat" else ".gguf"
        return f"{self.name}.imatrix{suffix}"

    def _licence(self) -> bytes | None:
        """The text of the source's licence, if it has one."""
        if isinstance(self._weights, GGUFWeights):
            return None
        return next((_content(path) for name in _LICENCES if is_file(path := self._weights.path / name)), None)

    def _about(self, chat: Chat | None, picture: str | None) -> Card:
        order, origin = self.order, self._weights.origin
        base = order.base_model or (origin.repo if origin else None) or self._stated_base()
        licence = {key: self._text_of(f"general.{name}") for key, name in _LICENCE_KEYS.items()}
        if order.license:
            licence = {"license": order.license}
        languages = self._field("general.languages")
        return Card(
            self.name,
            base,
            bool(order.base_model or (origin and not self._weights.adapters)),
            origin.revision if origin and origin.repo == base else None,
            {key: value for key, value in licence.items() if value},
            order.quantized_by,
            order.tags,
            [str(language) for language in languages or ()],
            order.repo,
            self._imatrix_name if order.imatrix else None,
            list(self._described()),
            chat.style.name if chat else None,
            order.split_max_bytes is not None,
            picture,
        )

    def _stated_base(self) -> str | None:
        """The repository that the source's own card names as its base."""
        url = self._text_of("general.base_model.0.repo_url") or ""
        named = url.removeprefix("https://huggingface.co/")
        return named if REPOSITORY.fullmatch(named) else None

    def _write(self, files: Mapping[str, bytes]) -> list[str]:
        for name, data in files.items():
            with AtomicFile(self.order.out / name) as out:
                out.write(data, 0)
                out.publish()
        return list(files)

    def _field(self, name: str) -> Any:
        """The value of a key of the files, None where they do not have it."""
        fields = self.plan.outputs[0].files[0].fields
        return next((field.value for field in fields if field.key == name), None)

    def _text_of(self, name: str) -> str | None:
        value = self._field(name)
        return value if isinstance(value, str) else None

    def _token(self, role: str) -> str:
        """The text of the token with that role, "" for none."""
        number = self._field(f"tokenizer.ggml.{role}_token_id")
        return "" if number is None else str(self._field("tokenizer.ggml.tokens")[number])


def _refuse_writing_over(out: Path) -> None:
    """Raise OutputError where the folder has what a release would replace, and is not that of an earlier one."""
    for name in ("README.md", "LICENSE", "Modelfile"):
        if is_file(out / name) and not is_folder(out / WORK):
            raise OutputError(
                "is there already, and no release wrote it here", hint="name another folder: -o DIR", file=out / name
            )


def _question(shards: Sequence[Path]) -> dict[str, Any]:
    return {"written": [str(path.resolve()) for path in shards]}


def _content(path: Path) -> bytes:
    with InputFile(path) as file:
        return bytes(file.read(file.size))
