"""The ledger: nothing is touched without an entry, the cap holds under any race, and no tampering goes unseen."""

from __future__ import annotations

import json
import math
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dp_accounting as dpa
import pytest

from privimage.errors import BudgetExceeded, LedgerBroken, PrivacyRefused, StoreError, Uncharged
from privimage.privacy import accounting, numerics
from privimage.privacy.accounting import calibrate_noise_multiplier, delta_of_course, epsilon_of_plan
from privimage.privacy.budget import Plan, left_of_grant, share_of_grant
from privimage.privacy.chain import CLOCK_TOLERANCE
from privimage.privacy.entry import entry_bytes
from privimage.privacy.ledger import Ledger, Reservation
from privimage.privacy.numerics import ideal
from privimage.privacy.renyi import best_order, budget_of_order
from privimage.store.files import Store

DELTA = 1e-6
QUERY = dpa.GaussianDpEvent(20.0)
TRAINING = dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(30.0), 25)
INTENDS = (QUERY, TRAINING)
PLAN = Plan(id="plan-a", epsilon=2.0, delta=DELTA, intends=INTENDS)


@pytest.fixture
def memory() -> Store:
    return Store.open(f"memory://{secrets.token_hex(6)}")


@pytest.fixture
def ledger(memory: Store) -> Ledger:
    """A ledger in memory with a grant of epsilon 5, delta 1e-6."""
    return granted(memory)


def granted(store: Store, epsilon: float = 5.0, delta: float = DELTA) -> Ledger:
    ledger = Ledger(store, "faces")
    ledger.grant(epsilon=epsilon, delta=delta, num_images=1000, name="faces")
    return ledger


def epsilon_of(events: Sequence[dpa.DpEvent], delta: float, lost: int = 0) -> float:
    """What a plan of these events costs."""
    return accounting.epsilon_of(events, delta_of_course(delta, lost))


def taking(share: float, epsilon: float = 5.0) -> dpa.GaussianDpEvent:
    """A Gaussian mechanism that takes `share` of the Rényi budget of a grant of `epsilon`, by the closed form."""
    order = best_order(epsilon, DELTA)
    return dpa.GaussianDpEvent((order / (2 * share * budget_of_order(*ideal(epsilon, DELTA), order))) ** 0.5)


def plan_of(name: str, *intends: dpa.DpEvent, epsilon: float = 5.0, builds_on: tuple[str, ...] = ()) -> Plan:
    return Plan(id=name, epsilon=epsilon, delta=DELTA, intends=intends, builds_on=builds_on)


def reserve(
    ledger: Ledger, event: dpa.DpEvent = QUERY, plan: Plan = PLAN, stage: str = "query", key: str = "k", **more: int
) -> Reservation:
    return ledger.reserve(stage=stage, key=key, event=event, plan=plan, num_images=1000, run="a run", **more)


def plan(name: str, epsilon: float, *builds_on: str) -> Plan:
    return Plan(id=name, epsilon=epsilon, delta=DELTA, intends=INTENDS, builds_on=builds_on)


# ---------------------------------------------------------------- the grant


def test_a_grant_is_given_once_and_the_same_again_changes_nothing(store: Store) -> None:
    first = granted(store).grant_entry
    again = granted(store).grant_entry
    assert first == again
    assert [entry.kind for entry in Ledger(store, "faces").entries()] == ["grant"]


def test_renaming_the_data_set_is_no_second_grant(ledger: Ledger) -> None:
    ledger.grant(epsilon=5.0, delta=DELTA, num_images=1000, name="another name")
    assert len(ledger.entries()) == 1


@pytest.mark.parametrize(("epsilon", "delta"), [(6.0, DELTA), (5.0, 2e-6)])
def test_a_second_grant_is_refused(ledger: Ledger, epsilon: float, delta: float) -> None:
    with pytest.raises(PrivacyRefused, match="already has a grant of epsilon 5, delta 1e-06"):
        ledger.grant(epsilon=epsilon, delta=delta, num_images=1000, name="faces")
    assert len(ledger.entries()) == 1


def test_a_grant_below_what_is_spent_already_is_refused_with_both_numbers(ledger: Ledger) -> None:
    reserve(ledger, TRAINING)
    spent = epsilon_of([TRAINING], DELTA)
    with pytest.raises(PrivacyRefused, match=f"of which epsilon {spent:.4g} is spent; a second one .epsilon 0.01"):
        ledger.grant(epsilon=0.01, delta=DELTA, num_images=1000, name="faces")
    assert len(ledger.entries()) == 2
    assert spent > 0.01


def test_nothing_is_granted_in_a_store_that_ignores_conditions(memory: Store) -> None:
    class Careless(Store):
        def create(self, name: str, data: bytes) -> bool:
            self.backend.delete(name)
            return super().create(name, data)

    with pytest.raises(StoreError, match="ignores conditional writes"):
        granted(Careless(url=memory.url, backend=memory.backend))
    assert memory.list("ledger") == []


def test_without_a_grant_nothing_is_reserved(memory: Store) -> None:
    ledger = Ledger(memory, "faces")
    with pytest.raises(PrivacyRefused, match="has no grant") as caught:
        reserve(ledger)
    assert caught.value.exit_code == 3
    with pytest.raises(PrivacyRefused, match="has no grant"):
        ledger.check_fits(PLAN, num_images=1000)
    with pytest.raises(PrivacyRefused, match="has no grant"):
        ledger.check_granted(epsilon=1.0, delta=DELTA, num_images=1000)
    assert memory.list("") == []


def test_a_grant_for_another_relation_is_refused(memory: Store) -> None:
    granted(memory)
    edit(memory, 0, lambda entry: entry["body"].update(adjacency="REPLACE_ONE"))
    with pytest.raises(PrivacyRefused, match="REPLACE_ONE"):
        reserve(Ledger(memory, "faces"))


