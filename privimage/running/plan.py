"""What a run would do: each stage reused or run, and what it would cost in epsilon. Nothing is run or charged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import dp_accounting as dpa

from privimage.data.facts import SensitiveFacts, public_facts, sensitive_facts
from privimage.errors import PrivacyRefused
from privimage.payloads import CHARGED
from privimage.pipeline.plans import AHEAD, ahead_plan, finetune_plan, planned_ahead, run_plan, validation_plan
from privimage.pipeline.preflight import (
    check_against_data,
    planned_class_means,
    planned_feature_means,
    planned_validation,
)
from privimage.pipeline.stage import Stage
from privimage.pipeline.table import stage_named, stages_of, stages_until
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.budget import WHOLE_GRANT, Plan, share_of_grant
from privimage.privacy.ledger import Ledger
from privimage.running.charging import check_not_settled
from privimage.running.declared import check_declared
from privimage.running.ledgers import ledger_of
from privimage.running.rollback import check_not_rolled_back
from privimage.running.runs import Run, stage_key
from privimage.store.artifacts import Artifact, find

__all__ = ["PlannedStage", "RunPlan", "check_affordable", "grant_in_words", "look_up", "plan_run", "refuse"]


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One row of the plan. `key` is None where it depends on a result that is not there yet.

    `epsilon` is what the stage adds to the run's total: 0 for reused and for public stages; None where it cannot be
    known before the sensitive set is admitted.
    """

    stage: str
    about: str
    key: str | None
    action: Literal["reused", "run", "resume"]
    written: str
    epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The rows, the run's total, and the state of the ledger (None: not admitted, or no grant).

    `share_taken` of the grant is spent or set aside; `share_asked` is what this run would still take: nothing where its
    plan was opened before. `refused` is what the ledger would raise.
    """

    stages: tuple[PlannedStage, ...]
    epsilon: float
    delta: float
    granted: float | None
    share_taken: float | None
    share_asked: float | None
    refused: PrivacyRefused | None

    @property
    def charges(self) -> bool:
        """Whether a stage is still to be charged; one that goes on with its charge is not."""
        return any(row.action == "run" and stage_named(row.stage).charge for row in self.stages)

    @property
    def refusal(self) -> str | None:
        """What the ledger would say."""
        return str(self.refused) if self.refused else None


def plan_run(run: Run, until: str | None = None) -> RunPlan:
    """Look up every stage that `until` needs.

    Raises:
        InputError: configuration and admitted data contradict each other.
        ArtifactDamaged: a manifest cannot be read.
        LedgerBroken: a ledger is not whole, or lacks entries that artifacts name.
    """
    check_not_rolled_back(run.store)
    found, keys = look_up(run, until)
    admit, public = found.get("admit"), found.get("public")
    facts = sensitive_facts(admit) if admit else None
    ledger = ledger_of(run.store, facts, run.config.sensitive.shared_ledger) if facts else None
    costs: dict[str, float | None] = dict.fromkeys(CHARGED)
    share_taken = share_asked = None
    refused: PrivacyRefused | None = None
    if facts and ledger and admit and public:
        categories = public_facts(public)
        check_against_data(run.config, categories, facts)
        try:
            plan, costs = _cost(run, keys, found, facts, ledger, len(categories.class_names))
            if plan:
                ledger.check_fits(plan, num_images=facts.num_train)
                check_declared(run.store, run.config.sensitive, facts, admit, [categories])
            _check_not_gone(run, found, keys, ledger)
        except PrivacyRefused as error:
            nothing = not any(stage.charge and not found[stage.name] for stage in stages_until(until, run.config))
            plan, refused = None, None if nothing or _goes_on(found, keys, ledger) else error
        grant, spent = ledger.grant_entry, ledger.spent()
        if grant:
            share_taken = spent.share
            opened = plan is None or plan.id in {other.id for other in spent.plans}
            share_asked = 0.0 if opened or plan is None else share_of_grant(grant.body, plan.intends)
    rows = tuple(
        PlannedStage(
            stage=stage.name,
            about=stage.about,
            key=keys[stage.name],
            action=_action(stage, keys[stage.name], found[stage.name], ledger),
            written=_written(found[stage.name]),
            epsilon=0.0 if stage.charge is None or found[stage.name] else costs[stage.name],
        )
        for stage in stages_until(until, run.config)
    )
    return RunPlan(
        stages=rows,
        epsilon=run.config.privacy.epsilon,
        delta=run.config.privacy.delta,
        granted=ledger.grant_entry.body["epsilon"] if ledger and ledger.grant_entry else None,
        share_taken=share_taken,
        share_asked=share_asked,
        refused=refused,
    )


def check_affordable(run: Run, until: str | None = None) -> RunPlan:
    """Raise what the ledger would say to the private stages that `until` needs, as far as it can be known now; else the plan.

    Nothing is said before the images are admitted, nor of a stage that would go on with what was charged to it.

    Raises:
        InputError: configuration and admitted data contradict each other.
        PrivacyRefused: the ledger would refuse what is still to be charged.
    """
    plan = plan_run(run, until)
    refuse(plan)
    return plan


def refuse(plan: RunPlan) -> None:
    """Raise PrivacyRefused, as the ledger would, if the plan foresees that."""
    if plan.refused:
        raise plan.refused


def grant_in_words(plan: RunPlan) -> str:
    """What is left of the grant, and what the run would take of it, in sentences."""
    if plan.granted is None:
        return "No budget is granted yet, or the images are not admitted: privimage ledger grant CONFIG --epsilon E --delta D"
    if plan.share_taken is None or plan.share_asked is None:
        return f"Granted: epsilon {plan.granted:g}. What this run takes of it is known once the public images are admitted, too."
    asked = f"this run still asks for {plan.share_asked:.1%}."
    if not plan.refusal and plan.share_asked == 0 and any(row.epsilon for row in plan.stages if row.action != "reused"):
        asked = "this run's part is set aside already, so it asks for no more."
    if plan.share_asked > WHOLE_GRANT:
        asked = "this run takes the whole grant, and no other run will fit."
    taken = f"Of the grant of epsilon {plan.granted:g}, {plan.share_taken:.1%} is spent or set aside; {asked}"
    return f"{taken} It would be refused: {plan.refusal}" if plan.refusal else taken


def look_up(run: Run, until: str | None = None) -> tuple[dict[str, Artifact | None], dict[str, str | None]]:
    """What is there of the stages that `until` needs, and their keys, as far as they can be known."""
    found: dict[str, Artifact | None] = {}
    keys: dict[str, str | None] = {}
    for stage in stages_until(until, run.config):
        inputs = [found[name] for name in stage.inputs]
        key = None
        if all(inputs):
            key = stage_key(stage, run, {a.ref.stage: a.ref.digest for a in inputs if a})
        artifact = find(run.store, stage.name, key, stage.sealed) if key else None
        if artifact:
            artifact.check_sizes()
        found[stage.name], keys[stage.name] = artifact, key
    return found, keys


def _written(artifact: Artifact | None) -> str:
    return artifact.manifest.written if artifact else ""


def _action(
    stage: Stage, key: str | None, artifact: Artifact | None, ledger: Ledger | None
) -> Literal["reused", "run", "resume"]:
    if artifact:
        return "reused"
    if stage.charge and key and ledger and ledger.open_reservations(stage.name, key):
        return "resume"
    return "run"


def _check_not_gone(
    run: Run, found: Mapping[str, Artifact | None], keys: Mapping[str, str | None], ledger: Ledger
) -> None:
    """Raise Uncharged if an artifact that would be charged again was paid for and published before."""
    for stage in stages_of(run.config):
        key = keys.get(stage.name)
        if stage.charge and key and not found[stage.name]:
            check_not_settled(ledger, stage.name, key)


def _goes_on(found: Mapping[str, Artifact | None], keys: Mapping[str, str | None], ledger: Ledger) -> bool:
    """Whether fine-tuning may go on with what an interrupted attempt reserved, which asks for nothing more."""
    states = ledger.states()
    left_open = {
        entry.body["key"]
        for entry in ledger.reservations().values()
        if entry.body["stage"] == "finetune" and states[entry.id] == "open"
    }
    key = keys.get("finetune")
    return not found.get("finetune") and (key in left_open if key else bool(left_open))


def _cost(
    run: Run,
    keys: Mapping[str, str | None],
    found: Mapping[str, Artifact | None],
    facts: SensitiveFacts,
    ledger: Ledger,
    num_categories: int,
) -> tuple[Plan | None, dict[str, float | None]]:
    """The plan that the ledger would be asked for (None: the last stage before validation is there), and what each adds.

    Validation costs what it costs alone, each stage before fine-tuning what it adds to those before it, and the last of them, or
    fine-tuning, the rest of the run's epsilon.
    """
    config, privacy = run.config, run.config.privacy
    names = [stage.name for stage in stages_of(config)]
    ahead = [stage for stage in AHEAD if stage in names]
    last = "finetune" if config.generator.finetunes else ahead[-1]
    validation = planned_validation(config, facts)
    aside = min(epsilon_of([validation.event], privacy.delta), privacy.epsilon) if validation else 0.0
    costs: dict[str, float | None] = {**dict.fromkeys(CHARGED, 0.0), "validate": aside}
    finished = found.get(last)
    if finished:
        if "validate" in keys and not found.get("validate"):
            validation_plan(config, keys["validate"] or "", finished.manifest.reservations, facts, ledger)
        return None, costs
    held, planned = ledger.reservations(), planned_ahead(config, facts, num_categories)
    paid = {stage: made.manifest.reservations for stage in ahead if (made := found.get(stage))}
    all_paid = [entry for stage in ahead for entry in paid.get(stage, ())]
    missing = next((stage for stage in ahead if stage not in paid), None)
    delta = privacy.delta
    if missing is not None and all_paid:
        mechanism = (
            planned_feature_means(config, facts, num_categories)
            if missing == "feature_means"
            else planned_class_means(config, facts)
        )
        if mechanism is None:
            raise PrivacyRefused(f"Stage {missing} is no part of this run.")
        key = keys.get(missing) or ""
        plan = ahead_plan(missing, mechanism, config, key, all_paid, facts, ledger, num_categories)
    elif missing is None and all_paid:
        plan, _ = finetune_plan(config, keys.get("finetune") or "", all_paid, facts, ledger)
        delta = delta / 2 if plan.builds_on else delta
    else:
        plan = run_plan(config, keys.get(missing or last) or "", facts, num_categories)
    prior: list[dpa.DpEvent] = []
    spent = 0.0
    for stage in ahead:
        prior += [held[entry].event for entry in paid[stage]] if stage in paid else [planned[stage]]
        so_far = epsilon_of(prior, delta)
        costs[stage], spent = so_far - spent, so_far
    rest = max(privacy.epsilon - aside - (spent if config.generator.finetunes else spent - (costs[last] or 0.0)), 0.0)
    return plan, {**costs, last: rest}
