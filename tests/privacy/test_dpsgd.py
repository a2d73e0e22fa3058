"""One step of DP-SGD: noise of the accounted scale, always, fresh, and divided by a public number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import kstest

from privimage.errors import PrivacyRefused
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.dpsgd import noisy_mean_gradient
from privimage.privacy.entropy import InsecureRandomForTests, SecretRandom
from privimage.privacy.mechanisms import DPSGDMechanism

ALARM = 1e-9
SIZE = 200_000
MECHANISM = DPSGDMechanism(
    num_images=1000,
    expected_batch_size=40,
    num_steps=10,
    restart_allowance=0,
    max_grad_norm=0.01,
    noise_multiplier=2.5,
)


def clipped(value: torch.Tensor) -> ClippedSum:
    return ClippedSum(value=value, max_grad_norm=MECHANISM.max_grad_norm)


def noise_in_units_of_the_accounted(value: torch.Tensor) -> torch.Tensor:
    released = noisy_mean_gradient(clipped(value), MECHANISM, SecretRandom())
    accounted = MECHANISM.event.event.event.noise_multiplier * MECHANISM.max_grad_norm
    return (released * MECHANISM.expected_batch_size - value) / accounted


@pytest.mark.parametrize("batch", ["empty", "some"])
def test_the_noise_has_the_accounted_scale_and_no_other_even_on_an_empty_batch(batch: str) -> None:
    value = torch.zeros(SIZE) if batch == "empty" else torch.linspace(-1e-4, 1e-4, SIZE)
    noise = noise_in_units_of_the_accounted(value).numpy()
    assert kstest(noise, "norm").pvalue > ALARM
    assert kstest(noise * 2 / 3, "norm").pvalue < ALARM
    assert kstest(noise * 3 / 2, "norm").pvalue < ALARM


def test_two_steps_share_no_noise() -> None:
    random = SecretRandom()
    first, second = (noisy_mean_gradient(clipped(torch.zeros(SIZE)), MECHANISM, random) for _ in range(2))
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(float(correlation)) < 7 / SIZE**0.5
    assert float((first - second).std() / first.std()) == pytest.approx(2**0.5, rel=0.02)


def test_no_two_coordinates_share_noise() -> None:
    noise = noise_in_units_of_the_accounted(torch.zeros(SIZE))
    for lag in (1, SIZE // 2):
        assert abs(float((noise[:-lag] * noise[lag:]).mean())) < 7 / (SIZE - lag) ** 0.5


def test_the_divisor_is_the_expected_batch_size_whatever_the_batch_was() -> None:
    value = torch.linspace(-0.3, 0.3, 50)
    noise = torch.from_numpy(InsecureRandomForTests(3).normal(50)).float()
    for batch in (torch.zeros(50), value, 10 * value):
        released = noisy_mean_gradient(clipped(batch), MECHANISM, InsecureRandomForTests(3))
        torch.testing.assert_close(released, (batch + 0.025 * noise) / 40)


def test_a_sum_clipped_to_another_norm_than_is_accounted_is_refused() -> None:
    with pytest.raises(PrivacyRefused, match=r"sensitivity 0\.01, the accounted mechanism 0\.005"):
        noisy_mean_gradient(clipped(torch.zeros(3)), replace(MECHANISM, max_grad_norm=0.005), SecretRandom())