# ---------------------------------------------------------------- spending


def test_what_is_reserved_is_spent_at_once_and_read_back_by_others(store: Store) -> None:
    reservation = reserve(granted(store))
    seen = Ledger(store, "faces")
    assert seen.states() == {reservation.id: "open"}
    assert seen.reservations()[reservation.id].event == QUERY
    assert seen.spent().epsilon == epsilon_of([QUERY], DELTA)
    assert [found.target for found in seen.spent().plans] == [PLAN.epsilon]


@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_a_run_of_another_delta_than_the_grant_s_is_refused(ledger: Ledger, delta: float) -> None:
    other = Plan(id="other", epsilon=1.0, delta=delta, intends=INTENDS)
    with pytest.raises(PrivacyRefused, match=f"states delta {delta:g}, the grant delta 1e-06"):
        reserve(ledger, plan=other)
    assert len(ledger.entries()) == 1


def test_a_run_of_a_larger_epsilon_than_the_grant_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BudgetExceeded, match=r"asks for epsilon 5\.5; the grant is epsilon 5, .*Nothing was charged"):
        reserve(ledger, plan=plan("first", 5.5))
    assert len(ledger.entries()) == 1


def test_a_set_so_large_that_the_grant_s_delta_promises_nothing_is_refused(ledger: Ledger) -> None:
    with pytest.raises(PrivacyRefused, match="not below 1 / 1000000 training images"):
        ledger.reserve(stage="query", key="k", event=QUERY, plan=PLAN, num_images=1_000_000, run="a run")
    assert len(ledger.entries()) == 1


# ---------------------------------------------------------------- several plans: the filter


def test_more_than_is_left_is_refused_with_both_numbers_and_nothing_is_written(store: Store) -> None:
    ledger = granted(store)
    reserve(ledger, taking(0.7), plan_of("first", taking(0.7)))
    before = store.list("ledger")
    second = plan_of("second", taking(0.35))
    with pytest.raises(BudgetExceeded) as caught:
        reserve(ledger, taking(0.35), second)
    assert "second, asks for 35.0% of the grant (epsilon 5, delta 1e-06, as a Rényi filter of order 6)" in str(
        caught.value
    )
    assert "30.0% is left. Nothing was charged." in str(caught.value)
    assert caught.value.exit_code == 3
    with pytest.raises(BudgetExceeded):
        ledger.check_fits(second, num_images=1000)
    assert store.list("ledger") == before
    fits = plan_of("second", taking(0.3))
    ledger.check_fits(fits, num_images=1000)
    reserve(ledger, taking(0.3), fits)
    assert ledger.spent().share == pytest.approx(1.0)


def test_the_filter_leaves_room_for_what_rounding_of_noise_may_add(store: Store) -> None:
    """Of a grant of 5, ideal mechanisms may take 5 - `numerics.EPSILON`."""
    ledger = granted(store)
    order = ledger.entries()[0].body["order"]
    exactly = budget_of_order(5.0, DELTA, order)
    share = share_of_grant(ledger.entries()[0].body, [dpa.GaussianDpEvent((order / (2 * exactly)) ** 0.5)])
    assert (
        1
        < share
        == pytest.approx(
            exactly / (exactly - numerics.EPSILON + math.log1p(-numerics.DELTA_SHARE) / (order - 1)), rel=1e-9
        )
    )


def test_all_that_the_filter_lets_through_together_keeps_the_grant_s_epsilon(ledger: Ledger) -> None:
    """The point of it: whatever was chosen when, the composition of all is within the grant."""
    events = [taking(0.4), dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(60.0), 40), taking(0.2), QUERY, taking(0.05)]
    let_through = []
    for number, event in enumerate(events * 3):
        try:
            reserve(ledger, event, plan_of(f"plan-{number}", event))
        except BudgetExceeded:
            continue
        let_through.append(event)
    assert len(let_through) > 4
    assert ledger.spent().share > 0.94
    assert 3.5 < epsilon_of(let_through, DELTA) <= 5.0
    assert ledger.spent().epsilon > 5.0  # added up, they would not fit


def test_the_filter_lets_through_what_adding_epsilons_would_not(ledger: Ledger) -> None:
    training = dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(30.0), 25)
    for number in range(6):
        reserve(ledger, training, plan_of(f"plan-{number}", training, epsilon=1.0))
    assert epsilon_of([training], DELTA) > 0.6
    assert ledger.spent().epsilon > 4.0
    assert ledger.spent().share < 0.5


def test_a_run_of_what_is_said_to_be_left_is_let_in_and_one_of_a_little_more_is_not(ledger: Ledger) -> None:
    def left() -> float:
        return left_of_grant(ledger.entries()[0].body, ledger.spent())

    def one_more(name: str, epsilon: float) -> None:
        noise = calibrate_noise_multiplier(dpa.GaussianDpEvent, epsilon=epsilon, delta=DELTA, prior=[])
        event = dpa.GaussianDpEvent(noise)
        reserve(ledger, event, plan_of(name, event))

    assert left() == 5.0
    one_more("first", 2.0)
    assert 3.0 < left() < 5.0
    with pytest.raises(BudgetExceeded):
        one_more("more", left() * 1.001)
    one_more("all", left() * 0.999)
    assert left() < 0.5


def test_nothing_is_left_beside_a_run_that_has_the_whole_grant(ledger: Ledger) -> None:
    whole = taking(0.95)
    reserve(ledger, whole, plan_of("whole", whole))
    assert left_of_grant(ledger.entries()[0].body, ledger.spent()) == 0.0


