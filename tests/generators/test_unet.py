"""The U-Net: every configured shape, no layer that mixes images, and a size that does not change unnoticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from privimage.generators.diffusion.denoiser import Denoiser
from privimage.generators.diffusion.unet import UNet
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.private_sum import PrivateSum
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionFinetune

NewDenoiser = Callable[..., Denoiser]

SHAPES = [
    ({}, 1, 8),
    ({"channel_multipliers": (1,)}, 3, 8),
    ({"channel_multipliers": (1, 3), "attention_levels": (1,)}, 1, 12),
    ({"channel_multipliers": (1, 2, 3), "attention_levels": (0, 2)}, 3, 12),
    ({"base_channels": 24, "channel_multipliers": (1, 5), "blocks_per_level": 2}, 1, 28),
    ({"base_channels": 40, "channel_multipliers": (3, 1, 7)}, 1, 20),
]


def inputs(count: int, channels: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, size, size, generator=generator)
    return x, torch.randn(count, generator=generator), torch.arange(count) % 3


@pytest.mark.parametrize(("config", "channels", "size"), SHAPES)
def test_the_output_has_the_shape_of_the_input(
    awake: NewDenoiser, config: dict[str, object], channels: int, size: int
) -> None:
    net = awake(channels=channels, **config).net
    out = net(*inputs(2, channels, size))
    assert out.shape == (2, channels, size, size)
    assert torch.isfinite(out).all() and float(out.detach().std()) > 0.01


@pytest.mark.parametrize(("config", "channels", "size"), SHAPES)
def test_no_image_sees_another(awake: NewDenoiser, config: dict[str, object], channels: int, size: int) -> None:
    net = awake(channels=channels, **config).net
    x, c_noise, labels = inputs(3, channels, size)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, c_noise, labels)[1].sum(), x)
    assert gradient[1].abs().max() > 0
    assert not gradient[[0, 2]].any()


def test_an_image_alone_gives_what_it_gives_among_others(awake: NewDenoiser) -> None:
    net = awake(attention_levels=(0, 1)).net
    x, c_noise, labels = inputs(4, 1, 8)
    alone = torch.cat([net(x[row : row + 1], c_noise[row : row + 1], labels[row : row + 1]) for row in range(4)])
    torch.testing.assert_close(net(x, c_noise, labels), alone, rtol=1e-4, atol=1e-5)


def test_training_mode_changes_nothing_there_are_no_running_statistics(awake: NewDenoiser) -> None:
    net = awake(attention_levels=(1,)).net
    assert torch.equal(net.train()(*inputs(2, 1, 8)), net.eval()(*inputs(2, 1, 8)))
    assert not list(net.buffers())


@pytest.mark.parametrize(("config", "channels", "size"), SHAPES)
def test_dp_sgd_can_use_every_shape(awake: NewDenoiser, config: dict[str, object], channels: int, size: int) -> None:
    denoiser = awake(channels=channels, **config)
    PrivateSum(generator=denoiser, config=DiffusionFinetune(), max_grad_norm=1.0, compute=ComputeSettings()).check(
        channels, size
    )


def test_attention_sees_all_pixels_of_an_image(awake: NewDenoiser) -> None:
    net = awake(channel_multipliers=(1,), attention_levels=(0,)).net
    x, c_noise, labels = inputs(1, 1, 32)
    moved = x.clone()
    moved[0, 0, 0, 0] += 3
    difference = (net(x, c_noise, labels) - net(moved, c_noise, labels)).detach().abs()
    assert difference[0, 0, 31, 31] > 0


def test_the_label_after_the_last_means_none_and_one_more_is_an_error(awake: NewDenoiser) -> None:
    net = awake(num_classes=2).net
    x, c_noise, _ = inputs(2, 1, 8)
    none = net(x, c_noise, torch.tensor([2, 2]))
    assert not torch.equal(none, net(x, c_noise, torch.tensor([0, 1])))
    with pytest.raises(IndexError):
        net(x, c_noise, torch.tensor([0, 3]))


@pytest.mark.parametrize(
    ("config", "channels", "expected"),
    [
        (DenoiserConfig(), 1, 561_793),
        (DenoiserConfig(base_channels=64, channel_multipliers=(1, 2, 2), attention_levels=(2,)), 3, 4_096_387),
    ],
)
def test_the_number_of_parameters_is_known(config: DenoiserConfig, channels: int, expected: int) -> None:
    net = UNet(config, channels=channels, num_classes=10)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_every_parameter_is_used(awake: NewDenoiser) -> None:
    net = awake(attention_levels=(1,)).net
    net(*inputs(3, 1, 8)).square().mean().backward()
    idle = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


def test_only_group_norm_normalises(awake: NewDenoiser) -> None:
    kinds = {type(module) for module in awake(attention_levels=(0, 1)).modules() if "Norm" in type(module).__name__}
    assert kinds == {nn.GroupNorm}
