"""Mixtures of public images: of two of one class, and like neither; and an autoencoder that learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from privimage.data.pixels import from_pixels
from privimage.generators.mean_embedding.mixing import CODE, Mixer, mixtures, train_mixer

CPU = torch.device("cpu")


def striped(count: int, resolution: int = 8, channels: int = 1) -> Tensor:
    """Images of few kinds: horizontal or vertical stripes of some brightness."""
    random = torch.Generator().manual_seed(0)
    bright = torch.randint(100, 256, (count, 1, 1, 1), generator=random)
    stripes = (torch.arange(resolution) // 2 % 2).view(1, 1, 1, -1).expand(count, channels, resolution, -1)
    turned = torch.where((torch.arange(count) % 2 == 0).view(-1, 1, 1, 1), stripes, stripes.transpose(2, 3))
    return (bright * turned).to(torch.uint8)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return striped(40)


@pytest.fixture(scope="module")
def mixer(images: Tensor) -> Mixer:
    return train_mixer(images, num_steps=150, seed=0, horizontal_flip=False, device=CPU)


def test_it_learns_to_decode_what_it_encoded(mixer: Mixer, images: Tensor) -> None:
    x = from_pixels(images)
    found = torch.nn.functional.mse_loss(mixer.decode(mixer.encode(x)), x)
    assert found < 0.1 * x.var()
    untrained = train_mixer(images, num_steps=1, seed=0, horizontal_flip=False, device=CPU)
    assert torch.nn.functional.mse_loss(untrained.decode(untrained.encode(x)), x) > 0.5 * x.var()


def test_the_same_seed_gives_the_same_and_leaves_the_global_generator(images: Tensor) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (
        train_mixer(images, num_steps=2, seed=seed, horizontal_flip=True, device=CPU).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_each_mixture_is_of_two_images_of_its_class(
    mixer: Mixer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes are decoded that lie between two of the class, nearer to neither than is allowed."""
    labels = torch.arange(40) % 3
    seen: list[Tensor] = []
    monkeypatch.setattr(mixer, "decode", lambda codes: (seen.append(codes), torch.zeros(len(codes), 1, 8, 8))[1])
    mixed, classes = mixtures(mixer, images, labels, 9, seed=0)
    assert mixed.shape == (27, 1, 8, 8) and mixed.dtype == torch.uint8
    assert classes.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    codes = mixer.encode(from_pixels(images))
    for code, label in zip(torch.cat(seen), classes.tolist(), strict=True):
        own = codes[labels == label]
        shares = torch.linspace(0.29, 0.71, 85).view(-1, 1, 1, 1)
        between = torch.nn.functional.layer_norm(shares * own[:, None] + (1 - shares) * own[None], (CODE,))
        distance = (between - code).square().mean(3)
        distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # of one image with itself
        assert distance.min() < 1e-3


def test_a_class_of_one_image_has_no_mixtures(mixer: Mixer, images: Tensor) -> None:
    """That would be this image."""
    mixed, classes = mixtures(mixer, images[:3], torch.tensor([0, 1, 1]), 4, seed=0)
    assert classes.tolist() == [1] * 4 and len(mixed) == 4


@pytest.mark.parametrize(("resolution", "channels"), [(8, 1), (16, 3), (28, 1), (31, 1), (64, 3)])
def test_any_size_comes_back(resolution: int, channels: int) -> None:
    mixer = Mixer(channels=channels, resolution=resolution)
    images = torch.zeros(2, channels, resolution, resolution)
    assert mixer.encode(images).shape == (2, CODE) and mixer.decode(mixer.encode(images)).shape == images.shape
