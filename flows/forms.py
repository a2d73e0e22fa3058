"""What the run forms ask beside the configuration: fields that several flows share."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from privimage.commands.shared import DEFAULT_STORE
from privimage.errors import ConfigError

__all__ = [
    "DEFAULT_STORE_URL",
    "EARLIEST",
    "LATEST",
    "Redo",
    "StageName",
    "StoreUrl",
    "draws_of",
]

StageName = Literal[
    "public",
    "admit",
    "classifier",
    "index",
    "query",
    "space",
    "feature_means",
    "class_means",
    "select",
    "pretrain",
    "warmup",
    "finetune",
    "audit",
    "synthesize",
    "downstream",
    "validate",
    "evaluate",
    "release",
]
EARLIEST: StageName = "public"
LATEST: StageName = "release"

DEFAULT_STORE_URL = os.environ.get("PRIVIMAGE_STORE", DEFAULT_STORE)
StoreUrl = Annotated[str, Field(min_length=1)]


class Redo(BaseModel):
    """Another, independent run of a stage. The same number again is the same run, so that a retry goes on with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: StageName = Field(
        title="Stage",
        description="A private stage (query, feature_means, class_means, finetune, validate) is charged again.",
    )
    draw: int = Field(
        default=2,
        ge=1,
        le=1_000_000,
        title="Draw",
        description="Number of the run; 1 is the one that is made at first.",
    )


def draws_of(redo: list[Redo]) -> dict[str, int]:
    """Draw numbers by stage.

    Raises:
        ConfigError: a stage is named twice.
    """
    draws: dict[str, int] = {item.stage: item.draw for item in redo}
    if len(draws) < len(redo):
        names = [item.stage for item in redo]
        raise ConfigError(
            f"redo names {', '.join(sorted({n for n in names if names.count(n) > 1}))} twice; name it once."
        )
    return draws
