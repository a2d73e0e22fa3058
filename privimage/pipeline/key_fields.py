"""Which settings can change the result of each stage: what goes into its key, as JSON, beside its inputs and draw.

A setting that cannot change a result is left out, and so is one that only other kinds of runs look at: for a charged stage
another key is another charge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from privimage.config.run import RunConfig
from privimage.data.fingerprint import source_fingerprint

__all__ = [
    "admit_fields",
    "audit_fields",
    "class_means_fields",
    "downstream_fields",
    "feature_means_fields",
    "finetune_fields",
    "generator_fields",
    "index_fields",
    "public_fields",
    "query_fields",
    "section",
    "selection_fields",
    "synthesize_fields",
    "validate_fields",
]


def section(*names: str) -> Callable[[RunConfig], dict[str, Any]]:
    """Fields of whole configuration sections."""
    return lambda config: config.model_dump(mode="json", include=set(names))


def public_fields(config: RunConfig) -> dict[str, Any]:
    return {"source": source_fingerprint(config.public.source), "image": config.image.model_dump(mode="json")}


def admit_fields(config: RunConfig) -> dict[str, Any]:
    sensitive = config.sensitive
    return {
        "train": source_fingerprint(sensitive.train),
        "test": source_fingerprint(sensitive.test) if sensitive.test else None,
        "fractions": [sensitive.validation_fraction, sensitive.test_fraction],
        "image": config.image.model_dump(mode="json"),
    }


def query_fields(config: RunConfig) -> dict[str, Any]:
    privacy = config.privacy
    opened_for = {"class_means_noise_multiplier": privacy.class_means_noise_multiplier}
    means = _feature_means_noise(config) if config.selection.asks_feature_means else {}
    return {
        "selection": config.selection.fields_of("query"),
        "query_error": privacy.query_error,
        "query_noise_multiplier": privacy.query_noise_multiplier,
        # The query opens the plan, and what it was opened for is fixed with it.
        **means,
        **(opened_for if "class_means" in config.generator.further_stages else {}),
    }


def _feature_means_noise(config: RunConfig) -> dict[str, Any]:
    """What the noise of feature means follows from, beside what was released before them."""
    privacy, total = config.privacy, {"epsilon": config.privacy.epsilon, "delta": config.privacy.delta}
    if config.generator.finetunes:
        return {**total, "feature_means_share": privacy.feature_means_share}
    return {
        **total,
        "query_error": privacy.query_error if config.selection.asks_the_query else None,
        "query_noise_multiplier": privacy.query_noise_multiplier if config.selection.asks_the_query else None,
        "validation_error": privacy.validation_error,
        "class_means_noise_multiplier": privacy.class_means_noise_multiplier
        if "class_means" in config.generator.further_stages
        else None,
    }


def index_fields(config: RunConfig) -> dict[str, Any]:
    """Whether the index has features, which take much room."""
    return {"features": True} if config.selection.asks_feature_means else {}


def feature_means_fields(config: RunConfig) -> dict[str, Any]:
    """Of the means, and of the space that they are released in, whose dimensions follow from their noise."""
    return {"selection": config.selection.fields_of("feature_means"), **_feature_means_noise(config)}


def class_means_fields(config: RunConfig) -> dict[str, Any]:
    return {**generator_fields("class_means")(config), "noise_multiplier": config.privacy.class_means_noise_multiplier}


def selection_fields(config: RunConfig) -> dict[str, Any]:
    return {"selection": config.selection.fields_of("select")}


def generator_fields(stage: str) -> Callable[[RunConfig], dict[str, Any]]:
    """Fields of a stage that the kind of generator alone decides on."""
    return lambda config: {"generator": config.generator.fields_of(stage, config.selection, config.classifier)}


def synthesize_fields(config: RunConfig) -> dict[str, Any]:
    return {**section("synthesize")(config), **generator_fields("synthesize")(config)}


def finetune_fields(config: RunConfig) -> dict[str, Any]:
    privacy = config.privacy
    return {
        **generator_fields("finetune")(config),
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        # What is set aside for validation is missing here: it makes the noise larger.
        "validation_error": privacy.validation_error,
    }


def downstream_fields(config: RunConfig) -> dict[str, Any]:
    return {
        "evaluate": config.evaluate.model_dump(
            mode="json", exclude={"validation", "ceiling", "safety", "inception_weights"}
        ),
    }


def validate_fields(config: RunConfig) -> dict[str, Any]:
    return {"validation_error": config.privacy.validation_error}


def audit_fields(config: RunConfig) -> dict[str, Any]:
    return {**section("audit")(config), **generator_fields("audit")(config), "delta": config.privacy.delta}
