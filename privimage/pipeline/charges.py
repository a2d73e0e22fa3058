"""What the private stages cost: mechanisms made from configuration, public facts and the ledger. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dp_accounting as dpa

from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts, public_facts
from privimage.errors import BudgetExceeded, PrivacyRefused, Uncharged
from privimage.methods.generator import FinetuneMechanism
from privimage.pipeline.preflight import (
    check_against_data,
    finetune_mechanism,
    planned_class_means,
    planned_query,
    planned_validation,
)
from privimage.pipeline.stage import Charge
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
from privimage.privacy.mechanisms import ClassSums, HistogramQuery, ValidationCount
from privimage.store.artifacts import Artifact, open_ref

__all__ = [
    "charge_class_means",
    "charge_finetune",
    "charge_query",
    "charge_validate",
    "class_means_plan",
    "finetune_plan",
    "plan_id",
    "plan_without_query",
    "planned_finetune",
    "query_plan",
    "validation_plan",
]

# Stages that may be charged before fine-tuning, in the order of their plan.
AHEAD = ("query", "class_means")


def charge_query(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """The query opens a plan for the whole run, so that fine-tuning cannot fail for want of budget later.

    Whatever contradicts the data is refused here, before anything is spent.
    """
    classifier = inputs["classifier"]
    public = open_ref(classifier.store, classifier.manifest.inputs["public"])
    categories = public_facts(public)
    check_against_data(config, categories, facts)
    plan, mechanism = query_plan(config, key, facts, len(categories.class_names))
    ledger.check_fits(plan, num_images=facts.num_train)
    return Charge(mechanism=mechanism, plan=plan, num_images=facts.num_train)


def query_plan(config: RunConfig, key: str, facts: SensitiveFacts, num_categories: int) -> tuple[Plan, HistogramQuery]:
    """The plan that the query under `key` opens: itself, class mean images and validation if there are to be any, and the
    fine-tuning for which all cost the run's epsilon.

    These are fixed here, before the votes can be seen: this is what lets them be accounted tightly.

    Raises:
        PrivacyRefused: the query would leave nothing for fine-tuning.
    """
    mechanism = planned_query(config, facts, num_categories)
    if mechanism is None:
        raise PrivacyRefused(f"With selection.strategy {config.selection.strategy} no query is asked.")
    finetune = planned_finetune(config, facts, num_categories)
    plan = Plan(
        id=plan_id(key),
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        intends=(mechanism.event, *_class_means(config, facts), finetune.event, *_set_aside(config, facts)),
    )
    return plan, mechanism


def charge_class_means(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """class mean images take what the query's plan intends for them; without a query they open the run's plan."""
    check_against_data(config, public_facts(inputs["public"]), facts)
    query = inputs.get("query")
    plan, mechanism = class_means_plan(config, key, query.manifest.reservations if query else None, facts, ledger)
    ledger.check_fits(plan, num_images=facts.num_train)
    return Charge(mechanism=mechanism, plan=plan, num_images=facts.num_train)


def class_means_plan(
    config: RunConfig, key: str, query_reservations: Sequence[str] | None, facts: SensitiveFacts, ledger: Ledger
) -> tuple[Plan, ClassSums]:
    """The plan that the class mean images under `key` belong to, and their mechanism.

    Args:
        query_reservations: what paid for the query, in whose plan they are; None where none is made.

    Raises:
        Uncharged: the ledger does not hold what paid for the query.
        PrivacyRefused: the query's plan does not intend them, is closed, or holds other class mean images.
    """
    mechanism = planned_class_means(config, facts)
    if mechanism is None:
        raise PrivacyRefused("The configuration has no class mean images: give generator.class_means.")
    if query_reservations is None:
        return plan_without_query(config, key, facts)[0], mechanism
    held = ledger.reservations()
    plan = _plan_of(query_reservations, held)
    rivals = [
        entry.id
        for entry in held.values()
        if (entry.body["plan"]["id"], entry.body["stage"]) == (plan.id, "class_means") and entry.body["key"] != key
    ]
    if mechanism.event not in plan.intends or rivals or ledger.is_closed(plan.id):
        why = (
            f"other ones were charged to it, by entry {rivals[0]}"
            if rivals
            else "it is closed, or intends none of them"
        )
        raise PrivacyRefused(
            f"Plan {plan.id} of the query has no budget for these class mean images: {why}. Run again with another draw of the "
            "query (--draw query=2). Nothing was charged."
        )
    return plan, mechanism


def planned_finetune(config: RunConfig, facts: SensitiveFacts, num_categories: int) -> FinetuneMechanism:
    """Fine-tuning as it is fixed with the query, or by itself where none is made; raises as `query_plan`."""
    asked = planned_query(config, facts, num_categories)
    query = [asked.event] if asked else []
    return _calibrated(config, facts, [*query, *_class_means(config, facts)], _set_aside(config, facts), joined=True)


def plan_without_query(config: RunConfig, key: str, facts: SensitiveFacts) -> tuple[Plan, FinetuneMechanism]:
    """The plan that class mean images under `key` open in a run without a query, or fine-tuning where there are none, and the
    fine-tuning for which all that it intends costs the run's epsilon."""
    class_means, later = _class_means(config, facts), _set_aside(config, facts)
    mechanism = _calibrated(config, facts, class_means, later, joined=True)
    plan = Plan(
        id=plan_id(key),
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        intends=(*class_means, mechanism.event, *later),
    )
    return plan, mechanism


