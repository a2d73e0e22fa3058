"""The noisy semantic query: which public categories do the sensitive images of each class look like?"""

from __future__ import annotations

import numpy as np
import opendp.prelude as opendp
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.errors import DataError, PrivacyRefused
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import HistogramQuery

__all__ = ["add_noise", "top_votes", "vote_histogram"]

# Noise lives on multiples of 1/1024 vote: exact integers for the sampler, and so fine against its standard deviation
# that the discrete Gaussian's privacy loss is the continuous one's to below the accountant's own grid.
LATTICE = 1024


def top_votes(logits: Tensor, num_votes: int) -> NDArray[np.int64]:
    """The `num_votes` distinct categories of highest score per image, (batch, num_votes); a NaN scores lowest."""
    return torch.nan_to_num(logits, nan=-torch.inf).topk(num_votes, dim=1).indices.numpy()


def vote_histogram(
    votes: NDArray[np.int64], private_labels: NDArray[np.int64], mechanism: HistogramQuery
) -> NDArray[np.int64]:
    """Exact counts h[class, category]: private, never to be stored or shown.

    Guarantee: zeroing out one image changes `mechanism.num_votes` cells of one row by 1 each.

    Raises:
        DataError: a label or vote out of range, or an image that votes twice for a category.
    """
    if votes.shape != (len(private_labels), mechanism.num_votes):
        raise DataError("The votes do not fit the query: each image must vote exactly num_votes times.")
    if len(votes):
        ordered = np.sort(votes, axis=1)
        twice = mechanism.num_votes > 1 and bool((ordered[:, 1:] == ordered[:, :-1]).any())
        inside = ordered.min() >= 0 and ordered.max() < mechanism.num_categories
        classes = private_labels.min() >= 0 and private_labels.max() < mechanism.num_classes
        if twice or not inside or not classes:
            raise DataError("A vote or label is out of range, or an image votes twice for one category.")
    histogram = np.zeros((mechanism.num_classes, mechanism.num_categories), dtype=np.int64)
    np.add.at(histogram, (private_labels[:, None], votes), 1)
    return histogram


def add_noise(
    histogram: NDArray[np.int64],
    mechanism: HistogramQuery,
    *,
    insecure_random: InsecureRandomForTests | None = None,
) -> NDArray[np.float64]:
    """The released histogram: exact discrete Gaussian noise (Canonne et al. 2020, by OpenDP) on every cell.

    Guarantee: integer arithmetic on a lattice of 1/1024 vote, entropy from the operating system, standard deviation
    `mechanism.noise_stddev`. `insecure_random` replaces the noise by reproducible draws and voids the guarantee.

    Raises:
        PrivacyRefused: OpenDP's own privacy map does not confirm the accounted noise multiplier.
    """
    if insecure_random is not None:
        draws = insecure_random.normal(histogram.size).reshape(histogram.shape)
        return histogram + mechanism.noise_stddev * draws
    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T="i64")), opendp.l2_distance(T="f64")
    measurement = opendp.m.make_gaussian(*space, scale=mechanism.noise_stddev * LATTICE)
    rho = measurement.map(mechanism.sensitivity * LATTICE)
    if rho > 1.000001 / (2 * mechanism.noise_multiplier**2):
        raise PrivacyRefused(f"OpenDP bounds the query's zCDP by {rho}, above what its noise multiplier accounts for.")
    noisy = np.asarray(measurement((histogram * LATTICE).ravel().tolist()), dtype=np.float64)
    return noisy.reshape(histogram.shape) / LATTICE
