"""The stages as Prefect tasks."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.states import State

from tasks.policies import PRIVATE_STAGE, PUBLIC_STAGE
from tasks.running import Reference, Request, check_request, publish_release, reference_or_reused

__all__ = [
    "admit_public",
    "admit_sensitive",
    "build_index",
    "check",
    "evaluate",
    "finetune",
    "pretrain",
    "query",
    "release",
    "select",
    "synthesize_images",
    "train_classifier",
]

Result = Reference | State[Any]


@task(name="public", **PUBLIC_STAGE)
def admit_public(request: Request) -> Result:
    """Public images -> canonical image table."""
    return reference_or_reused("public", request, {})


@task(name="admit", **PRIVATE_STAGE)
def admit_sensitive(request: Request) -> Result:
    """Sensitive images -> sealed image table; releases nothing."""
    return reference_or_reused("admit", request, {})


@task(name="check", **PUBLIC_STAGE)
def check(request: Request, public: Reference, admit: Reference) -> None:
    """Configuration against admitted data: fails here rather than after hours of training."""
    check_request(request, public, admit)


@task(name="classifier", **PUBLIC_STAGE)
def train_classifier(request: Request, public: Reference) -> Result:
    """Semantic classifier, trained on the public images."""
    return reference_or_reused("classifier", request, {"public": public})


@task(name="index", **PUBLIC_STAGE)
def build_index(request: Request, public: Reference, classifier: Reference) -> Result:
    """Parquet index of the public images."""
    return reference_or_reused("index", request, {"public": public, "classifier": classifier})


@task(name="query", **PRIVATE_STAGE)
def query(request: Request, admit: Reference, classifier: Reference) -> Result:
    """Noisy semantic query: charged, then run once."""
    return reference_or_reused("query", request, {"admit": admit, "classifier": classifier})


@task(name="select", **PUBLIC_STAGE)
def select(request: Request, query: Reference, index: Reference) -> Result:
    """Public images of the chosen categories."""
    return reference_or_reused("select", request, {"query": query, "index": index})


@task(name="pretrain", **PUBLIC_STAGE)
def pretrain(request: Request, public: Reference, select: Reference) -> Result:
    """Generator, trained on the selection."""
    return reference_or_reused("pretrain", request, {"public": public, "select": select})


@task(name="finetune", **PRIVATE_STAGE)
def finetune(request: Request, admit: Reference, query: Reference, pretrain: Reference) -> Result:
    """DP-SGD on the sensitive images: charged, resumed from its checkpoint after a crash."""
    return reference_or_reused("finetune", request, {"admit": admit, "query": query, "pretrain": pretrain})


@task(name="synthesize", **PUBLIC_STAGE)
def synthesize_images(request: Request, finetune: Reference) -> Result:
    """Synthetic images (post-processing)."""
    return reference_or_reused("synthesize", request, {"finetune": finetune})


@task(name="evaluate", **PRIVATE_STAGE)
def evaluate(request: Request, admit: Reference, classifier: Reference, synthesize: Reference) -> Result:
    """Internal figures against held-out sensitive images; its artifact is sealed."""
    inputs = {"admit": admit, "classifier": classifier, "synthesize": synthesize}
    return reference_or_reused("evaluate", request, inputs)


@task(name="release", **PUBLIC_STAGE)
def release(request: Request, **inputs: Reference) -> Result:
    """synthetic.parquet, certificate, report; shown in Prefect as well."""
    result = reference_or_reused("release", request, inputs)
    publish_release(request, result.data if isinstance(result, State) else result)
    return result
