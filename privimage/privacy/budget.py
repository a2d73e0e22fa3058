"""What a ledger's entries amount to: what was spent, what is set aside, and whether one more mechanism fits.

Two bounds, for two questions.

*What does one release cost?* Reservations of one plan (one query and the fine-tuning that was fixed with it, before
the query's result could be seen) compose tightly, by their joint privacy loss distribution. A plan never passes the
epsilon that it states.

*What do all releases cost together?* Plans are chosen adaptively, after results of earlier ones were seen. So the grant
is a Rényi filter (Feldman and Zrnic 2021, Theorem 4.3): the Rényi divergences, at one order that was fixed with the
grant, of all that was spent and set aside add up to at most what that order allows for the grant's epsilon and delta.
The first plan is not chosen adaptively. If it takes nearly all of that, it has the whole grant to itself: its own joint
bound is then the bound on everything, and no other plan is ever opened. Which of the two holds is settled by what the
first plan intends, before anything was seen; so the grant is a bound whatever is chosen later.

Functions of entries only: nothing is read or written here. No torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dp_accounting as dpa

from privimage.errors import BudgetExceeded, PrivacyRefused, Uncharged
from privimage.privacy.accounting import (
    epsilon_of,
    epsilon_of_plan,
    event_from_json,
    event_in_words,
    event_shape,
    event_to_json,
    lost_attempts,
)
from privimage.privacy.entry import Entry
from privimage.privacy.mechanisms import RELATION
from privimage.privacy.numerics import ideal
from privimage.privacy.renyi import budget_of_order, renyi_divergence

__all__ = [
    "Plan",
    "Spent",
    "SpentPlan",
    "check_budget",
    "grant_for",
    "left_of_grant",
    "reservations_of",
    "share_of_grant",
    "spent_by",
    "states_of",
    "without_guarantee",
]

_ROUNDING = 1 + 1e-9
# A first plan that intends to take more of the Rényi budget than this has the whole grant.
WHOLE_GRANT = 0.9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Mechanisms that are accounted together, and the target they must stay within.

    Attributes:
        intends: the mechanisms that were fixed when the plan was opened. Only these compose tightly; the ledger takes
            no mechanism of another shape (all but its noise, which follows from the target) into the plan.
        builds_on: reservations of earlier plans whose results this one was chosen after; their cost is added to its own.
    """

    id: str
    epsilon: float
    delta: float
    intends: tuple[dpa.DpEvent, ...]
    builds_on: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it is kept in each of its reservations."""
        return {
            "id": self.id,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "intends": [event_to_json(event) for event in self.intends],
            "builds_on": list(self.builds_on),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Inverse of `to_json`."""
        return Plan(
            id=data["id"],
            epsilon=data["epsilon"],
            delta=data["delta"],
            intends=tuple(event_from_json(event) for event in data["intends"]),
            builds_on=tuple(data["builds_on"]),
        )


@dataclass(frozen=True, kw_only=True)
class SpentPlan:
    """One plan: what its reservations cost so far, the target it may still grow to, and its share of the grant.

    Attributes:
        share: of the grant's Rényi budget; what was spent, and what is still set aside for the intended mechanisms.
        closed: nothing is set aside any more, because nothing more may be reserved.
    """

    id: str
    epsilon: float
    delta: float
    target: float
    share: float
    closed: bool


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a data set has spent (an upper bound, open reservations included), and what is set aside for its plans.

    Attributes:
        epsilon, delta: sums over plans: a bound on all releases so far (Rogers et al. 2016). The grant is another one.
        share: of the grant's Rényi budget, spent or set aside; 1 where a plan has the whole grant.
    """

    epsilon: float
    delta: float
    share: float
    plans: tuple[SpentPlan, ...]


def states_of(entries: Sequence[Entry]) -> dict[str, str]:
    """Of each reservation: 'open', 'settled' or 'void'."""
    states: dict[str, str] = {}
    for entry in entries:
        if entry.kind == "reserve":
            states[entry.id] = "open"
        elif entry.kind in ("settle", "void"):
            states[entry.body["reservation"]] = "settled" if entry.kind == "settle" else "void"
    return states


def reservations_of(entries: Sequence[Entry]) -> dict[str, Entry]:
    """All reservations that count, by id (all but void ones)."""
    states = states_of(entries)
    return {e.id: e for e in entries if e.kind == "reserve" and states[e.id] != "void"}


def without_guarantee(entries: Sequence[Entry], reservations: Collection[str]) -> list[Entry]:
    """The entries of these reservations, or of attempts under them, whose noise somebody can make again."""
    return [
        entry
        for entry in entries
        if not entry.body.get("guarantee", True)
        and (entry.id in reservations or entry.body.get("reservation") in reservations)
    ]


def spent_by(entries: Sequence[Entry]) -> Spent:
    """Upper bound on what was spent."""
    if not entries:
        return Spent(epsilon=0.0, delta=0.0, share=0.0, plans=())
    reservations = reservations_of(entries)
    closed = _closed(entries)
    plans, whole = [], False
    for plan, own in _by_plan(reservations).items():
        stated = own[0].body["plan"]
        whole = whole or _is_whole(entries[0].body, own)
        plans.append(
            SpentPlan(
                id=plan,
                epsilon=_cost(own, (), reservations, stated["delta"]),
                delta=stated["delta"],
                target=stated["epsilon"],
                share=share_of_grant(entries[0].body, _committed(own, plan in closed)),
                closed=plan in closed,
            )
        )
    return Spent(
        epsilon=sum(plan.epsilon for plan in plans),
        delta=sum(plan.delta for plan in plans),
        share=1.0 if whole else sum(plan.share for plan in plans),
        plans=tuple(plans),
    )


def share_of_grant(grant: Mapping[str, Any], events: Sequence[dpa.DpEvent]) -> float:
    """How much of a grant's Rényi budget mechanisms take; infinite if that budget is nothing."""
    budget = _budget(grant)
    divergence = sum(renyi_divergence(event, grant["order"]) for event in events)
    return divergence / budget if budget > 0 else float("inf")


