"""Prefect's pages as people use them: the form, an approval, reused stages, pictures and certificate.

Needs Debian's `chromium` and Playwright's Python package (`make test-browser`), so it is not among the tests that are run by
default. With PRIVIMAGE_SCREENSHOTS=FOLDER it leaves the pictures of the documentation there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from privimage.store.files import Store
from tests.flows.prefect_server import Server
from tests.pipeline_fixtures import Place

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SIZE = {"width": 1280, "height": 860}


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        opened = browser.new_page(viewport=SIZE)
        opened.set_default_timeout(30_000)
        yield opened
        browser.close()


@pytest.fixture
def visit(page: Any, server: Server) -> Callable[..., Any]:
    """Opens a page of the server's UI, and waits for a text on it; a picture of it is kept if it has a name."""
    folder = os.environ.get("PRIVIMAGE_SCREENSHOTS")

    def call(path: str, text: str, picture: str = "") -> Any:
        page.goto(server.url.removesuffix("/api") + path, wait_until="domcontentloaded")
        page.get_by_text(text).first.wait_for()
        if folder and picture:
            page.wait_for_timeout(2000)  # until it has stopped moving
            page.screenshot(path=f"{folder}/{picture}.png")
        return page

    return call


def test_a_run_is_asked_for_approved_and_looked_at(
    server: Server, visit: Callable[..., Any], granted: Place, s3_bucket: str, tmp_path: Path
) -> None:
    store = Store.open(f"s3://{s3_bucket}/privimage")
    for name in granted.store.list():
        store.upload(granted.folder / name, name)
    settings = yaml.safe_load(granted.config.read_text())
    (tmp_path / "datasets").mkdir()
    file = {**settings, "name": "seen", "deployment": {"pool": "cpu", "approval": True}}
    (tmp_path / "datasets" / "seen.yaml").write_text(yaml.safe_dump(file))
    server.register(tmp_path / "datasets", store.url)
    deployment = server.call("GET", "/deployments/name/synthesize/seen")["id"]

    # The form: typed fields with their bounds; another epsilon is asked for.
    form = visit(f"/v2/deployments/deployment/{deployment}/run", "Total epsilon of the release", "run-form")
    assert form.get_by_text("Height and width in pixels (8 to 256).").count() == 1
    epsilon = form.get_by_label("Epsilon")
    assert epsilon.input_value() == "1"
    epsilon.fill("0.8")
    form.get_by_role("button", name="Submit").click()
    with server.worker():
        form.wait_for_url(re.compile(r"/deployment/[^/]+$"))  # back to the deployment's page
        (run,) = server.call("POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
        assert run["parameters"]["config"]["privacy"]["epsilon"] == 0.8
        assert server.wait(run["id"], {"Suspended", "Failed"})["name"] == "Suspended"

        # The approval.
        seen = visit(f"/v2/runs/flow-run/{run['id']}", "Suspended")
        assert len([name for name in store.list("ledger") if "/entries/" in name]) == 1
        seen.get_by_role("button", name="Open menu").first.click()
        seen.get_by_role("menuitem", name="Resume").click()
        seen.get_by_text("this run still asks for").wait_for()
        if folder := os.environ.get("PRIVIMAGE_SCREENSHOTS"):
            seen.wait_for_timeout(1000)
            seen.screenshot(path=f"{folder}/approval.png")
        seen.get_by_label("Approve").click()
        seen.get_by_label("Reason").fill("as agreed")
        seen.get_by_role("button", name="Resume").click()
        assert server.wait(run["id"])["name"] == "Completed"

    # What was there before, and what was made.
    assert {"dataset:seen", "eps:0.8"} <= set(server.call("GET", f"/flow_runs/{run['id']}")["tags"])
    visit(f"/v2/runs/flow-run/{run['id']}?tab=TaskRuns", "Reused", "task-runs")
    visit(f"/v2/runs/flow-run/{run['id']}?tab=Artifacts", "certificate-seen", "artifacts")
    shown = server.artifacts(run["id"])
    (certificate,), (lineage,) = shown["certificate-seen"], shown["lineage-seen"]
    visit(f"/v2/artifacts/artifact/{certificate['id']}", "(0.8, 0.0001)-differential privacy", "certificate")
    diagram = visit(f"/v2/artifacts/artifact/{lineage['id']}", "What the release was made of")
    diagram.locator("svg", has_text="finetune").first.wait_for()
    if folder := os.environ.get("PRIVIMAGE_SCREENSHOTS"):
        diagram.screenshot(path=f"{folder}/lineage.png")
    (released,) = [picture for picture in shown["samples-seen"] if "released" in picture["description"]]
    grid = visit(f"/v2/artifacts/artifact/{released['id']}", "Synthetic images, released")
    picture = grid.locator("img[src^='data:image/png']").first
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 100
