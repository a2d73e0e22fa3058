"""Rejection sampling: which of several images is kept, and that no image depends on those beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from privimage.generators.interface import ImageSource
from privimage.generators.mean_embedding.critic import new_critic
from privimage.generators.mean_embedding.matching import new_embedding_generator
from privimage.generators.mean_embedding.rejection import RejectionSampling
from privimage.generators.sampling.sampler import initial_noise, synthesize_images
from privimage.methods.generators.mean_embedding import MeanEmbedding

SHAPE = (1, 8, 8)


class Flat(ImageSource):
    """Images of one grey value: their only latent number."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))  # what tells a device

    def noise_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        return (1,)

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        return noise[:, :, None, None].expand(-1, *SHAPE)


class Sign(nn.Module):
    """Says 1 of bright images, 0 of dark ones."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean((1, 2, 3))
        return torch.stack([-grey, grey], dim=1)


def test_the_first_image_whose_class_the_critic_sees_is_kept_and_else_the_last() -> None:
    source = RejectionSampling(Flat(), Sign(), attempts=3)
    noise = torch.tensor([[0.1, 0.2, -0.3], [-0.1, 0.2, 0.3], [-0.1, -0.2, 0.3], [-0.1, -0.2, -0.3]])[:, :, None]
    kept = source.sample(noise, torch.ones(4, dtype=torch.int64))
    assert kept[:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, -0.3])
    other = source.sample(noise, torch.zeros(4, dtype=torch.int64))
    assert other[:, 0, 0, 0].tolist() == pytest.approx([-0.3, -0.1, -0.1, -0.1])


def test_with_one_attempt_the_critic_has_nothing_to_say() -> None:
    seeds, labels = torch.arange(20), torch.arange(20) % 2
    alone = synthesize_images(Flat(), labels, seeds, SHAPE)
    rejecting = synthesize_images(RejectionSampling(Flat(), Sign(), attempts=1), labels, seeds, SHAPE)
    assert torch.equal(alone, rejecting)


def test_more_of_what_is_drawn_is_seen_as_its_class_and_each_image_is_of_its_own_seed_alone() -> None:
    torch.manual_seed(0)
    source = new_embedding_generator(
        MeanEmbedding(channel_multipliers=(1, 1)), channels=1, resolution=8, num_classes=4, seed=0
    )
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    shares = []
    for attempts in (1, 2, 8):
        rejecting = RejectionSampling(source, critic, attempts=attempts)
        labels, seeds = torch.arange(64) % 4, torch.arange(64)
        images = synthesize_images(rejecting, labels, seeds, SHAPE)
        seen = critic(images.float() / 127.5 - 1).argmax(1)
        shares.append(float((seen == labels).float().mean()))
        rows = torch.tensor([5, 60, 17])
        few = synthesize_images(rejecting, labels[rows], seeds[rows], SHAPE)
        assert torch.equal(few, images[rows])
    assert shares == sorted(shares) and shares[-1] > shares[0] + 0.2
    assert initial_noise(seeds[:2], rejecting.noise_shape(SHAPE)).shape == (2, 8, 16)


def test_a_critic_sees_an_image_the_same_whatever_stands_beside_it() -> None:
    config = MeanEmbedding(channel_multipliers=(1, 1), critic_channels=8)
    source = new_embedding_generator(config, channels=1, resolution=8, num_classes=4, seed=0)
    rejecting = RejectionSampling(source, new_critic(config, channels=1, num_classes=4), attempts=4).eval()
    labels, seeds = torch.arange(64) % 4, torch.arange(64)
    images = synthesize_images(rejecting, labels, seeds, SHAPE)
    rows = torch.tensor([5, 60, 17])
    assert torch.equal(synthesize_images(rejecting, labels[rows], seeds[rows], SHAPE), images[rows])
