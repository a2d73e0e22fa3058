"""Stage `finetune`: the generator, trained on the sensitive images by the code of its kind, which is charged."""

from __future__ import annotations

from collections.abc import Mapping

from privimage.config.run import RunConfig
from privimage.generators.interface import code_of
from privimage.pipeline.stage import Outcome, StageContext
from privimage.store.artifacts import Artifact

__all__ = ["rehearse", "run"]


def run(context: StageContext) -> Outcome:
    """Writes generator.safetensors and generator.json, with the mechanism that ran."""
    return code_of(context.config.generator).run_finetune(context)


def rehearse(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    """Find before the charge what could otherwise fail after it."""
    code_of(config.generator).rehearse_finetune(config, inputs)
