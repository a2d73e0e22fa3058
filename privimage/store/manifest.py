"""What is written about an artifact: its key, its reference, and its manifest.

Nothing here touches a store. The key says what an artifact was asked to be, the digest what it turned out to be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from privimage.errors import ArtifactDamaged
from privimage.store.files import check_name

__all__ = [
    "FORMAT",
    "JSON",
    "ArtifactRef",
    "FileEntry",
    "Manifest",
    "artifact_key",
    "canonical_json",
    "healing",
    "parse_manifest",
]

FORMAT = 1

# Read-only containers, so that a dict[str, float] is accepted where JSON is.
JSON: TypeAlias = Sequence["JSON"] | Mapping[str, "JSON"] | str | bool | int | float | None

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def canonical_json(value: JSON) -> bytes:
    """The one UTF-8 spelling of a JSON value: sorted keys, no spaces, floats by their shortest repr.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: something in it is no JSON.

    >>> canonical_json({"b": 1.0, "a": [None, "é"]}).decode()
    '{"a":[null,"é"],"b":1.0}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def artifact_key(*, stage: str, version: int, config: JSON, inputs: Mapping[str, str], draw: int) -> str:
    """The name of what a stage makes: SHA-256, in hex, of everything that can change its result.

    Args:
        stage: the stage's name.
        version: raised by hand when the stage's results change.
        config: the fields that can change the result; none that change only speed.
        inputs: content digest of each input artifact, by the input's name.
        draw: 1, or higher to ask for another independent run.
    """
    return hashlib.sha256(
        canonical_json(
            {"format": FORMAT, "stage": stage, "version": version, "config": config, "inputs": inputs, "draw": draw}
        )
    ).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ArtifactRef:
    """A small, public name for one artifact's exact content; what tasks hand to each other."""

    stage: str
    key: str
    digest: str
    sealed: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArtifactRef:
        """Raises ValueError if a field is missing, unknown, or of the wrong type."""
        kinds = {"stage": str, "key": str, "digest": str, "sealed": bool}
        if data.keys() != kinds.keys() or not all(isinstance(data[field], kind) for field, kind in kinds.items()):
            raise ValueError(f"Found {dict(data)!r}, expected a reference with stage, key, digest and sealed.")
        return cls(**data)


class FileEntry(BaseModel):
    """One payload file: size in bytes and SHA-256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=0)
    sha256: _Sha256


class Manifest(BaseModel):
    """All that is recorded about a published artifact; written once, last.

    `payload` is the folder of the files, relative to the manifest. `reservations` are the ledger entries that paid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int
    stage: str
    version: int
    key: str
    draw: int
    sealed: bool
    payload: Annotated[str, Field(pattern=r"^payload-[0-9a-f]{8}$")]
    config: JsonValue
    inputs: dict[str, ArtifactRef]
    files: dict[Annotated[str, AfterValidator(check_name)], FileEntry]
    digest: _Sha256
    metrics: dict[str, JsonValue]
    reservations: tuple[str, ...]
    provenance: dict[str, JsonValue]
    written: str
    writer: str

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef(stage=self.stage, key=self.key, digest=self.digest, sealed=self.sealed)

    @property
    def healing(self) -> str:
        """What to do if the artifact is damaged."""
        return healing(self.stage, self.key, costly=self.sealed or bool(self.reservations))


def healing(stage: str, key: str, *, costly: bool | None) -> str:
    """The sentence that ends a message about damage; `costly` None = it cannot be told."""
    remove = f"`privimage artifacts remove {stage} {key}`"
    if costly is None:
        return f"Restore it from a backup; only if the stage is public, {remove} then run again costs no privacy."
    if costly:
        return "It must be restored from a backup, because making it again would cost privacy."
    return f"Use {remove}, then run again."


def parse_manifest(data: bytes, *, name: str, stage: str, key: str, sealed: bool) -> Manifest:
    """Read a manifest found as `name` in the place of (stage, key, sealed).

    Raises:
        ArtifactDamaged: it is no JSON, of another format, incomplete, or belongs to another place.
    """
    unknown = healing(stage, key, costly=True if sealed else None)
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ArtifactDamaged(f"{name} is not valid JSON ({error}). {unknown}") from error
    if not isinstance(found, dict) or "format" not in found:
        raise ArtifactDamaged(f"{name} is no manifest: expected a JSON object with a format number. {unknown}")
    if found["format"] != FORMAT:
        raise ArtifactDamaged(
            f"{name} has format {found['format']!r}, this version of privimage reads format {FORMAT}: it was "
            "written by a newer version; use that one."
        )
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)
        )
        raise ArtifactDamaged(f"{name} is no whole manifest ({problems}). {unknown}") from error
    if (manifest.stage, manifest.key, manifest.sealed) != (stage, key, sealed):
        raise ArtifactDamaged(
            f"{name} describes {manifest.stage} {manifest.key}, sealed {manifest.sealed}: it is not in its place. "
            f"{unknown}"
        )
    return manifest
