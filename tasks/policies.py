"""How stages behave as Prefect tasks, by name, so that a test can hold every task to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from privimage.pipeline.stage import Stage

__all__ = ["COMPUTING", "LIMIT_VARIABLE", "PRIVATE_STAGE", "PUBLIC_STAGE", "SMALL", "wait_for_turn"]

# The store is the truth about what is done: Prefect's own cache sees only the task's few lines, and a result it fails
# to write is lost in silence. Results are references of a few hundred bytes, kept in memory.
SMALL: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "retries": 0}

# Network faults are retried inside the store. A stage that failed otherwise would fail again, and a private one is
# resumed by the ledger's rules when the flow is run again, never by a blind retry.
PUBLIC_STAGE: dict[str, Any] = {**SMALL, "tags": ["stage"]}
PRIVATE_STAGE: dict[str, Any] = {**SMALL, "tags": ["stage", "private"]}

COMPUTING = (
    "classifier",
    "index",
    "query",
    "feature_means",
    "pretrain",
    "warmup",
    "finetune",
    "audit",
    "synthesize",
    "downstream",
    "validate",
    "evaluate",
)
"""Stages that compute on the device: they wait for their turn where a deployment names a limit."""

LIMIT_VARIABLE = "PRIVIMAGE_CONCURRENCY_LIMIT"
"""Set by a deployment: the global concurrency limit of which a computing stage takes one slot."""


@contextmanager
def wait_for_turn(stage: Stage) -> Iterator[None]:
    """Hold a slot of the deployment's limit while a stage computes, so that two of them never share a GPU.

    Raises:
        ConcurrencySlotAcquisitionError: there is no such limit on the server.
    """
    limit = os.environ.get(LIMIT_VARIABLE)
    if not limit or stage.name not in COMPUTING:
        yield
        return
    # A missing limit is an error. A lease that a restarted server forgot is none: hours of training are worth more.
    with concurrency(limit, occupy=1, strict=True, raise_on_lease_renewal_failure=False):
        yield
