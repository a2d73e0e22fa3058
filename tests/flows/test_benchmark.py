"""A suite as a flow: the same runs and table as the command's, and on the server no figure of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.harness.running import results_folder
from benchmarks.harness.suite import parse_suite
from tests.benchmark.test_suites import suite_data
from tests.flows.prefect_server import Server

pytestmark = pytest.mark.slow


def test_the_flow_makes_the_table_and_names_the_runs_that_failed(
    server: Server, portraits: Path, tmp_path: Path
) -> None:
    failing = {"blind": {"selection": {"strategy": "none"}, "evaluate": {"inception_weights": str(tmp_path / "none")}}}
    data = suite_data(portraits, name="flow", seeds=[0], methods=["dpdm", "blind"], variants=failing)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(data))
    command = ["-m", "flows.benchmark", str(tmp_path / "suite.yaml"), "--store", str(tmp_path / "store")]
    made = server.python(*command)
    assert made.returncode == 1, made.stderr
    assert "1 of 2 runs failed, the first of them portraits, blind, epsilon 1, seed 0" in made.stderr

    place = tmp_path / "store" / results_folder(parse_suite(data))
    rows = {row["method"]: row for row in json.loads((place / "table.json").read_text())["rows"]}
    assert {method: row["status"] for method, row in rows.items()} == {"dpdm": "done", "blind": "failed"}
    assert "inception" in rows["blind"]["why"]
    assert f"{100 * rows['dpdm']['accuracy']:.1f} %" in (place / "table.md").read_text()

    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({**data, "methods": ["dpdm"]}))
    again = server.python(*command)
    assert again.returncode == 0, again.stderr
    assert "1 of 1 runs are there; the table is in private/benchmarks/flow of the store." in again.stderr
    assert "there already" in again.stderr
    planned = server.python(*command, "--methods", "dpdm", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "Planned" in planned.stderr
    unknown = server.python(*command, "--seeds", "7")
    assert unknown.returncode == 2
    assert "suite flow: there is no seed 7; there are 0." in unknown.stderr