def test_what_a_plan_still_intends_is_set_aside(ledger: Ledger) -> None:
    large = plan_of("first", QUERY, taking(0.8))
    reserve(ledger, QUERY, large)
    assert ledger.spent().epsilon < 0.5
    assert ledger.spent().share > 0.8
    with pytest.raises(BudgetExceeded, match=r"asks for 25\.0% of the grant"):
        reserve(ledger, taking(0.25), plan_of("second", taking(0.25)))
    reserve(ledger, taking(0.8), large, stage="finetune")


def test_a_result_that_was_lost_and_charged_again_stands_for_no_other_that_is_intended(ledger: Ledger) -> None:
    plan = plan_of("first", QUERY, taking(0.3), taking(0.4))
    for _ in range(2):
        reserve(ledger, QUERY, plan)
        assert ledger.spent().share > 0.7
    # In whatever order they come.
    reserve(ledger, taking(0.4), plan, stage="finetune")
    assert ledger.spent().share > 0.7


def test_a_plan_may_not_take_more_noise_away_than_it_said(ledger: Ledger) -> None:
    reserve(ledger, taking(0.5), plan_of("first", taking(0.5)))
    small = plan_of("second", taking(0.1))
    with pytest.raises(BudgetExceeded, match=r"asks for 60\.0%"):
        reserve(ledger, taking(0.6), small)


def test_a_first_plan_of_nearly_the_whole_grant_has_all_of_it_by_its_joint_bound(ledger: Ledger) -> None:
    """Its privacy loss distribution is tighter than the filter: a run may state exactly the grant's epsilon."""
    low, high = 0.5, 5.0
    for _ in range(40):
        low, high = (low, mid) if epsilon_of([dpa.GaussianDpEvent(mid := (low + high) / 2)], DELTA) < 5 else (mid, high)
    event = dpa.GaussianDpEvent(high)
    assert 4.999 < epsilon_of([event], DELTA) <= 5
    whole = plan_of("whole", event)
    reserve(ledger, event, whole)
    found = ledger.spent()
    assert found.plans[0].share > 1.0
    assert found.share == 1.0
    with pytest.raises(BudgetExceeded, match="Plan whole has the whole grant"):
        reserve(ledger, taking(0.01), plan_of("second", taking(0.01)))
    assert len(ledger.entries()) == 2


def test_that_is_for_the_first_plan_only(ledger: Ledger) -> None:
    reserve(ledger, taking(0.01), plan_of("first", taking(0.01)))
    with pytest.raises(BudgetExceeded, match=r"asks for 95\.0%"):
        reserve(ledger, taking(0.95), plan_of("second", taking(0.95)))


def test_a_plan_that_has_the_whole_grant_keeps_it_when_it_is_closed(ledger: Ledger) -> None:
    """Else the choice between its own bound and the filter would be made after its query was seen."""
    reserve(ledger, QUERY, plan_of("whole", QUERY, taking(0.95)))
    ledger.close("whole", reason="abandoned")
    with pytest.raises(BudgetExceeded, match="Plan whole has the whole grant"):
        reserve(ledger, QUERY, plan_of("second", QUERY))


def test_a_closed_plan_gives_up_what_it_had_set_aside_and_no_more(ledger: Ledger) -> None:
    first = plan_of("first", QUERY, taking(0.8))
    reserve(ledger, QUERY, first)
    second = plan_of("second", taking(0.7))
    with pytest.raises(BudgetExceeded):
        reserve(ledger, taking(0.7), second)
    ledger.close("first", reason="abandoned")
    ledger.close("first", reason="again")
    assert [entry.kind for entry in ledger.entries()] == ["grant", "reserve", "close"]
    assert ledger.is_closed("first") and not ledger.is_closed("second")
    assert 0 < ledger.spent().share < 0.02
    assert ledger.spent().plans[0].closed
    reserve(ledger, taking(0.7), second)
    with pytest.raises(PrivacyRefused, match="was closed by entry 000002"):
        reserve(ledger, taking(0.8), first, stage="finetune")


def test_only_a_plan_that_is_there_can_be_closed(ledger: Ledger) -> None:
    with pytest.raises(PrivacyRefused, match="has no plan 'nonsense'; it has none"):
        ledger.close("nonsense", reason="abandoned")
    assert len(ledger.entries()) == 1


def test_a_grant_too_small_for_any_order_serves_one_plan_only(memory: Store) -> None:
    ledger = granted(memory, epsilon=0.001)
    faint = dpa.GaussianDpEvent(20_000.0)
    reserve(ledger, faint, plan_of("first", faint, epsilon=0.001))
    with pytest.raises(BudgetExceeded, match="has the whole grant"):
        reserve(ledger, faint, plan_of("second", faint, epsilon=0.001))


# ---------------------------------------------------------------- one plan


def test_within_one_plan_events_compose_tightly(ledger: Ledger) -> None:
    reserve(ledger, QUERY)
    reserve(ledger, TRAINING, stage="finetune")
    joint = epsilon_of([QUERY, TRAINING], DELTA)
    assert ledger.spent().epsilon == joint
    assert joint < 0.95 * (epsilon_of([QUERY], DELTA) + epsilon_of([TRAINING], DELTA))
    assert ledger.spent().delta == DELTA


def test_two_plans_add_epsilon_and_delta(ledger: Ledger) -> None:
    reserve(ledger, QUERY, plan("first", 2.0))
    reserve(ledger, TRAINING, plan("second", 2.0))
    assert ledger.spent().epsilon == epsilon_of([QUERY], DELTA) + epsilon_of([TRAINING], DELTA)
    assert ledger.spent().delta == 2 * DELTA


def test_a_plan_stays_within_its_own_target(ledger: Ledger) -> None:
    tight = plan("tight", 1.001 * epsilon_of([QUERY, TRAINING], DELTA))
    reserve(ledger, QUERY, tight)
    reserve(ledger, TRAINING, tight, stage="finetune")
    with pytest.raises(BudgetExceeded, match="above its stated"):
        reserve(ledger, QUERY, tight)
    assert len(ledger.entries()) == 3


