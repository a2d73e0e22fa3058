"""The privacy ledger of one sensitive data set: append-only, hash-chained, written before data are touched.

    ledger/<data set id>/000000.json    grant     the owner's lifetime cap
                         000001.json    reserve   a mechanism, before any touch
                         000002.json    resume    a crashed attempt goes on; the steps it may have lost
                         000003.json    settle    the mechanism ran and its artifact is published

Each entry is created under the next number by a create-only write: of two writers one wins, the other reads again,
checks the budget again, and tries again. A reservation counts as spent from the moment it is written. The ledger
stores events, not epsilons: `privimage.privacy.accounting` turns them into numbers at any later time.

How spending adds up. Reservations of one *plan* compose tightly, by their joint privacy loss distribution: one query
and the fine-tuning that was fixed with it, before the query's result could be seen. Plans are chosen adaptively, after
results of earlier ones were seen; over plans, epsilons and deltas are added (basic composition, valid as a filter:
Rogers et al. 2016).
No torch.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dp_accounting as dpa

from privimage.errors import BudgetExceeded, ConfigError, LedgerBroken, PrivacyRefused, Uncharged
from privimage.privacy.accounting import (
    epsilon_of_plan,
    event_from_json,
    event_in_words,
    event_shape,
    event_to_json,
)
from privimage.privacy.mechanisms import RELATION
from privimage.store.files import Store

__all__ = ["Entry", "Ledger", "Plan", "Reservation", "Spent", "SpentPlan"]

FORMAT = 1
# What the body of each kind of entry holds, at least.
KINDS: Mapping[str, frozenset[str]] = {
    "grant": frozenset({"epsilon", "delta", "adjacency", "unit", "num_images", "dataset"}),
    "reserve": frozenset(
        {"stage", "key", "event", "plan", "num_images", "run", "restart_allowance", "checkpoint_steps"}
    ),
    "resume": frozenset({"reservation", "attempt", "lost_steps"}),
    "settle": frozenset({"reservation", "artifact"}),
    "void": frozenset({"reservation", "reason"}),
}
_ROUNDING = 1 + 1e-9


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Mechanisms that are accounted together, and the target they must stay within.

    Attributes:
        intends: the mechanisms that were fixed when the plan was opened, as shapes (all but their noise, which follows
            from the target). Only these compose tightly; the ledger takes no other one into the plan.
        builds_on: reservations of earlier plans whose results this one was chosen after; their cost is added to its own.
    """

    id: str
    epsilon: float
    delta: float
    intends: tuple[str, ...]
    builds_on: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a data set has spent (an upper bound, open reservations included), and what is set aside for its plans."""

    epsilon: float
    delta: float
    set_aside: float
    plans: tuple[SpentPlan, ...]


@dataclass(frozen=True, kw_only=True)
class SpentPlan:
    """One plan: what its reservations cost so far, and the target it may still grow to."""

    id: str
    epsilon: float
    delta: float
    target: float


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """The right to touch sensitive images with one mechanism; it lives until it is settled."""

    ledger: Ledger = field(repr=False)
    entry: Entry

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def event(self) -> dpa.DpEvent:
        return self.entry.event

    def check_live(self) -> None:
        """Raise Uncharged unless the ledger, as it is now, holds this reservation unsettled."""
        states = self.ledger.states()
        if states.get(self.id) != "open":
            found = states.get(self.id, "absent")
            raise Uncharged(f"Reservation {self.id} is {found}, not open: sensitive images stay closed.")


class Ledger:
    """The ledger of the data set `dataset_id` in a store. Reads are verified; the verified prefix is kept.

    Any number of processes may write to one ledger; an object of this class serves one thread.
    """

    def __init__(self, store: Store, dataset_id: str) -> None:
        self._store = store
        self.dataset_id = dataset_id
        self._prefix = f"ledger/{dataset_id}"
        self._entries: list[Entry] = []

    # ---------------------------------------------------------------- reading

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order, chain verified.

        Raises:
            LedgerBroken: a number is missing, an entry was edited, or one is of a newer format.
        """
        names = [name for name in self._store.list(self._prefix) if not name.startswith(f"{self._prefix}/steps/")]
        numbers = sorted(self._number(name) for name in names)
        for expected, found in enumerate(numbers):
            if expected != found:
                raise LedgerBroken(
                    f"Ledger {self.dataset_id}: entry {expected:06d} is missing; restore it from a backup."
                )
        if len(numbers) < len(self._entries):
            raise LedgerBroken(f"Ledger {self.dataset_id}: entry {len(numbers):06d} was there and is gone; restore it.")
        for number in range(len(self._entries), len(numbers)):
            self._entries.append(self._read(number))
        return tuple(self._entries)

    def _number(self, name: str) -> int:
        stem = name.rsplit("/", 1)[-1].removesuffix(".json")
        if not stem.isdigit():
            raise LedgerBroken(f"Ledger {self.dataset_id}: {name} is no ledger entry; move it away.")
        return int(stem)

    def _read(self, number: int) -> Entry:
        """Read entry `number` and check its link to the one before."""
        where = f"Ledger {self.dataset_id}, entry {number:06d}"
        raw = self._store.read(self._name(number))
        try:
            data = json.loads(raw)
            entry = Entry(
                sequence=data["sequence"],
                id=data["id"],
                kind=data["kind"],
                previous=data["previous"],
                written=data["written"],
                body=data["body"],
                digest=hashlib.sha256(raw).hexdigest(),
            )
            version = data["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerBroken(f"{where} cannot be read: {error}; restore it from a backup.") from error
        if version != FORMAT or entry.kind not in KINDS:
            raise LedgerBroken(
                f"{where} is a {entry.kind!r} of format {version}, which this version does not know: update."
            )
        previous = self._entries[-1].digest if self._entries else ""
        if entry.sequence != number or entry.previous != previous:
            raise LedgerBroken(
                f"{where} does not continue the chain: it, or the entry before it, was changed or replaced."
            )
        if (entry.kind == "grant") != (number == 0):
            raise LedgerBroken(f"{where} is a {entry.kind!r}: a ledger has one grant, and it comes first.")
        missing = KINDS[entry.kind] - set(entry.body)
        if missing:
            raise LedgerBroken(f"{where} lacks {', '.join(sorted(missing))}: it was changed; restore it from a backup.")
        return entry

    def _name(self, number: int) -> str:
        return f"{self._prefix}/{number:06d}.json"

    @property
    def grant_entry(self) -> Entry | None:
        """The owner's grant, if there is one."""
        entries = self.entries()
        return entries[0] if entries else None

    def states(self) -> dict[str, str]:
        """Of each reservation: 'open', 'settled' or 'void'."""
        return _states(self.entries())

    def reservations(self) -> dict[str, Entry]:
        """All reservations that count, by id (all but void ones)."""
        entries = self.entries()
        states = _states(entries)
        return {e.id: e for e in entries if e.kind == "reserve" and states[e.id] != "void"}

    def open_reservations(self, stage: str, key: str) -> list[Reservation]:
        """Unsettled reservations of one stage and artifact key, oldest first: what a crash left behind."""
        entries = self.entries()
        states = _states(entries)
        return [
            Reservation(ledger=self, entry=entry)
            for entry in entries
            if entry.kind == "reserve"
            and states[entry.id] == "open"
            and (entry.body["stage"], entry.body["key"]) == (stage, key)
        ]

    def resumes(self, reservation: str) -> list[Entry]:
        """The resume entries of one reservation."""
        return [e for e in self.entries() if e.kind == "resume" and e.body["reservation"] == reservation]

    def spent(self) -> Spent:
        """Upper bound on what the data set has spent, open reservations included."""
        stated: dict[str, Mapping[str, Any]] = {}
        own: dict[str, list[dpa.DpEvent]] = {}
        builds_on: dict[str, set[str]] = {}
        reservations = self.reservations()
        for entry in reservations.values():
            plan = entry.body["plan"]
            stated[plan["id"]] = plan
            own.setdefault(plan["id"], []).append(entry.event)
            builds_on.setdefault(plan["id"], set()).update(plan["builds_on"])
        plans = tuple(
            SpentPlan(
                id=plan,
                epsilon=epsilon_of_plan(
                    own[plan], [reservations[paid].event for paid in builds_on[plan]], stated[plan]["delta"]
                ),
                delta=stated[plan]["delta"],
                target=stated[plan]["epsilon"],
            )
            for plan in stated
        )
        return Spent(
            epsilon=sum(plan.epsilon for plan in plans),
            delta=sum(plan.delta for plan in plans),
            set_aside=sum(plan.target for plan in plans),
            plans=plans,
        )

    # ---------------------------------------------------------------- writing

    def grant(self, *, epsilon: float, delta: float, num_images: int, name: str) -> Entry:
        """Write the owner's lifetime cap; the same grant again is no error and changes nothing.

        Raises:
            ConfigError: epsilon or delta is out of bounds.
            PrivacyRefused: there is another grant already.
        """
        if not (0 < epsilon < float("inf") and 0 < delta < 1 / num_images):
            raise ConfigError(
                f"A grant needs a finite epsilon above 0 and a delta between 0 and 1 / number of training images = "
                f"{1 / num_images:.3g}; found {epsilon:g} and {delta:g}."
            )
        body = {
            "epsilon": float(epsilon),
            "delta": float(delta),
            "adjacency": RELATION.name,
            "unit": "one image",
            "num_images": num_images,
            "dataset": name,
        }

        def check(entries: Sequence[Entry]) -> Entry | None:
            if not entries:
                return None
            found = entries[0].body
            if {**found, "dataset": name} == body:
                return entries[0]
            raise PrivacyRefused(
                f"Data set {self.dataset_id} already has a grant of epsilon {found['epsilon']:g}, delta {found['delta']:g}; "
                f"a second one (epsilon {epsilon:g}, delta {delta:g}) is refused."
            )

        return self._append("grant", body, check)

    def reserve(
        self,
        *,
        stage: str,
        key: str,
        event: dpa.DpEvent,
        plan: Plan,
        num_images: int,
        run: str,
        restart_allowance: int = 0,
        checkpoint_steps: int = 0,
    ) -> Reservation:
        """Charge `event` before it happens.

        Raises:
            PrivacyRefused: there is no grant, its relation or delta does not fit, or the plan would pass its target.
            BudgetExceeded: the plan's whole target does not fit into what is left of the grant.
        """
        body = {
            "stage": stage,
            "key": key,
            "event": event_to_json(event),
            "plan": {
                "id": plan.id,
                "epsilon": plan.epsilon,
                "delta": plan.delta,
                "intends": list(plan.intends),
                "builds_on": list(plan.builds_on),
            },
            "num_images": num_images,
            "run": run,
            "restart_allowance": restart_allowance,
            "checkpoint_steps": checkpoint_steps,
        }

        def check(entries: Sequence[Entry]) -> Entry | None:
            self._check_budget(entries, event, plan)
            return None

        return Reservation(ledger=self, entry=self._append("reserve", body, check))

    def check_fits(self, plan: Plan) -> None:
        """Raise unless the whole target of `plan` fits into the grant; writes nothing."""
        self._check_budget(self.entries(), None, plan)

    def _check_budget(self, entries: Sequence[Entry], event: dpa.DpEvent | None, plan: Plan) -> None:
        if not entries:
            raise PrivacyRefused(
                f"Data set {self.dataset_id} has no grant: its owner has to allow a budget first "
                f"(privimage ledger grant CONFIG --epsilon {plan.epsilon:g} --delta {plan.delta:g})."
            )
        grant = entries[0].body
        if grant["adjacency"] != RELATION.name:
            raise PrivacyRefused(
                f"The grant is for the relation {grant['adjacency']}, this version accounts {RELATION.name}."
            )
        reservations = self.reservations()
        missing = [paid for paid in plan.builds_on if paid not in reservations]
        if missing:
            raise Uncharged(f"Ledger {self.dataset_id} does not hold {missing[0]}, on which this run builds.")
        earlier = [entry for entry in reservations.values() if entry.body["plan"]["id"] == plan.id]
        intends = earlier[0].body["plan"]["intends"] if earlier else plan.intends
        if event is not None and event_shape(event) not in intends:
            raise PrivacyRefused(
                f"Plan {plan.id} was opened for other mechanisms: {event_in_words(event)} was not fixed before the plan's "
                "first result could be seen, so it cannot be accounted as if it were. It needs a plan of its own."
            )
        paid = set(plan.builds_on).union(*(entry.body["plan"]["builds_on"] for entry in earlier))
        own = [entry.event for entry in earlier] + ([event] if event else [])
        cost = epsilon_of_plan(own, [reservations[member].event for member in paid], plan.delta)
        if cost > plan.epsilon * _ROUNDING:
            raise BudgetExceeded(
                f"This run would cost epsilon {cost:.6g} at delta {plan.delta:g}, above its stated {plan.epsilon:g}: raise "
                "privacy.epsilon, or make a new query that costs less (a larger privacy.query_error)."
            )
        # Another plan counts with its whole target: its fine-tuning must not be refused after its query was paid.
        others = [other for other in self.spent().plans if other.id != plan.id]
        left = grant["epsilon"] - sum(other.target for other in others)
        left_delta = grant["delta"] - sum(other.delta for other in others)
        if plan.epsilon > left * _ROUNDING or plan.delta > left_delta * _ROUNDING:
            raise BudgetExceeded(
                f"This run asks for epsilon {plan.epsilon:g}, delta {plan.delta:g}; of the grant (epsilon "
                f"{grant['epsilon']:g}, delta {grant['delta']:g}) there is left epsilon {max(left, 0.0):.4g}, "
                f"delta {max(left_delta, 0.0):.4g}. Nothing was charged."
            )

    def resume(self, reservation: Reservation) -> int:
        """Record that an interrupted attempt is taken over; return the number of the new attempt (2, 3, ...).

        The attempt before it ran at most `checkpoint_steps` steps past its last checkpoint, whose results are gone;
        they are run again with fresh noise. The restart allowance accounted for them from the start. The order of
        things is what makes this exact: this entry first, then the latest checkpoint is read; an attempt saves a
        checkpoint first, then looks for such an entry, and stops if there is one.

        Raises:
            BudgetExceeded: the restart allowance is used up.
        """
        allowance = reservation.entry.body["restart_allowance"]
        block = reservation.entry.body["checkpoint_steps"]

        def body(entries: Sequence[Entry]) -> dict[str, Any]:
            earlier = [e for e in entries if e.kind == "resume" and e.body["reservation"] == reservation.id]
            used = sum(e.body["lost_steps"] for e in earlier)
            if used + block > allowance:
                raise BudgetExceeded(
                    f"Fine-tuning was interrupted before: {used} of its {allowance} restart steps are used, and going on "
                    f"may repeat {block} more. Start it anew with another draw (--draw), which is charged in full, or "
                    "raise finetune.restart_allowance, which is another run."
                )
            return {"reservation": reservation.id, "attempt": len(earlier) + 2, "lost_steps": block}

        def check(entries: Sequence[Entry]) -> None:
            reservation.check_live()

        return int(self._append("resume", body, check).body["attempt"])

    def record_step(self, reservation: Reservation, step: int) -> None:
        """Note, beside the entries, that a checkpoint of `step` was saved: should it get lost, a resume will know."""
        self._store.create(f"{self._steps(reservation)}/{step:09d}.json", b"{}")

    def recorded_step(self, reservation: Reservation) -> int:
        """The highest step noted by `record_step`; 0 if there is none."""
        return max((self._number(name) for name in self._store.list(self._steps(reservation))), default=0)

    def _steps(self, reservation: Reservation) -> str:
        return f"{self._prefix}/steps/{reservation.id}"

    def check_attempt(self, reservation: Reservation, attempt: int) -> None:
        """Raise Uncharged unless `attempt` is the latest one of a live reservation."""
        reservation.check_live()
        latest = 1 + len(self.resumes(reservation.id))
        if latest != attempt:
            raise Uncharged(f"Attempt {latest} has taken over this stage; attempt {attempt} stops here.")

    def settle(self, reservation: Reservation, *, artifact: str) -> None:
        """Record that the mechanism ran and its artifact (content digest) is published; again is no error."""

        def check(entries: Sequence[Entry]) -> Entry | None:
            for entry in entries:
                if entry.kind in ("settle", "void") and entry.body["reservation"] == reservation.id:
                    if entry.kind == "settle" and entry.body["artifact"] == artifact:
                        return entry
                    raise PrivacyRefused(
                        f"Reservation {reservation.id} was already closed by entry {entry.sequence:06d}."
                    )
            return None

        self._append("settle", {"reservation": reservation.id, "artifact": artifact}, check)

    def void(self, reservation: Reservation, *, reason: str) -> None:
        """Give a reservation back. Only for the caller who can prove that no sensitive image was read under it."""

        def check(entries: Sequence[Entry]) -> None:
            reservation.check_live()
            if any(e.kind == "reserve" and reservation.id in e.body["plan"]["builds_on"] for e in entries):
                raise PrivacyRefused(
                    f"Reservation {reservation.id} has been built on: its result exists, it stays spent."
                )
            same = (reservation.entry.body["stage"], reservation.entry.body["key"])
            later = [e for e in entries if e.kind == "reserve" and e.sequence > reservation.entry.sequence]
            if any((e.body["stage"], e.body["key"]) == same for e in later):
                raise PrivacyRefused(f"Reservation {reservation.id} is paid with by another process: it stays spent.")
            if any(e.kind == "resume" and e.body["reservation"] == reservation.id for e in entries):
                raise PrivacyRefused(f"Reservation {reservation.id} was taken over by another attempt: it stays spent.")

        self._append("void", {"reservation": reservation.id, "reason": reason}, check)

    def _append(
        self,
        kind: str,
        body: dict[str, Any] | Callable[[Sequence[Entry]], dict[str, Any]],
        check: Callable[[Sequence[Entry]], Entry | None],
    ) -> Entry:
        """Create the next entry, checking again after each lost race. `check` may return an entry that is as good."""
        identity = secrets.token_hex(8)
        for attempt in range(200):
            entries = self.entries()
            existing = check(entries)
            if existing is not None:
                return existing
            data = {
                "format": FORMAT,
                "sequence": len(entries),
                "id": identity,
                "kind": kind,
                "previous": entries[-1].digest if entries else "",
                "written": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "body": body(entries) if callable(body) else body,
            }
            raw = json.dumps(data, sort_keys=True, indent=1, allow_nan=False).encode()
            if self._store.create(self._name(len(entries)), raw):
                return self.entries()[len(entries)]
            time.sleep(random.uniform(0, min(0.02 * (attempt + 1), 0.5)))
        raise PrivacyRefused(
            f"Ledger {self.dataset_id}: 200 writers in a row were faster; nothing was charged, try again."
        )


def _states(entries: Sequence[Entry]) -> dict[str, str]:
    """Of each reservation in one reading of the ledger: 'open', 'settled' or 'void'."""
    states: dict[str, str] = {}
    for entry in entries:
        if entry.kind == "reserve":
            states[entry.id] = "open"
        elif entry.kind in ("settle", "void"):
            states[entry.body["reservation"]] = "settled" if entry.kind == "settle" else "void"
    return states
