"""Deployments as people run them: a real server, a real worker, a store on S3; killed, cancelled, approved, resumed."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import yaml

from privimage.cli import main
from privimage.config.loading import load_config, merged
from privimage.data.facts import sensitive_facts
from privimage.pipeline.table import stage_named
from privimage.privacy.ledger import Ledger
from privimage.running.ledgers import ledger_of
from privimage.running.runner import run_all
from privimage.running.runs import Run, stage_key
from privimage.store.artifacts import find, list_artifacts
from privimage.store.files import Store
from tests.flows.layout import layout
from tests.flows.prefect_server import PATIENCE, Server, Worker
from tests.pipeline_fixtures import GRANT, USUAL, Place

pytestmark = pytest.mark.slow

# Long enough to be caught in the middle, short enough for a test: Cancel takes a few seconds to arrive.
LONG = {"num_steps": 60, "checkpoint_steps": 10, "restart_allowance": 20}
LONGER = {**LONG, "num_steps": 200}
DATA_SETS = {"killed": ({"pool": "cpu"}, LONG), "approved": ({"pool": "cpu", "approval": True}, LONGER)}


@pytest.fixture(scope="module")
def datasets(server: Server, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of data sets that are deployed: the same images, other names."""
    folder = tmp_path_factory.mktemp("datasets")
    settings = yaml.safe_load(tiny_config.read_text())
    for name, (section, long) in DATA_SETS.items():
        file = merged(settings, {"name": name, "generator": {"finetune": long}, "deployment": section})
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(file))
    server.register(folder, store="memory://set-by-each-run")
    return folder


@pytest.fixture
def s3_store(s3_bucket: str, datasets: Path) -> Store:
    """A store on S3 in which the images are admitted and a budget is granted."""
    url = f"s3://{s3_bucket}/privimage"
    grant = [part for name, value in GRANT.items() for part in (f"--{name}", str(value))]
    assert main(["ledger", "grant", str(datasets / "killed.yaml"), "--store", url, *grant]) == 0
    return Store.open(url)


def ledger(store: Store, config: Path) -> Ledger:
    run = Run(config=load_config(config), store=store)
    admit = stage_named("admit")
    artifact = find(store, "admit", stage_key(admit, run, {}), True)
    assert artifact is not None
    return ledger_of(store, sensitive_facts(artifact), None)


def kinds(ledger: Ledger) -> list[str]:
    return [f"{e.kind} {e.body['stage']}" if e.kind == "reserve" else e.kind for e in ledger.entries()]