def test_the_same_mechanism_again_is_charged_again(ledger: Ledger) -> None:
    first, second = reserve(ledger), reserve(ledger)
    assert first.id != second.id
    assert ledger.spent().epsilon == epsilon_of([QUERY, QUERY], DELTA, lost=1)


def test_a_plan_that_builds_on_a_query_pays_for_it_again(ledger: Ledger) -> None:
    query = reserve(ledger, QUERY, plan("first", 2.0))
    reserve(ledger, TRAINING, plan("second", 2.0, query.id), stage="finetune")
    # It was chosen after the query's result was seen: epsilons and deltas are added, for no joint bound would hold.
    cost = epsilon_of_plan([TRAINING], [QUERY], DELTA)
    assert cost == epsilon_of([TRAINING], DELTA / 2) + epsilon_of([QUERY], DELTA / 2)
    assert cost > epsilon_of([QUERY, TRAINING], DELTA)
    assert ledger.spent().epsilon == epsilon_of([QUERY], DELTA) + cost
    just_too_little = plan("third", 0.999 * cost, query.id)
    with pytest.raises(BudgetExceeded, match="above its stated"):
        reserve(ledger, TRAINING, just_too_little, stage="finetune")


def test_a_mechanism_that_was_not_fixed_when_its_plan_was_opened_does_not_enter_it(ledger: Ledger) -> None:
    reserve(ledger, QUERY, plan("first", 2.0))
    longer = dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(30.0), 26)
    with pytest.raises(PrivacyRefused, match="needs a plan of its own"):
        reserve(ledger, longer, plan("first", 2.0), stage="finetune")
    claims_it_did = Plan(id="first", epsilon=2.0, delta=DELTA, intends=(QUERY, longer))
    with pytest.raises(PrivacyRefused, match="needs a plan of its own"):
        reserve(ledger, longer, claims_it_did, stage="finetune")
    less_noise_is_the_target_s_business = dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(29.0), 25)
    reserve(ledger, less_noise_is_the_target_s_business, plan("first", 2.0), stage="finetune")


def test_what_a_plan_once_built_on_stays_part_of_it(ledger: Ledger) -> None:
    query = reserve(ledger, QUERY, plan("first", 1.0))
    target = 1.001 * epsilon_of_plan([QUERY], [QUERY], DELTA)
    reserve(ledger, QUERY, plan("second", target, query.id))
    with pytest.raises(BudgetExceeded, match="above its stated"):
        reserve(ledger, QUERY, plan("second", target))


def test_a_reservation_that_another_process_pays_with_is_not_given_back(ledger: Ledger) -> None:
    first = reserve(ledger)
    second = reserve(ledger)
    with pytest.raises(PrivacyRefused, match="paid with by another process"):
        ledger.void(first, reason="failed early")
    ledger.void(second, reason="failed early")


def test_building_on_what_was_never_paid_is_refused(ledger: Ledger, memory: Store) -> None:
    with pytest.raises(Uncharged, match="does not hold feedface"):
        reserve(ledger, TRAINING, plan("second", 2.0, "feedface"))
    other = Ledger(memory, "letters")
    other.grant(epsilon=5.0, delta=DELTA, num_images=1000, name="letters")
    query = reserve(other)
    with pytest.raises(Uncharged, match=f"does not hold {query.id}"):
        reserve(ledger, TRAINING, plan("second", 2.0, query.id))
    assert len(ledger.entries()) == 1


def test_ledgers_of_two_data_sets_do_not_touch(memory: Store, ledger: Ledger) -> None:
    reserve(ledger)
    other = Ledger(memory, "letters")
    assert other.entries() == ()


# ---------------------------------------------------------------- settling, voiding, resuming


def test_a_reservation_lives_until_it_is_settled(store: Store) -> None:
    ledger = granted(store)
    reservation = reserve(ledger)
    assert [found.id for found in ledger.open_reservations("query", "k")] == [reservation.id]
    assert ledger.open_reservations("query", "other") == ledger.open_reservations("finetune", "k") == []
    reservation.check_live()
    ledger.settle(reservation, artifact="digest")
    with pytest.raises(Uncharged, match="is settled, not open"):
        reservation.check_live()
    assert ledger.open_reservations("query", "k") == []
    assert ledger.spent().epsilon == epsilon_of([QUERY], DELTA)


def test_a_reservation_that_is_not_in_the_ledger_is_not_live(ledger: Ledger, memory: Store) -> None:
    reservation = reserve(ledger)
    elsewhere = Reservation(ledger=Ledger(memory, "letters"), entry=reservation.entry)
    with pytest.raises(Uncharged, match="is absent"):
        elsewhere.check_live()


def test_settling_again_is_no_error_and_with_another_artifact_is(ledger: Ledger) -> None:
    reservation = reserve(ledger)
    ledger.settle(reservation, artifact="digest")
    ledger.settle(reservation, artifact="digest")
    assert len(ledger.entries()) == 3
    with pytest.raises(PrivacyRefused, match="already closed by entry 000002"):
        ledger.settle(reservation, artifact="other")


def test_a_voided_reservation_frees_its_budget_and_can_do_nothing_more(ledger: Ledger) -> None:
    reservation = reserve(ledger, taking(0.95), plan_of("big", taking(0.95)))
    with pytest.raises(BudgetExceeded):
        reserve(ledger, plan=plan("second", 1.0))
    ledger.void(reservation, reason="stopped before a sensitive image was read")
    assert ledger.spent().epsilon == ledger.spent().share == 0
    reserve(ledger, plan=plan("second", 5.0))
    with pytest.raises(Uncharged, match="is void"):
        reservation.check_live()
    with pytest.raises(PrivacyRefused, match="already closed"):
        ledger.settle(reservation, artifact="digest")
    with pytest.raises(Uncharged):
        ledger.resume(reservation)


