"""Stage `public`: raw public files -> a canonical image table."""

from __future__ import annotations

from privimage.data.admission import admit_public
from privimage.pipeline.stage import Outcome, StageContext

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes images-*.parquet (sorted by category), digests.parquet and facts.json."""
    config = context.config
    facts = admit_public(config.public.source, config.image, context.folder, context.progress.track)
    return Outcome(metrics={"num_images": facts.num_images, "num_categories": len(facts.class_names)})
