"""What a run would do: each stage reused or run, and what it would cost in epsilon. Nothing is run or charged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.errors import PrivacyRefused
from privimage.pipeline import Stage, stages_until
from privimage.preflight import check_against_data, planned_query
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.ledger import Ledger, Plan
from privimage.runner import Run, admitted, ledger_of, stage_key
from privimage.stages.charges import finetune_plan, plan_id
from privimage.store.artifacts import Artifact, find

__all__ = ["PlannedStage", "RunPlan", "plan_run"]


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

    `to_set_aside` is what this run would still take from the grant: its whole epsilon where it opens a plan of its
    own, because it then pays again for a query that another run paid for. `refusal` is what the ledger would say.
    """

    stages: tuple[PlannedStage, ...]
    epsilon: float
    delta: float
    granted: float | None
    set_aside: float | None
    to_set_aside: float | None
    refusal: str | None


def plan_run(run: Run, until: str | None = None) -> RunPlan:
    """Look up every stage that `until` needs.

    Raises:
        InputError: configuration and admitted data contradict each other.
        ArtifactDamaged: a manifest cannot be read.
    """
    found: dict[str, Artifact | None] = {}
    rows = []
    facts: SensitiveFacts | None = None
    ledger: Ledger | None = None
    for stage in stages_until(until):
        inputs = [found[name] for name in stage.inputs]
        key = None
        if all(inputs):
            key = stage_key(stage, run, {a.ref.stage: a.ref.digest for a in inputs if a})
        artifact = find(run.store, stage.name, key, stage.sealed) if key else None
        if artifact:
            artifact.check_sizes()
        found[stage.name] = artifact
        if stage.name == "admit" and artifact:
            facts = admitted(artifact)
            ledger = ledger_of(run.store, facts)
        rows.append(
            PlannedStage(
                stage=stage.name,
                about=stage.about,
                key=key,
                action=_action(stage, key, artifact, ledger),
                written=artifact.manifest.written if artifact else "",
                epsilon=_epsilon(stage, run, key, artifact, facts, ledger, found),
            )
        )
    public = found.get("public")
    if public and facts:
        check_against_data(run.config, TableFacts.from_json(public.read_bytes("facts.json").decode()), facts)
    grant = ledger.grant_entry if ledger else None
    to_set_aside, refusal = None, None
    if facts and ledger and grant:
        intended = _intended(run, {row.stage: row.key for row in rows}, facts, ledger, found)
        opened = {plan.id for plan in ledger.spent().plans}
        to_set_aside = 0.0 if intended is None or intended.id in opened else intended.epsilon
        try:
            if intended:
                ledger.check_fits(intended)
        except PrivacyRefused as error:
            refusal = str(error)
    return RunPlan(
        stages=tuple(rows),
        epsilon=run.config.privacy.epsilon,
        delta=run.config.privacy.delta,
        granted=grant.body["epsilon"] if grant else None,
        set_aside=ledger.spent().set_aside if ledger and grant else None,
        to_set_aside=to_set_aside,
        refusal=refusal,
    )


def _action(
    stage: Stage, key: str | None, artifact: Artifact | None, ledger: Ledger | None
) -> Literal["reused", "run", "resume"]:
    if artifact:
        return "reused"
    if stage.charge and key and ledger and ledger.open_reservations(stage.name, key):
        return "resume"
    return "run"


def _epsilon(
    stage: Stage,
    run: Run,
    key: str | None,
    artifact: Artifact | None,
    facts: SensitiveFacts | None,
    ledger: Ledger | None,
    found: dict[str, Artifact | None],
) -> float | None:
    """What the stage adds to the run's total: the query its own cost, fine-tuning the rest; 0 for what is there."""
    if stage.charge is None or artifact:
        return 0.0
    public, query = found.get("public"), found.get("query")
    if facts is None or ledger is None or public is None:
        return None
    privacy = run.config.privacy
    if stage.name == "query" or query is None:
        names = TableFacts.from_json(public.read_bytes("facts.json").decode()).class_names
        alone = epsilon_of([planned_query(run.config, facts, len(names)).event], privacy.delta)
    else:
        plan, prior = finetune_plan(run.config, key or "", query.manifest.reservations, facts, ledger)
        alone = epsilon_of(prior, privacy.delta / 2 if plan.builds_on else privacy.delta)
    return alone if stage.name == "query" else max(privacy.epsilon - alone, 0.0)


def _intended(
    run: Run, keys: dict[str, str | None], facts: SensitiveFacts, ledger: Ledger, found: dict[str, Artifact | None]
) -> Plan | None:
    """The plan that the ledger would be asked for; None where fine-tuning is there already."""
    if found.get("finetune"):
        return None
    query = found.get("query")
    if query:
        return finetune_plan(run.config, keys["finetune"] or "", query.manifest.reservations, facts, ledger)[0]
    privacy = run.config.privacy
    return Plan(id=plan_id(keys["query"] or ""), epsilon=privacy.epsilon, delta=privacy.delta, intends=())
