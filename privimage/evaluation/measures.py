"""All measures of fidelity on one set of features, each with its interval, or with the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from privimage.errors import DataError
from privimage.evaluation.estimate import Estimate, around, bootstrap_weights, share
from privimage.evaluation.fidelity import fid, weighted_fids, weighted_kids
from privimage.evaluation.inception_score import inception_scores
from privimage.evaluation.manifold import NEIGHBOURS, inside

__all__ = ["MEASURES", "OF_SYNTHETIC_ALONE", "Measured", "Subject", "measure"]

SEED = 0  # of the bootstrap: it moves the ends of intervals, and no figure


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is compared: features, shape (images, features), by one extractor.

    `private` has no rows where only measures of synthetic images alone are asked for.
    `probabilities` are the extractor's categories for the synthetic images, shape (images, categories), if it has any.
    """

    synthetic: np.ndarray
    private: np.ndarray
    probabilities: np.ndarray | None

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of synthetic and private images."""
        return len(self.synthetic), len(self.private)

    def of(self, synthetic_rows: np.ndarray, private_rows: np.ndarray) -> Subject:
        """Only the rows for which these are true."""
        probabilities = None if self.probabilities is None else self.probabilities[synthetic_rows]
        return Subject(
            synthetic=self.synthetic[synthetic_rows], private=self.private[private_rows], probabilities=probabilities
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Estimates by measure, and the reason for each measure that is not among them."""

    estimates: Mapping[str, Estimate]
    not_computed: Mapping[str, str]


def measure(subject: Subject, names: Collection[str] | None = None) -> Measured:
    """The named measures of MEASURES, all for None; those for which there are too few images are left out, and it is
    said why.

    Raises:
        DataError: some features are not finite.
    """
    if not all(np.isfinite(features).all() for features in (subject.synthetic, subject.private)):
        raise DataError("Some features are not finite, expected finite numbers: check the feature extractor's weights.")
    estimates, missing = {}, {}
    for name, (needed, compute) in MEASURES.items():
        if names is not None and name not in names:
            continue
        least, why = needed(subject)
        sides = subject.sizes[:1] if name in OF_SYNTHETIC_ALONE else subject.sizes
        if min(sides) < least:
            found = f"{sides[0]:,} synthetic" + "".join(f" and {num:,} test" for num in sides[1:])
            missing[name] = f"needs at least {least:,} images{' of each' if sides[1:] else ''} ({why}), found {found}"
        else:
            try:
                estimates[name] = compute(subject, np.random.default_rng(SEED))
            except DataError as error:
                missing[name] = str(error)
    return Measured(estimates=estimates, not_computed=missing)


def _fid(subject: Subject, generator: np.random.Generator) -> Estimate:
    weights = [bootstrap_weights(num, generator)[1:] for num in subject.sizes]
    replicates = weighted_fids(subject.synthetic, subject.private, *weights)
    return around(fid(subject.synthetic, subject.private), replicates, subject.sizes, least=0.0)


def _kid(subject: Subject, generator: np.random.Generator) -> Estimate:
    weights = [bootstrap_weights(num, generator) for num in subject.sizes]
    value, *replicates = weighted_kids(subject.synthetic, subject.private, *weights)
    return around(float(value), np.array(replicates), subject.sizes)


def _precision(subject: Subject, _: np.random.Generator) -> Estimate:
    return share(inside(subject.synthetic, manifold_of=subject.private), subject.sizes)


def _recall(subject: Subject, _: np.random.Generator) -> Estimate:
    return share(inside(subject.private, manifold_of=subject.synthetic), subject.sizes)


def _inception_score(subject: Subject, generator: np.random.Generator) -> Estimate:
    if subject.probabilities is None:
        raise DataError("These features come with no categories.")
    num = len(subject.synthetic)
    value, *replicates = inception_scores(subject.probabilities, bootstrap_weights(num, generator))
    return around(float(value), np.array(replicates), (num, 0), least=1.0)


def _more_than_features(subject: Subject) -> tuple[int, str]:
    return subject.synthetic.shape[1] + 1, "more than there are features, or a covariance is singular"


def _more_than_neighbours(_: Subject) -> tuple[int, str]:
    return NEIGHBOURS + 1, f"each with {NEIGHBOURS} neighbours"


def _as_many_as_categories(subject: Subject) -> tuple[int, str]:
    return (1 if subject.probabilities is None else subject.probabilities.shape[1]), "one for each category"


Needed = Callable[[Subject], tuple[int, str]]
Computed = Callable[[Subject, np.random.Generator], Estimate]

MEASURES: Mapping[str, tuple[Needed, Computed]] = {
    "FID": (_more_than_features, _fid),
    "KID": (lambda _: (2, "it is an average over pairs"), _kid),
    "precision": (_more_than_neighbours, _precision),
    "recall": (_more_than_neighbours, _recall),
    "Inception Score": (_as_many_as_categories, _inception_score),
}
# They look at no sensitive image: what they find is public.
OF_SYNTHETIC_ALONE = frozenset({"Inception Score"})
