"""More images from a released generator. This is post-processing: it costs no privacy, and nothing is charged."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows.forms import DEFAULT_STORE_URL, StoreUrl
from flows.pipeline import ONE_AT_A_TIME, Keys, run_stages
from privimage.config.run import RunConfig

__all__ = ["regenerate"]


@flow(
    name="regenerate",
    flow_run_name="{config.name}-eps{config.privacy.epsilon:g}-{num_images}-images",
    task_runner=ONE_AT_A_TIME,
    persist_result=False,
)
def regenerate(
    *,
    num_images: Annotated[int, Field(ge=1, le=10_000_000)],
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0,
    dry_run: bool = False,
    store: StoreUrl = DEFAULT_STORE_URL,
    config: RunConfig,
) -> Keys | State[Any]:
    """Sample another number of images, or with another seed, and release them with their own certificate.

    The fine-tuned generator of the same configuration has to be there: this flow never runs a private stage.

    Args:
        num_images: Synthetic images, of all classes together.
        seed: First of the per-image seeds; another one gives other images.
        dry_run: Only show the plan.
        store: Root URL of the object store: a path, file:///path or s3://bucket/prefix.
        config: The configuration that the generator was made with.

    Returns:
        Keys of the artifacts, by stage.
    """
    sampled = config.synthesize.model_copy(update={"num_images": num_images, "seed": seed})
    # A private choice among classifiers would be charged, and its budget holds one.
    evaluated = config.evaluate.model_copy(update={"validation": "synthetic"})
    changed = RunConfig.model_validate(
        {**config.model_dump(), "synthesize": sampled.model_dump(), "evaluate": evaluated.model_dump()}
    )
    return run_stages(changed, store, {}, first="synthesize", last="release", dry_run=dry_run)
