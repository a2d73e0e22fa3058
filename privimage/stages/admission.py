"""Stages `public` and `admit`: raw files -> canonical image tables.

Admission of the sensitive set is no mechanism: it releases nothing, and its artifact is sealed. Public about it are
the sizes of its splits and the names of its classes; its class sizes and file names are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TypeVar

from privimage.data.admission import SensitiveDataProblem, admit_public, admit_sensitive
from privimage.data.problems import private_list
from privimage.errors import DataError
from privimage.pipeline import Outcome, StageContext
from privimage.store.identity import key_for

__all__ = ["run_public", "run_sensitive"]

T = TypeVar("T")


def run_public(context: StageContext) -> Outcome:
    """Writes images-*.parquet (sorted by category), digests.parquet and facts.json."""

    def progress(items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        return context.progress.track(items, description, total)

    facts = admit_public(context.config.public.source, context.config.image, context.folder, progress)
    return Outcome(metrics={"num_images": facts.num_images, "num_categories": len(facts.class_names)})


def run_sensitive(context: StageContext) -> Outcome:
    """Writes train-*, test-*, validation-*, marks.parquet, findings.json and facts.json, sealed.

    Raises:
        DataError: with a generic message; what is wrong with which image is written below `private/`.
    """

    def progress(items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        return context.progress.track(items, description, total)

    try:
        admit_sensitive(
            context.config.sensitive, context.config.image, context.folder, partial(key_for, context.store), progress
        )
    except SensitiveDataProblem as problem:
        place = context.write_private("admission", private_list(problem.details))
        raise DataError(f"{problem} Details, which are private, are in {place}") from None
    return Outcome(metrics={})
