"""The Prefect flow, run as people run it: a process of its own, a real server, a store on S3."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from flows.forms import EARLIEST, LATEST, Redo, StageName, draws_of
from privimage.errors import ConfigError
from privimage.pipeline.table import STAGES
from privimage.store.artifacts import list_artifacts
from privimage.store.files import Store
from tasks.policies import COMPUTING
from tasks.stages import STAGE_TASKS
from tests.flows.layout import layout
from tests.flows.prefect_server import ROOT, Server
from tests.pipeline_fixtures import GRANT, USUAL, Place

pytestmark = pytest.mark.slow


def test_the_flow_on_s3_refuses_without_a_grant_then_makes_what_the_command_line_makes_on_disk(
    server: Server, s3_bucket: str, tiny_config: Path, finished: Place
) -> None:
    store = f"s3://{s3_bucket}/privimage"
    refused = server.python("-m", "flows.synthesize", str(tiny_config), "--store", store)
    assert refused.returncode == 3, refused.stderr
    (complaint,) = [line for line in refused.stderr.splitlines() if line.startswith("privimage: ")]
    assert "has no grant" in complaint

    grant = ["--epsilon", str(GRANT["epsilon"]), "--delta", str(GRANT["delta"])]
    granted = server.python("-m", "privimage.cli", "ledger", "grant", str(tiny_config), "--store", store, *grant)
    assert granted.returncode == 0, granted.stderr
    done = server.python("-m", "flows.synthesize", str(tiny_config), "--store", store)
    assert done.returncode == 0, done.stderr
    # What ran before the refusal was reused, and Prefect says so.
    for stage in ("public", "admit"):
        assert f"Reused('{stage} " in done.stderr, done.stderr
    assert "Reused('classifier " not in done.stderr

    assert layout(Store.open(store)) == layout(finished.store)
    made = {artifact.ref.stage for artifact in list_artifacts(Store.open(store))}
    assert made == set(USUAL)

    planned = server.python("-m", "privimage.cli", "plan", str(tiny_config), "--store", store, "--json")
    assert {row["action"] for row in json.loads(planned.stdout)["stages"]} == {"reused"}
    (release,) = {name.split("/")[1] for name in Store.open(store).list("releases")}
    verified = server.python("-m", "privimage.cli", "verify", f"{store}/releases/{release}", "--store", store)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_every_stage_is_one_task_that_is_neither_cached_nor_retried_by_prefect() -> None:
    assert list(STAGE_TASKS) == [stage.name for stage in STAGES]
    for stage in STAGES:
        task = STAGE_TASKS[stage.name]
        assert task.name == stage.name
        assert task.retries == 0
        assert task.persist_result is False
        assert type(task.cache_policy).__name__ == "_None"
        touches = stage.charge is not None or stage.sealed
        assert ("private" in task.tags) == touches, stage.name


def test_the_forms_name_every_stage() -> None:
    assert get_args(StageName) == tuple(stage.name for stage in STAGES)
    assert (STAGES[0].name, STAGES[-1].name) == (EARLIEST, LATEST)
    assert {stage.name for stage in STAGES} >= set(COMPUTING)


def test_a_stage_is_redone_under_the_number_that_was_asked_for_so_that_a_retry_goes_on_with_it() -> None:
    assert draws_of([Redo(stage="finetune", draw=3), Redo(stage="synthesize")]) == {"finetune": 3, "synthesize": 2}
    with pytest.raises(ConfigError, match="redo names finetune twice"):
        draws_of([Redo(stage="finetune"), Redo(stage="finetune", draw=3)])


def test_no_flow_file_hides_an_importable_module() -> None:
    for file in (ROOT / "flows").glob("[!_]*.py"):
        found = importlib.util.find_spec(file.stem)
        assert found is None, f"{file.name} would hide {found}"


def test_prefect_s_server_answers_nulls_in_optional_fields(tmp_path: Path) -> None:
    """A newer FastAPI than the pinned one breaks Prefect in ways that show up as forty odd failures; this names it."""
    code = (
        "from fastapi.testclient import TestClient\n"
        "from prefect.server.api.server import create_app\n"
        "with TestClient(create_app(ephemeral=True)) as client:\n"
        "    reply = client.post('/api/flows/filter', json={'flows': None, 'sort': 'NAME_ASC'})\n"
        "print('status', reply.status_code)\n"
    )
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    answered = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "status 200" in answered.stdout, answered.stderr
