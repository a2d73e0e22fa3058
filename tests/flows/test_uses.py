"""One stage again, more images, housekeeping, a plan only; and what is refused before anything is spent."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import server as flows_server
from flows.synthesize import main
from privimage.config.loading import load_config
from privimage.config.run import RunConfig
from privimage.errors import InputError
from privimage.store.artifacts import list_artifacts
from tests.flows.prefect_server import ROOT, Server
from tests.pipeline_fixtures import Place

# In one process, because each takes seconds to start.
CALLS = """
import json, sys
from flows.housekeeping import housekeeping
from flows.regenerate import regenerate
from flows.stage import stage
from flows.synthesize import synthesize
from privimage.config.loading import load_config
from privimage.errors import PrivimageError

config = load_config({config!r})
on_a_gpu = load_config({config!r}, ["performance.device=cuda", "classifier.epochs=2"])
dear = load_config({config!r}, ["privacy.epsilon=5", "classifier.epochs=2"])
flows = {{"housekeeping": housekeeping, "regenerate": regenerate, "stage": stage, "synthesize": synthesize}}
said = {{}}
for name, flow, parameters in json.loads({calls!r}):
    if parameters.get("config"):
        parameters["config"] = {{"gpu": on_a_gpu, "dear": dear, "own": config}}[parameters["config"]]
    try:
        answer = flows[flow](**parameters, return_state=True)
        said[name] = [answer.name, answer.message or ""]
        if answer.is_failed():
            answer.result()
    except PrivimageError as error:
        said[name] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


