"""A worker that is killed loses nothing but its own process: its runs are healthy, and go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from privimage.config.loading import merged
from tests.flows.prefect_server import Server
from tests.flows.test_end_to_end import checkpoints, wait_until
from tests.pipeline_fixtures import Place

pytestmark = pytest.mark.slow

LONG = {"num_steps": 300, "checkpoint_steps": 10, "restart_allowance": 20}


@pytest.mark.timeout(600)
def test_a_run_whose_worker_is_killed_goes_on_to_its_end(server: Server, granted_copy: Place, tmp_path: Path) -> None:
    """Its logger, and its progress, write into pipes that nobody reads any more."""
    settings = yaml.safe_load(granted_copy.config.read_text())
    file = merged(settings, {"name": "orphaned", "generator": {"finetune": LONG}})
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "orphaned.yaml").write_text(yaml.safe_dump({**file, "deployment": {"pool": "cpu"}}))
    url = granted_copy.folder.as_uri()
    server.register(tmp_path / "datasets", store=url)
    with server.worker() as worker:
        run = server.start("synthesize/orphaned", store=url)
        wait_until(lambda: checkpoints(granted_copy.store) or server.state(run)["name"] == "Failed")
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait(30)
        state = server.wait(run)
    assert state["name"] == "Completed", state
    assert granted_copy.kinds[-1] == "settle" and "resume" not in granted_copy.kinds
