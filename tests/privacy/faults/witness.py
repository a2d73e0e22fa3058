"""What truly happened, counted in memory, beside the store and without the ledger's help; and what the ledger says of it.

The truth is each noisy result that was computed from sensitive images, and under which reservation. The ledger
under-counts if any of it is not covered by what the ledger holds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import dp_accounting as dpa

from privimage.errors import LedgerBroken
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.entry import Entry
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import DPSGDMechanism, HistogramQuery
from privimage.store.files import Store

__all__ = ["Judgement", "Witness"]

_ROUNDING = 1 + 1e-9


@dataclass(kw_only=True)
class Judgement:
    """What is wrong with one schedule, in sentences; and the most steps that a crash was charged for nothing."""

    under_counts: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    over_counts: list[str] = field(default_factory=list)
    stranded: list[str] = field(default_factory=list)
    max_over_count_steps: int = 0

    @property
    def sound(self) -> bool:
        return not (self.under_counts or self.damaged or self.over_counts or self.stranded)

    @property
    def complaints(self) -> list[str]:
        return [
            f"{name}: {text}"
            for name in ("under_counts", "damaged", "over_counts", "stranded")
            for text in getattr(self, name)
        ]


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One attempt at fine-tuning: where it began, and the numbers of the steps that it ran."""

    number: int
    start: int
    steps: list[int] = field(default_factory=list)


