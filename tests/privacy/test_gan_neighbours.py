"""`test_neighbours`, for a GAN: its discriminator's step on a set, then on each of its neighbours, with the same draws.

"No image" brings no fakes: the loss of its whole pair is the constant 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from privimage.data.pixels import from_pixels
from privimage.generators.gan.gan import Gan
from privimage.generators.gan.networks import Discriminator, Painter
from privimage.generators.interface import Following
from privimage.methods.generators.gan import GanConfig, GanFinetune
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.gradients import Network
from privimage.privacy.mechanisms import DPSGDMechanism
from tests.engine_spy import Call, intercept
from tests.privacy.test_neighbours import (
    NO_IMAGE,
    ODD_LOSSES,
    Noticed,
    check_all_neighbours,
    each_draw_clipped_alone,
    loop,
    mechanism_for,
    normalised_by_the_batch,
    odd_images,
    on_inputs,
    plain_images,
)

CONFIG = GanFinetune(
    noise_samples=2, learning_rate=1e-3, ema_decay=0.5, generator_batch_size=4, generator_learning_rate=1e-2
)


class MarkedGan(Gan):
    """A real GAN to which blank pictures of certain gray values mean "no image", or an image of odd loss."""

    def private_loss(self, network: Network, *rows: Tensor) -> Tensor:
        losses = super().private_loss(network, *rows)
        factor = torch.ones_like(losses)
        for gray, odd in ODD_LOSSES.items():
            factor = torch.where(marked(rows[0], gray), torch.full_like(losses, odd), factor)
        return torch.where(marked(rows[0], NO_IMAGE), torch.zeros_like(losses), losses) * factor


def marked(images: Tensor, gray: int) -> Tensor:
    value = from_pixels(torch.tensor(gray, dtype=torch.uint8)).to(images.device)
    return (images == value).flatten(1).all(1)


def new_marked_gan(broken_weight: float | None = None) -> MarkedGan:
    config = GanConfig(base_channels=8, channel_multipliers=(1, 1), latent_dim=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        painter = Painter(config, channels=1, resolution=8, num_classes=2)
        discriminator = Discriminator(config, channels=1, num_classes=2)
    if broken_weight is not None:
        with torch.no_grad():
            next(discriminator.parameters()).view(-1)[0] = broken_weight
    return MarkedGan(painter, discriminator, config=config, num_classes=2)


def check(*data: Any, config: GanFinetune = CONFIG, **settings: Any) -> int:
    return check_all_neighbours(
        *data, denoiser=settings.pop("gan", None) or new_marked_gan(), config=config, **settings
    )


@pytest.mark.parametrize(("draws", "rows_at_once"), [(1, 1), (1, 1000), (3, 1000)])
def test_no_image_moves_the_discriminators_step_by_more_than_is_accounted_nor_anything_but_the_sum(
    draws: int, rows_at_once: int
) -> None:
    config = CONFIG.model_copy(update={"noise_samples": draws})
    assert check(*plain_images(), config=config, rows_at_once=rows_at_once) == 2 + 4


def test_neither_do_images_with_a_twin_or_whose_gradient_is_no_number() -> None:
    assert check(*odd_images(), reaching=False) == 3 + 6


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e38])
def test_neither_do_images_seen_by_a_discriminator_that_has_diverged(weight: float) -> None:
    check(*plain_images(3), reaching=False, gan=new_marked_gan(broken_weight=weight))


def test_neither_does_any_image_over_many_steps_with_real_coins() -> None:
    images, labels = plain_images(3)
    mechanism = mechanism_for(images, num_steps=6)
    assert 0 < check(images, labels, mechanism=mechanism, source=SecretRandom(), reaching=False) < 18


def fakes_outside_of_the_clipped_sum(patch: pytest.MonkeyPatch) -> None:
    """Added to it once an image, as they are: "no image" would have fakes, but for the label that it does not have."""

    def clipped_and_more(call: Call) -> ClippedSum:
        clipped = call.go_on()
        for images, fakes, _ in call.images():
            present = torch.where(marked(images, NO_IMAGE), 0.0, 1e-3).mean()
            clipped.value.add_(present * fakes.abs().mean())
        return clipped

    intercept(patch, clipped_and_more)


def painter_learns_from_the_exact_sum(patch: pytest.MonkeyPatch) -> None:
    real_gradient, real_follow = loop.noisy_mean_gradient, Gan.follow
    norms: list[float] = []

    def gradient(clipped: ClippedSum, mechanism: DPSGDMechanism, random: Any) -> Tensor:
        norms.append(float(clipped.value.norm()))
        released: Tensor = real_gradient(clipped, mechanism, random)
        return released

    def follow(self: Gan, *given: Any, **named: Any) -> Following | None:
        following = real_follow(self, *given, **named)
        for tensor in following.gradient.values() if following else ():
            tensor.add_(norms[-1])
        return following

    patch.setattr(loop, "noisy_mean_gradient", gradient)
    patch.setattr(Gan, "follow", follow)


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (each_draw_clipped_alone, "but at most 0.001 is accounted"),
        (on_inputs(normalised_by_the_batch), "but at most 0.001 is accounted"),
        (fakes_outside_of_the_clipped_sum, "but at most 0.001 is accounted"),
        (painter_learns_from_the_exact_sum, "more differs than the mechanism released|operator"),
    ],
    ids=["draws clipped alone", "normalised by the batch", "fakes outside", "painter learns from the exact sum"],
)
def test_a_step_that_breaks_the_claim_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Noticed, match=complaint):
        check(*plain_images(4))