def test_what_was_settled_is_not_given_back(ledger: Ledger) -> None:
    reservation = reserve(ledger)
    ledger.settle(reservation, artifact="digest")
    with pytest.raises(Uncharged, match="is settled"):
        ledger.void(reservation, reason="regret")
    assert ledger.spent().epsilon > 0


def test_a_void_that_loses_the_race_to_a_settle_is_refused(ledger: Ledger, memory: Store) -> None:
    reservation = reserve(ledger)
    overtaken = Ledger(Overtaken.by(memory, lambda: ledger.settle(reservation, artifact="digest")), "faces")
    with pytest.raises(Uncharged, match="is settled"):
        overtaken.void(Reservation(ledger=overtaken, entry=reservation.entry), reason="not read, I thought")
    assert ledger.states() == {reservation.id: "settled"}


def test_what_has_been_built_on_is_not_given_back(ledger: Ledger) -> None:
    query = reserve(ledger, QUERY, plan("first", 2.0))
    reserve(ledger, TRAINING, plan("second", 2.0, query.id))
    with pytest.raises(PrivacyRefused, match="built on"):
        ledger.void(query, reason="regret")
    assert len(ledger.spent().plans) == 2


def test_what_another_attempt_took_over_is_not_given_back(ledger: Ledger) -> None:
    reservation = reserve(ledger, TRAINING, stage="finetune", restart_allowance=20, checkpoint_steps=10)
    ledger.resume(reservation)
    with pytest.raises(PrivacyRefused, match="taken over by another attempt"):
        ledger.void(reservation, reason="I read nothing")
    assert ledger.states() == {reservation.id: "open"}


def test_the_last_saved_step_is_remembered_beside_the_entries(store: Store) -> None:
    ledger = granted(store)
    one, other = reserve(ledger, TRAINING), reserve(ledger, TRAINING)
    assert ledger.recorded_step(one) == 0
    for step in (10, 20, 20):
        ledger.record_step(one, step)
    assert Ledger(store, "faces").recorded_step(one) == 20
    assert ledger.recorded_step(other) == 0
    assert len(ledger.entries()) == 3


def test_each_resume_counts_the_steps_it_may_repeat_until_the_allowance_is_used_up(ledger: Ledger) -> None:
    reservation = reserve(ledger, TRAINING, stage="finetune", restart_allowance=25, checkpoint_steps=10)
    spent = ledger.spent()
    assert [ledger.resume(reservation), ledger.resume(reservation)] == [2, 3]
    assert [entry.body["lost_steps"] for entry in ledger.resumes(reservation.id)] == [10, 10]
    with pytest.raises(BudgetExceeded, match="20 of its 25 restart steps are used, and going on may repeat 10"):
        ledger.resume(reservation)
    assert len(ledger.resumes(reservation.id)) == 2
    assert ledger.spent() == spent


def test_an_attempt_that_paused_has_lost_nothing(store: Store) -> None:
    ledger = granted(store)
    reservation = reserve(ledger, TRAINING, stage="finetune", restart_allowance=10, checkpoint_steps=10)
    ledger.pause(reservation, attempt=1, step=7)
    assert ledger.resume(reservation) == 2
    ledger.pause(reservation, attempt=2, step=12)
    assert ledger.resume(reservation) == 3
    assert ledger.resume(reservation) == 4
    assert [entry.body["lost_steps"] for entry in ledger.resumes(reservation.id)] == [0, 0, 10]
    with pytest.raises(BudgetExceeded, match="10 of its 10"):
        ledger.resume(reservation)


def test_an_attempt_that_was_taken_over_cannot_say_that_it_paused(ledger: Ledger) -> None:
    reservation = reserve(ledger, TRAINING, stage="finetune", restart_allowance=20, checkpoint_steps=10)
    ledger.resume(reservation)
    with pytest.raises(Uncharged, match="Attempt 2 has taken over"):
        ledger.pause(reservation, attempt=1, step=7)
    ledger.settle(reservation, artifact="digest")
    with pytest.raises(Uncharged, match="is settled"):
        ledger.pause(reservation, attempt=2, step=7)
    assert [entry.kind for entry in ledger.entries()] == ["grant", "reserve", "resume", "settle"]


def test_without_an_allowance_there_is_no_resume(ledger: Ledger) -> None:
    reservation = reserve(ledger, TRAINING, stage="finetune", restart_allowance=0, checkpoint_steps=10)
    with pytest.raises(BudgetExceeded):
        ledger.resume(reservation)


def test_an_attempt_that_was_taken_over_stops(store: Store) -> None:
    ledger = granted(store)
    reservation = reserve(ledger, TRAINING, stage="finetune", restart_allowance=20, checkpoint_steps=10)
    ledger.check_attempt(reservation, 1)
    other = Ledger(store, "faces")
    attempt = other.resume(other.open_reservations("finetune", "k")[0])
    other.check_attempt(reservation, attempt)
    with pytest.raises(Uncharged, match="Attempt 2 has taken over this stage; attempt 1 stops here"):
        ledger.check_attempt(reservation, 1)
    other.settle(reservation, artifact="digest")
    with pytest.raises(Uncharged, match="is settled"):
        other.check_attempt(reservation, attempt)


# ---------------------------------------------------------------- tampering


def name_of(number: int) -> str:
    return f"ledger/faces/entries/{number:06d}.json"


def edit(store: Store, number: int, change: Callable[[Any], object]) -> None:
    entry = json.loads(store.read(name_of(number)))
    change(entry)
    replace(store, number, json.dumps(entry, sort_keys=True, indent=1).encode())


def replace(store: Store, number: int, raw: bytes) -> None:
    store.delete(name_of(number))
    assert store.create(name_of(number), raw)


