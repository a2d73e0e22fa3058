"""Prefect sees no private value: neither of a run that ends well, nor of one that fails with the images open.

The flow runs as people run it, in a process of its own, on a real server with a database, once failing in the middle of
fine-tuning and once to the end. Then everything that the server keeps is searched: logs, events, artifacts, parameters,
states with their messages, results.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline_fixtures import GRANT, Place
from tests.private_values import Spy, files_below, plant_images

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def run_with_a_spy(config: str, store: str, told: str) -> None:
    """In the other process: the flow with a spy in it, failing first; what the spy saw goes to the file `told`.

    A flow that tells a value of its own in every way there is comes last, and shows that the search would find it.
    """
    from prefect import flow
    from prefect.artifacts import create_markdown_artifact
    from prefect.events import emit_event
    from prefect.logging import get_run_logger

    from flows.synthesize import main

    @flow(persist_result=True)
    def leaky(loss: float) -> None:
        get_run_logger().info("the loss is %s", loss)
        create_markdown_artifact(key="leak", markdown=f"The loss is {loss}.")
        emit_event(event="leak", resource={"prefect.resource.id": "leak"}, payload={"loss": loss})
        raise RuntimeError(f"the loss is {loss:.9f}")

    spy = Spy(images=[np.zeros((1, 8, 8), dtype=np.uint8)])
    with pytest.MonkeyPatch.context() as patch:
        spy.install(patch, fail_in_step=3)
        assert main([config, "--store", store]) == 1
        spy.fail_in_step = None
        assert main([config, "--store", store]) == 0
    spy.numbers.append(("planted", 0.6180339887498949))
    with pytest.raises(RuntimeError, match="the loss is"):
        leaky(spy.numbers[-1][1])
    Path(told).write_text(spy.to_json())


def database(file: Path) -> dict[str, bytes]:
    """Every table of a SQLite database, as text."""
    with sqlite3.connect(file) as connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return {
            f"table {name}": "\n".join(
                " | ".join(map(str, row)) for row in connection.execute(f'select * from "{name}"')
            ).encode()
            for name in tables
        }


def test_no_private_value_reaches_the_server_not_even_after_a_failure(granted: Place, tmp_path: Path) -> None:
    from privimage.cli import main

    spy, place = plant_images(granted, tmp_path)
    budget = [part for name, value in GRANT.items() for part in (f"--{name}", str(value))]
    assert main(["ledger", "grant", *place.options(), *budget]) == 0
    home, told = tmp_path / "prefect", tmp_path / "told.json"
    arguments = [str(place.config), str(place.folder), str(told)]
    code = f"from tests.flows.test_nothing_private_in_prefect import run_with_a_spy; run_with_a_spy(*{arguments!r})"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "DEBUG"}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    spy.load(told.read_text())

    tables = database(home / "prefect.db")
    shown = {
        **{f"file {name}": data for name, data in files_below(home, besides="nothing").items()},
        **tables,
        **{f"store {name}": data for name, data in files_below(place.folder, besides="private").items()},
        "stdout": done.stdout,
        "stderr": done.stderr,
    }
    found = spy.found_in(shown)
    assert [leak for leak in found if not leak.startswith("planted: ")] == []
    # The server was there, and knows both runs.
    assert tables["table flow_run"].count(b"tiny-eps1 ") >= 2
    assert b"which is private" in tables["table flow_run_state"] + tables["table task_run_state"]
    for table, word in (("log", b"finetune"), ("events", b"task-run"), ("artifact", b"differential privacy")):
        assert word in tables[f"table {table}"], table
    # All that is shown was searched.
    for key in (
        "plan-tiny",
        "progress-tiny-query",
        "progress-tiny-finetune",
        "progress-tiny-evaluate",
        "loss-tiny-pretrain",
        "categories-tiny",
        "samples-tiny",
        "certificate-tiny",
        "report-tiny",
        "lineage-tiny",
    ):
        assert key.encode() in tables["table artifact"], key
    # The search looks everywhere: it finds what a leaky flow told, in each of the ways.
    for channel in ("log", "events", "artifact", "flow_run", "flow_run_state"):
        assert f"planted: table {channel}" in found
    assert "planted: stderr" in found
