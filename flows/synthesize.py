"""From public and sensitive images to a differentially private release: the whole method as one flow.

    python -m flows.synthesize deployments/datasets/demo.yaml

The same stages, store and keys as `privimage run`: what either has made, the other reuses.
"""

from __future__ import annotations

import argparse
import sys

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from privimage.commands.shared import add_config, exit_code, open_run
from privimage.config import RunConfig
from tasks import stages

__all__ = ["main", "synthesize"]


@flow(
    name="synthesize",
    flow_run_name="{config.name}-eps{config.privacy.epsilon}",
    # One stage at a time: each uses the whole device.
    task_runner=ThreadPoolTaskRunner(max_workers=1),
    persist_result=False,
)
def synthesize(config: RunConfig, store: str = ".privimage", draws: dict[str, int] | None = None) -> dict[str, str]:
    """Make a synthetic, differentially private image set from a sensitive one.

    Finished stages are reused, an interrupted one goes on from its checkpoint; the privacy cost is charged to the
    ledger of the sensitive set, whose owner has to have granted it (`privimage ledger grant`).

    Args:
        config: Data, privacy and settings of every stage.
        store: Root URL of the object store: a path, file:///path or s3://bucket/prefix.
        draws: Stages of which another, independent run is wanted, by number; a private stage is charged again.

    Returns:
        Keys of the artifacts, by stage.
    """
    request = {"config": config.model_dump(mode="json"), "store": store, "draws": draws or {}}

    public = stages.admit_public.submit(request)
    admit = stages.admit_sensitive.submit(request)
    checked = stages.check.submit(request, public, admit)
    classifier = stages.train_classifier.submit(request, public, wait_for=[checked])
    index = stages.build_index.submit(request, public, classifier)
    query = stages.query.submit(request, admit, classifier)
    select = stages.select.submit(request, query, index)
    pretrain = stages.pretrain.submit(request, public, select)
    finetune = stages.finetune.submit(request, admit, query, pretrain)
    images = stages.synthesize_images.submit(request, finetune)
    evaluate = stages.evaluate.submit(request, admit, classifier, images)
    release = stages.release.submit(
        request,
        public=public,
        admit=admit,
        classifier=classifier,
        query=query,
        select=select,
        pretrain=pretrain,
        finetune=finetune,
        synthesize=images,
    )
    # In order, so that the first failure is the one that is raised.
    checked.result()
    made = [public, admit, classifier, index, query, select, pretrain, finetune, images, evaluate, release]
    references = [future.result() for future in made]
    return {reference["stage"]: reference["key"] for reference in references}


def main(arguments: list[str] | None = None) -> int:
    """Run the flow for one configuration; exit codes as for `privimage`."""
    about = "Make a differentially private synthetic image set, as a Prefect flow; the same stages as `privimage run`."
    parser = argparse.ArgumentParser(prog="python -m flows.synthesize", description=about)
    add_config(parser)
    options = parser.parse_args(arguments)

    def run_flow() -> int:
        run = open_run(options)
        keys = synthesize(run.config, store=options.store, draws=dict(run.draws))
        print(f"release: {run.store.url}/releases/{run.config.name}-{keys['release'][:8]}")
        return 0

    return exit_code(run_flow)


if __name__ == "__main__":
    sys.exit(main())
