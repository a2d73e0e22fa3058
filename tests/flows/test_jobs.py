"""Parts of a stage on a cluster: two Dask processes and a store on S3 make what one process makes on disk."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from privimage.data import admission
from privimage.data.table import TableWriter
from privimage.errors import ConfigError
from privimage.running.granting import declare
from privimage.running.runner import run_all
from privimage.running.runs import Run
from privimage.stages import synthesize
from privimage.store.artifacts import ArtifactRef, list_artifacts, remove
from privimage.store.files import Store
from tasks.jobs import map_on
from tests.flows.prefect_server import Server
from tests.pipeline_fixtures import Place

pytestmark = pytest.mark.slow

PUBLIC = "public.source.images_per_category=12"
SEED = "synthesize.seed=7"

# The process that runs the flows cuts the public table into four files, and the images into four ranges.
FLOWS = f"""
import functools, sys
from flows.stage import stage
from flows.synthesize import synthesize as whole
from privimage.config.loading import load_config
from privimage.data import admission
from privimage.data.table import TableWriter
from privimage.stages import synthesize

if __name__ == "__main__":
    path, store = sys.argv[1:]
    admission.TableWriter = functools.partial(TableWriter, shard_rows=200)
    synthesize.PART_IMAGES = 10
    cluster = ["performance.task_runner=dask", "performance.num_workers=2"]
    whole(config=load_config(path, ["{PUBLIC}", *cluster]), store=store, stop_after="index")
    stage(stage="synthesize", config=load_config(path, ["{SEED}", *cluster]), store=store)
"""


def newest(store: Store, stage: str, known: set[ArtifactRef]) -> ArtifactRef:
    (found,) = {artifact.ref for artifact in list_artifacts(store) if artifact.ref.stage == stage} - known
    return found


def test_two_processes_of_a_dask_cluster_make_what_one_process_makes(
    server: Server, s3_bucket: str, finished_copy: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other public set is declared, and what was made of it to look at it is taken away: the flow is to make it.
    before = {artifact.ref for artifact in list_artifacts(finished_copy.store)}
    declare(finished_copy.run(PUBLIC))
    remove(finished_copy.store, "public", newest(finished_copy.store, "public", before).key)
    remote = Store.open(f"s3://{s3_bucket}/cluster")
    for name in finished_copy.store.list():
        local = finished_copy.store.local_path(name)
        assert local is not None
        remote.upload(local, name)
    known = {artifact.ref for artifact in list_artifacts(remote)}
    driver = tmp_path / "driver.py"
    driver.write_text(FLOWS)
    done = server.python(str(driver), str(finished_copy.config), remote.url)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("index-part-0", "index-part-3", "synthesize-part-0", "synthesize-part-30"):
        assert f"Task run '{part}' - Finished in state Completed()" in done.stderr, done.stderr

    monkeypatch.setattr(admission, "TableWriter", functools.partial(TableWriter, shard_rows=200))
    monkeypatch.setattr(synthesize, "PART_IMAGES", 10)
    for overrides, last in ([PUBLIC], "index"), ([SEED], "synthesize"):
        run_all(finished_copy.run(*overrides), last)
        assert newest(remote, last, known) == newest(finished_copy.store, last, known)
    assert remote.list("checkpoints") == []


def test_a_cluster_that_cannot_be_used_is_told_at_once(granted_copy: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cluster is tcp://x:1, but task_runner is threads: set it to dask or ray"):
        granted_copy.run("performance.cluster=tcp://x:1")
    config = granted_copy.run("performance.task_runner=ray").config
    with pytest.raises(
        ConfigError, match="task_runner is ray, but prefect_ray is not installed: pip install prefect-ray"
    ):
        map_on(config.performance)
    config = granted_copy.run("performance.task_runner=dask").config
    with pytest.raises(ConfigError, match="store memory://here lies in this process's memory, which no cluster"):
        run_all(Run(config=config, store=Store.open("memory://here"), map_jobs=map_on(config.performance)), "index")
