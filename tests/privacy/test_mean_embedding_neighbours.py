"""DP-MERF's one private function, pixels to sums before the noise, on a set and on each of its neighbours.

"No image" adds nothing to any sum. That only its own row of vectors then changes is half of the claim; that this row has
norm at most 1 is the other. Whatever the missing image was must not be seen in the vectors of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.config.classifier import ClassifierConfig
from privimage.generators.mean_embedding.critic import Critic
from privimage.generators.mean_embedding.features import (
    Features,
    JointFeatures,
    RandomFeatures,
    median_distance,
    new_features,
    scaling_of,
)
from privimage.generators.mean_embedding.matching import Embedded
from privimage.methods.generators.mean_embedding import MeanEmbedding
from privimage.privacy import class_sums
from privimage.privacy.class_sums import PER_UNIT, noisy_class_sums
from privimage.privacy.mechanisms import ClassSums
from privimage.semantics.classifier import new_classifier

CONFIG = MeanEmbedding(num_features=100, critic_features=60)
CPU = torch.device("cpu")
CLASSES = 3
Images = NDArray[np.uint8]


class Noticed(AssertionError):
    """One image changes more than is accounted."""


def features_of(lengthscale: float = 3.0) -> Features:
    """Of pixels, and of what an untrained critic sees."""
    of_pixels = new_features(64, CONFIG.num_features, lengthscale=lengthscale, seed=0, device=CPU)
    network = new_classifier(ClassifierConfig(base_channels=4, blocks=(1, 1)), channels=1, num_categories=3).eval()
    public = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        scaling = scaling_of(network.activations(public))
    critic = Critic(network=network, scaling=scaling, lengthscale=5.0)
    of_critic = new_features(
        len(scaling.mean), CONFIG.critic_features, lengthscale=5.0, seed=2, device=CPU, view=critic
    )
    return JointFeatures(parts=(of_pixels, of_critic), shares=(0.3, 0.7))


def images_with_twins() -> tuple[Images, NDArray[np.int64]]:
    """Noise, black, white, and twins in one class and across two."""
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    images[1], images[2], images[4], images[5] = 0, 255, images[3], images[3]
    return images, np.array([0, 0, 1, 1, 1, 2, 0, 0, 0])


def exact_sums(
    images: Images, labels: NDArray[np.int64], patch: pytest.MonkeyPatch, missing: int | None = None
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """What noise is added to, in whole units, and what is said of the noise. One image may be missing, at its place."""
    asked: list[tuple[NDArray[np.int64], dict[str, Any]]] = []
    vectors = Embedded(private_images=images, features=features_of())[:]
    if missing is not None:
        vectors[missing] = 0
    mechanism = ClassSums(
        num_images=len(images),
        num_classes=CLASSES,
        dimension=CONFIG.num_features + CONFIG.critic_features + 1,
        noise_multiplier=2.0,
    )

    def add_noise(points: NDArray[np.int64], mechanism: ClassSums, **named: Any) -> NDArray[np.float64]:
        asked.append((points.copy(), {"noise": mechanism.noise_stddev, "shape": points.shape, **named}))
        return points / PER_UNIT

    patch.setattr(class_sums, "add_lattice_noise", add_noise)
    noisy_class_sums(vectors, labels, mechanism)
    ((points, about),) = asked
    return points, about


def check_all_neighbours(images: Images, labels: NDArray[np.int64], patch: pytest.MonkeyPatch) -> list[float]:
    """How far each image moves the sums, in units of what is accounted."""
    whole, about = exact_sums(images, labels, patch)
    moved = []
    for at, label in enumerate(labels):
        for instead in (images[at], np.zeros_like(images[at]), 255 - images[at]):
            others = images.copy()
            others[at] = instead
            sums, other = exact_sums(others, labels, patch, missing=at)
            change = [int(unit) for unit in (whole - sums).ravel()]
            elsewhere = np.delete(whole - sums, label, axis=0)
            if sum(unit**2 for unit in change) > PER_UNIT**2 or elsewhere.any() or other != about:
                raise Noticed(f"image {at} moves the sums by {sum(unit**2 for unit in change) ** 0.5 / PER_UNIT}")
            moved.append(sum(unit**2 for unit in change) ** 0.5 / PER_UNIT)
    return moved


def test_no_image_moves_the_sums_by_more_than_one_nor_those_of_another_class(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = check_all_neighbours(*images_with_twins(), monkeypatch)
    assert len(moved) == 3 * 9
    assert min(moved) > 0.999, "an image that is seen moves them by all but rounding"


def lengthscale_of_the_sensitive_images(patch: pytest.MonkeyPatch) -> None:
    real = Embedded.__getitem__

    def with_own_scale(self: Embedded, rows: slice) -> NDArray[np.float32]:
        return real(replace(self, features=features_of(median_distance(self.private_images))), rows)

    patch.setattr(Embedded, "__getitem__", with_own_scale)


def images_centred_by_their_mean(patch: pytest.MonkeyPatch) -> None:
    real = RandomFeatures.__call__
    patch.setattr(RandomFeatures, "__call__", lambda self, images: real(self, images - images.mean(0)))


def critic_that_still_trains(patch: pytest.MonkeyPatch) -> None:
    """Its batch norm then compares each image with those beside it."""
    real = Critic.__call__
    patch.setattr(Critic, "__call__", lambda self, images: (self.network.train(), real(self, images))[1])


def one_more_for_every_image(patch: pytest.MonkeyPatch) -> None:
    """A count beside the features that no norm includes."""
    real = class_sums.class_sums

    def counted(vectors: NDArray[np.floating], labels: NDArray[np.int64], mechanism: ClassSums) -> NDArray[np.int64]:
        sums = real(vectors, labels, mechanism)
        sums[:, -1] += np.bincount(labels[vectors.any(1)], minlength=CLASSES) * PER_UNIT
        return sums

    patch.setattr(class_sums, "class_sums", counted)


def features_of_the_whole_class(patch: pytest.MonkeyPatch) -> None:
    real = Embedded.__getitem__

    def spread(self: Embedded, rows: slice) -> NDArray[np.float32]:
        vectors = real(self, rows)
        mean: NDArray[np.float32] = vectors.mean(0)
        return (vectors + mean) / 2

    patch.setattr(Embedded, "__getitem__", spread)


@pytest.mark.parametrize(
    "plant",
    [
        lengthscale_of_the_sensitive_images,
        images_centred_by_their_mean,
        critic_that_still_trains,
        one_more_for_every_image,
        features_of_the_whole_class,
    ],
)
def test_what_breaks_the_claim_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Noticed):
        check_all_neighbours(*images_with_twins(), monkeypatch)


def test_an_image_has_the_same_vector_whatever_stands_beside_it() -> None:
    images, _ = images_with_twins()
    whole = Embedded(private_images=images, features=features_of())[:]
    for at in range(len(images)):
        others = 255 - images
        others[at] = images[at]
        assert np.array_equal(Embedded(private_images=others, features=features_of())[:][at], whole[at])


def test_the_features_of_few_images_are_in_memory_at_a_time() -> None:
    seen = []

    class Counting:
        size, device = 2, CPU

        def __call__(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return images.flatten(1)[:, :2]

    images = np.random.default_rng(0).integers(0, 256, (600, 1, 8, 8), dtype=np.uint8)
    vectors = Embedded(private_images=images, features=Counting())
    assert np.array_equal(vectors[:], np.concatenate([vectors[at : at + 1] for at in range(600)]))
    assert max(seen) <= 256 and vectors[600:].shape == (0, 3)
