"""What the two private stages cost: mechanisms made from configuration, public facts and the ledger. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dp_accounting as dpa

from privimage.config import RunConfig
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.errors import PrivacyRefused, Uncharged
from privimage.pipeline import Charge
from privimage.preflight import check_against_data, finetune_mechanism, planned_query
from privimage.privacy.accounting import calibrate_noise_multiplier, epsilon_of, event_shape
from privimage.privacy.budget import Plan
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import DPSGDMechanism, HistogramQuery
from privimage.store.artifacts import Artifact, open_ref

__all__ = ["charge_finetune", "charge_query", "finetune_plan", "plan_id", "planned_finetune", "query_plan"]


def charge_query(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """The query opens a plan for the whole run, so that fine-tuning cannot fail for want of budget later.

    Whatever contradicts the data is refused here, before anything is spent.
    """
    classifier = inputs["classifier"]
    public = open_ref(classifier.store, classifier.manifest.inputs["public"])
    categories = TableFacts.from_json(public.read_bytes("facts.json").decode())
    check_against_data(config, categories, facts)
    plan, mechanism = query_plan(config, key, facts, len(categories.class_names))
    ledger.check_fits(plan, num_images=facts.num_train)
    return Charge(mechanism=mechanism, plan=plan, num_images=facts.num_train)


def query_plan(config: RunConfig, key: str, facts: SensitiveFacts, num_categories: int) -> tuple[Plan, HistogramQuery]:
    """The plan that the query under `key` opens: itself, and the fine-tuning for which both cost the run's epsilon.

    Fine-tuning is fixed here, before the votes can be seen: this is what lets both be accounted tightly.

    Raises:
        PrivacyRefused: the query would leave nothing for fine-tuning.
    """
    mechanism = planned_query(config, facts, num_categories)
    finetune = planned_finetune(config, facts, num_categories)
    plan = Plan(
        id=plan_id(key),
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        intends=(mechanism.event, finetune.event),
    )
    return plan, mechanism


def planned_finetune(config: RunConfig, facts: SensitiveFacts, num_categories: int) -> DPSGDMechanism:
    """Fine-tuning as it is fixed with the query; raises as `query_plan`."""
    return _calibrated(config, facts, [planned_query(config, facts, num_categories).event], joined=True)


def charge_finetune(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """Fine-tuning takes what the query left of its plan; if the plan is taken or other, it opens one that builds on the query."""
    left_open = ledger.open_reservations("finetune", key)
    if left_open:
        # A crashed attempt goes on with exactly the noise that was reserved, whatever calibration would say today.
        plan = Plan.from_json(left_open[-1].entry.body["plan"])
        mechanism = finetune_mechanism(config, facts, noise_multiplier=_noise_multiplier(left_open[-1].event))
    else:
        plan, mechanism = finetune_plan(config, key, inputs["query"].manifest.reservations, facts, ledger)
        ledger.check_fits(plan, num_images=facts.num_train)
    return Charge(
        mechanism=mechanism,
        plan=plan,
        num_images=facts.num_train,
        restart_allowance=config.finetune.restart_allowance,
        checkpoint_steps=config.finetune.checkpoint_steps,
    )


def finetune_plan(
    config: RunConfig, key: str, query_reservations: Sequence[str], facts: SensitiveFacts, ledger: Ledger
) -> tuple[Plan, DPSGDMechanism]:
    """The plan that fine-tuning under `key` belongs to, and its mechanism.

    It joins the query's plan if it is what that was opened for: the same target, steps and sampling rate, and no other
    fine-tuning. Else it was chosen after the query's result, and opens a plan of its own, which builds on the query
    and is charged for it again, with epsilons added.

    Raises:
        Uncharged: the ledger does not hold what paid for the query.
        PrivacyRefused: the query costs all of the run's epsilon.
    """
    held = ledger.reservations()
    missing = [entry for entry in query_reservations if entry not in held]
    if missing or not query_reservations:
        raise Uncharged(
            f"The query's artifact was paid for by {missing[0] if missing else 'nothing'}, which the ledger does not hold."
        )
    opened = Plan.from_json(held[query_reservations[-1]].body["plan"])
    members = [entry for entry in held.values() if entry.body["plan"]["id"] == opened.id]
    rivals = [entry for entry in members if entry.body["stage"] == "finetune" and entry.body["key"] != key]
    target = (config.privacy.epsilon, config.privacy.delta)
    shape = event_shape(finetune_mechanism(config, facts, noise_multiplier=1.0).event)
    intended = [event for event in opened.intends if event_shape(event) == shape]
    if (opened.epsilon, opened.delta) == target and intended and not rivals and not ledger.is_closed(opened.id):
        # Queries of the plan whose result was lost, to a crash or a race, were charged as well.
        prior = [entry.event for entry in members if entry.body["stage"] == "query"]
        if [*prior, intended[0]] == list(opened.intends):
            return opened, finetune_mechanism(config, facts, noise_multiplier=_noise_multiplier(intended[0]))
        return opened, _calibrated(config, facts, prior, joined=True)
    mechanism = _calibrated(config, facts, [held[entry].event for entry in query_reservations], joined=False)
    plan = Plan(
        id=plan_id(key),
        epsilon=target[0],
        delta=target[1],
        intends=(mechanism.event,),
        builds_on=tuple(query_reservations),
    )
    return plan, mechanism


def plan_id(key: str) -> str:
    """Name of the plan that the stage with this key opens."""
    return f"plan-{key[:16]}"


def _calibrated(
    config: RunConfig, facts: SensitiveFacts, prior: Sequence[dpa.DpEvent], *, joined: bool
) -> DPSGDMechanism:
    """DP-SGD with the least noise for which it and the query together cost the run's epsilon (`epsilon_of_plan`).

    `joined`: they belong to one plan; else DP-SGD's plan builds on the query's.
    """
    epsilon, delta, jointly = config.privacy.epsilon, config.privacy.delta, prior
    if not joined:
        epsilon, delta, jointly = epsilon - epsilon_of(prior, delta / 2), delta / 2, []
        if epsilon <= 0:
            raise PrivacyRefused(
                f"The query that this run builds on costs all of its epsilon {config.privacy.epsilon:g}: make a new one "
                "(--draw query=2)."
            )
    noise_multiplier = calibrate_noise_multiplier(
        lambda value: finetune_mechanism(config, facts, noise_multiplier=value).event,
        epsilon=epsilon,
        delta=delta,
        prior=jointly,
    )
    return finetune_mechanism(config, facts, noise_multiplier=noise_multiplier)


def _noise_multiplier(event: dpa.DpEvent) -> float:
    """The noise multiplier inside a reserved DP-SGD event."""
    match event:
        case dpa.SelfComposedDpEvent(event=dpa.PoissonSampledDpEvent(event=dpa.GaussianDpEvent() as gaussian)):
            return float(gaussian.noise_multiplier)
        case dpa.SelfComposedDpEvent(event=dpa.TruncatedSubsampledGaussianDpEvent() as truncated):
            return float(truncated.noise_multiplier)
        case _:
            raise PrivacyRefused(
                "The open reservation of fine-tuning holds no DP-SGD event: it was not made by this stage."
            )
