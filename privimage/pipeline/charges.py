"""What the private stages are charged: mechanisms made from configuration, public facts and the ledger. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts, public_facts
from privimage.errors import BudgetExceeded, PrivacyRefused, Uncharged
from privimage.payloads import SpaceAbout
from privimage.pipeline.plans import (
    AHEAD,
    ahead_plan,
    finetune_plan,
    noise_multiplier_of,
    planned_finetune,
    run_plan,
    validation_plan,
)
from privimage.pipeline.preflight import (
    check_against_data,
    finetune_mechanism,
    planned_class_means,
    planned_feature_means,
    planned_query,
)
from privimage.pipeline.stage import Charge
from privimage.privacy.budget import Plan
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import ClassSums
from privimage.store.artifacts import Artifact, open_ref

__all__ = [
    "charge_class_means",
    "charge_feature_means",
    "charge_finetune",
    "charge_query",
    "charge_validate",
    "check_lineage",
]


def charge_query(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """The query opens a plan for the whole run, so that fine-tuning cannot fail for want of budget later.

    Whatever contradicts the data is refused here, before anything is spent.
    """
    classifier = inputs["classifier"]
    public = public_facts(open_ref(classifier.store, classifier.manifest.inputs["public"]))
    check_against_data(config, public, facts)
    plan = run_plan(config, key, facts, len(public.class_names))
    mechanism = planned_query(config, facts, len(public.class_names))
    if mechanism is None:
        raise PrivacyRefused(f"With selection.strategy {config.selection.strategy} no query is asked.")
    ledger.check_fits(plan, num_images=facts.num_train)
    return Charge(mechanism=mechanism, plan=plan, num_images=facts.num_train)


def charge_feature_means(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """Class means of features, in the dimensions of the space, take what the query's plan intends for them, or open the plan."""
    public = public_facts(inputs["public"])
    check_against_data(config, public, facts)
    dimensions = SpaceAbout.read(inputs["space"]).dimensions
    mechanism = planned_feature_means(config, facts, len(public.class_names), dimensions=dimensions)
    if mechanism is None:
        raise PrivacyRefused(f"With selection.strategy {config.selection.strategy} no feature means are released.")
    return _charged_ahead("feature_means", mechanism, config, key, inputs, facts, ledger, len(public.class_names))


def charge_class_means(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """Class mean images take what the plan of what was released before intends for them, or open the run's plan."""
    public = public_facts(inputs["public"])
    check_against_data(config, public, facts)
    mechanism = planned_class_means(config, facts)
    if mechanism is None:
        raise PrivacyRefused("The configuration has no class mean images: give generator.class_means.")
    return _charged_ahead("class_means", mechanism, config, key, inputs, facts, ledger, len(public.class_names))


def _charged_ahead(
    stage: str,
    mechanism: ClassSums,
    config: RunConfig,
    key: str,
    inputs: Mapping[str, Artifact],
    facts: SensitiveFacts,
    ledger: Ledger,
    num_categories: int,
) -> Charge:
    if stage == "feature_means" and ledger.open_reservations(stage, key):
        # They take so much of epsilon that no noise of fine-tuning could make up for it.
        raise BudgetExceeded(
            f"Stage {stage} was interrupted after it was charged, and the plan holds no second attempt. Run again with another draw "
            f"(--draw {stage}=2), which is charged in full. Nothing more was charged."
        )
    paid = [entry for name in AHEAD if name in inputs for entry in inputs[name].manifest.reservations]
    plan = ahead_plan(stage, mechanism, config, key, paid, facts, ledger, num_categories)
    ledger.check_fits(plan, num_images=facts.num_train)
    return Charge(mechanism=mechanism, plan=plan, num_images=facts.num_train)


def charge_finetune(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """Fine-tuning takes what was left of the plan of what was released before; if the plan is taken or other, it opens one that
    builds on these releases.

    Without any it opens the run's plan. What it starts from must go back to no other charged artifact than these.
    """
    ahead = [inputs[name] for name in AHEAD if name in inputs]
    check_lineage(inputs.get("warmup") or inputs["pretrain"], ahead)
    left_open = ledger.open_reservations("finetune", key)
    if left_open:
        # A crashed attempt goes on with exactly the noise that was reserved, whatever calibration would say today.
        plan = Plan.from_json(left_open[-1].entry.body["plan"])
        mechanism = finetune_mechanism(config, facts, noise_multiplier=noise_multiplier_of(left_open[-1].event))
    else:
        if ahead:
            paid = [entry for artifact in ahead for entry in artifact.manifest.reservations]
            plan, mechanism = finetune_plan(config, key, paid, facts, ledger)
        else:
            plan, mechanism = run_plan(config, key, facts, 1), planned_finetune(config, facts, 1)
        ledger.check_fits(plan, num_images=facts.num_train)
    return Charge(
        mechanism=mechanism,
        plan=plan,
        num_images=facts.num_train,
        restart_allowance=config.generator.restart_allowance,
        checkpoint_steps=config.generator.checkpoint_steps,
    )


def check_lineage(start: Artifact, accounted: Sequence[Artifact]) -> None:
    """Raise Uncharged if an artifact goes back to another charged one than those that this run accounts for."""
    known = {artifact.ref for artifact in accounted}
    other = {artifact.ref.stage for artifact in accounted}
    to_look_at = [start]
    while to_look_at:
        artifact = to_look_at.pop()
        if artifact.manifest.reservations and artifact.ref not in known:
            stage = artifact.ref.stage
            raise Uncharged(
                f"What this stage starts from goes back to {stage} {artifact.ref.key[:12]}, which was computed from sensitive "
                f"images, but this run accounts for {'another' if stage in other else 'no'} {stage}: it would be left out of "
                "the release's epsilon. Give it what this configuration makes."
            )
        to_look_at += [open_ref(artifact.store, ref) for ref in artifact.manifest.inputs.values() if not ref.sealed]


def charge_validate(
    config: RunConfig, key: str, inputs: Mapping[str, Artifact], facts: SensitiveFacts, ledger: Ledger
) -> Charge:
    """Validation takes what was set aside for it in the plan of the run's fine-tuning, or of its feature means where there is none."""
    last = inputs.get("finetune") or inputs["feature_means"]
    plan, mechanism = validation_plan(config, key, last.manifest.reservations, facts, ledger)
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
