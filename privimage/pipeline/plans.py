"""The plan of a run: what it intends to release, in which order, and with how much noise; made before anything is seen. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dp_accounting as dpa

from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts
from privimage.errors import PrivacyRefused, Uncharged
from privimage.methods.generator import FinetuneMechanism
from privimage.pipeline.preflight import (
    finetune_mechanism,
    planned_class_means,
    planned_feature_means,
    planned_query,
    planned_validation,
)
from privimage.privacy.accounting import (
    calibrate_noise_multiplier,
    delta_of_course,
    epsilon_of,
    event_shape,
    lost_attempts,
)
from privimage.privacy.budget import Plan
from privimage.privacy.entry import Entry
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import ClassSums, ValidationCount

__all__ = [
    "AHEAD",
    "IN_WORDS",
    "ahead_plan",
    "finetune_plan",
    "noise_multiplier_of",
    "plan_id",
    "planned_ahead",
    "planned_finetune",
    "run_plan",
    "validation_plan",
]

AHEAD = ("query", "feature_means", "class_means")
"""Stages that may be charged before fine-tuning, in the order of their plan."""
IN_WORDS = {"feature_means": "feature means", "class_means": "class mean images"}


def run_plan(config: RunConfig, key: str, facts: SensitiveFacts, num_categories: int) -> Plan:
    """The plan that the first charged stage of a run opens, under `key`: all that the run intends, which costs its epsilon.

    It is fixed here, before anything released can be seen: this is what lets all of it be accounted tightly.

    Raises:
        PrivacyRefused: what comes before it would leave nothing for the last.
    """
    ahead = planned_ahead(config, facts, num_categories)
    tuned = [planned_finetune(config, facts, num_categories).event] if config.generator.finetunes else []
    return Plan(
        id=plan_id(key),
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        intends=(*ahead.values(), *tuned, *_set_aside(config, facts)),
    )


def planned_ahead(config: RunConfig, facts: SensitiveFacts, num_categories: int) -> dict[str, dpa.DpEvent]:
    """What the run releases before fine-tuning, by stage, in their order."""
    mechanisms = {
        "query": planned_query(config, facts, num_categories),
        "feature_means": planned_feature_means(config, facts, num_categories),
        "class_means": planned_class_means(config, facts),
    }
    return {stage: mechanism.event for stage, mechanism in mechanisms.items() if mechanism}


def planned_finetune(config: RunConfig, facts: SensitiveFacts, num_categories: int) -> FinetuneMechanism:
    """Fine-tuning as it is fixed with what comes before it, or by itself; raises as `run_plan`."""
    ahead = planned_ahead(config, facts, num_categories)
    return _calibrated(config, facts, list(ahead.values()), _set_aside(config, facts), joined=True)


def ahead_plan(
    stage: str,
    mechanism: ClassSums,
    config: RunConfig,
    key: str,
    paid_before: Sequence[str],
    facts: SensitiveFacts,
    ledger: Ledger,
    num_categories: int,
) -> Plan:
    """The plan that a stage before fine-tuning belongs to, which is no query: the one that was opened, or the run's, which it opens.

    Args:
        paid_before: reservations of what the run released before it, in whose plan it is; none, and it opens one.

    Raises:
        Uncharged: the ledger does not hold what paid for that.
        PrivacyRefused: that plan does not intend it, is closed, or holds another of the same stage.
    """
    if not paid_before:
        return run_plan(config, key, facts, num_categories)
    held = ledger.reservations()
    plan = _plan_of(paid_before, held)
    rivals = [
        entry.id
        for entry in held.values()
        if (entry.body["plan"]["id"], entry.body["stage"]) == (plan.id, stage) and entry.body["key"] != key
    ]
    apart = any(held[entry].body["plan"]["id"] != plan.id for entry in paid_before)
    if mechanism.event not in plan.intends or rivals or apart or ledger.is_closed(plan.id):
        why = (
            f"other ones were charged to it, by entry {rivals[0]}"
            if rivals
            else "it is closed, or intends none of them"
        )
        raise PrivacyRefused(
            f"Plan {plan.id} has no budget for these {IN_WORDS[stage]}: {why}. Run again with another draw of what opened "
            f"it (--draw {held[paid_before[0]].body['stage']}=2). Nothing was charged."
        )
    return plan


def finetune_plan(
    config: RunConfig, key: str, paid_ahead: Sequence[str], facts: SensitiveFacts, ledger: Ledger
) -> tuple[Plan, FinetuneMechanism]:
    """The plan that fine-tuning under `key` belongs to, and its mechanism.

    It joins the plan of query and class mean images (whichever there are) if it is what that was opened for: the same target,
    steps and sampling rate, the same set aside for validation, and no other fine-tuning. Else it was chosen after their
    results, and opens a plan of its own, which builds on them and is charged for them again, with epsilons added.

    Args:
        paid_ahead: reservations of query and class mean images.

    Raises:
        Uncharged: the ledger does not hold what paid for them.
        PrivacyRefused: they cost all of the run's epsilon.
    """
    held = ledger.reservations()
    opened = _plan_of(paid_ahead, held)
    members = [entry for entry in held.values() if entry.body["plan"]["id"] == opened.id]
    rivals = [entry for entry in members if entry.body["stage"] == "finetune" and entry.body["key"] != key]
    target = (config.privacy.epsilon, config.privacy.delta)
    shape = event_shape(finetune_mechanism(config, facts, noise_multiplier=1.0).event)
    later = _set_aside(config, facts)
    # By its place: a mean embedding has the shape of a query.
    ahead_of_it = [
        config.selection.asks_the_query,
        config.selection.asks_feature_means,
        planned_class_means(config, facts),
    ]
    intends = opened.intends[sum(map(bool, ahead_of_it)) :]
    # A plan that class mean images opened by themselves is too short for that, and not the plan of both.
    intended, *others = intends or opened.intends[-1:]
    same = (opened.epsilon, opened.delta) == target and event_shape(intended) == shape and others == later
    same = same and all(held[entry].body["plan"]["id"] == opened.id for entry in paid_ahead)
    if same and not rivals and not ledger.is_closed(opened.id):
        # Those of the plan whose result was lost, to a crash or a race, were charged as well.
        ahead = [entry for entry in members if entry.body["stage"] in AHEAD]
        prior = [entry.event for entry in ahead]
        if [*prior, intended, *later] == list(opened.intends):
            return opened, finetune_mechanism(config, facts, noise_multiplier=noise_multiplier_of(intended))
        lost = lost_attempts([entry.body["stage"] for entry in ahead])
        return opened, _calibrated(config, facts, prior, later, joined=True, lost=lost)
    lost = lost_attempts([held[entry].body["stage"] for entry in paid_ahead])
    mechanism = _calibrated(config, facts, [held[entry].event for entry in paid_ahead], later, joined=False, lost=lost)
    plan = Plan(
        id=plan_id(key),
        epsilon=target[0],
        delta=target[1],
        intends=(mechanism.event, *later),
        builds_on=tuple(paid_ahead),
    )
    return plan, mechanism


def validation_plan(
    config: RunConfig, key: str, paid_last: Sequence[str], facts: SensitiveFacts, ledger: Ledger
) -> tuple[Plan, ValidationCount]:
    """The plan of fine-tuning, or of feature means where there is none, and the validation that it intends.

    Which classifiers are validated may be chosen at any time: the mechanism is a Gaussian one of fixed noise whatever
    they are. Only one choice among them is made in a plan.

    Raises:
        Uncharged: the ledger does not hold what paid for fine-tuning.
        PrivacyRefused: the plan intends no such validation, or another one was charged to it.
    """
    held = ledger.reservations()
    missing = [entry for entry in paid_last if entry not in held]
    if missing or not paid_last:
        raise Uncharged(
            f"The generator's artifact was paid for by {missing[0] if missing else 'nothing'}, which the ledger does not "
            "hold."
        )
    plan = Plan.from_json(held[paid_last[-1]].body["plan"])
    mechanism = planned_validation(config, facts)
    if mechanism is None or mechanism.event not in plan.intends:
        raise PrivacyRefused(
            f"Plan {plan.id} was opened without this validation: its budget holds none. Choose the classifier by synthetic "
            "images (--set evaluate.validation=synthetic)."
        )
    members = [entry for entry in held.values() if entry.body["plan"]["id"] == plan.id]
    rivals = [entry.id for entry in members if entry.body["stage"] == "validate" and entry.body["key"] != key]
    if rivals:
        raise PrivacyRefused(
            f"What plan {plan.id} set aside for validation was spent on other classifiers, by entry {rivals[0]}. Choose "
            "among these by synthetic images, which is free (--set evaluate.validation=synthetic)."
        )
    return plan, mechanism


def _set_aside(config: RunConfig, facts: SensitiveFacts) -> list[dpa.DpEvent]:
    """What a plan intends after fine-tuning."""
    mechanism = planned_validation(config, facts)
    return [] if mechanism is None else [mechanism.event]


def _plan_of(reservations: Sequence[str], held: Mapping[str, Entry]) -> Plan:
    """The plan of the last of them; raises Uncharged unless the ledger holds all."""
    missing = [entry for entry in reservations if entry not in held]
    if missing or not reservations:
        raise Uncharged(
            f"What was released before was paid for by {missing[0] if missing else 'nothing'}, which the ledger does not hold."
        )
    return Plan.from_json(held[reservations[-1]].body["plan"])


def plan_id(key: str) -> str:
    """Name of the plan that the stage with this key opens."""
    return f"plan-{key[:16]}"


def _calibrated(
    config: RunConfig,
    facts: SensitiveFacts,
    prior: Sequence[dpa.DpEvent],
    later: Sequence[dpa.DpEvent],
    *,
    joined: bool,
    lost: int = 0,
) -> FinetuneMechanism:
    """Fine-tuning with the least noise for which it, what is released before and what comes later cost the run's epsilon
    (`epsilon_of_plan`).

    `joined`: they belong to one plan; else fine-tuning's plan, which holds what comes later too, builds on theirs.
    `lost`: how many of the attempts before it were lost.
    """
    epsilon, delta, jointly = config.privacy.epsilon, config.privacy.delta, [*prior, *later]
    if joined:
        delta = delta_of_course(delta, lost)
    else:
        epsilon -= epsilon_of(prior, delta_of_course(delta / 2, lost))
        delta, jointly = delta_of_course(delta / 2, 0), [*later]
        if epsilon <= 0:
            raise PrivacyRefused(
                f"What this run builds on costs all of its epsilon {config.privacy.epsilon:g}: make a new one "
                "(--draw query=2)."
            )
    if later and epsilon_of(jointly, delta) >= 0.99 * epsilon:
        raise PrivacyRefused(
            f"{'Validation, and what comes before fine-tuning,' if prior else 'Validation'} alone cost all of epsilon "
            f"{config.privacy.epsilon:g}, nothing is left for fine-tuning: "
            "raise privacy.validation_error, privacy.query_error or epsilon, or hold out more validation images."
        )
    noise_multiplier = calibrate_noise_multiplier(
        lambda value: finetune_mechanism(config, facts, noise_multiplier=value).event,
        epsilon=epsilon,
        delta=delta,
        prior=jointly,
    )
    return finetune_mechanism(config, facts, noise_multiplier=noise_multiplier)


def noise_multiplier_of(event: dpa.DpEvent) -> float:
    """The noise multiplier inside a reserved event of fine-tuning."""
    match event:
        case dpa.GaussianDpEvent():
            return float(event.noise_multiplier)
        case dpa.SelfComposedDpEvent(event=dpa.GaussianDpEvent() as each):
            return float(each.noise_multiplier)
        case dpa.SelfComposedDpEvent(event=dpa.PoissonSampledDpEvent(event=dpa.GaussianDpEvent() as gaussian)):
            return float(gaussian.noise_multiplier)
        case dpa.SelfComposedDpEvent(event=dpa.TruncatedSubsampledGaussianDpEvent() as truncated):
            return float(truncated.noise_multiplier)
        case _:
            raise PrivacyRefused(
                "The open reservation of fine-tuning holds neither DP-SGD nor class sums: it was not made by this stage."
            )
