"""What the private stages cost: mechanisms made from configuration, public facts and the ledger. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dp_accounting as dpa

from privimage.config import RunConfig
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.errors import BudgetExceeded, PrivacyRefused, Uncharged
from privimage.pipeline import Charge
from privimage.preflight import check_against_data, finetune_mechanism, planned_query, planned_validation
from privimage.privacy.accounting import calibrate_noise_multiplier, epsilon_of, event_shape
from privimage.privacy.budget import Plan
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import DPSGDMechanism, HistogramQuery, ValidationCount
from privimage.store.artifacts import Artifact, open_ref

__all__ = [
    "charge_finetune",
    "charge_query",
    "charge_validate",
    "finetune_plan",
    "plan_id",
    "plan_without_query",
    "planned_finetune",
    "query_plan",
    "validation_plan",
]


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
    """The plan that the query under `key` opens: itself, the validation if there is to be one, and the fine-tuning for
    which all cost the run's epsilon.

    These are fixed here, before the votes can be seen: this is what lets them be accounted tightly.

    Raises:
        PrivacyRefused: the query would leave nothing for fine-tuning.
    """
    mechanism = planned_query(config, facts, num_categories)
    finetune = planned_finetune(config, facts, num_categories)
    plan = Plan(
        id=plan_id(key),
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        intends=(mechanism.event, finetune.event, *_set_aside(config, facts)),
    )
    return plan, mechanism


def planned_finetune(config: RunConfig, facts: SensitiveFacts, num_categories: int) -> DPSGDMechanism:
    """Fine-tuning as it is fixed with the query, or by itself where none is made; raises as `query_plan`."""
    query = [planned_query(config, facts, num_categories).event] if config.selection.asks_the_query else []
    return _calibrated(config, facts, query, _set_aside(config, facts), joined=True)


def plan_without_query(config: RunConfig, key: str, facts: SensitiveFacts) -> tuple[Plan, DPSGDMechanism]:
    """The plan that fine-tuning under `key` opens in a run without a query: it has all of the run's epsilon, but for what is
    set aside for validation."""
    later = _set_aside(config, facts)
    mechanism = _calibrated(config, facts, [], later, joined=True)
    plan = Plan(
        id=plan_id(key),
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        intends=(mechanism.event, *later),
    )
    return plan, mechanism


def charge_finetune(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """Fine-tuning takes what the query left of its plan; if the plan is taken or other, it opens one that builds on the query.

    Without a query it opens the run's plan. What it starts from must then go back to none.
    """
    query = inputs.get("query")
    _check_lineage(inputs["pretrain"], query)
    left_open = ledger.open_reservations("finetune", key)
    if left_open:
        # A crashed attempt goes on with exactly the noise that was reserved, whatever calibration would say today.
        plan = Plan.from_json(left_open[-1].entry.body["plan"])
        mechanism = finetune_mechanism(config, facts, noise_multiplier=_noise_multiplier(left_open[-1].event))
    else:
        if query is None:
            plan, mechanism = plan_without_query(config, key, facts)
        else:
            plan, mechanism = finetune_plan(config, key, query.manifest.reservations, facts, ledger)
        ledger.check_fits(plan, num_images=facts.num_train)
    return Charge(
        mechanism=mechanism,
        plan=plan,
        num_images=facts.num_train,
        restart_allowance=config.finetune.restart_allowance,
        checkpoint_steps=config.finetune.checkpoint_steps,
    )


def _check_lineage(pretrained: Artifact, query: Artifact | None) -> None:
    """Raise Uncharged if the generator goes back to another charged artifact than the query that this run accounts for."""
    ahead = [pretrained]
    while ahead:
        artifact = ahead.pop()
        if artifact.manifest.reservations and (query is None or artifact.ref != query.ref):
            raise Uncharged(
                f"The pre-trained generator goes back to {artifact.ref.stage} {artifact.ref.key[:12]}, which was computed "
                f"from sensitive images, but this run accounts for {'no' if query is None else 'another'} query: it would be "
                "left out of the release's epsilon. Give it the generator that this configuration makes."
            )
        ahead += [open_ref(artifact.store, ref) for ref in artifact.manifest.inputs.values() if not ref.sealed]


def finetune_plan(
    config: RunConfig, key: str, query_reservations: Sequence[str], facts: SensitiveFacts, ledger: Ledger
) -> tuple[Plan, DPSGDMechanism]:
    """The plan that fine-tuning under `key` belongs to, and its mechanism.

    It joins the query's plan if it is what that was opened for: the same target, steps and sampling rate, the same set
    aside for validation, and no other fine-tuning. Else it was chosen after the query's result, and opens a plan of its
    own, which builds on the query and is charged for it again, with epsilons added.

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
    later = _set_aside(config, facts)
    same = (opened.epsilon, opened.delta) == target and [e for e in opened.intends if _is_validation(e)] == later
    if same and intended and not rivals and not ledger.is_closed(opened.id):
        # Queries of the plan whose result was lost, to a crash or a race, were charged as well.
        prior = [entry.event for entry in members if entry.body["stage"] == "query"]
        if [*prior, intended[0], *later] == list(opened.intends):
            return opened, finetune_mechanism(config, facts, noise_multiplier=_noise_multiplier(intended[0]))
        return opened, _calibrated(config, facts, prior, later, joined=True)
    mechanism = _calibrated(config, facts, [held[entry].event for entry in query_reservations], later, joined=False)
    plan = Plan(
        id=plan_id(key),
        epsilon=target[0],
        delta=target[1],
        intends=(mechanism.event, *later),
        builds_on=tuple(query_reservations),
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
    """What a plan intends beside query and fine-tuning."""
    mechanism = planned_validation(config, facts)
    return [] if mechanism is None else [mechanism.event]


def _is_validation(event: dpa.DpEvent) -> bool:
    return isinstance(event, dpa.SelfComposedDpEvent) and isinstance(event.event, dpa.GaussianDpEvent)


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
) -> DPSGDMechanism:
    """DP-SGD with the least noise for which it, the query and what comes later cost the run's epsilon (`epsilon_of_plan`).

    `joined`: they belong to one plan; else DP-SGD's plan, which holds what comes later too, builds on the query's.
    """
    epsilon, delta, jointly = config.privacy.epsilon, config.privacy.delta, [*prior, *later]
    if not joined:
        epsilon, delta, jointly = epsilon - epsilon_of(prior, delta / 2), delta / 2, [*later]
        if epsilon <= 0:
            raise PrivacyRefused(
                f"The query that this run builds on costs all of its epsilon {config.privacy.epsilon:g}: make a new one "
                "(--draw query=2)."
            )
    if later and epsilon_of(jointly, delta) >= 0.99 * epsilon:
        raise PrivacyRefused(
            f"{'Query and validation' if prior else 'Validation'} alone cost all of epsilon {config.privacy.epsilon:g}, nothing "
            "is left for fine-tuning: "
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
