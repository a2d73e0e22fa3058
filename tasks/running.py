"""What all stage tasks share: open the store, run the stage, tell Prefect what happened."""

from __future__ import annotations

import base64
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, State

from privimage.config import RunConfig
from privimage.progress import Terminal
from privimage.release.certificate import in_words
from privimage.release.export import release_name
from privimage.runner import Run, check_run, run_stage
from privimage.store.artifacts import ArtifactRef, open_ref
from privimage.store.files import Store

__all__ = ["Reference", "Request", "check_request", "publish_release", "reference_or_reused"]

Reference = dict[str, Any]
"""A small JSON name of one artifact: stage, key, digest, sealed."""

Request = dict[str, Any]
"""What to run: `config` (a RunConfig as JSON), `store` (its URL) and `draws` (by stage)."""


def reference_or_reused(stage: str, request: Request, inputs: dict[str, Reference]) -> Reference | State[Any]:
    """Run one stage; the state is named `Reused`, and says since when, if its artifact was there already."""
    run = _run(request)
    result = run_stage(stage, run, {name: ArtifactRef.from_json(reference) for name, reference in inputs.items()})
    reference = result.ref.to_json()
    if result.reused:
        return Completed(name="Reused", message=f"{stage} {result.ref.key[:12]}, made {result.written}", data=reference)
    get_run_logger().info("%s %s made in %.1f s", stage, result.ref.key[:12], result.seconds)
    return reference


def check_request(request: Request, public: Reference, admit: Reference) -> None:
    """Compare the configuration with the admitted data, before anything long or costly is started."""
    check_run(_run(request), ArtifactRef.from_json(public), ArtifactRef.from_json(admit))


def publish_release(request: Request, reference: Reference) -> None:
    """Show a release in Prefect: its promise, where it lies, and the sample grid. All of it is public."""
    run = _run(request)
    artifact = open_ref(run.store, ArtifactRef.from_json(reference))
    certificate = artifact.read_json("certificate.json")
    name = run.config.name
    lines = [
        f"# {name}",
        in_words(certificate),
        f"Release: `{run.store.url}/{release_name(name, artifact)}`",
        "| stage | mechanism |\n|---|---|\n"
        + "\n".join(f"| {mechanism['stage']} | {mechanism['in_words']} |" for mechanism in certificate["mechanisms"]),
    ]
    create_markdown_artifact(key=f"certificate-{name}", markdown="\n\n".join(lines), description="Privacy certificate")
    picture = base64.b64encode(artifact.read_bytes("samples.png")).decode()
    create_image_artifact(
        key=f"samples-{name}", image_url=f"data:image/png;base64,{picture}", description="Synthetic images"
    )


def _run(request: Request) -> Run:
    provenance = {"prefect_flow_run": str(flow_run.get_id() or ""), "prefect_task_run": str(task_run.get_id() or "")}
    return Run(
        config=RunConfig.model_validate(request["config"]),
        store=Store.open(request["store"]),
        progress=Terminal(),
        draws=request["draws"],
        provenance=provenance,
    )
