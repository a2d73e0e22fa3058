"""The privacy ledger: append-only, hash-chained, written before data are touched.

    ledger/<ledger id>/entries/000000.json    grant     the owner's lifetime cap
                               000001.json    reserve   a mechanism, before any touch
                               000002.json    resume    another attempt goes on; the steps that may be lost
                               000003.json    pause     an attempt stopped by itself, right after a checkpoint
                               000004.json    settle    the mechanism ran and its artifact is published
                               000005.json    void      given back: no image was opened under it
                               000006.json    close     nothing more will be reserved in a plan

Each entry is created under the next number by a create-only write: of two writers one wins, the other reads again,
checks the budget again, and tries again (`privimage.privacy.chain`). A reservation counts as spent from the moment it
is written. The ledger stores events, not epsilons: `privimage.privacy.budget` turns them into numbers at any later
time. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dp_accounting as dpa

from privimage.config.bounds import LARGEST_EPSILON, SMALLEST_DELTA, SMALLEST_EPSILON
from privimage.errors import BudgetExceeded, ConfigError, LedgerBroken, PrivacyRefused, Uncharged
from privimage.privacy.accounting import event_to_json, is_accountable
from privimage.privacy.budget import Plan, Spent, check_budget, grant_for, reservations_of, spent_by, states_of
from privimage.privacy.chain import Chain
from privimage.privacy.entry import Entry
from privimage.privacy.mechanisms import RELATION
from privimage.privacy.renyi import best_order
from privimage.store.files import Store

__all__ = ["Ledger", "Reservation", "check_grant"]


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
        self.check_live_in(self.ledger.entries())

    def check_live_in(self, entries: Sequence[Entry]) -> None:
        """The same for one reading of the ledger."""
        found = states_of(entries).get(self.id, "absent")
        if found != "open":
            raise Uncharged(f"Reservation {self.id} is {found}, not open: sensitive images stay closed.")


class Ledger:
    """The ledger `dataset_id` in a store: of one sensitive data set, or of several that share people.

    Any number of processes may write to one ledger; an object of this class serves one thread.
    """

    def __init__(self, store: Store, dataset_id: str) -> None:
        self._store = store
        self.dataset_id = dataset_id
        self._chain = Chain(store, dataset_id)

    # ---------------------------------------------------------------- reading

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order, chain verified.

        Raises:
            LedgerBroken: a number is missing, an entry was edited, or one is of a newer format.
        """
        return self._chain.entries()

    @property
    def grant_entry(self) -> Entry | None:
        """The owner's grant, if there is one."""
        entries = self.entries()
        return entries[0] if entries else None

    def states(self) -> dict[str, str]:
        """Of each reservation: 'open', 'settled' or 'void'."""
        return states_of(self.entries())

    def reservations(self) -> dict[str, Entry]:
        """All reservations that count, by id (all but void ones)."""
        return reservations_of(self.entries())

    def open_reservations(self, stage: str, key: str) -> list[Reservation]:
        """Unsettled reservations of one stage and artifact key, oldest first: what a crash left behind."""
        entries = self.entries()
        states = states_of(entries)
        return [
            Reservation(ledger=self, entry=entry)
            for entry in entries
            if entry.kind == "reserve"
            and states[entry.id] == "open"
            and (entry.body["stage"], entry.body["key"]) == (stage, key)
        ]

    def resumes(self, reservation: str) -> list[Entry]:
        """The resume entries of one reservation."""
        return _resumes(self.entries(), reservation)

    def is_closed(self, plan: str) -> bool:
        """Whether nothing more may be reserved in a plan."""
        return any(entry.kind == "close" and entry.body["plan"] == plan for entry in self.entries())

    def spent(self) -> Spent:
        """Upper bound on what was spent, open reservations included."""
        return spent_by(self.entries())

    def check_granted(self, *, epsilon: float, delta: float, num_images: int) -> None:
        """Raise unless there is a grant that allows a run of this epsilon and delta, whatever was spent since."""
        grant_for(self.dataset_id, self.entries(), epsilon=epsilon, delta=delta, num_images=num_images)

    def check_fits(self, plan: Plan, *, num_images: int) -> None:
        """Raise unless all that `plan` intends fits into the grant; writes nothing."""
        check_budget(self.dataset_id, self.entries(), plan, num_images=num_images)

    # ---------------------------------------------------------------- writing

    def grant(self, *, epsilon: float, delta: float, num_images: int, name: str) -> Entry:
        """Write the owner's lifetime cap; the same grant again is no error and changes nothing.

        Raises:
            ConfigError: epsilon or delta is out of bounds.
            PrivacyRefused: there is another grant already.
            StoreError: the store does not honour conditional writes.
        """
        check_grant(epsilon=epsilon, delta=delta, num_images=num_images)
        self._store.probe()
        body = {
            "epsilon": float(epsilon),
            "delta": float(delta),
            # Fixed now, because a filter's order must not depend on what was seen later.
            "order": best_order(epsilon, delta),
            "adjacency": RELATION.name,
            "unit": "one image",
            "num_images": num_images,
            "dataset": name,
        }

        def check(entries: Sequence[Entry]) -> Entry | None:
            if not entries:
                return None
            found = entries[0].body
            if (found["epsilon"], found["delta"]) == (body["epsilon"], body["delta"]):
                return entries[0]
            raise PrivacyRefused(
                f"Data set {self.dataset_id} already has a grant of epsilon {found['epsilon']:g}, delta {found['delta']:g}, "
                f"of which epsilon {spent_by(entries).epsilon:.4g} is spent; a second one (epsilon {epsilon:g}, delta "
                f"{delta:g}) is refused."
            )

        return self._chain.append("grant", body, check)

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
        guarantee: bool = True,
    ) -> Reservation:
        """Charge `event` before it happens.

        Args:
            guarantee: whether its noise is such that nobody can make it again; false in tests only.

        Raises:
            PrivacyRefused: there is no grant, its relation or delta does not fit, or the plan would pass its target.
            BudgetExceeded: the plan, as it intends to be, does not fit into what is left of the grant.
        """
        body = {
            "stage": stage,
            "key": key,
            "event": event_to_json(event),
            "plan": plan.to_json(),
            "num_images": num_images,
            "run": run,
            "restart_allowance": restart_allowance,
            "checkpoint_steps": checkpoint_steps,
            "guarantee": guarantee,
        }

        def check(entries: Sequence[Entry]) -> None:
            check_budget(self.dataset_id, entries, plan, num_images=num_images, event=event)

        return Reservation(ledger=self, entry=self._chain.append("reserve", body, check))

    def resume(self, reservation: Reservation, *, repeated: int = 0, guarantee: bool = True) -> int:
        """Record that an interrupted attempt is taken over; return the number of the new attempt (2, 3, ...).

        The attempt before it ran at most `checkpoint_steps` steps past its last checkpoint, whose results are gone;
        they are run again with fresh noise. The restart allowance accounted for them from the start. The order of
        things is what makes this exact: this entry first, then the latest checkpoint is read; an attempt saves a
        checkpoint first, then looks for such an entry, and stops if there is one. An attempt that paused has lost
        nothing.

        Args:
            repeated: steps before the last noted one that are run again as well, because its checkpoint is lost.
            guarantee: as for `reserve`, of the new attempt.

        Raises:
            BudgetExceeded: the restart allowance is used up.
        """
        allowance = reservation.entry.body["restart_allowance"]
        block = reservation.entry.body["checkpoint_steps"]

        def body(entries: Sequence[Entry]) -> dict[str, Any]:
            earlier = _resumes(entries, reservation.id)
            used = sum(e.body["lost_steps"] for e in earlier)
            lost = repeated + (0 if _paused(entries, reservation.id) else block)
            if used + lost > allowance:
                raise BudgetExceeded(
                    f"Fine-tuning was interrupted before: {used} of its {allowance} restart steps are used, and going on "
                    f"may repeat {lost} more. Start it anew with another draw (--draw), which is charged in full, or "
                    "raise generator.finetune.restart_allowance (of DP-SGD), which is another run."
                )
            attempt = len(earlier) + 2
            return {"reservation": reservation.id, "attempt": attempt, "lost_steps": lost, "guarantee": guarantee}

        return int(self._chain.append("resume", body, reservation.check_live_in).body["attempt"])

    def pause(self, reservation: Reservation, *, attempt: int, step: int) -> None:
        """Record that `attempt` saved and noted a checkpoint of `step` and runs no further step.

        Raises:
            Uncharged: another attempt has taken over.
        """

        def check(entries: Sequence[Entry]) -> None:
            _check_attempt(reservation, entries, attempt)

        self._chain.append("pause", {"reservation": reservation.id, "attempt": attempt, "step": step}, check)

    def record_step(self, reservation: Reservation, step: int) -> None:
        """Note, beside the entries, that a checkpoint of `step` was saved: should it get lost, a resume will know."""
        self._store.create(f"{self._steps(reservation)}/{step:09d}.json", b"{}")

    def recorded_step(self, reservation: Reservation) -> int:
        """The highest step noted by `record_step`; 0 if there is none.

        Raises:
            LedgerBroken: a file that notes no step lies among them.
        """
        steps = []
        for name in self._store.list(self._steps(reservation)):
            stem = name.rsplit("/", 1)[-1].removesuffix(".json")
            if not stem.isdigit():
                raise LedgerBroken(f"Ledger {self.dataset_id}: {name} notes no step; move it away.")
            steps.append(int(stem))
        return max(steps, default=0)

    def _steps(self, reservation: Reservation) -> str:
        return f"ledger/{self.dataset_id}/steps/{reservation.id}"

    def check_attempt(self, reservation: Reservation, attempt: int) -> None:
        """Raise Uncharged unless `attempt` is the latest one of a live reservation."""
        _check_attempt(reservation, self.entries(), attempt)

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

        self._chain.append("settle", {"reservation": reservation.id, "artifact": artifact}, check)

    def void(self, reservation: Reservation, *, reason: str) -> None:
        """Give a reservation back. Only for the caller who can prove that no sensitive image was read under it."""

        def check(entries: Sequence[Entry]) -> None:
            reservation.check_live_in(entries)
            if any(e.kind == "reserve" and reservation.id in e.body["plan"]["builds_on"] for e in entries):
                raise PrivacyRefused(
                    f"Reservation {reservation.id} has been built on: its result exists, it stays spent."
                )
            same = (reservation.entry.body["stage"], reservation.entry.body["key"])
            later = [e for e in entries if e.kind == "reserve" and e.sequence > reservation.entry.sequence]
            if any((e.body["stage"], e.body["key"]) == same for e in later):
                raise PrivacyRefused(f"Reservation {reservation.id} is paid with by another process: it stays spent.")
            if _resumes(entries, reservation.id):
                raise PrivacyRefused(f"Reservation {reservation.id} was taken over by another attempt: it stays spent.")

        self._chain.append("void", {"reservation": reservation.id, "reason": reason}, check)

    def close(self, plan: str, *, reason: str) -> None:
        """Give up what a plan has set aside but not reserved; what it reserved stays spent. Again is no error.

        Raises:
            PrivacyRefused: no reservation belongs to such a plan.
        """

        def check(entries: Sequence[Entry]) -> Entry | None:
            for entry in entries:
                if entry.kind == "close" and entry.body["plan"] == plan:
                    return entry
            plans = {entry.body["plan"]["id"] for entry in reservations_of(entries).values()}
            if plan not in plans:
                raise PrivacyRefused(
                    f"Ledger {self.dataset_id} has no plan {plan!r}; it has {', '.join(sorted(plans)) or 'none'}."
                )
            return None

        self._chain.append("close", {"plan": plan, "reason": reason}, check)