class Witness:
    """Told of everything by the bench; asked at the end.

    `store` is the same storage, without any faults.
    """

    def __init__(self, store: Store, open_ledger: Callable[[], Ledger], judgement: Judgement) -> None:
        self._store = store
        self._open_ledger = open_ledger
        self._doors: set[str] = set()
        self._queries: dict[str, list[HistogramQuery]] = defaultdict(list)
        self._attempts: dict[str, list[_Attempt]] = defaultdict(list)
        self._mechanisms: dict[str, set[DPSGDMechanism]] = defaultdict(set)
        self._resume_calls: Counter[str] = Counter()
        self._manifests: dict[str, bytes] = {}
        self.judgement = judgement

    # ---------------------------------------------------------------- what is seen

    def door_opened(self, reservation: str) -> None:
        """Sensitive images are in the stage's hands."""
        state = self._open_ledger().states().get(reservation, "absent")
        if state in ("absent", "void"):
            self.judgement.under_counts.append(f"images were opened under {reservation}, which is {state}")
        self._doors.add(reservation)

    def query_ran(self, reservation: str, mechanism: HistogramQuery) -> None:
        """The votes were counted and noise was added."""
        self._queries[reservation].append(mechanism)

    def attempt_began(self, reservation: str, number: int, start: int) -> _Attempt:
        """An attempt at fine-tuning is about to run its first step, from a checkpoint of step `start`."""
        attempt = _Attempt(number=number, start=start)
        self._attempts[reservation].append(attempt)
        return attempt

    def step_ran(self, reservation: str, attempt: _Attempt, step: int, mechanism: DPSGDMechanism) -> None:
        """A noisy gradient was computed."""
        attempt.steps.append(step)
        self._mechanisms[reservation].add(mechanism)

    def resume_called(self, reservation: str) -> None:
        """A process takes over, or dies while it tries to."""
        self._resume_calls[reservation] += 1

    def manifest_seen(self, name: str) -> None:
        """An artifact may have become visible: it must be whole and paid from this very moment."""
        try:
            data = self._store.read(name)
        except FileNotFoundError:
            return
        known = self._manifests.setdefault(name, data)
        if known != data:
            self.judgement.damaged.append(f"{name} was published twice, with different content")
        self._check_artifact(name, data)

    # ---------------------------------------------------------------- what is asked

    def check(self) -> None:
        """Hold the ledger and the artifacts, as they are now, against the truth."""
        ledger = self._open_ledger()
        try:
            entries = ledger.entries()
        except LedgerBroken as error:
            self._under(f"nobody can tell what was spent: {error}")
            return
        counted = ledger.reservations()
        lost = _lost_steps(entries)
        for reservation in self._doors - counted.keys():
            self._under(f"images were opened under {reservation}, which the ledger does not count")
        for reservation, queries in self._queries.items():
            self._check_query(reservation, queries, counted.get(reservation))
        for reservation, attempts in self._attempts.items():
            self._check_steps(reservation, attempts, counted.get(reservation), lost.get(reservation, []))
        self._check_sums(ledger, counted)
        self._check_over_counts(counted.values(), lost)
        for name, known in self._manifests.items():
            try:
                data = self._store.read(name)
            except FileNotFoundError:
                self.judgement.damaged.append(f"{name} was published and is gone")
                continue
            if data != known:
                self.judgement.damaged.append(f"{name} was changed after it was published")
            self._check_artifact(name, data)

    def _under(self, text: str) -> None:
        if text not in self.judgement.under_counts:
            self.judgement.under_counts.append(text)

    def _check_query(self, reservation: str, queries: list[HistogramQuery], entry: Entry | None) -> None:
        if entry is None:
            self._under(f"a query ran under {reservation}, which the ledger does not count")
        elif len(queries) > 1:
            self._under(f"{len(queries)} queries ran under {reservation}, which is charged for one")
        elif queries[0].event != entry.event:
            self._under(f"the query under {reservation} is not the one that was charged")

    def _check_steps(self, reservation: str, attempts: list[_Attempt], entry: Entry | None, lost: list[int]) -> None:
        if entry is None:
            self._under(f"steps ran under {reservation}, which the ledger does not count")
            return
        ran = sum(len(attempt.steps) for attempt in attempts)
        for mechanism in self._mechanisms[reservation]:
            if mechanism.event != entry.event:
                self._under(f"fine-tuning under {reservation} is not the one that was charged")
            if ran > mechanism.num_steps + mechanism.restart_allowance:
                self._under(f"{ran} steps ran under {reservation}, which is charged for {mechanism.event}")
        repeated = _repeated(attempts)
        if sum(repeated.values()) > sum(lost):
            self._under(
                f"{sum(repeated.values())} steps were run again under {reservation}, its resumptions state {sum(lost)}"
            )

    def _true_events(self, reservation: str) -> list[dpa.DpEvent]:
        """What truly ran under a reservation."""
        events = [mechanism.event for mechanism in self._queries.get(reservation, [])]
        ran = sum(len(attempt.steps) for attempt in self._attempts.get(reservation, []))
        for mechanism in self._mechanisms.get(reservation, set()):
            step = dpa.PoissonSampledDpEvent(mechanism.sample_rate, dpa.GaussianDpEvent(mechanism.noise_multiplier))
            events.append(dpa.SelfComposedDpEvent(step, ran))
        return events

    def _check_sums(self, ledger: Ledger, counted: dict[str, Entry]) -> None:
        """Epsilons: of each plan, truth against ledger; of everything, truth against ledger and grant."""
        spent = ledger.spent()
        grant = ledger.grant_entry
        if grant is None:
            return
        figure = {plan.id: plan for plan in spent.plans}
        members: dict[str, list[Entry]] = defaultdict(list)
        for entry in counted.values():
            members[entry.body["plan"]["id"]].append(entry)
        true_sum = 0.0
        for plan, own in members.items():
            delta = figure[plan].delta
            builds_on = {paid for entry in own for paid in entry.body["plan"]["builds_on"]}
            true_own = [event for entry in own for event in self._true_events(entry.id)]
            true_before = [event for paid in builds_on for event in self._true_events(paid)]
            truth = (
                epsilon_of(true_own, delta / 2) + epsilon_of(true_before, delta / 2)
                if builds_on
                else epsilon_of(true_own, delta)
            )
            true_sum += truth
            if truth > figure[plan].epsilon * _ROUNDING:
                self._under(f"plan {plan} truly spent {truth:.6g}, the ledger says {figure[plan].epsilon:.6g}")
            if figure[plan].epsilon > figure[plan].target * _ROUNDING:
                self._under(f"plan {plan} spent {figure[plan].epsilon:.6g} of its {figure[plan].target:.6g}")
        if true_sum > spent.epsilon * _ROUNDING:
            self._under(f"{true_sum:.6g} was truly spent, the ledger says {spent.epsilon:.6g}")
        everything = [
            event for reservation in {*self._queries, *self._attempts} for event in self._true_events(reservation)
        ]
        total = epsilon_of(everything, grant.body["delta"])
        if total > grant.body["epsilon"] * _ROUNDING:
            self._under(f"{total:.6g} was truly spent of a grant of {grant.body['epsilon']:.6g}")
        if spent.share > _ROUNDING:
            self._under(f"the ledger gave away {spent.share:.6g} of its grant")

    def _check_over_counts(self, counted: Iterable[Entry], lost: dict[str, list[int]]) -> None:
        """Each take-over costs at most a block, each is written once, and no fine-tuning is charged twice."""
        finetunes: Counter[str] = Counter()
        for entry in counted:
            if entry.body["stage"] != "finetune":
                continue
            block = entry.body["checkpoint_steps"]
            finetunes[entry.body["key"]] += 1
            stated = lost.get(entry.id, [])
            repeated = _repeated(self._attempts.get(entry.id, []))
            for number, steps in enumerate(stated, start=2):
                over = steps - repeated.get(number, 0)
                self.judgement.max_over_count_steps = max(self.judgement.max_over_count_steps, over)
                if over > block:
                    self.judgement.over_counts.append(
                        f"take-over {number} of {entry.id} is charged {over} steps in vain"
                    )
            if len(stated) > self._resume_calls[entry.id]:
                self.judgement.over_counts.append(
                    f"{entry.id} was taken over {self._resume_calls[entry.id]} times and charged {len(stated)} times"
                )
        for key, times in finetunes.items():
            if times > 1:
                self.judgement.over_counts.append(f"fine-tuning {key[:12]} is charged {times} times in full")

    def _check_artifact(self, name: str, data: bytes) -> None:
        manifest = json.loads(data)
        folder = name.removesuffix("manifest.json") + manifest["payload"]
        for file, stated in manifest["files"].items():
            try:
                content = self._store.read(f"{folder}/{file}")
            except FileNotFoundError:
                self._damage(f"{folder}/{file} is missing")
                continue
            if hashlib.sha256(content).hexdigest() != stated["sha256"] or len(content) != stated["size"]:
                self._damage(f"{folder}/{file} is not what its manifest says")
        states = self._open_ledger().states()
        unpaid = [paid for paid in manifest["reservations"] if states.get(paid) not in ("open", "settled")]
        if unpaid or not manifest["reservations"]:
            self._damage(f"{name} is published and not paid: {unpaid}")

    def _damage(self, text: str) -> None:
        if text not in self.judgement.damaged:
            self.judgement.damaged.append(text)


def _lost_steps(entries: Iterable[Entry]) -> dict[str, list[int]]:
    """Of each reservation, what each of its resumptions states as lost."""
    lost: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        if entry.kind == "resume":
            lost[entry.body["reservation"]].append(entry.body["lost_steps"])
    return lost


def _repeated(attempts: Sequence[_Attempt]) -> dict[int, int]:
    """Of each attempt, how many steps of earlier ones it made worthless, by beginning before them.

    A step that two earlier attempts both ran counts twice: both results were computed.
    """
    in_order = sorted(attempts, key=lambda attempt: attempt.number)  # of the same number: as they began
    left = [(step, rank) for rank, attempt in enumerate(in_order) for step in attempt.steps]
    repeated: dict[int, int] = defaultdict(int)
    for rank, attempt in enumerate(in_order):
        lost = [ran for ran in left if ran[1] < rank and ran[0] > attempt.start]
        left = [ran for ran in left if ran not in lost]
        repeated[attempt.number] += len(lost)
    return repeated
