"""The one place where privacy is stated; every noise level is derived from it."""

from __future__ import annotations

from pydantic import Field, model_validator

from privimage.config.bounds import LARGEST_EPSILON, SMALLEST_DELTA, SMALLEST_EPSILON
from privimage.config.form import Section

__all__ = ["PrivacyConfig"]


class PrivacyConfig(Section):
    """The one place where privacy is stated; every noise level is derived from it."""

    epsilon: float = Field(
        ge=SMALLEST_EPSILON,
        le=LARGEST_EPSILON,
        description="Total epsilon of the release: all that is charged, together.",
    )
    delta: float = Field(
        ge=SMALLEST_DELTA, lt=0.1, description="Total delta: from 1e-10 to below 1 / number of training images."
    )
    query_error: float | None = Field(
        default=0.02,
        gt=0,
        le=1,
        title="Query error",
        description="Standard deviation of the query's noise per category, as a share of the mean class size.",
    )
    query_noise_multiplier: float | None = Field(
        default=None,
        gt=0,
        title="Query noise multiplier",
        description="The query's noise by hand, in units of its sensitivity, instead of `query_error`.",
    )
    feature_means_share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        title="Share of feature means",
        description="What noisy class means of features would cost alone, as a share of epsilon, where fine-tuning follows them; "
        "only with selection.strategy images. Without fine-tuning they get all that is left.",
    )
    class_means_noise_multiplier: float = Field(
        default=10.0,
        gt=0,
        title="Noise multiplier of class mean images",
        description="Noise on the sums of images of each class, in units of the largest difference that one image makes; "
        "only where the generator has `class_means`.",
    )
    validation_error: float | None = Field(
        default=None,
        gt=0,
        le=1,
        title="Validation error",
        description="Sets budget aside to choose a classifier by the sensitive validation images: standard deviation of the "
        "noise on its accuracy, times the square root of the number of classifiers; none = no such budget.",
    )

    @model_validator(mode="after")
    def _one_way_to_choose_the_query_noise(self) -> PrivacyConfig:
        if (self.query_error is None) == (self.query_noise_multiplier is None):
            raise ValueError(
                "give exactly one of query_error and query_noise_multiplier, and set the other to null "
                f"(found {self.query_error} and {self.query_noise_multiplier})"
            )
        return self
