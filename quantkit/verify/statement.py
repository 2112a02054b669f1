"""What a verification attests, as an in-toto statement: which bytes came out of which source, and how.

Statement v1: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md.  It is plain JSON and carries no
signature: it is worth what the one who hands it over is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from quantkit import __version__
from quantkit.checkpoint import Adapter
from quantkit.checkpoint.json_file import read_json
from quantkit.errors import FormatError
from quantkit.gguf_io import Kind
from quantkit.imatrix import Imatrix
from quantkit.osio import AtomicFile
from quantkit.plan import LORA_KEY, SOURCE_KEY
from quantkit.strategy import COVARIANCE_KEY, REFERENCE, STRATEGY_KEY
from quantkit.verify.compare import Verification
from quantkit.verify.differences import Difference, differs
from quantkit.verify.recorded import IMATRIX_KEY, VERSION_KEY, Recorded

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:quantkit:derivation:v1"
_MAX_BYTES = 16 << 20


class _Part(pydantic.BaseModel):
    """An object of the JSON: no value is converted to another type, and keys that are not known are passed over."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True)


class _Sha256(_Part):
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")


class _Subject(_Part):
    name: str
    digest: _Sha256


class _Source(_Part):
    name: str
    tensors_sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")


class _Recipe(_Part):
    name: str
    sha256: str


class _Adapter(_Sha256):
    scale: float


class _Predicate(_Part):
    """How the subjects came about.

    version     of quantkit that made them, None where another program did
    verifier    version of quantkit that made them again
    source      each shard with the digest of the tensors that were read of it, as in `quantkit.source.N.sha256`
    recipe      that the file records
    types       how many tensors have each type
    imatrix     the importance matrix, if one went in
    covariance  the second moments, likewise
    lora        the adapters that were merged into the source, with their scales, float32
    strategy    how blocks are found
    """

    version: str | None
    verifier: str
    source: list[_Source]
    recipe: _Recipe | None
    types: dict[str, int]
    imatrix: _Sha256 | None
    covariance: _Sha256 | None
    lora: list[_Adapter]
    strategy: str


class Statement(_Part):
    """The whole statement."""

    type: str = pydantic.Field(alias="_type", pattern=f"^{STATEMENT}$")
    subject: list[_Subject] = pydantic.Field(min_length=1)
    predicate_type: str = pydantic.Field(alias="predicateType", pattern=f"^{PREDICATE}$")
    predicate: _Predicate


def state(
    recorded: Recorded, verification: Verification, *, imatrix: Imatrix | None = None, adapters: Sequence[Adapter] = ()
) -> dict[str, Any]:
    """The statement of a verification without differences, as JSON has it."""
    assert verification.subjects and not verification.differences, "nothing is stated of a file that differs"
    types = Counter(tensor.qtype.name for _, tensor in recorded.tensors())
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in verification.subjects.items()],
        "predicateType": PREDICATE,
        "predicate": {
            "version": recorded.text(VERSION_KEY),
            "verifier": __version__,
            "source": [{"name": name, "tensors_sha256": sha256} for name, sha256 in verification.sources.items()],
            "recipe": _recipe(recorded),
            "types": dict(types.most_common()),
            "imatrix": {"sha256": imatrix.sha256} if imatrix else None,
            "covariance": {"sha256": covariance} if (covariance := recorded.text(COVARIANCE_KEY)) else None,
            "lora": [{"sha256": adapter.sha256, "scale": adapter.scale} for adapter in adapters],
            "strategy": recorded.text(STRATEGY_KEY) or REFERENCE.name,
        },
    }


def write_statement(path: Path, statement: Mapping[str, Any]) -> None:
    """Write it as JSON; raises OutputError, DiskError."""
    with AtomicFile(path) as file:
        file.write(json.dumps(statement, indent=2).encode() + b"\n", 0)
        file.publish()


def read_statement(path: Path) -> Statement:
    """Read and check a statement; raises InputError, FormatError, DiskError."""
    content = read_json(path, max_bytes=_MAX_BYTES)
    try:
        return Statement.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise FormatError(
            f"is no statement of `quantkit verify --write-statement`: {first['msg']}",
            file=path,
            key=".".join(map(str, first["loc"])),
        ) from None


def check_statement(recorded: Recorded, statement: Statement) -> list[Difference]:
    """Hold a file against a statement: its bytes, and what it says of its own making.

    raises  DiskError
    """
    stated = {subject.digest.sha256: subject.name for subject in statement.subject}
    differences = []
    for file in recorded.files:
        sha256 = file.sha256()
        if stated.pop(sha256, None) is None:
            expected = ", ".join(subject.digest.sha256 for subject in statement.subject)
            message = "the statement is of another file"
            differences.append(differs(message, file=file.path, expected=expected, found=sha256))
    if not differences and stated:
        missing = ", ".join(stated.values())
        differences.append(differs("a file of the statement is missing", file=recorded.path, expected=missing))
    return differences or _contradictions(recorded, statement.predicate)


def _contradictions(recorded: Recorded, predicate: _Predicate) -> list[Difference]:
    """What the statement says of the file's making, and its keys do not."""
    said: list[tuple[str, object, object]] = [
        (VERSION_KEY, predicate.version, recorded.text(VERSION_KEY)),
        ("quantkit.recipe", predicate.recipe and predicate.recipe.model_dump(), _recipe(recorded)),
    ]
    if recorded.maker is not None:
        imatrix = predicate.imatrix.sha256 if predicate.imatrix else None
        covariance = predicate.covariance.sha256 if predicate.covariance else None
        sources = {source.name: source.tensors_sha256 for source in predicate.source}
        said += [
            (IMATRIX_KEY, imatrix, recorded.text(IMATRIX_KEY)),
            (COVARIANCE_KEY, covariance, recorded.text(COVARIANCE_KEY)),
            (LORA_KEY.rstrip("."), [(adapter.sha256, adapter.scale) for adapter in predicate.lora], recorded.adapters),
            (STRATEGY_KEY, predicate.strategy, recorded.text(STRATEGY_KEY)),
            (SOURCE_KEY.rstrip("."), sources, _sources(recorded)),
        ]
    return [
        differs(
            "the statement contradicts the file",
            file=recorded.path,
            key=key,
            expected=expected or "none",
            found=found or "none",
        )
        for key, expected, found in said
        if expected != found
    ]


def _recipe(recorded: Recorded) -> dict[str, str] | None:
    name, sha256 = recorded.text("quantkit.recipe.name"), recorded.text("quantkit.recipe.sha256")
    return {"name": name, "sha256": sha256} if name is not None and sha256 is not None else None


def _sources(recorded: Recorded) -> dict[str, str]:
    """The source shards that a file records: digest by name."""
    texts = {key: field.value for key, field in recorded.fields.items() if field.kind is Kind.STRING}
    return {
        name: texts.get(key.removesuffix(".name") + ".sha256", "")
        for key, name in texts.items()
        if key.startswith(SOURCE_KEY) and key.endswith(".name")
    }
