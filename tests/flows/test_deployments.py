"""What `make deploy` registers: every data set, with flows that can be imported and parameters that they accept."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import register
from flows.approval import APPROVAL_VARIABLE
from privimage.config.loading import load_config
from privimage.config.run import RunConfig
from privimage.errors import ConfigError
from tasks.policies import LIMIT_VARIABLE
from tests.flows.prefect_server import ROOT, Server

pytestmark = pytest.mark.slow

DATA_SETS = ROOT / "deployments" / "datasets"
FLOWS = ("synthesize", "stage", "regenerate")


def described(folder: Path = DATA_SETS) -> dict[tuple[str, str], dict[str, Any]]:
    """Every deployment, by flow and name."""
    made = register.deployments(register.read_data_sets(folder), store="s3://bucket/store", root="/srv/privimage")
    return {(entry["entrypoint"].split(".")[-1], entry["name"]): entry for entry in made["deployments"]}


@pytest.fixture
def one_data_set(tmp_path: Path) -> Path:
    """A folder with one file, which may be changed."""
    (tmp_path / "demo.yaml").write_text((DATA_SETS / "demo.yaml").read_text())
    return tmp_path


def test_adding_a_data_set_is_adding_one_file(one_data_set: Path) -> None:
    settings = yaml.safe_load((one_data_set / "demo.yaml").read_text())
    before = described(one_data_set)
    (one_data_set / "another.yaml").write_text(yaml.safe_dump({**settings, "name": "another"}))
    assert set(described(one_data_set)) - set(before) == {(flow, "another") for flow in FLOWS}


def test_every_data_set_of_the_project_is_deployed_as_each_flow() -> None:
    names = [load_config(file).name for file in DATA_SETS.glob("*.yaml")]
    assert set(described()) == {("housekeeping", "store")} | {(flow, name) for flow in FLOWS for name in names}


def test_every_entrypoint_can_be_imported_in_a_fresh_process_and_accepts_its_parameters() -> None:
    checks = "\n".join(
        f"flow = load_flow_from_entrypoint({entry['entrypoint']!r}, use_placeholder_flow=False)\n"
        f"flow.validate_parameters({entry['parameters']!r})"
        for entry in described().values()
    )
    code = f"from prefect.flows import load_flow_from_entrypoint\n{checks}\nprint('all of them')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "all of them\n", done.stderr


def test_names_tags_and_environment_say_what_a_run_is() -> None:
    entry = described()["synthesize", "tinyimagenet-cifar10"]
    assert set(entry["tags"]) == {"privimage", "dataset:tinyimagenet-cifar10", "eps:10"}
    assert [schedule["active"] for schedule in entry["schedules"]] == [False]
    assert entry["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert entry["parameters"]["store"] == "s3://bucket/store"
    variables = entry["work_pool"]["job_variables"]["env"]
    assert (variables[APPROVAL_VARIABLE], variables[LIMIT_VARIABLE]) == ("required", register.LIMIT)
    assert int(variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) * 3 <= register.SILENCE.total_seconds()
    on_cpu = described()["synthesize", "demo"]["work_pool"]
    assert on_cpu["name"] == "cpu"
    assert {APPROVAL_VARIABLE, LIMIT_VARIABLE}.isdisjoint(on_cpu["job_variables"]["env"])


def test_on_the_gpu_pool_a_run_asks_for_a_gpu() -> None:
    config = described()["synthesize", "tinyimagenet-cifar10"]["parameters"]["config"]
    assert config["performance"]["device"] == "cuda"
    assert described()["synthesize", "demo"]["parameters"]["config"]["performance"]["device"] == "auto"


def test_the_form_is_filled_in_with_the_whole_configuration_of_the_file() -> None:
    config = described()["synthesize", "demo"]["parameters"]["config"]
    assert RunConfig.model_validate(config) == load_config(DATA_SETS / "demo.yaml")
    assert config["evaluate"]["learning_rate"] == 1e-3  # a default, which the file does not name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"deployment": {"pool": "tpu"}}, r"deployment\.pool"),
        ({"deployment": {"aproval": True}}, r"deployment\.aproval"),
        ({"privacy": {"epsilon": -1, "delta": 1e-4}}, r"privacy\.epsilon"),
    ],
)
def test_what_a_file_gets_wrong_is_named(one_data_set: Path, change: dict[str, Any], complaint: str) -> None:
    file = one_data_set / "demo.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **change}))
    with pytest.raises(ConfigError, match=complaint):
        described(one_data_set)


def test_two_files_of_one_name_are_refused(one_data_set: Path) -> None:
    (one_data_set / "copy.yaml").write_text((one_data_set / "demo.yaml").read_text())
    with pytest.raises(ConfigError, match="another data set named 'demo'"):
        described(one_data_set)


def test_without_a_server_nothing_is_registered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert register.main([]) == 2
    assert "PREFECT_API_URL is not set" in capsys.readouterr().err


@pytest.fixture(scope="module")
def registered(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one data set that is registered."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "demo.yaml").write_text((DATA_SETS / "demo.yaml").read_text())
    server.register(folder, store="memory://x")
    return folder


def test_pools_limit_and_automation_are_there_after_it_and_a_limit_that_was_set_stays(
    server: Server, registered: Path
) -> None:
    server.call("PATCH", "/v2/concurrency_limits/gpu", {"limit": 3})
    server.register(registered, store="memory://x")
    assert {pool["name"] for pool in server.call("POST", "/work_pools/filter", {})} == {"cpu", "gpu"}
    assert server.call("GET", "/v2/concurrency_limits/gpu")["limit"] == 3
    found = server.call("POST", "/automations/filter", {})
    (automation,) = [found for found in found if found["name"] == register.AUTOMATION]
    assert (automation["enabled"], automation["trigger"]["posture"]) == (True, "Proactive")
    assert automation["actions"][0]["state"] == "CRASHED"
    form = server.call("GET", "/deployments/name/synthesize/demo")["parameter_openapi_schema"]["definitions"]
    epsilon = form["PrivacyConfig"]["properties"]["epsilon"]
    assert epsilon["description"].endswith("(0.0001 to 1000).")


def test_one_stage_computes_at_a_time_and_a_missing_limit_is_an_error(server: Server, registered: Path) -> None:
    server.call("PATCH", "/v2/concurrency_limits/gpu", {"limit": 1})
    code = """
