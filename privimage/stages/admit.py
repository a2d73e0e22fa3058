"""Stage `admit`: raw sensitive files -> a canonical, sealed image table.

Admission is no mechanism: it releases nothing, and its artifact is sealed. Public about it are the sizes of its splits
and the names of its classes; its class sizes and file names are not.
"""

from __future__ import annotations

from functools import partial

from privimage.data.admission import SensitiveDataProblem, admit_sensitive
from privimage.data.problems import private_list
from privimage.errors import DataError
from privimage.pipeline.stage import Outcome, StageContext
from privimage.store.identity import key_for

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes train-*, test-*, validation-*, marks.parquet, findings.json and facts.json, sealed.

    Raises:
        DataError: with a generic message; what is wrong with which image is written below `private/`.
    """
    config = context.config
    keys = partial(key_for, context.store)
    try:
        admit_sensitive(config.sensitive, config.image, context.folder, keys, context.progress.track)
    except SensitiveDataProblem as problem:
        place = context.write_private("admission", private_list(problem.details))
        raise DataError(f"{problem} Details, which are private, are in {place}") from None
    return Outcome(metrics={})
