"""What may be said about an admitted image set without opening it, and the digest that identifies it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from privimage.errors import DataError
from privimage.store.artifacts import Artifact

__all__ = ["FACTS_FILE", "Identity", "SensitiveFacts", "TableFacts", "public_facts", "sensitive_facts"]

FACTS_FILE = "facts.json"

_RECORD_BYTES = 40  # a pixel digest of 32 and a label of 8


class Identity:
    """Collects the images of a set; its `hexdigest` does not depend on their order, names, containers or resolution.

    Holds 40 bytes an image.
    """

    def __init__(self) -> None:
        self._records = bytearray()

    def add(self, digest: bytes, label: int) -> None:
        """Count in one image by its `pixel_digest` and label; identical images count as often as they occur."""
        self._records += digest + label.to_bytes(8, "big", signed=True)

    def hexdigest(self) -> str:
        """Hex sha256 over the sorted (digest, label) pairs."""
        records = np.sort(np.frombuffer(self._records, dtype=f"S{_RECORD_BYTES}"))
        return hashlib.sha256(records.tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """Facts of one table of public images."""

    num_images: int
    class_names: tuple[str, ...]
    resolution: int
    channels: int
    identity: str

    def to_json(self) -> str:
        """The facts as JSON with sorted keys."""
        return _to_json(self)

    @classmethod
    def from_json(cls, text: str) -> TableFacts:
        """The facts that `to_json` wrote; DataError for anything else."""
        return cls(**_from_json(text, cls))


@dataclass(frozen=True, kw_only=True)
class SensitiveFacts:
    """Facts of the sensitive tables: sizes of the splits and names of the classes are public, class sizes are not.

    `identity` covers all images of `sensitive.train`, however they are split, and none of `sensitive.test`: it names
    the data that budget is spent on, and another test set must not bring a fresh budget.
    """

    num_train: int
    num_validation: int
    num_test: int
    class_names: tuple[str, ...]
    resolution: int
    channels: int
    identity: str

    def to_json(self) -> str:
        """The facts as JSON with sorted keys."""
        return _to_json(self)

    @classmethod
    def from_json(cls, text: str) -> SensitiveFacts:
        """The facts that `to_json` wrote; DataError for anything else."""
        return cls(**_from_json(text, cls))


def public_facts(artifact: Artifact) -> TableFacts:
    """Facts of the images that stage `public` wrote."""
    return TableFacts.from_json(artifact.read_bytes(FACTS_FILE).decode())


def sensitive_facts(artifact: Artifact) -> SensitiveFacts:
    """Facts of the images that stage `admit` wrote: all that may be said of them."""
    return SensitiveFacts.from_json(artifact.read_bytes(FACTS_FILE).decode())


def _to_json(facts: TableFacts | SensitiveFacts) -> str:
    return json.dumps(dataclasses.asdict(facts), indent=1, sort_keys=True) + "\n"


def _from_json(text: str, kind: type[TableFacts] | type[SensitiveFacts]) -> dict[str, Any]:
    expected = {field.name for field in dataclasses.fields(kind)}
    try:
        data = json.loads(text)
    except ValueError:
        raise DataError("The facts of an image table are not JSON: admit the images again.") from None
    if not isinstance(data, dict) or set(data) != expected:
        raise DataError(f"The facts of an image table must hold {', '.join(sorted(expected))}: admit the images again.")
    return {**data, "class_names": tuple(data["class_names"])}
