"""Approval by a data steward: the run is suspended before its first charge, and goes on when it is approved in the UI."""

from __future__ import annotations

import os

from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from pydantic import Field

from privimage.config.run import RunConfig
from privimage.running.plan import RunPlan
from tasks.showing import plan_in_words

__all__ = ["APPROVAL_VARIABLE", "Approval", "approval_is_required", "ask_for_approval"]

APPROVAL_VARIABLE = "PRIVIMAGE_APPROVAL"
"""Set to `required` by a deployment whose runs are to be approved before they spend anything."""

PATIENCE = 7 * 24 * 3600


class Approval(RunInput):
    """What the data steward answers."""

    approve: bool = Field(default=False, title="Approve", description="Let this run take its epsilon from the grant.")
    reason: str = Field(default="", title="Reason", description="One sentence for the record.")


def approval_is_required() -> bool:
    """Whether this run's deployment asks for approval."""
    return os.environ.get(APPROVAL_VARIABLE) == "required"


def ask_for_approval(config: RunConfig, planned: RunPlan, stage: str) -> Approval:
    """Wait for the answer, a week at most. Of a deployment the process ends, and the worker starts it again later.

    An answer is given once for each run and stage: a retry of the same run does not ask again.
    """
    rows = "\n".join(
        f"- **{row.stage}**: {row.action}, epsilon {row.epsilon:.4g}" for row in planned.stages if row.epsilon
    )
    text = f"{config.name}: {config.description}\n\n{plan_in_words(planned)}\n\n{rows}"
    form = Approval.with_initial_data(description=text, approve=False)
    wait = suspend_flow_run if deployment.id else pause_flow_run
    answer: Approval = wait(wait_for_input=form, timeout=PATIENCE, key=f"approve-{stage}")
    return answer
