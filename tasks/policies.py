"""How stages behave as Prefect tasks, by name, so that a test can hold every task to it."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

__all__ = ["PRIVATE_STAGE", "PUBLIC_STAGE"]

# The store is the truth about what is done: Prefect's own cache sees only the task's few lines, and a result it fails
# to write is lost in silence. Results are references of a few hundred bytes, kept in memory.
_STAGE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}

# Network faults are retried inside the store. A stage that failed otherwise would fail again, and a private one is
# resumed by the ledger's rules when the flow is run again, never by a blind retry.
PUBLIC_STAGE: dict[str, Any] = {**_STAGE, "retries": 0, "tags": ["stage"]}
PRIVATE_STAGE: dict[str, Any] = {**_STAGE, "retries": 0, "tags": ["stage", "private"]}
