"""Before which stage a data steward is asked. That the answer counts is in `test_end_to_end`."""

from __future__ import annotations

from typing import Any

import pytest

from flows import pipeline
from flows.approval import Approval
from privimage.pipeline.table import stages_of
from privimage.running.runner import run_all
from tests.pipeline_fixtures import Place

CENTRAL = ("generator.class_means.num_steps=4", "generator.class_means.batch_size=16", "selection.strategy=none")
# So much noise that the accountant gives them no epsilon at all.
FREE_QUERY = ("privacy.query_error=null", "privacy.query_noise_multiplier=10000")


@pytest.mark.parametrize(
    ("overrides", "first"),
    [
        ((), "query"),
        (FREE_QUERY, "query"),
        (CENTRAL, "class_means"),
        ((*CENTRAL, "privacy.class_means_noise_multiplier=10000"), "class_means"),
    ],
)
def test_a_steward_is_asked_once_before_the_first_charge_whatever_it_costs_alone(
    overrides: tuple[str, ...], first: str, granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(config: Any, planned: Any, stage: str) -> Approval:
        asked.append(stage)
        return Approval(approve=False)

    monkeypatch.setattr(pipeline, "ask_for_approval", refuse)
    run = granted_copy.run(*overrides)
    for stage in stages_of(run.config):
        if stage.charge:
            pipeline._await_approval(run.config, str(granted_copy.folder), {}, stage, None)
        run_all(run, stage.name)
        if stage.name == "finetune":
            break
    assert asked == [first]