def call(server: Server, config: Path, *calls: tuple[str, str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Name of the state and message, or kind and text of the error, of each call."""
    done = server.python("-c", CALLS.format(config=str(config), calls=json.dumps(calls)))
    assert done.returncode == 0, done.stderr
    answers: dict[str, tuple[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.mark.slow
def test_each_flow_on_a_finished_run_spends_nothing(server: Server, finished_copy: Place) -> None:
    place, store = finished_copy, {"store": str(finished_copy.folder)}
    before = place.entries
    said = call(
        server,
        place.config,
        ("plan", "synthesize", {**store, "config": "own", "dry_run": True}),
        ("again", "stage", {**store, "config": "own", "stage": "evaluate", "draw": 2}),
        ("more", "regenerate", {**store, "config": "own", "num_images": 12, "seed": 7}),
        ("clean", "housekeeping", {**store, "dry_run": False}),
    )
    assert said["plan"][0] == "Planned" and "12 of 12 stages are reused" in said["plan"][1]
    assert said["again"][0] == said["more"][0] == said["clean"][0] == "Completed", said
    assert said["clean"][1] == "1 ledgers are whole; 0 folders are not needed, 0 of them were deleted."
    made = [artifact.ref.stage for artifact in list_artifacts(place.store)]
    assert {stage: made.count(stage) for stage in ("evaluate", "synthesize", "release", "finetune")} == {
        "evaluate": 2,
        "synthesize": 2,
        "release": 2,
        "finetune": 1,
    }
    assert place.entries == before
    names = {run["name"] for run in server.call("POST", "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 4})}
    assert names == {"tiny-eps1", "tiny-eps1-evaluate", "tiny-eps1-12-images", "housekeeping"}


@pytest.mark.slow
def test_what_cannot_work_fails_fast_in_one_sentence_and_spends_nothing(server: Server, granted_copy: Place) -> None:
    place, store = granted_copy, {"store": str(granted_copy.folder)}
    said = call(
        server,
        place.config,
        ("no generator", "regenerate", {**store, "config": "own", "num_images": 12}),
        ("start", "synthesize", {**store, "config": "own", "start_at": "pretrain"}),
        ("order", "synthesize", {**store, "config": "own", "start_at": "release", "stop_after": "select"}),
        ("device", "synthesize", {**store, "config": "gpu"}),
        ("store", "synthesize", {"store": "s3://", "config": "own"}),
        ("dear", "synthesize", {**store, "config": "dear"}),
        ("dear plan", "synthesize", {**store, "config": "dear", "dry_run": True}),
    )
    missing = "query, select, pretrain, finetune of this configuration is not in the store: start at query or before."
    assert said["no generator"] == ["InputError", f"start_at is synthesize, but {missing}"]
    assert said["start"][1].endswith(
        "but query, select of this configuration is not in the store: start at query or before."
    )
    assert "release, which is not among the stages up to select" in said["order"][1]
    assert said["device"][0] == "ConfigError" and "which this machine does not have" in said["device"][1]
    assert said["store"][0] == "StoreError"
    assert said["dear"] == said["dear plan"]
    assert said["dear"][0] == "BudgetExceeded" and "asks for epsilon 5; the grant is epsilon 3" in said["dear"][1]
    assert [artifact.ref.stage for artifact in list_artifacts(place.store)].count("classifier") == 1, "none was trained"
    assert place.kinds == ["grant"]


def test_an_unknown_data_set_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nobody.yaml"), "--store", str(tmp_path)]) == 2
    assert "No configuration at" in capsys.readouterr().err


class Answering:
    """Stands where Prefect's client is; a server of this version answers."""

    api_url = "http://somewhere/api"

    def __init__(self, version: str) -> None:
        self._version = version

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def api_version(self) -> str:
        return self._version


@pytest.mark.parametrize("version", ["2.20.4", "3.7.9"])
def test_a_server_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(flows_server, "get_client", lambda **_: Answering(version))
    with pytest.raises(InputError, match=rf"at http://somewhere/api is version {version}, expected 3\.8 or newer"):
        flows_server.check_server()


@pytest.mark.parametrize("version", ["3.8.8", "3.10.0", "4.0.0rc1"])
def test_a_newer_server_is_not(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(flows_server, "get_client", lambda **_: Answering(version))
    flows_server.check_server()


@pytest.fixture
def dead_end() -> Iterator[str]:
    """Address of a port that nobody listens at, and nobody else is given."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}/api"


@pytest.mark.parametrize("command", ["flows.synthesize", "flows.benchmark", "deployments.register"])
def test_an_address_where_no_server_answers_is_told_soon_in_one_sentence(
    command: str, dead_end: str, tiny_config: Path, tmp_path: Path
) -> None:
    given = {"flows.synthesize": str(tiny_config), "flows.benchmark": "cpu-small", "deployments.register": ""}[command]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", command, *([given] if given else []), "--store", str(tmp_path / "store")],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": dead_end, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"privimage: No Prefect server answers at {dead_end} (") and said.endswith(
        "Nothing was run."
    )
    assert time.monotonic() - began < 40, "20 s, and what a busy machine takes to load libraries"


def test_a_server_that_takes_connections_and_never_answers_is_waited_for_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flows_server, "PATIENCE", 0.5)
    monkeypatch.setattr(flows_server, "_ONE_TRY", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(InputError, match=r"No Prefect server answers .*timed"),
        ):
            flows_server.check_answers()


def test_a_server_that_begins_to_answer_in_time_is_used_and_so_is_none_at_all(server: Server) -> None:
    with temporary_settings({PREFECT_API_URL: server.url}):
        flows_server.check_answers()
    with temporary_settings({PREFECT_API_URL: None}):
        flows_server.check_answers()


def test_more_images_ask_for_no_choice_that_would_be_charged(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunConfig] = []
    module = importlib.import_module("flows.regenerate")
    monkeypatch.setattr(module, "run_stages", lambda config, *_, **__: asked.append(config))
    config = load_config(
        tiny_config,
        ["sensitive.validation_fraction=0.1", "privacy.validation_error=0.5", "evaluate.validation=private"],
    )
    module.regenerate.fn(num_images=12, config=config)
    (changed,) = asked
    assert (changed.synthesize.num_images, changed.evaluate.validation) == (12, "synthetic")
    assert changed.privacy == config.privacy