def _budget(grant: Mapping[str, Any]) -> float:
    """The Rényi divergence that a grant holds at its order, less what rounding of noise may add."""
    return budget_of_order(*ideal(grant["epsilon"], grant["delta"]), grant["order"])


def left_of_grant(grant: Mapping[str, Any], spent: Spent) -> float:
    """Epsilon, at the grant's delta, of the largest Gaussian mechanism that would still be let in: what a run may cost.

    DP-SGD of many steps takes nearly the same of the Rényi budget as a Gaussian mechanism of its epsilon. Before the
    first run it is the whole grant.
    """
    if not spent.plans:
        return float(grant["epsilon"])
    left = (1 - spent.share) * _budget(grant)
    if not left > 0:
        return 0.0
    return epsilon_of([dpa.GaussianDpEvent(math.sqrt(grant["order"] / (2 * left)))], grant["delta"])


def check_budget(
    ledger: str, entries: Sequence[Entry], plan: Plan, *, num_images: int, event: dpa.DpEvent | None = None
) -> None:
    """Raise unless `event` may be charged to `plan` (None: unless the plan as it intends to be fits into the grant).

    Raises:
        PrivacyRefused: no grant; its relation or delta is another one; or the event was not intended.
        Uncharged: the plan builds on what was never paid.
        BudgetExceeded: the plan would pass its target, or the plans the grant.
    """
    grant = grant_for(ledger, entries, epsilon=plan.epsilon, delta=plan.delta, num_images=num_images)
    reservations = reservations_of(entries)
    missing = [paid for paid in plan.builds_on if paid not in reservations]
    if missing:
        raise Uncharged(f"Ledger {ledger} does not hold {missing[0]}, on which this run builds.")
    plans = _by_plan(reservations)
    own = plans.pop(plan.id, [])
    intends = Plan.from_json(own[0].body["plan"]).intends if own else plan.intends
    if event is not None and event_shape(event) not in {event_shape(intended) for intended in intends}:
        raise PrivacyRefused(
            f"Plan {plan.id} was opened for other mechanisms: {event_in_words(event)} was not fixed before the plan's "
            "first result could be seen, so it cannot be accounted as if it were. It needs a plan of its own."
        )
    if list(map(event_shape, plan.intends)) != list(map(event_shape, intends)):
        raise PrivacyRefused(
            f"Plan {plan.id} was opened by entry {own[0].id} for other mechanisms than this run intends, such as another kind "
            f"of generator or number of steps. Run again as then, or with another draw (--draw {own[0].body['stage']}=2)."
        )
    closed = _closed(entries)
    if plan.id in closed:
        raise PrivacyRefused(
            f"Plan {plan.id} was closed by entry {closed[plan.id]:06d}: nothing more is charged to it. Run again with "
            "another draw of the query (--draw query=2)."
        )
    more = () if event is None else (event,)
    cost = _cost(own, more, reservations, plan.delta, plan.builds_on)
    if cost > plan.epsilon * _ROUNDING:
        raise BudgetExceeded(
            f"This run would cost epsilon {cost:.6g} at delta {plan.delta:g}, above its stated {plan.epsilon:g}: raise "
            "privacy.epsilon, or make a new query that costs less (a larger privacy.query_error)."
        )
    _check_filter(grant, plans, closed, plan.id, intends, _committed(own, False, more, intends))


