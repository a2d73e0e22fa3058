"""One entry of a ledger: its form. What an entry says is checked here to the last number, because a number that is none
(a noise of NaN, a negative count of steps) would make everything that is added up from it worthless. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import dp_accounting as dpa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privimage.errors import LedgerBroken
from privimage.privacy.accounting import event_from_json
from privimage.privacy.renyi import LARGEST_ORDER

__all__ = ["FORMAT", "Entry", "check_body", "entry_bytes", "read_entry"]

FORMAT = 1


class _Form(BaseModel):
    """At least these fields, of exactly these types."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


_Text = Annotated[str, Field(min_length=1)]
_Epsilon = Annotated[float, Field(gt=0)]
_Delta = Annotated[float, Field(gt=0, lt=1)]
_Count = Annotated[int, Field(ge=1)]
_Steps = Annotated[int, Field(ge=0)]


class _Envelope(_Form):
    sequence: int
    id: _Text
    kind: str
    previous: str
    written: str
    body: dict[str, Any]


class _Grant(_Form):
    epsilon: _Epsilon
    delta: _Delta
    order: Annotated[int, Field(ge=2, le=LARGEST_ORDER)]
    adjacency: str
    unit: str
    num_images: _Count
    dataset: str


class _Plan(_Form):
    id: _Text
    epsilon: _Epsilon
    delta: _Delta
    intends: list[dict[str, Any]]
    builds_on: list[_Text]


class _Reserve(_Form):
    stage: _Text
    key: _Text
    event: Any
    plan: _Plan
    num_images: _Count
    run: str
    restart_allowance: _Steps
    checkpoint_steps: _Steps
    guarantee: bool


class _Pause(_Form):
    reservation: _Text
    attempt: _Count
    step: _Steps


class _Resume(_Form):
    reservation: _Text
    attempt: _Count
    lost_steps: _Steps
    guarantee: bool


class _Settle(_Form):
    reservation: _Text
    artifact: _Text


class _Void(_Form):
    reservation: _Text
    reason: str


class _Close(_Form):
    plan: _Text
    reason: str


_BODIES: Mapping[str, type[_Form]] = {
    "grant": _Grant,
    "reserve": _Reserve,
    "pause": _Pause,
    "resume": _Resume,
    "settle": _Settle,
    "void": _Void,
    "close": _Close,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger, as read back and verified."""

    sequence: int
    id: str
    kind: str
    previous: str
    written: str
    body: Mapping[str, Any]
    digest: str

    @property
    def event(self) -> dpa.DpEvent:
        """The mechanism of a `reserve` entry."""
        return event_from_json(self.body["event"])


def entry_bytes(*, sequence: int, id: str, kind: str, previous: str, written: str, body: Mapping[str, Any]) -> bytes:
    """An entry as it is stored."""
    data = {
        "format": FORMAT,
        "sequence": sequence,
        "id": id,
        "kind": kind,
        "previous": previous,
        "written": written,
        "body": body,
    }
    return json.dumps(data, sort_keys=True, indent=1, allow_nan=False).encode()


def read_entry(raw: bytes, where: str) -> Entry:
    """Inverse of `entry_bytes`.

    Raises:
        LedgerBroken: it cannot be read, is of a newer version, or says something that no entry says.
    """
    try:
        data = json.loads(raw, parse_constant=_refuse_constant)
        version = data["format"]
        form = _Envelope.model_validate(data)
        if datetime.fromisoformat(form.written).tzinfo is None:
            raise ValueError(f"{form.written} has no time zone")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LedgerBroken(f"{where} cannot be read: {_in_words(error)}; restore it from a backup.") from error
    if version != FORMAT or form.kind not in _BODIES:
        raise LedgerBroken(f"{where} is a {form.kind!r} of format {version}, which this version does not know: update.")
    return Entry(
        sequence=form.sequence,
        id=form.id,
        kind=form.kind,
        previous=form.previous,
        written=form.written,
        body=form.body,
        digest=hashlib.sha256(raw).hexdigest(),
    )


def check_body(entry: Entry, where: str) -> None:
    """Raise LedgerBroken if a field is missing, of another type, or out of all bounds."""
    missing = set(_BODIES[entry.kind].model_fields) - set(entry.body)
    if missing:
        raise LedgerBroken(f"{where} lacks {', '.join(sorted(missing))}: it was changed; restore it from a backup.")
    try:
        _BODIES[entry.kind].model_validate(entry.body)
    except ValidationError as error:
        raise LedgerBroken(f"{where} was changed: {_in_words(error)}; restore it from a backup.") from error
    if entry.kind == "reserve":
        try:
            for event in (entry.body["event"], *entry.body["plan"]["intends"]):
                event_from_json(event)
        except LedgerBroken as error:
            raise LedgerBroken(f"{where} cannot be used: {error}") from error


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _in_words(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, found['loc']))} is {found['input']!r:.60} ({found['msg']})"