def wait_until(there: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def without_ledger(store: Store) -> set[str]:
    return {name for name in layout(store) if not name.startswith("ledger/NAME/")}


def checkpoints(store: Store) -> list[str]:
    return store.list("private/checkpoints/finetune")


@pytest.mark.timeout(600)
def test_a_worker_that_is_killed_in_fine_tuning_costs_one_retry_and_no_budget(
    server: Server, s3_store: Store, datasets: Path, tmp_path: Path
) -> None:
    config = datasets / "killed.yaml"
    with server.worker() as first:
        run = server.start("synthesize/killed", store=s3_store.url)
        wait_until(lambda: checkpoints(s3_store) or server.state(run)["name"] == "Failed")
        assert server.state(run)["name"] == "Running", server.state(run)
        first.kill()
    # What the automation `no heartbeat` does after 90 s.
    assert server.state(run)["name"] == "Running"
    server.set_state(run, "CRASHED", "Crashed", force=True)
    server.set_state(run, "SCHEDULED", "AwaitingRetry")
    with server.worker():
        end = server.wait(run)
        assert end["name"] == "Completed", end
        # A new run of the same deployment finds all of it there.
        again = server.start("synthesize/killed", store=s3_store.url)
        assert server.wait(again)["name"] == "Completed"
    assert {name for stage, (name, _) in server.tasks(again).items() if stage != "check"} == {"Reused"}

    # Everything before was reused, and says so.
    ended = server.tasks(run)
    for stage in ("public", "admit", "classifier", "index", "query", "select", "pretrain"):
        assert ended[stage][0] == "Reused", ended
    assert ended["finetune"][0] == ended["release"][0] == "Completed"

    # The same run, never disturbed, on another store.
    grant = [part for name, value in GRANT.items() for part in (f"--{name}", str(value))]
    folder = tmp_path / "undisturbed"
    assert main(["ledger", "grant", str(config), "--store", str(folder), *grant]) == 0
    undisturbed = Store.open(str(folder))
    run_all(Run(config=load_config(config), store=undisturbed))
    straight, resumed = ledger(undisturbed, config), ledger(s3_store, config)
    assert kinds(straight) == ["grant", "reserve query", "settle", "reserve finetune", "settle"]
    assert kinds(resumed) == ["grant", "reserve query", "settle", "reserve finetune", "resume", "settle"]
    assert resumed.entries()[4].body["lost_steps"] == LONG["checkpoint_steps"]
    assert [plan.epsilon for plan in resumed.spent().plans] == [plan.epsilon for plan in straight.spent().plans]
    assert resumed.spent().share == straight.spent().share
    assert without_ledger(s3_store) == without_ledger(undisturbed)
    made = {artifact.ref.stage: artifact for artifact in list_artifacts(s3_store)}
    assert set(made) == set(USUAL)
    # What does not depend on secret noise is the same to the byte.
    for artifact in list_artifacts(undisturbed):
        if artifact.ref.stage in ("public", "classifier", "index"):
            assert made[artifact.ref.stage].ref == artifact.ref
    (release,) = {name.split("/")[1] for name in s3_store.list("releases")}
    assert main(["verify", f"{s3_store.url}/releases/{release}", "--store", s3_store.url]) == 0

    # What the UI shows.
    shown = server.artifacts(run)
    assert set(shown) >= {
        "plan-killed",
        "progress-killed-finetune",
        "loss-killed-classifier",
        "loss-killed-pretrain",
        "categories-killed",
        "samples-killed",
        "certificate-killed",
        "report-killed",
        "lineage-killed",
    }
    assert any("resume" in str(plan["data"]) for plan in shown["plan-killed"])
    released = made["release"].read_bytes("samples.png")
    assert f"data:image/png;base64,{base64.b64encode(released).decode()}" in {
        p["data"] for p in shown["samples-killed"]
    }
    assert "loss-killed-finetune" not in shown  # it would be computed from sensitive images

    # The command line finds all of it there, too.
    assert main(["run", str(config), "--store", s3_store.url]) == 0
    assert kinds(ledger(s3_store, config)) == kinds(resumed)


@pytest.mark.timeout(600)
def test_a_run_waits_for_approval_spends_nothing_when_refused_and_loses_nothing_when_cancelled(
    server: Server, granted_copy: Place, datasets: Path
) -> None:
    config, store = datasets / "approved.yaml", granted_copy.store

    def asked(worker: Worker) -> str:
        run = server.start("synthesize/approved", store=store.url)
        assert server.wait(run, {"Suspended", "Failed"})["name"] == "Suspended"
        # Its process is gone: nobody holds a GPU while a person thinks.
        wait_until(lambda: not worker.children())
        form = server.call("GET", f"/flow_runs/{run}/input/suspended-approve-query-description")
        assert "this run still asks for" in form and "**finetune**: run, epsilon" in form
        return run

    def answer(run: str, approve: bool) -> None:
        said = {"run_input": {"approve": approve, "reason": "as agreed"}}
        assert server.call("POST", f"/flow_runs/{run}/resume", said)["status"] == "ACCEPT"

    with server.worker() as worker:
        refused = asked(worker)
        answer(refused, approve=False)
        end = server.wait(refused)
        assert (end["type"], end["name"]) == ("CANCELLED", "Refused")
        assert "nothing was spent: as agreed" in end["message"]
        assert kinds(ledger(store, config)) == ["grant"]

        run = asked(worker)
        answer(run, approve=True)
        wait_until(lambda: checkpoints(store))
        server.set_state(run, "CANCELLING", "Cancelling")
        assert server.wait(run)["name"] == "Cancelled"
        assert server.tasks(run)["finetune"] == ("Stopped", "Stopped as asked; the same command goes on from here.")
        assert kinds(ledger(store, config))[-2:] == ["reserve finetune", "pause"]

        # A retry goes on from there, and does not ask again.
        server.set_state(run, "SCHEDULED", "AwaitingRetry")
        assert server.wait(run, {"Completed", "Failed", "Suspended"})["name"] == "Completed"
    entries = ledger(store, config).entries()
    assert [entry.kind for entry in entries[-3:]] == ["pause", "resume", "settle"]
    assert entries[-2].body["lost_steps"] == 0


def test_the_form_refuses_what_is_out_of_bounds_and_names_the_field(server: Server, datasets: Path) -> None:
    config = load_config(datasets / "killed.yaml").model_dump(mode="json")
    wrong = {**config, "privacy": {**config["privacy"], "epsilon": -1}}
    with pytest.raises(HTTPError) as refused:
        server.start("synthesize/killed", config=wrong)
    told = refused.value.read().decode()
    assert refused.value.code == 409 and "epsilon" in told
    with pytest.raises(HTTPError) as unknown:
        server.start("synthesize/killed", start_at="bake")
    assert "start_at" in unknown.value.read().decode()
