"""Settings that change speed and memory only, never a result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from privimage.config.form import Section

__all__ = ["Performance"]


class Performance(Section):
    """Settings that change speed and memory only, never a result."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="Where to compute.")
    num_devices: int | None = Field(
        default=None,
        ge=1,
        le=64,
        title="Number of devices",
        description="Devices that share pre-training, fine-tuning and sampling; none = every GPU of the machine if `device` is "
        "auto or cuda, else one. On a CPU it is the number of processes.",
    )
    physical_batch_size: int | None = Field(
        default=None,
        ge=1,
        title="Physical batch size",
        description="Rows (images x noise draws) computed at once in fine-tuning, sampling and scoring; none = as many as "
        "suit the device and fit `memory_gb`.",
    )
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        title="Memory in GB",
        description="Memory for one physical batch of fine-tuning; none = 1 GB on a CPU, where more gains nothing, and half "
        "of what is free on a GPU.",
    )
    per_image_gradients: Literal["bookkeeping", "vmap", "opacus"] = Field(
        default="bookkeeping",
        title="Per-image gradients",
        description="How fine-tuning computes them; bookkeeping is the fastest, the others are for comparison.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Of forward and backward passes in training, and of what a backbone sees; clipping, sums, noise and weights are "
        "float32 always. auto = bfloat16 where the processor or GPU is faster in it.",
    )
    task_runner: Literal["threads", "dask", "ray"] = Field(
        default="threads",
        title="Task runner",
        description="Where flows make the parts of the index and of the synthetic images: in the flow's own process, or on "
        "a Dask or Ray cluster, whose machines all reach the store.",
    )
    cluster: str | None = Field(
        default=None,
        description="Address of the cluster, such as tcp://scheduler:8786 or ray://head:10001; none = one on this machine, for "
        "the time of the stage.",
    )
    num_workers: int = Field(
        default=2, ge=1, le=1024, title="Number of workers", description="Processes of a cluster on this machine."
    )
    checkpoint_seconds: float = Field(
        default=120.0,
        ge=0,
        le=86_400,
        title="Checkpoint seconds",
        description="Time between checkpoints of pre-training. Fine-tuning is saved every `finetune.checkpoint_steps`.",
    )
    checkpoint_steps: int | None = Field(
        default=None,
        ge=1,
        title="Checkpoint steps",
        description="Pre-training is saved every so many steps too; none = by the clock alone.",
    )

    @model_validator(mode="after")
    def _a_cluster_needs_its_runner(self) -> Performance:
        if self.cluster is not None and self.task_runner == "threads":
            raise ValueError(f"cluster is {self.cluster}, but task_runner is threads: set it to dask or ray")
        return self