def charge_finetune(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """Fine-tuning takes what query and class mean images left of their plan; if the plan is taken or other, it opens one that
    builds on them.

    Without either it opens the run's plan. What it starts from must go back to no other charged artifact than these.
    """
    ahead = [inputs[name] for name in AHEAD if name in inputs]
    _check_lineage(inputs.get("warmup") or inputs["pretrain"], ahead)
    left_open = ledger.open_reservations("finetune", key)
    if left_open:
        # A crashed attempt goes on with exactly the noise that was reserved, whatever calibration would say today.
        plan = Plan.from_json(left_open[-1].entry.body["plan"])
        mechanism = finetune_mechanism(config, facts, noise_multiplier=_noise_multiplier(left_open[-1].event))
    else:
        if ahead:
            paid = [entry for artifact in ahead for entry in artifact.manifest.reservations]
            plan, mechanism = finetune_plan(config, key, paid, facts, ledger)
        else:
            plan, mechanism = plan_without_query(config, key, facts)
        ledger.check_fits(plan, num_images=facts.num_train)
    return Charge(
        mechanism=mechanism,
        plan=plan,
        num_images=facts.num_train,
        restart_allowance=config.generator.restart_allowance,
        checkpoint_steps=config.generator.checkpoint_steps,
    )


def _check_lineage(start: Artifact, accounted: Sequence[Artifact]) -> None:
    """Raise Uncharged if the generator goes back to another charged artifact than those that this run accounts for."""
    known = {artifact.ref for artifact in accounted}
    other = {artifact.ref.stage for artifact in accounted}
    to_look_at = [start]
    while to_look_at:
        artifact = to_look_at.pop()
        if artifact.manifest.reservations and artifact.ref not in known:
            stage = artifact.ref.stage
            raise Uncharged(
                f"The pre-trained generator goes back to {stage} {artifact.ref.key[:12]}, which was computed from sensitive "
                f"images, but this run accounts for {'another' if stage in other else 'no'} {stage}: it would be left out of "
                "the release's epsilon. Give it the generator that this configuration makes."
            )
        to_look_at += [open_ref(artifact.store, ref) for ref in artifact.manifest.inputs.values() if not ref.sealed]


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
    ahead_of_it = config.selection.asks_the_query + (planned_class_means(config, facts) is not None)
    intends = opened.intends[ahead_of_it:]
    # A plan that class mean images opened by themselves is too short for that, and not the plan of both.
    intended, *others = intends or opened.intends[-1:]
    same = (opened.epsilon, opened.delta) == target and event_shape(intended) == shape and others == later
    same = same and all(held[entry].body["plan"]["id"] == opened.id for entry in paid_ahead)
    if same and not rivals and not ledger.is_closed(opened.id):
        # Those of the plan whose result was lost, to a crash or a race, were charged as well.
        ahead = [entry for entry in members if entry.body["stage"] in AHEAD]
        prior = [entry.event for entry in ahead]
        if [*prior, intended, *later] == list(opened.intends):
            return opened, finetune_mechanism(config, facts, noise_multiplier=_noise_multiplier(intended))
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


def charge_validate(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """Validation takes what was set aside for it in the plan of the run's fine-tuning."""
    plan, mechanism = validation_plan(config, key, inputs["finetune"].manifest.reservations, facts, ledger)
    left_open = ledger.open_reservations("validate", key)
    if left_open and len(ledger.resumes(left_open[-1].id)) >= mechanism.restart_allowance:
        raise BudgetExceeded(
            f"Validation was interrupted {mechanism.restart_allowance + 1} times, and no further attempt was accounted for. "
            "Choose the classifier by synthetic images, which is free (--set evaluate.validation=synthetic)."
        )
    return Charge(
        mechanism=mechanism,
        plan=plan,
        num_images=facts.num_validation,
        restart_allowance=mechanism.restart_allowance,
        checkpoint_steps=1,  # an attempt runs in one go, and is lost as a whole
    )


def validation_plan(
    config: RunConfig, key: str, finetune_reservations: Sequence[str], facts: SensitiveFacts, ledger: Ledger
) -> tuple[Plan, ValidationCount]:
    """The plan that fine-tuning belongs to, and the validation that it intends.

    Which classifiers are validated may be chosen at any time: the mechanism is a Gaussian one of fixed noise whatever
    they are. Only one choice among them is made in a plan.

    Raises:
        Uncharged: the ledger does not hold what paid for fine-tuning.
        PrivacyRefused: the plan intends no such validation, or another one was charged to it.
    """
    held = ledger.reservations()
    missing = [entry for entry in finetune_reservations if entry not in held]
    if missing or not finetune_reservations:
        raise Uncharged(
            f"The generator's artifact was paid for by {missing[0] if missing else 'nothing'}, which the ledger does not "
            "hold."
        )
    plan = Plan.from_json(held[finetune_reservations[-1]].body["plan"])
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


def _class_means(config: RunConfig, facts: SensitiveFacts) -> list[dpa.DpEvent]:
    """What a plan intends between query and fine-tuning."""
    mechanism = planned_class_means(config, facts)
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


def _noise_multiplier(event: dpa.DpEvent) -> float:
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