import threading, time
from tasks.policies import wait_for_turn
from privimage.pipeline.table import stage_named
spans = []
def compute():
    with wait_for_turn(stage_named("finetune")):
        begun = time.monotonic(); time.sleep(0.5); spans.append((begun, time.monotonic()))
threads = [threading.Thread(target=compute) for _ in range(2)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
(_, first), (second, _) = sorted(spans)
print("apart" if first <= second else "together")
with wait_for_turn(stage_named("select")):
    print("needs no turn")
"""
    done = server.python("-c", code, **{LIMIT_VARIABLE: "gpu"})
    assert done.stdout.split("\n")[:2] == ["apart", "needs no turn"], done.stderr
    missing = server.python("-c", code.replace("range(2)", "range(1)"), **{LIMIT_VARIABLE: "no-such-limit"})
    assert "ConcurrencySlotAcquisitionError" in missing.stderr


def test_a_schedule_that_is_switched_on_makes_runs_and_stays_on_when_everything_is_registered_again(
    server: Server, registered: Path
) -> None:
    def found() -> dict[str, Any]:
        deployment: dict[str, Any] = server.call("GET", "/deployments/name/synthesize/demo")
        return deployment

    def switch(active: bool) -> None:
        (schedule,) = found()["schedules"]
        server.call("PATCH", f"/deployments/{found()['id']}/schedules/{schedule['id']}", {"active": active})

    upcoming = {"deployments": {"name": {"any_": ["demo"]}}, "flow_runs": {"state": {"name": {"any_": ["Scheduled"]}}}}
    assert [schedule["active"] for schedule in found()["schedules"]] == [False]
    switch(True)
    deadline = time.monotonic() + 60
    while not server.call("POST", "/flow_runs/filter", upcoming):
        assert time.monotonic() < deadline, (server.home / "server.log").read_text()[-3000:]
        time.sleep(0.5)
    server.register(registered, store="memory://x")
    assert [schedule["active"] for schedule in found()["schedules"]] == [True]
    switch(False)
    server.register(registered, store="memory://x")
    assert [schedule["active"] for schedule in found()["schedules"]] == [False]
