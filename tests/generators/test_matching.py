"""DP-MERF: the features are what they are said to be, and the painter learns the class means that it is given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from privimage.data.pixels import from_pixels
from privimage.errors import DataError, TrainingError
from privimage.generators.mean_embedding.features import Features, RandomFeatures, median_distance, new_features
from privimage.generators.mean_embedding.kind import losses_of_images
from privimage.generators.mean_embedding.matching import (
    Embedded,
    EmbeddingGenerator,
    class_means,
    match,
    new_embedding_generator,
)
from privimage.generators.sampling.batches import sample_in_order
from privimage.methods.generators.mean_embedding import MeanEmbedding
from privimage.privacy.class_sums import PER_UNIT, class_sums
from privimage.privacy.mechanisms import ClassSums

SHAPE = (1, 8, 8)
SMALL = MeanEmbedding(
    num_features=200, base_channels=8, channel_multipliers=(1, 2), latent_dim=4, num_steps=60, batch_size=40
)
CPU = torch.device("cpu")


def small_generator(num_classes: int = 2, config: MeanEmbedding = SMALL) -> EmbeddingGenerator:
    return new_embedding_generator(config, channels=1, resolution=8, num_classes=num_classes, seed=0)


def small_features(config: MeanEmbedding = SMALL, lengthscale: float = 4.0) -> Features:
    return new_features(math.prod(SHAPE), config.num_features, lengthscale=lengthscale, seed=config.seed, device=CPU)


def two_classes(images: int = 40) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Bright upper halves, or bright lower ones, with some noise."""
    generator = np.random.default_rng(1)
    labels = np.arange(images) % 2
    pixels = generator.integers(0, 40, (images, *SHAPE), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[0, 4 * label : 4 * label + 4] += 200
    return pixels, labels


def embed(images: NDArray[np.uint8], features: Features) -> NDArray[np.float32]:
    return Embedded(private_images=images, features=features)[:]


def sums_of(vectors: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    mechanism = ClassSums(num_images=len(labels), num_classes=classes, dimension=vectors.shape[1], noise_multiplier=1.0)
    return class_sums(vectors, labels, mechanism) / PER_UNIT


# ------------------------------------------------------------------ features


def test_features_are_cosines_and_sines_of_random_directions_one_image_at_a_time() -> None:
    images, _ = two_classes(6)
    features = small_features(lengthscale=3.0)
    found = features(from_pixels(torch.from_numpy(images))).double().numpy()
    normal = torch.randn(64, 100, generator=torch.Generator().manual_seed(SMALL.seed)).double().numpy()
    for row, image in zip(found, images, strict=True):
        pixels = (image.astype(np.float64) / 127.5 - 1).reshape(-1)
        angles = [sum(pixels * normal[:, direction]) / 3.0 for direction in range(100)]
        expected = [math.sqrt(2 / 200) * wave(angle) for wave in (math.cos, math.sin) for angle in angles]
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_their_inner_products_are_nearly_a_gaussian_kernel() -> None:
    images, _ = two_classes(12)
    x = from_pixels(torch.from_numpy(images))
    lengthscale = median_distance(images)
    many = SMALL.model_copy(update={"num_features": 20_000})
    found = small_features(many, lengthscale)(x)
    kernel = (-(torch.cdist(x.flatten(1), x.flatten(1)) ** 2) / (2 * lengthscale**2)).exp()
    # An inner product is a mean of 10,000 cosines: deviation at most 0.01.
    assert float((found @ found.T - kernel).abs().max()) < 0.06
    assert 0.3 < float(kernel.min()) < float(kernel.max()) == 1.0


@pytest.mark.parametrize("pixels", [0, 255, "noise"])
@pytest.mark.parametrize("lengthscale", [1e-3, 1.0, 1e6])
def test_what_an_image_adds_has_norm_one_and_is_never_more_than_the_sum_allows(
    pixels: int | str, lengthscale: float
) -> None:
    images = np.full((20, *SHAPE), pixels if isinstance(pixels, int) else 0, dtype=np.uint8)
    if pixels == "noise":
        images = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    vectors = embed(images, small_features(lengthscale=lengthscale))
    assert vectors.shape == (20, SMALL.num_features + 1)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1.0, atol=1e-5)
    for row in vectors:
        alone = sums_of(row[None], np.array([0]), 1)
        # Exactly: in whole units.
        assert 0.999 < sum(int(unit) ** 2 for unit in (alone * PER_UNIT).ravel()) / PER_UNIT**2 <= 1


def test_the_median_distance_is_that_of_all_pairs() -> None:
    images, _ = two_classes(9)
    x = images.reshape(9, -1).astype(np.float64) / 127.5 - 1
    pairs = sorted(float(np.linalg.norm(a - b)) for i, a in enumerate(x) for b in x[:i])
    assert median_distance(images) == pytest.approx(pairs[(len(pairs) - 1) // 2], rel=1e-5)


def test_class_means_are_those_of_each_class_whatever_its_size() -> None:
    images, labels = two_classes(40)
    labels[:30] = 0
    features = small_features()
    means = class_means(sums_of(embed(images, features), labels, 2), len(images))
    for label in (0, 1):
        of_class = features(from_pixels(torch.from_numpy(images[labels == label]))).mean(0)
        torch.testing.assert_close(means[label], of_class, atol=1e-4, rtol=1e-4)


def test_a_class_whose_noisy_count_is_nothing_is_not_divided_by_it() -> None:
    sums = np.ones((2, SMALL.num_features + 1))
    sums[:, -1] = (-5.0, 8.0)
    means = class_means(sums, 100)
    assert bool(means.isfinite().all())
    assert float(means[0, 0]) == pytest.approx(1 / math.sqrt(0.96) / 5), "a tenth of the mean size of 50"
    assert float(means[1, 0]) == pytest.approx(1 / math.sqrt(0.96) / 40)


# ------------------------------------------------------------------ training


def test_training_lowers_the_distance_and_paints_the_classes() -> None:
    images, labels = two_classes()
    features = small_features()
    means = class_means(sums_of(embed(images, features), labels, 2), len(images))
    generator, steps = small_generator(), []

    def painted(generator: EmbeddingGenerator) -> torch.Tensor:
        latent = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            return generator.sample(latent, torch.arange(64) % 2)

    def distance(pictures: torch.Tensor) -> float:
        return float(((features(pictures).view(32, 2, -1).mean(0) - means) ** 2).sum())

    before = distance(painted(generator))
    generator.load_state_dict(match(generator, means, features, SMALL, on_step=steps.append))
    pictures = painted(generator)
    assert steps == list(range(1, 61))
    assert distance(pictures) < before / 4
    upper = pictures[:, 0, :4].mean((1, 2)) > pictures[:, 0, 4:].mean((1, 2))
    assert upper.tolist() == [True, False] * 32


def test_training_is_a_function_of_the_embedding_and_the_configuration() -> None:
    features, means = small_features(), torch.zeros(2, 200)
    few = SMALL.model_copy(update={"num_steps": 3})
    runs = []
    for config in (few, few, few.model_copy(update={"seed": 1})):
        torch.manual_seed(len(runs))
        runs.append(match(small_generator(), means, features, config)["painter.paint.weight"])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_estimate_of_the_distance_is_unbiased_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that vary around the right mean are at its place: the plain square of two draws would say 2 more."""
    losses: list[float] = []
    real = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (losses.append(float(loss.detach())), real(loss))[0])

    class Noise(RandomFeatures):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.randn(len(images), 50) + 0 * images.sum()

    torch.manual_seed(0)
    config = SMALL.model_copy(update={"num_steps": 400, "batch_size": 4, "learning_rate": 1e-9})
    match(small_generator(), torch.zeros(2, 50), Noise(directions=torch.zeros(64, 25), view=torch.flatten), config)
    # Each is a sum of 100 products of normal draws: deviation 10, of the mean 0.5; the biased one would be 100.
    assert abs(float(np.mean(losses))) < 3


def test_training_that_diverged_is_told() -> None:
    with pytest.raises(TrainingError, match=r"lower generator\.learning_rate"):
        match(
            small_generator(),
            torch.full((2, 200), float("nan")),
            small_features(),
            SMALL.model_copy(update={"num_steps": 2}),
        )


# ------------------------------------------------------------------ sampling


def test_batch_size_and_devices_change_no_bit_of_an_image() -> None:
    generator = small_generator(num_classes=3).eval()

    def sampled(devices: int, rows: int) -> NDArray[np.uint8]:
        batches = sample_in_order(generator, SHAPE, range(50), 7, (CPU,) * devices, rows)
        return np.concatenate([images for images, _ in batches])

    images = sampled(1, 64)
    assert images.shape == (50, *SHAPE) and images.std() > 0
    assert np.array_equal(sampled(2, 7), images)


def test_it_has_no_loss_of_an_image_to_attack_by() -> None:
    images, labels = two_classes(4)
    with pytest.raises(DataError, match="mean embeddings has no loss of a given image"):
        losses_of_images(small_generator(), images, labels, SMALL, device=CPU, batch_size=4)
