"""Which settings can change the result of each stage: what goes into its key, as JSON, beside its inputs and draw.

A setting that cannot change a result is left out, and so is one that only other kinds of runs look at: for a charged stage
another key is another charge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from privimage.config import RunConfig
from privimage.data.fingerprint import source_fingerprint

__all__ = [
    "admit_fields",
    "audit_fields",
    "central_fields",
    "downstream_fields",
    "finetune_fields",
    "pretrain_fields",
    "public_fields",
    "query_fields",
    "section",
    "selection_fields",
    "synthesize_fields",
    "validate_fields",
    "warmup_fields",
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
    return {
        "num_votes": config.query.num_votes,
        "query_error": privacy.query_error,
        "query_noise_multiplier": privacy.query_noise_multiplier,
        # The query opens the plan, and what it was opened for is fixed with it.
        **({"central_noise_multiplier": privacy.central_noise_multiplier} if config.central.is_used else {}),
    }


def central_fields(config: RunConfig) -> dict[str, Any]:
    return {"max_norm": config.central.max_norm, "noise_multiplier": config.privacy.central_noise_multiplier}


def warmup_fields(config: RunConfig) -> dict[str, Any]:
    shared = {"sigma_mean", "sigma_std", "label_dropout", "horizontal_flip"}
    return {
        "central": config.central.model_dump(mode="json", exclude={"max_norm"}),
        "pretrain": config.pretrain.model_dump(mode="json", include=shared),
    }


def selection_fields(config: RunConfig) -> dict[str, Any]:
    """Without what the strategy does not look at; the usual strategy is missing, as it was before there were others."""
    unused = {"semantic": {"strategy"}, "all": {"categories_per_class"}}
    return {"selection": config.selection.model_dump(mode="json", exclude=unused.get(config.selection.strategy, set()))}


def pretrain_fields(config: RunConfig) -> dict[str, Any]:
    network = "denoiser" if config.generator == "diffusion" else config.generator
    if config.generator == "merf":
        return {network: _merf_section(config), **_critic_fields(config)}
    if config.selection.strategy == "none":
        # Only the seed of the first weights: another setting that does nothing must not cause another fine-tuning.
        return {network: config.network.model_dump(mode="json"), "seed": config.pretrain.seed}
    return config.model_dump(mode="json", include={"pretrain", network})


def _merf_section(config: RunConfig) -> dict[str, Any]:
    """Without what only a critic has, where there is none."""
    critics = {name for name in type(config.merf).model_fields if name.startswith("critic_")}
    return config.merf.model_dump(mode="json", exclude=critics if config.selection.strategy == "none" else set())


def _critic_fields(config: RunConfig) -> dict[str, Any]:
    """What critics, which there are where something is selected, learn by beside their own settings, and how many there are.

    That number was 1, unsaid, in an earlier form: raising the stage's version would make users of other generators pay again.
    """
    if config.selection.strategy == "none":
        return {}
    shared = {"learning_rate", "weight_decay", "augment"}
    return {
        "critics": 2,
        "classifier": config.classifier.model_dump(mode="json", include=shared),
        "pretrain": config.pretrain.model_dump(mode="json", include={"horizontal_flip"}),
    }


def _finetune_section(config: RunConfig) -> dict[str, Any]:
    """Without what a generator by diffusion does not have; else every user of one would pay again."""
    excluded = {"discriminator_steps", "generator_learning_rate", "generator_batch_size"}
    return config.finetune.model_dump(mode="json", exclude=excluded if config.generator == "diffusion" else set())


def synthesize_fields(config: RunConfig) -> dict[str, Any]:
    fields = config.synthesize.model_dump(mode="json", exclude={"public_images", "mixer_steps", "judge_below"})
    if config.synthesize.class_sizes == "equal":  # as before there was anything else
        del fields["class_sizes"]
    if config.public_images == "none":  # as before there was anything else
        return {"synthesize": fields}
    mixer = {
        "mixer_steps": config.synthesize.mixer_steps,
        "pretrain": config.pretrain.model_dump(mode="json", include={"horizontal_flip"}),
    }
    return {
        "synthesize": fields,
        "public_images": config.public_images,
        "judge_below": config.synthesize.judge_below,
        **(mixer if config.public_images == "mixed" else {}),
    }


def finetune_fields(config: RunConfig) -> dict[str, Any]:
    return {
        # Of mean embeddings all settings are in what `pretrain` writes, which it starts from; those that critics learn by (of
        # `classifier` and `pretrain`) are so through the bytes of the first critic.
        **({} if config.generator == "merf" else {"finetune": _finetune_section(config)}),
        "epsilon": config.privacy.epsilon,
        "delta": config.privacy.delta,
        # What is set aside for validation is missing here: it makes the noise larger.
        **({} if config.privacy.validation_error is None else {"validation_error": config.privacy.validation_error}),
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
    return {
        "audit": config.audit.model_dump(mode="json"),
        "finetune": _finetune_section(config),
        "delta": config.privacy.delta,
    }
