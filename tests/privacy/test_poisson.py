"""Poisson sampling: each documented property is accepted of the real sampler and rejected of a plausible wrong one.

Limits are set so that the chance of a false alarm is below 1e-6 for each test, counting all its comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from privimage.data.pixels import from_pixels
from privimage.generators.diffusion.denoiser import new_denoiser
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionFinetune
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.privacy.poisson import poisson_batch
from tests.engine_spy import Call, intercept

# Typed Any: what is replaced in it is no part of its interface.
loop: Any = import_module("privimage.generators.training.finetune")

IMAGES, RATE, STEPS = 200, 0.1, 20_000
Inclusions = NDArray[np.float64]


def table(batches: Iterator[NDArray[np.int64]]) -> Inclusions:
    """(steps, images): 1 where the image was in the batch."""
    included = np.zeros((STEPS, IMAGES))
    for row, batch in zip(included, batches, strict=True):
        row[batch] = 1
    return included


@pytest.fixture(scope="module")
def poisson() -> Inclusions:
    random = SecretRandom()
    return table(poisson_batch(IMAGES, RATE, random) for _ in range(STEPS))


def marginal_rate(included: Inclusions) -> bool:
    """200 z-scores below 6.5: two-sided normal tail 8e-11 each."""
    scores = (included.sum(0) - STEPS * RATE) / (STEPS * RATE * (1 - RATE)) ** 0.5
    return bool((np.abs(scores) < 6.5).all())


def pairwise_independence(included: Inclusions) -> bool:
    """19,900 correlations below 7.5 of their standard deviations: 6e-14 each, times 33 for the skew of products."""
    centred = (included - RATE) / (RATE * (1 - RATE)) ** 0.5
    scores = (centred.T @ centred) / STEPS**0.5
    return bool((np.abs(scores[np.triu_indices(IMAGES, 1)]) < 7.5).all())


def independence_across_steps(included: Inclusions) -> bool:
    """Per image, correlation with itself 1, 2 and 10 steps later: 600 scores below 7.5."""
    centred = (included - RATE) / (RATE * (1 - RATE)) ** 0.5
    scores = [(centred[:-lag] * centred[lag:]).sum(0) / (STEPS - lag) ** 0.5 for lag in (1, 2, 10)]
    return bool((np.abs(scores) < 7.5).all())


def binomial_size(included: Inclusions) -> bool:
    """Mean to 7 standard errors, variance to 7 % (its relative standard error is 1 %)."""
    sizes = included.sum(1)
    variance = IMAGES * RATE * (1 - RATE)
    mean = abs(sizes.mean() - IMAGES * RATE) < 7 * (variance / STEPS) ** 0.5
    return bool(mean and abs(sizes.var() / variance - 1) < 0.07)


def fixed_size() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        yield generator.choice(IMAGES, int(IMAGES * RATE), replace=False)


def shuffled_epochs() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    for _ in range(int(STEPS * RATE)):
        yield from generator.permutation(IMAGES).reshape(int(1 / RATE), -1)


def one_coin_for_two_images() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        pairs = np.flatnonzero(generator.random(IMAGES // 2) < RATE)
        yield np.concatenate([2 * pairs, 2 * pairs + 1])


def each_batch_twice() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    for _ in range(STEPS // 2):
        batch = np.flatnonzero(generator.random(IMAGES) < RATE)
        yield from (batch, batch)


def first_image_more_often() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    rates = np.full(IMAGES, RATE)
    rates[0] = 1.2 * RATE
    for _ in range(STEPS):
        yield np.flatnonzero(generator.random(IMAGES) < rates)


@pytest.mark.parametrize(
    ("has_property", "wrong_sampler"),
    [
        (marginal_rate, first_image_more_often),
        (pairwise_independence, one_coin_for_two_images),
        (independence_across_steps, shuffled_epochs),
        (independence_across_steps, each_batch_twice),
        (binomial_size, fixed_size),
        (binomial_size, one_coin_for_two_images),
    ],
)
def test_the_sampler_has_the_property_and_a_wrong_sampler_has_not(
    has_property: Callable[[Inclusions], bool],
    wrong_sampler: Callable[[], Iterator[NDArray[np.int64]]],
    poisson: Inclusions,
) -> None:
    assert has_property(poisson)
    assert not has_property(table(wrong_sampler()))


def test_a_batch_is_ascending_row_numbers_without_repeats() -> None:
    batch = poisson_batch(1000, 0.5, SecretRandom())
    assert batch.dtype == np.int64
    assert (np.diff(batch) > 0).all()
    assert batch.min() >= 0 and batch.max() < 1000


def test_rate_0_takes_none_and_rate_1_takes_all() -> None:
    random = SecretRandom()
    assert poisson_batch(10_000, 0.0, random).size == 0
    assert (poisson_batch(10_000, 1.0, random) == np.arange(10_000)).all()
    assert poisson_batch(0, 0.5, random).size == 0


CAP = 22
CAPPED_STEPS = 40_000


@pytest.fixture(scope="module")
def capped() -> list[NDArray[np.int64]]:
    random = SecretRandom()
    return [poisson_batch(IMAGES, RATE, random, CAP) for _ in range(CAPPED_STEPS)]


def expected_capped_size() -> float:
    sizes = np.arange(IMAGES + 1)
    return float((np.minimum(sizes, CAP) * binom.pmf(sizes, IMAGES, RATE)).sum())


def is_cut_at_the_cap(batches: list[NDArray[np.int64]]) -> bool:
    """The largest size is the cap, and as many batches have it as Poisson batches reach it: to 7 standard errors."""
    full = np.mean([batch.size == CAP for batch in batches])
    reach = float(binom.sf(CAP - 1, IMAGES, RATE))
    return max(batch.size for batch in batches) == CAP and abs(full - reach) < 7 * (reach / len(batches)) ** 0.5


def keeps_each_image_equally_often(batches: list[NDArray[np.int64]]) -> bool:
    """200 z-scores below 6.5, of a rate that is the same for all images: the mean capped size over their number."""
    counts = np.bincount(np.concatenate(batches), minlength=IMAGES)
    rate = expected_capped_size() / IMAGES
    return bool((np.abs(counts - len(batches) * rate) < 6.5 * (len(batches) * rate * (1 - rate)) ** 0.5).all())


def first_rows_kept() -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    return [np.flatnonzero(generator.random(IMAGES) < RATE)[:CAP] for _ in range(CAPPED_STEPS)]


def never_cut() -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    return [np.flatnonzero(generator.random(IMAGES) < RATE) for _ in range(CAPPED_STEPS)]


def all_of_one_size() -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    return [np.sort(generator.choice(IMAGES, CAP, replace=False)) for _ in range(CAPPED_STEPS)]


@pytest.mark.parametrize(
    ("has_property", "wrong_sampler"),
    [
        (is_cut_at_the_cap, never_cut),
        (is_cut_at_the_cap, all_of_one_size),
        (keeps_each_image_equally_often, first_rows_kept),
    ],
)
def test_a_capped_sampler_has_the_property_and_a_wrong_one_has_not(
    has_property: Callable[[list[NDArray[np.int64]]], bool],
    wrong_sampler: Callable[[], list[NDArray[np.int64]]],
    capped: list[NDArray[np.int64]],
) -> None:
    assert has_property(capped)
    assert not has_property(wrong_sampler())


def test_the_kept_images_are_independent_of_their_places(capped: list[NDArray[np.int64]]) -> None:
    """Which images are kept of a full batch: each pair of neighbours as often as any other pair."""
    full = [batch for batch in capped if batch.size == CAP]
    neighbours = float(np.mean([(np.diff(batch) == 1).sum() for batch in full]))
    expected = (IMAGES - 1) * CAP * (CAP - 1) / (IMAGES * (IMAGES - 1))
    assert abs(neighbours - expected) < 7 * (expected / len(full)) ** 0.5


def test_a_capped_batch_is_ascending_row_numbers_without_repeats(capped: list[NDArray[np.int64]]) -> None:
    assert all(batch.dtype == np.int64 and (np.diff(batch) > 0).all() for batch in capped[:1000])


class Counted:
    """Says how much is drawn; its draws are all the same."""

    guarantee = False

    def __init__(self, draw: float) -> None:
        self.draw = draw
        self.drawn: list[int] = []

    def uniform(self, count: int) -> NDArray[np.float64]:
        self.drawn.append(count)
        return np.full(count, self.draw)

    def normal(self, count: int) -> NDArray[np.float64]:
        raise AssertionError("sampling needs no normal draws")

    def seed(self) -> int:
        raise AssertionError("sampling needs no seed")


@pytest.mark.parametrize("cap", [None, 5])
def test_how_much_is_drawn_does_not_depend_on_the_batch(cap: int | None) -> None:
    none, all_images = Counted(0.9), Counted(0.1)
    assert poisson_batch(40, 0.5, none, cap).size == 0
    assert poisson_batch(40, 0.5, all_images, cap).size == (cap or 40)
    assert none.drawn == all_images.drawn


def images_used_by_fine_tuning(patch: pytest.MonkeyPatch, mechanism: DPSGDMechanism) -> Inclusions:
    """(steps, images): 1 where the pixels of the image, under its own label, reached the gradients of the step."""
    pixels = np.arange(mechanism.num_images, dtype=np.uint8)
    labels = np.arange(mechanism.num_images) % 2
    steps: list[NDArray[np.float64]] = []

    def no_gradients(call: Call) -> ClippedSum:
        found = torch.searchsorted(from_pixels(torch.from_numpy(pixels)), call.rows[0][:, 0, 0, 0].contiguous())
        assert torch.equal(call.rows[3], torch.from_numpy(labels)[found])
        steps[-1] += torch.bincount(found, minlength=mechanism.num_images).double().numpy()
        size = sum(tensor.numel() for tensor in call.parameters.values())
        return ClippedSum(value=torch.zeros(size), max_grad_norm=mechanism.max_grad_norm)

    def new_step(*arguments: Any) -> NDArray[np.int64]:
        steps.append(np.zeros(mechanism.num_images))
        rows: NDArray[np.int64] = real_batch(*arguments)
        return rows

    real_batch = loop.poisson_batch
    intercept(patch, no_gradients)
    patch.setattr(loop, "poisson_batch", new_step)
    denoiser = new_denoiser(
        DenoiserConfig(base_channels=8, channel_multipliers=(1,)), channels=1, num_classes=2, seed=0
    )
    loop.finetune(
        denoiser,
        np.broadcast_to(pixels[:, None, None, None], (mechanism.num_images, 1, 8, 8)).copy(),
        labels,
        mechanism,
        DiffusionFinetune(noise_samples=1, label_dropout=0.0),
        state=loop.start_state({name: tensor.detach() for name, tensor in denoiser.named_parameters()}),
        random=SecretRandom(),
        on_step=lambda state: None,
    )
    return np.stack(steps)


def test_the_images_that_fine_tuning_uses_are_those_of_independent_coins_of_the_accounted_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mechanism = DPSGDMechanism(
        num_images=120,
        expected_batch_size=24,
        num_steps=400,
        restart_allowance=0,
        max_grad_norm=1e-3,
        noise_multiplier=1.0,
    )
    included = images_used_by_fine_tuning(monkeypatch, mechanism)
    steps, images = included.shape
    assert (steps, images) == (400, 120) and set(np.unique(included)) == {0.0, 1.0}
    rate = mechanism.event.event.sampling_probability
    per_image = (included.sum(0) - steps * rate) / (steps * rate * (1 - rate)) ** 0.5
    assert (np.abs(per_image) < 6.5).all()

    def of_rate(accounted: float) -> bool:
        return 1e-9 < float(binom.cdf(included.sum(), included.size, accounted)) < 1 - 1e-9

    assert of_rate(rate)
    assert not of_rate(rate * 2 / 3) and not of_rate(rate * 3 / 2)
    centred = (included - rate) / (rate * (1 - rate)) ** 0.5
    for one, other in [
        (centred[:, :-1], centred[:, 1:]),  # neighbours in the table, within a step
        (centred[:, : images // 2], centred[:, images // 2 :]),
        (centred[:-1], centred[1:]),  # the same image, one step later
        (centred[: steps // 2], centred[steps // 2 :]),
    ]:
        assert abs(float((one * other).sum())) < 7 * one.size**0.5
    sizes = included.sum(1)
    assert abs(sizes.var() / (images * rate * (1 - rate)) - 1) < 7 * (2 / steps) ** 0.5
    assert len(np.unique(sizes)) > 10


def test_the_rate_of_a_coin_is_never_rounded_up() -> None:
    """Of all 2^52 uniforms, at most a share of `sample_rate` lets an image in: the accounted rate is a bound."""

    class These(SecretRandom):
        def uniform(self, count: int) -> np.ndarray:
            return (np.array(cells) + 0.5) * 2.0**-52

    for rate in (0.3, 1 / 3, 2.0**-20, 2.0**-51, 1 - 2.0**-52):
        last = int(Fraction(rate) * 2**52) - 1  # cells 0 to last are a share of (last + 1) 2^-52, at most the rate
        cells = [last - 1, last, last + 1]
        taken = poisson_batch(3, rate, These())
        assert [cells[row] for row in taken] == cells[:2]