def _check_attempt(reservation: Reservation, entries: Sequence[Entry], attempt: int) -> None:
    reservation.check_live_in(entries)
    latest = 1 + len(_resumes(entries, reservation.id))
    if latest != attempt:
        raise Uncharged(f"Attempt {latest} has taken over this stage; attempt {attempt} stops here.")


def _paused(entries: Sequence[Entry], reservation: str) -> bool:
    """Whether the latest attempt stopped by itself."""
    life = [e for e in entries if e.kind in ("resume", "pause") and e.body["reservation"] == reservation]
    return bool(life) and life[-1].kind == "pause"


def check_grant(*, epsilon: float, delta: float, num_images: int) -> None:
    """Raise ConfigError for an epsilon or delta of which no run could be accounted; it is tried, because a grant is for ever."""
    if not (SMALLEST_EPSILON <= epsilon <= LARGEST_EPSILON and SMALLEST_DELTA <= delta < 1 / num_images):
        raise ConfigError(
            f"A grant needs an epsilon from {SMALLEST_EPSILON:g} to {LARGEST_EPSILON:g}, and a delta from {SMALLEST_DELTA:g} to "
            f"below 1 / number of training images = {1 / num_images:.3g}; found {epsilon:g} and {delta:g}. Nothing was granted."
        )
    if not is_accountable(epsilon, delta):
        raise ConfigError(
            f"No run could be accounted with epsilon {epsilon:g} at delta {delta:g}: choose a larger delta or another epsilon. "
            "Nothing was granted."
        )


def _resumes(entries: Sequence[Entry], reservation: str) -> list[Entry]:
    return [entry for entry in entries if entry.kind == "resume" and entry.body["reservation"] == reservation]
