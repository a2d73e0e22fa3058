"""Faults of the library that the suite has to find, each a patch on top of the stand-ins."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import privimage.privacy.ledger
from privimage.privacy.ledger import Ledger, Reservation
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.running import runner
from privimage.running.charging import Door, Payment, pay
from privimage.store.backends import LocalBackend
from privimage.store.checkpoints import Checkpoint, Checkpoints
from privimage.store.files import Store
from tests.privacy.faults.baton import current
from tests.privacy.faults.bench import Bench

__all__ = ["PLANTED"]

Plant = Callable[[pytest.MonkeyPatch, Bench], None]


def _touch_before_reserve(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """What is reserved is written to another ledger first, and to this one never."""

    def reserve(ledger: Ledger, **asked: Any) -> Reservation:
        elsewhere = Store.open(f"memory://{secrets.token_hex(8)}")
        bench.grant(elsewhere, 3.0)
        return Reservation(ledger=ledger, entry=real(bench.open_ledger(elsewhere), **asked).entry)

    real = Ledger.reserve
    patch.setattr(Ledger, "reserve", reserve)
    patch.setattr(Reservation, "check_live", lambda reservation: None)


def _create_that_replaces(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """Two steps instead of one: look whether it is there, then write."""

    def create(backend: LocalBackend, name: str, data: bytes) -> bool:
        target = backend.path(name)
        if target.exists():
            return False
        bench.playing.moment("within create")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return True

    patch.setattr(LocalBackend, "create", create)


def _free_resume(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """An interrupted attempt is taken over and nothing is written."""
    patch.setattr(Ledger, "resume", lambda ledger, reservation, *, repeated: 1)


def _early_checkpoint(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """The newest checkpoint is looked up before the resume entry is written, and not again."""
    seen: dict[str, Checkpoint | None] = {}
    real = Checkpoints.latest

    def latest(checkpoints: Checkpoints) -> Checkpoint | None:
        process = current()
        if process is None:
            return real(checkpoints)
        if process.name not in seen:
            seen[process.name] = real(checkpoints)
        return seen[process.name]

    patch.setattr(Checkpoints, "latest", latest)


def _stubborn_attempt(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """An attempt that was taken over goes on."""
    patch.setattr(Ledger, "check_attempt", lambda ledger, reservation, attempt: None)


def _forgetful_door(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """A reservation is given back although images were opened under it."""

    class Forgetful(Door):
        opened = property(lambda door: False, lambda door, value: None)

    patch.setattr(runner, "Door", Forgetful)


def _query_again_for_nothing(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """A query that was interrupted runs again under the reservation that it left."""
    real = Ledger.reserve

    def reserve(ledger: Ledger, **asked: Any) -> Reservation:
        left = ledger.open_reservations(asked["stage"], asked["key"])
        return left[-1] if left else real(ledger, **asked)

    patch.setattr(Ledger, "reserve", reserve)


def _less_noise_than_charged(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """The mechanism that runs is not the one that was charged."""

    def weaker_pay(*given: Any, **others: Any) -> Payment:
        payment = pay(*given, **others)
        mechanism = payment.paid.mechanism
        if not isinstance(mechanism, DPSGDMechanism):
            return payment
        weaker = dataclasses.replace(mechanism, noise_multiplier=0.99 * mechanism.noise_multiplier)
        return dataclasses.replace(payment, paid=dataclasses.replace(payment.paid, mechanism=weaker))

    patch.setattr(runner, "pay", weaker_pay)


def _no_budget(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """Whatever is asked for is granted."""
    patch.setattr(privimage.privacy.ledger, "check_budget", lambda *given, **others: None)


def _manifest_first(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    """An artifact is visible before its files are there."""
    waiting: dict[str, list[Callable[[], None]]] = {}
    real_upload, real_create = Store.upload, Store.create

    def upload(store: Store, local: Path, name: str) -> None:
        process = current()
        if process is None:
            real_upload(store, local, name)
        else:
            waiting.setdefault(process.name, []).append(partial(real_upload, store, local, name))

    def create(store: Store, name: str, data: bytes) -> bool:
        created = real_create(store, name, data)
        process = current()
        if process is not None and name.endswith("/manifest.json"):
            for late in waiting.pop(process.name, []):
                late()
        return created

    patch.setattr(Store, "upload", upload)
    patch.setattr(Store, "create", create)


PLANTED: dict[str, Plant] = {
    "images are touched before the reservation is written": _touch_before_reserve,
    "a create-only write looks first and writes then": _create_that_replaces,
    "a resumption charges nothing": _free_resume,
    "the checkpoint is read before the resume entry is written": _early_checkpoint,
    "an attempt that was taken over goes on": _stubborn_attempt,
    "a reservation is given back after its images were opened": _forgetful_door,
    "an interrupted query is not charged again": _query_again_for_nothing,
    "less noise is added than was charged": _less_noise_than_charged,
    "the budget is not looked at": _no_budget,
    "the manifest is written before the files": _manifest_first,
}
