"""Checks of a configuration against the admitted data: everything that can be known before budget or time is spent."""

from __future__ import annotations

from privimage.config import RunConfig
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.errors import ConfigError
from privimage.privacy.mechanisms import (
    ClassSumRounds,
    ClassSums,
    DPSGDMechanism,
    HistogramQuery,
    ValidationCount,
    query_mechanism,
)

__all__ = ["check_against_data", "finetune_mechanism", "planned_central", "planned_query", "planned_validation"]

LEAST_OF_A_CLASS = 2  # one to train a classifier on, one to choose the epoch by
ENOUGH_OF_A_CLASS = 100  # in the mean: so many that a tenth of it, of which some are missing, is still enough


def check_against_data(config: RunConfig, public: TableFacts, sensitive: SensitiveFacts) -> None:
    """Raise ConfigError for the first contradiction; only public facts are looked at."""
    touched, which = sensitive.num_train, "training"
    if config.privacy.validation_error is not None:
        touched, which = touched + sensitive.num_validation, "training and validation"
    if config.privacy.delta >= 1 / touched:
        raise ConfigError(
            f"privacy.delta is {config.privacy.delta:g}, but must be below 1 / number of {which} images = "
            f"{1 / touched:.3g}: a larger delta would allow publishing whole images."
        )
    classes, categories = len(sensitive.class_names), len(public.class_names)
    chooses = config.selection.strategy in ("semantic", "random")
    asked = config.selection.categories_per_class * classes
    if chooses and asked > categories:
        cure = f"lower it to at most {categories // classes}"
        if categories < classes:
            cure = (
                f"give a public set with {classes} categories or more and set it to 1, or set selection.strategy to all (train on "
                "the whole public set) or none"
            )
        raise ConfigError(
            f"selection.categories_per_class = {config.selection.categories_per_class} asks for {asked} categories for {classes} "
            f"classes, but the public set has {categories}: {cure}."
        )
    if config.synthesize.num_images < LEAST_OF_A_CLASS * classes:
        raise ConfigError(
            f"synthesize.num_images is {config.synthesize.num_images}, for {classes} classes: the classifiers that are trained "
            f"on them need at least {LEAST_OF_A_CLASS} of each class; raise it to {LEAST_OF_A_CLASS * classes} or more."
        )
    if config.synthesize.class_sizes == "query" and config.synthesize.num_images < ENOUGH_OF_A_CLASS * classes:
        raise ConfigError(
            f"synthesize.num_images is {config.synthesize.num_images}, for {classes} classes whose sizes the query tells: the smallest "
            f"would have too few images; raise it to {ENOUGH_OF_A_CLASS * classes} or more, or set synthesize.class_sizes to equal."
        )
    if config.selection.asks_the_query:
        planned_query(config, sensitive, categories)
    planned_central(config, sensitive)
    planned_validation(config, sensitive)
    finetune_mechanism(config, sensitive, noise_multiplier=1.0)


def planned_query(config: RunConfig, sensitive: SensitiveFacts, num_categories: int) -> HistogramQuery:
    """The query's mechanism, from the configuration and public facts."""
    return query_mechanism(
        num_votes=config.query.num_votes,
        num_classes=len(sensitive.class_names),
        num_categories=num_categories,
        num_images=sensitive.num_train,
        query_error=config.privacy.query_error,
        query_noise_multiplier=config.privacy.query_noise_multiplier,
    )


def planned_central(config: RunConfig, sensitive: SensitiveFacts) -> ClassSums | None:
    """The mechanism of central images, from the configuration and public facts; None where the run has none."""
    if not config.central.is_used:
        return None
    return ClassSums(
        num_images=sensitive.num_train,
        num_classes=len(sensitive.class_names),
        dimension=sensitive.channels * sensitive.resolution**2,
        noise_multiplier=config.privacy.central_noise_multiplier,
    )


def planned_validation(config: RunConfig, sensitive: SensitiveFacts) -> ValidationCount | None:
    """The validation's mechanism, from the configuration and public facts; None where no budget is set aside for it.

    `privacy.validation_error` is the noise on the accuracy of one classifier. So what is set aside does not depend on how
    many there will be: the noise on each of several is that many times larger as their counts' sensitivity is.
    """
    error = config.privacy.validation_error
    if error is None:
        return None
    return ValidationCount(
        num_images=sensitive.num_validation,
        num_candidates=len(config.evaluate.classifiers),
        votes_each=config.evaluate.seeds,
        noise_multiplier=error * sensitive.num_validation,
    )


def finetune_mechanism(
    config: RunConfig, sensitive: SensitiveFacts, *, noise_multiplier: float
) -> DPSGDMechanism | ClassSumRounds:
    """Fine-tuning's mechanism, that of the configured kind of generator, with a given noise multiplier."""
    if config.generator == "merf":
        return ClassSumRounds(
            num_images=sensitive.num_train,
            num_classes=len(sensitive.class_names),
            dimensions=config.merf.dimensions(with_critic=config.selection.strategy != "none"),
            noise_multiplier=noise_multiplier,
        )
    return DPSGDMechanism(
        num_images=sensitive.num_train,
        expected_batch_size=config.finetune.expected_batch_size,
        num_steps=config.finetune.num_steps,
        restart_allowance=config.finetune.restart_allowance,
        max_grad_norm=config.finetune.max_grad_norm,
        noise_multiplier=noise_multiplier,
        largest_batch_size=config.finetune.largest_batch_size,
    )