def append_by_hand(store: Store, kind: str, body: dict[str, Any], id: str = "f" * 16) -> None:
    """An entry whose link to the one before is right, as whoever may write to the ledger could make it."""
    entries = Ledger(store, "faces").entries()
    number, last = len(entries), entries[-1]
    raw = entry_bytes(sequence=number, id=id, kind=kind, previous=last.digest, written=last.written, body=body)
    assert store.create(name_of(number), raw)


@pytest.fixture
def long(memory: Store) -> Store:
    """Entries: 0 grant, 1 reserve, 2 reserve, 3 settle."""
    ledger = granted(memory)
    reservation = reserve(ledger)
    reserve(ledger, TRAINING, stage="finetune")
    ledger.settle(reservation, artifact="digest")
    return memory


def test_an_entry_that_was_edited_is_noticed(long: Store) -> None:
    edit(long, 1, lambda entry: entry["body"]["event"].update(noise_multiplier=200.0))
    with pytest.raises(LedgerBroken, match="entry 000002 does not continue the chain: it, or the entry before it"):
        Ledger(long, "faces").entries()


def test_a_raised_grant_is_noticed(long: Store) -> None:
    edit(long, 0, lambda entry: entry["body"].update(epsilon=500.0))
    with pytest.raises(LedgerBroken, match="entry 000001 does not continue the chain"):
        Ledger(long, "faces").spent()


def test_an_edit_of_white_space_alone_is_noticed(long: Store) -> None:
    replace(long, 2, long.read(name_of(2)) + b"\n")
    with pytest.raises(LedgerBroken, match="entry 000003"):
        Ledger(long, "faces").entries()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_entry_is_noticed(long: Store, number: int) -> None:
    long.delete(name_of(number))
    with pytest.raises(LedgerBroken, match=f"entry {number:06d} is missing"):
        Ledger(long, "faces").entries()


def test_a_missing_entry_whose_followers_were_moved_up_is_noticed(long: Store) -> None:
    for number in (2, 3):
        replace(long, number - 1, long.read(name_of(number)))
    long.delete(name_of(3))
    with pytest.raises(LedgerBroken, match="entry 000001 does not continue the chain"):
        Ledger(long, "faces").entries()


def test_entries_in_another_order_are_noticed(long: Store) -> None:
    first, second = long.read(name_of(1)), long.read(name_of(2))
    replace(long, 1, second)
    replace(long, 2, first)
    with pytest.raises(LedgerBroken, match="entry 000001 does not continue the chain"):
        Ledger(long, "faces").entries()


def test_an_entry_of_another_ledger_is_noticed(long: Store) -> None:
    other = Ledger(long, "letters")
    other.grant(epsilon=50.0, delta=1e-5, num_images=1000, name="letters")
    replace(long, 0, long.read("ledger/letters/entries/000000.json"))
    with pytest.raises(LedgerBroken, match="entry 000001"):
        Ledger(long, "faces").entries()


def test_a_last_entry_that_vanishes_under_a_running_process_is_noticed(long: Store) -> None:
    ledger = Ledger(long, "faces")
    ledger.entries()
    long.delete(name_of(3))
    with pytest.raises(LedgerBroken, match="entry 000003 was there and is gone"):
        ledger.entries()


@pytest.mark.parametrize(
    "name", ["notes.txt", "000004.json.bak", "00000x.json", "000004", "4.json", "00000²", "٠٠٠٠٠٤.json"]
)
def test_a_foreign_file_is_noticed(long: Store, name: str) -> None:
    class WithIt(Store):
        def list(self, prefix: str = "") -> list[str]:
            return [*super().list(prefix), f"ledger/faces/entries/{name}"]

    long = WithIt(url=long.url, backend=long.backend)  # a name that a store refuses can still be put there
    with pytest.raises(LedgerBroken, match=name):
        Ledger(long, "faces").entries()


def test_a_mechanism_of_a_newer_version_is_refused_with_the_entry_s_number(long: Store) -> None:
    edit(long, 3, lambda entry: entry.update(kind="reserve", body=json.loads(long.read(name_of(2)))["body"]))
    Ledger(long, "faces").entries()
    edit(long, 3, lambda entry: entry["body"].update(event={"event": "LaplaceDpEvent", "noise_multiplier": 1.0}))
    with pytest.raises(LedgerBroken, match="entry 000003 cannot be used: .*'LaplaceDpEvent'"):
        Ledger(long, "faces").entries()


def test_a_clock_that_runs_backwards_writes_nothing(long: Store) -> None:
    later = datetime.now(UTC) + CLOCK_TOLERANCE
    edit(long, 3, lambda entry: entry.update(written=(later - timedelta(minutes=1)).isoformat()))
    reserve(Ledger(long, "faces"))
    before = long.list("ledger")
    edit(long, 4, lambda entry: entry.update(written=(later + timedelta(minutes=1)).isoformat()))
    with pytest.raises(LedgerBroken, match=r"entry 000004 was written at .*clock says .*: set the clock"):
        reserve(Ledger(long, "faces"))
    assert long.list("ledger") == before


def test_a_long_ledger_is_read_at_once_and_an_append_reads_nothing_again(long: Store) -> None:
    for number in range(30):
        reserve(Ledger(long, "faces"), stage=f"stage-{number}")
    reads: list[str] = []

    class Counting(Store):
        def read(self, name: str) -> bytes:
            reads.append(name)
            return super().read(name)

    ledger = Ledger(Counting(url=long.url, backend=long.backend), "faces")
    assert len(ledger.entries()) == len(reads) == 34
    reserve(ledger, stage="another")
    assert len(reads) == 34


