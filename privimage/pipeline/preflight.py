"""Checks of a configuration against the admitted data: everything that can be known before budget or time is spent."""

from __future__ import annotations

import dp_accounting as dpa

from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.errors import ConfigError
from privimage.methods.generator import FinetuneMechanism
from privimage.privacy.accounting import calibrate_noise_multiplier, delta_of_course
from privimage.privacy.mechanisms import ClassSums, HistogramQuery, ValidationCount

__all__ = [
    "check_against_data",
    "finetune_mechanism",
    "planned_class_means",
    "planned_feature_means",
    "planned_query",
    "planned_validation",
]

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
    config.selection.check(classes, categories)
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
    planned_query(config, sensitive, categories)
    planned_feature_means(config, sensitive, categories)
    planned_class_means(config, sensitive)
    planned_validation(config, sensitive)
    if config.generator.finetunes:
        finetune_mechanism(config, sensitive, noise_multiplier=1.0)


def planned_query(config: RunConfig, sensitive: SensitiveFacts, num_categories: int) -> HistogramQuery | None:
    """The query's mechanism, from the configuration and public facts; None where no query is asked."""
    return config.selection.query(config.privacy, sensitive, num_categories)


def planned_feature_means(
    config: RunConfig, sensitive: SensitiveFacts, num_categories: int, *, dimensions: int = 1
) -> ClassSums | None:
    """The mechanism of class means of features, in so many dimensions, which change no noise; None where the run has none.

    Where fine-tuning follows, their noise is that for which they would cost `privacy.feature_means_share` of epsilon alone; else
    that for which all of the plan costs epsilon.

    Raises:
        PrivacyRefused: all else costs all of epsilon.
    """
    if not config.selection.asks_feature_means:
        return None
    privacy = config.privacy
    others: list[dpa.DpEvent] = []
    epsilon, delta = privacy.epsilon * privacy.feature_means_share, privacy.delta
    if not config.generator.finetunes:
        epsilon, delta = privacy.epsilon, delta_of_course(privacy.delta, 0)
        planned = (
            planned_query(config, sensitive, num_categories),
            planned_class_means(config, sensitive),
            planned_validation(config, sensitive),
        )
        others = [mechanism.event for mechanism in planned if mechanism]
    return ClassSums(
        num_images=sensitive.num_train,
        num_classes=len(sensitive.class_names),
        dimension=dimensions + 1,  # one that counts the images of a class
        noise_multiplier=calibrate_noise_multiplier(dpa.GaussianDpEvent, epsilon=epsilon, delta=delta, prior=others),
    )


def planned_class_means(config: RunConfig, sensitive: SensitiveFacts) -> ClassSums | None:
    """The mechanism of class mean images, from the configuration and public facts; None where the run has none."""
    return config.generator.class_mean_sums(sensitive, noise_multiplier=config.privacy.class_means_noise_multiplier)


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


def finetune_mechanism(config: RunConfig, sensitive: SensitiveFacts, *, noise_multiplier: float) -> FinetuneMechanism:
    """Fine-tuning's mechanism, that of the configured kind of generator, with a given noise multiplier."""
    return config.generator.mechanism(sensitive, config.selection, noise_multiplier=noise_multiplier)
