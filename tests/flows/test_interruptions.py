"""One run through everything that interrupts runs: it ends after one retry, and the ledger counts every step once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from privimage.cli import main
from privimage.config.loading import merged
from privimage.store.files import Store
from tests.flows.prefect_server import ENDS, Worker, serve
from tests.flows.test_end_to_end import checkpoints, kinds, ledger, wait_until
from tests.pipeline_fixtures import GRANT
from tests.store.faulty_s3 import FaultyS3

pytestmark = pytest.mark.slow

STEPS = {"num_steps": 400, "checkpoint_steps": 10, "restart_allowance": 20}
# Prefect's worker reports a killed process twice, seconds apart; the second report would end a retry that came before.
SECOND_REPORT = "prefect.flow_runs.worker - Check whether the flow run exceeded"
SECONDS_WITHOUT_S3 = float(os.environ.get("PRIVIMAGE_TEST_OUTAGE", "15"))


def flow_process(worker: Worker) -> int:
    """The process of the flow run, not one of its own children."""
    wait_until(worker.children)
    return worker.children()[0]


@pytest.mark.timeout(600)
def test_flow_killed_server_restarted_and_s3_gone_cost_one_retry_together(
    s3_endpoint: str, s3_bucket: str, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = yaml.safe_load(tiny_config.read_text())
    file = merged(settings, {"name": "disturbed", "generator": {"finetune": STEPS}})
    (tmp_path / "datasets").mkdir()
    config = tmp_path / "datasets" / "disturbed.yaml"
    config.write_text(yaml.safe_dump({**file, "deployment": {"pool": "cpu"}}))
    url = f"s3://{s3_bucket}/privimage"
    grant = [part for name, value in GRANT.items() for part in (f"--{name}", str(value))]
    assert main(["ledger", "grant", str(config), "--store", url, *grant]) == 0
    direct = Store.open(url)

    with FaultyS3(s3_endpoint) as faulty, serve(tmp_path / "prefect") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        server.register(config.parent, store=url)
        with server.worker() as worker:
            run = server.start("synthesize/disturbed", store=url)
            wait_until(lambda: checkpoints(direct) or server.state(run)["name"] == "Failed")
            os.kill(flow_process(worker), signal.SIGKILL)
            assert server.wait(run, {"Crashed", "Failed"})["name"] == "Crashed"
            before = checkpoints(direct)
            wait_until(lambda: SECOND_REPORT in worker.log.read_text())

            retried = server.python("-m", "prefect", "flow-run", "retry", run)
            assert retried.returncode == 0, retried.stdout + retried.stderr
            wait_until(lambda: checkpoints(direct)[-1:] > before[-1:] or server.state(run)["name"] in ENDS)
            assert server.state(run)["name"] == "Running", (server.state(run), worker.log.read_text())
            server.shut_down()
            with faulty.gone():
                time.sleep(SECONDS_WITHOUT_S3)
            server.start_up()
            end = server.wait(run)
            assert end["name"] == "Completed", (end, worker.log.read_text())
            assert "trying again for up to 180 s" in worker.log.read_text()

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    entries = ledger(direct, config).entries()
    assert kinds(ledger(direct, config)) == ["grant", "reserve query", "settle", "reserve finetune", "resume", "settle"]
    assert entries[4].body["lost_steps"] == STEPS["checkpoint_steps"]
    assert main(["run", str(config), "--store", url]) == 0
    assert len(ledger(direct, config).entries()) == len(entries), "all of it was there"