@pytest.mark.parametrize("written", ["yesterday", "2026-01-01T00:00:00"])
def test_a_time_that_cannot_be_read_is_refused(long: Store, written: str) -> None:
    edit(long, 3, lambda entry: entry.update(written=written))
    with pytest.raises(LedgerBroken, match="entry 000003 cannot be read"):
        Ledger(long, "faces").entries()


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"kind": "refund"}, {"sequence": 7}, {"previous": "0" * 64}],
)
def test_an_entry_of_a_newer_version_or_from_elsewhere_is_refused(long: Store, change: dict[str, object]) -> None:
    edit(long, 3, lambda entry: entry.update(change))
    with pytest.raises(LedgerBroken, match="entry 000003"):
        Ledger(long, "faces").entries()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"format": 1}', b"\xff\xfe"])
def test_an_entry_that_cannot_be_read_is_refused(long: Store, raw: bytes) -> None:
    replace(long, 3, raw)
    with pytest.raises(LedgerBroken, match="entry 000003 cannot be read"):
        Ledger(long, "faces").entries()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"event": {"event": "GaussianDpEvent", "noise_multiplier": float("nan")}}, "cannot be read: NaN is no number"),
        ({"event": {"event": "GaussianDpEvent", "noise_multiplier": float("inf")}}, "cannot be read: Infinity is no"),
        ({"event": {"event": "GaussianDpEvent", "noise_multiplier": 10**400}}, "cannot be used"),
        ({"event": {"event": "GaussianDpEvent", "noise_multiplier": -1.0}}, "cannot be used"),
        ({"event": {"event": "GaussianDpEvent", "noise_multiplier": True}}, "cannot be used"),
        (
            {
                "event": {
                    "event": "SelfComposedDpEvent",
                    "count": -1000,
                    "of": {"event": "GaussianDpEvent", "noise_multiplier": 1.0},
                }
            },
            "cannot be used",
        ),
        ({"event": {"event": "PoissonSampledDpEvent", "sampling_probability": -0.5, "of": {}}}, "cannot be used"),
        ({"plan": {"id": "p", "epsilon": 1.0, "delta": 0.0, "intends": [], "builds_on": []}}, "plan.delta is 0.0"),
        ({"plan": {"id": "p", "epsilon": "1", "delta": 0.1, "intends": [], "builds_on": []}}, "plan.epsilon is '1'"),
        ({"plan": {"id": "p", "epsilon": 1.0, "delta": 0.1, "intends": {}, "builds_on": []}}, "plan.intends is {}"),
        ({"plan": "plan-a"}, "plan is 'plan-a'"),
        ({"restart_allowance": -5}, "restart_allowance is -5"),
        ({"checkpoint_steps": None}, "checkpoint_steps is None"),
        ({"num_images": 1.5}, "num_images is 1.5"),
    ],
)
def test_a_last_entry_with_a_number_that_is_none_is_refused(long: Store, change: dict[str, Any], what: str) -> None:
    """Of NaN every comparison with the budget is false, and less than nothing would make room in it."""
    edit(long, 3, lambda entry: entry.update(kind="reserve", body=json.loads(long.read(name_of(2)))["body"] | change))
    with pytest.raises(LedgerBroken, match=f"entry 000003.*{re.escape(what)}"):
        Ledger(long, "faces").spent()


@pytest.mark.parametrize(
    ("change", "what"),
    [({"order": 1}, "order is 1"), ({"order": 10**30}, "order is 10"), ({"epsilon": "10"}, "epsilon is '10'")],
)
def test_a_grant_that_was_edited_before_anything_follows_it_is_refused(
    ledger: Ledger, memory: Store, change: dict[str, Any], what: str
) -> None:
    edit(memory, 0, lambda entry: entry["body"].update(change))
    with pytest.raises(LedgerBroken, match=f"entry 000000 was changed: {what}"):
        reserve(Ledger(memory, "faces"))


@pytest.mark.parametrize("kind", ["void", "settle", "pause", "resume"])
@pytest.mark.parametrize("which", ["settled", "unknown"])
def test_an_entry_that_contradicts_an_earlier_one_is_refused(long: Store, kind: str, which: str) -> None:
    """Put in by hand, with fitting digests: what was settled must not be given back, nor resumed without an end."""
    first = json.loads(long.read(name_of(1)))["id"] if which == "settled" else "0" * 16
    body = {"reservation": first, "reason": "", "artifact": "other", "attempt": 2, "step": 1, "lost_steps": 0}
    body["guarantee"] = True
    append_by_hand(long, kind, body)
    with pytest.raises(
        LedgerBroken, match=f"entry 000004 is a '{kind}' of reservation {first}, which is (settle|absent)"
    ):
        Ledger(long, "faces").spent()


def test_two_reservations_of_one_id_are_refused(long: Store) -> None:
    """By its id each is counted: of two with the same one would be forgotten."""
    twin = json.loads(long.read(name_of(2)))
    append_by_hand(long, "reserve", twin["body"], id=twin["id"])
    with pytest.raises(LedgerBroken, match="entry 000004 repeats the id"):
        Ledger(long, "faces").spent()


def test_a_reservation_that_builds_on_what_never_paid_is_refused(long: Store) -> None:
    body = json.loads(long.read(name_of(2)))["body"]
    append_by_hand(long, "reserve", body | {"plan": {**body["plan"], "builds_on": ["0" * 16]}})
    with pytest.raises(LedgerBroken, match="entry 000004 builds on a reservation that never paid"):
        Ledger(long, "faces").spent()


def test_what_no_reader_would_accept_is_not_written(ledger: Ledger, memory: Store) -> None:
    before = memory.list("ledger")
    with pytest.raises(LedgerBroken, match="entry 000001 was changed: checkpoint_steps is -1"):
        reserve(ledger, checkpoint_steps=-1)
    other = granted(Store.open(f"memory://{secrets.token_hex(6)}"))
    with pytest.raises(LedgerBroken, match="'settle' of reservation .*, which is absent"):
        ledger.settle(reserve(other), artifact="digest")
    assert memory.list("ledger") == before