def _check_filter(
    grant: Mapping[str, Any],
    others: Mapping[str, Sequence[Entry]],
    closed: Mapping[str, int],
    plan: str,
    intends: Sequence[dpa.DpEvent],
    committed: Sequence[dpa.DpEvent],
) -> None:
    """Raise BudgetExceeded unless `plan` has the whole grant, or the Rényi filter lets it pass."""
    alone = share_of_grant(grant, intends) > WHOLE_GRANT
    if alone and not others:
        return
    for other, members in others.items():
        if _is_whole(grant, members):
            raise BudgetExceeded(
                f"Plan {other} has the whole grant (epsilon {grant['epsilon']:g}, delta {grant['delta']:g}): several "
                "runs need a larger one from the start. Nothing was charged."
            )
    asked = share_of_grant(grant, committed)
    taken = sum(share_of_grant(grant, _committed(members, other in closed)) for other, members in others.items())
    if alone or asked + taken > _ROUNDING:
        raise BudgetExceeded(
            f"This run, {plan}, asks for {asked:.1%} of the grant (epsilon {grant['epsilon']:g}, delta "
            f"{grant['delta']:g}, as a Rényi filter of order {grant['order']}); {max(1 - taken, 0.0):.1%} is left. "
            "Nothing was charged."
        )


def grant_for(
    ledger: str, entries: Sequence[Entry], *, epsilon: float, delta: float, num_images: int
) -> Mapping[str, Any]:
    """The grant, if it allows a run of this epsilon and delta at all.

    Raises:
        PrivacyRefused: there is none, or its relation or delta is another one.
        BudgetExceeded: it is smaller.
    """
    if not entries:
        raise PrivacyRefused(
            f"Data set {ledger} has no grant: its owner has to allow a budget first "
            f"(privimage ledger grant CONFIG --epsilon {epsilon:g} --delta {delta:g})."
        )
    grant = entries[0].body
    if grant["adjacency"] != RELATION.name:
        raise PrivacyRefused(
            f"The grant is for the relation {grant['adjacency']}, this version accounts {RELATION.name}."
        )
    if delta != grant["delta"]:
        raise PrivacyRefused(
            f"The run states delta {delta:g}, the grant delta {grant['delta']:g}: set privacy.delta to the grant's. "
            "Nothing was charged."
        )
    if not delta < 1 / num_images:
        raise PrivacyRefused(
            f"The grant's delta {delta:g} is not below 1 / {num_images} training images, which a set that shares this "
            "ledger has: it would allow publishing whole images. The sets need another shared ledger."
        )
    if epsilon > grant["epsilon"] * _ROUNDING:
        raise BudgetExceeded(
            f"This run asks for epsilon {epsilon:g}; the grant is epsilon {grant['epsilon']:g}, delta "
            f"{grant['delta']:g}. Nothing was charged."
        )
    return grant


def _is_whole(grant: Mapping[str, Any], members: Sequence[Entry]) -> bool:
    """Whether the plan of these reservations has the grant to itself: as it was when the plan was opened."""
    return share_of_grant(grant, Plan.from_json(members[0].body["plan"]).intends) > WHOLE_GRANT


def _by_plan(reservations: Mapping[str, Entry]) -> dict[str, list[Entry]]:
    plans: dict[str, list[Entry]] = {}
    for entry in reservations.values():
        plans.setdefault(entry.body["plan"]["id"], []).append(entry)
    return plans


def _closed(entries: Sequence[Entry]) -> dict[str, int]:
    """Closed plans, with the number of the entry that closed them."""
    return {entry.body["plan"]: entry.sequence for entry in entries if entry.kind == "close"}


def _cost(
    own: Sequence[Entry],
    more: Sequence[dpa.DpEvent],
    reservations: Mapping[str, Entry],
    delta: float,
    builds_on: Sequence[str] = (),
) -> float:
    """Epsilon of a plan with its reservations, and `more`; what any of them was built on stays part of it."""
    paid = set(builds_on).union(*(entry.body["plan"]["builds_on"] for entry in own))
    before = [reservations[member] for member in sorted(paid)]
    return epsilon_of_plan(
        [entry.event for entry in own] + list(more),
        [entry.event for entry in before],
        delta,
        lost=lost_attempts([entry.body["stage"] for entry in own]),
        lost_before=lost_attempts([entry.body["stage"] for entry in before]),
    )


def _committed(
    own: Sequence[Entry],
    closed: bool,
    more: Sequence[dpa.DpEvent] = (),
    intends: Sequence[dpa.DpEvent] | None = None,
) -> list[dpa.DpEvent]:
    """What a plan has reserved, and what it still intends to: its fine-tuning must not fail after its query was paid."""
    reserved = [entry.event for entry in own] + list(more)
    if closed:
        return reserved
    if intends is None:
        intends = Plan.from_json(own[0].body["plan"]).intends
    left = [event for event in reserved if event in intends]
    # One of another noise than was intended stands for that of its shape; a second one of the same noise for no other.
    others = Counter(event_shape(event) for event in reserved if event not in intends)
    pending = []
    for event in intends:
        shape = event_shape(event)
        if event in left:
            left.remove(event)
        elif others[shape] > 0:
            others[shape] -= 1
        else:
            pending.append(event)
    return reserved + pending
