"""Stage `pretrain`: the generator, trained on the selection by the code of its kind."""

from __future__ import annotations

from privimage.generators.interface import code_of
from privimage.pipeline.stage import Outcome, StageContext

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes generator.safetensors and generator.json, and what else its kind needs of public images."""
    return code_of(context.config.generator).run_pretrain(context)