def test_a_second_grant_put_in_by_hand_is_refused(long: Store) -> None:
    edit(long, 3, lambda entry: entry.update(kind="grant", body={"epsilon": 100.0}))
    with pytest.raises(LedgerBroken, match="entry 000003 is a 'grant': a ledger has one grant"):
        Ledger(long, "faces").entries()


def test_a_last_entry_that_lost_a_field_is_refused(long: Store) -> None:
    last = len(Ledger(long, "faces").entries()) - 1
    edit(long, last, lambda entry: entry["body"].pop(next(iter(entry["body"]))))
    with pytest.raises(LedgerBroken, match=f"entry {last:06d} lacks"):
        Ledger(long, "faces").entries()


def test_a_ledger_that_begins_without_a_grant_is_refused(long: Store) -> None:
    edit(long, 0, lambda entry: entry.update(kind="reserve"))
    with pytest.raises(LedgerBroken, match="entry 000000 is a 'reserve'"):
        Ledger(long, "faces").entries()


def test_a_broken_ledger_takes_no_reservation(long: Store) -> None:
    edit(long, 1, lambda entry: entry["body"]["event"].update(noise_multiplier=200.0))
    before = long.list("ledger")
    with pytest.raises(LedgerBroken):
        reserve(Ledger(long, "faces"))
    assert long.list("ledger") == before


# ---------------------------------------------------------------- races


class Overtaken(Store):
    """A store in which another writer is faster, once: just before the first create."""

    @staticmethod
    def by(store: Store, other: Callable[[], object]) -> Overtaken:
        overtaken = Overtaken(url=store.url, backend=store.backend)
        object.__setattr__(overtaken, "others", [other])
        return overtaken

    def create(self, name: str, data: bytes) -> bool:
        others: list[Callable[[], object]] = self.others  # type: ignore[attr-defined]
        if others:
            others.pop()()
        return super().create(name, data)


def test_the_budget_is_checked_again_after_a_lost_race(ledger: Ledger, memory: Store) -> None:
    faster = plan_of("faster", taking(0.6))
    overtaken = Ledger(Overtaken.by(memory, lambda: reserve(ledger, taking(0.6), faster)), "faces")
    with pytest.raises(BudgetExceeded, match=r"40\.0% is left"):
        reserve(overtaken, taking(0.5), plan_of("slower", taking(0.5)))
    assert len(ledger.entries()) == 2


def test_a_lost_race_that_leaves_enough_is_tried_again(ledger: Ledger, memory: Store) -> None:
    faster = plan_of("faster", taking(0.6))
    overtaken = Ledger(Overtaken.by(memory, lambda: reserve(ledger, taking(0.6), faster)), "faces")
    reserve(overtaken, taking(0.4), plan_of("slower", taking(0.4)))
    assert [entry.sequence for entry in ledger.entries()] == [0, 1, 2]
    assert ledger.spent().share == pytest.approx(1.0)


def test_two_resumes_that_race_get_two_numbers_and_one_allowance(ledger: Ledger, memory: Store) -> None:
    reservation = reserve(ledger, TRAINING, stage="finetune", restart_allowance=10, checkpoint_steps=10)
    overtaken = Ledger(Overtaken.by(memory, lambda: ledger.resume(reservation)), "faces")
    with pytest.raises(BudgetExceeded, match="10 of its 10"):
        overtaken.resume(Reservation(ledger=overtaken, entry=reservation.entry))


def test_an_entry_that_arrives_while_the_ledger_is_read_is_no_error(ledger: Ledger, memory: Store) -> None:
    """Found by the race below: a reading that lists the ledger twice saw a reservation without a state."""

    class Growing(Store):
        def list(self, prefix: str = "") -> list[str]:
            names = super().list(prefix)
            if len(names) < 6:
                reserve(ledger, plan=plan("other", 2.0))
            return names

    for read in (Ledger.reservations, Ledger.spent, Ledger.states, lambda found: found.open_reservations("query", "k")):
        read(Ledger(Growing(url=memory.url, backend=memory.backend), "faces"))
    assert len(ledger.entries()) >= 5


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_eight_threads_racing_for_the_last_of_the_budget_never_overspend(kind: str, tmp_path: Path) -> None:
    store = Store.open(tmp_path.as_uri() if kind == "file" else f"memory://{secrets.token_hex(6)}")
    granted(store)
    start = threading.Barrier(8)

    def race(number: int) -> bool:
        ledger = Ledger(store, "faces")
        start.wait()
        try:
            reserve(ledger, taking(0.3), plan_of(f"plan-{number}", taking(0.3)))
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(race, range(8)))
    ledger = Ledger(store, "faces")
    assert sum(won) == 3
    assert ledger.spent().share == pytest.approx(0.9)
    assert [entry.sequence for entry in ledger.entries()] == [0, 1, 2, 3]
    assert {found.id for found in ledger.spent().plans} == {f"plan-{number}" for number in range(8) if won[number]}


def test_threads_that_resume_one_reservation_stay_within_its_allowance(memory: Store) -> None:
    reservation = reserve(
        granted(memory), TRAINING, plan("first", 5.0), stage="finetune", restart_allowance=30, checkpoint_steps=10
    )
    start = threading.Barrier(6)

    def race(_: int) -> int:
        ledger = Ledger(memory, "faces")
        start.wait()
        try:
            return ledger.resume(Reservation(ledger=ledger, entry=reservation.entry))
        except BudgetExceeded:
            return 0

    with ThreadPoolExecutor(6) as threads:
        attempts = sorted(threads.map(race, range(6)))
    assert attempts == [0, 0, 0, 2, 3, 4]
