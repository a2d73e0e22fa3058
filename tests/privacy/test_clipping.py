"""Per-image clipping: equal to the plain loop, bounded for every input, blind to how it is batched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from privimage.config import DenoiserConfig, FinetuneConfig
from privimage.errors import ConfigError
from privimage.generators.denoiser import Denoiser, from_pixels, new_denoiser
from privimage.generators.finetune import _draws, _loss_of_one_image
from privimage.privacy.clipping import clip_and_sum, clipped_gradient_sum

IMAGES, DRAWS = 7, 3
ROUNDING = 1 + 1e-5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_clip_and_sum(gradients: Sequence[Tensor], max_grad_norm: float) -> Tensor:
    """The obvious loop over images, in float64."""
    total = torch.zeros(sum(gradient.shape[1:].numel() for gradient in gradients), dtype=torch.float64)
    for number in range(len(gradients[0])):
        whole = torch.cat([gradient[number].flatten() for gradient in gradients]).double()
        total += whole * min(1.0, max_grad_norm / max(float(whole.norm()), 1e-300))
    return total


@given(
    count=st.integers(0, 6),
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    max_grad_norm=st.floats(1e-4, 1e3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_the_sum_is_that_of_a_plain_loop(
    count: int, shapes: list[list[int]], scale: float, max_grad_norm: float, seed: int
) -> None:
    gradients = [scale * torch.randn(count, *shape, generator=seeded(seed)) for shape in shapes]
    expected = slow_clip_and_sum(gradients, max_grad_norm)
    found = clip_and_sum(gradients, max_grad_norm).double()
    assert (found - expected).norm() <= 1e-4 * count * max_grad_norm


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=12), max_grad_norm=st.floats(1e-4, 1e3))
@settings(max_examples=200, deadline=None)
def test_no_float_whatsoever_passes_the_bound(values: list[float], max_grad_norm: float) -> None:
    found = clip_and_sum([torch.tensor([values], dtype=torch.float32)], max_grad_norm).double()
    assert torch.isfinite(found).all()
    assert found.norm() <= max_grad_norm


@pytest.mark.parametrize("length", [256, 257, 100_000, 3_000_000])
@pytest.mark.parametrize("kind", ["equal", "one large among small", "random"])
def test_the_bound_holds_for_long_gradients_too(length: int, kind: str) -> None:
    gradient = torch.full((1, length), 1e-4) if kind != "random" else torch.randn(1, length, generator=seeded())
    if kind == "one large among small":
        gradient[0, 0] = 1.0
    gradient *= 10 / gradient.double().norm().float()
    norm = clip_and_sum([gradient], 1.0).double().norm()
    assert 0.9998 <= norm <= 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_a_bad_image_counts_as_zero_and_poisons_no_other(bad: float) -> None:
    first, second = torch.randn(4, 3, 2, generator=seeded()), torch.randn(4, 5, generator=seeded(1))
    good = clip_and_sum([first[1:].clone(), second[1:].clone()], 0.5)
    first[0, 1, 1] = bad
    torch.testing.assert_close(clip_and_sum([first.clone(), second.clone()], 0.5), good)
    second[0] = bad
    torch.testing.assert_close(clip_and_sum([first, second], 0.5), good)


def test_a_gradient_below_the_bound_keeps_its_length() -> None:
    gradient = torch.tensor([[0.3, 0.4]])
    torch.testing.assert_close(clip_and_sum([gradient.clone()], 1.0), gradient[0], rtol=1e-4, atol=0)
    assert clip_and_sum([torch.zeros(1, 2)], 1.0).tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """Real, with attention, and moved off its initial zeros so that every parameter has a gradient."""
    config = DenoiserConfig(base_channels=8, channel_multipliers=(1, 2), attention_levels=(1,))
    denoiser = new_denoiser(config, channels=1, num_classes=2, seed=0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return denoiser


@pytest.fixture(scope="module")
def inputs() -> list[Tensor]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (IMAGES, 1, 8, 8), dtype=np.uint8)
    config = FinetuneConfig(noise_samples=DRAWS, label_dropout=0.3)
    return list(_draws(images, np.arange(IMAGES) % 2, 2, config, seed=5))


def total(denoiser: Denoiser, inputs: Sequence[Tensor], max_grad_norm: float, images_at_once: int = 4) -> Tensor:
    parameters = {name: tensor.detach() for name, tensor in denoiser.named_parameters()}
    clipped = clipped_gradient_sum(
        _loss_of_one_image(denoiser),
        parameters,
        inputs,
        max_grad_norm=max_grad_norm,
        images_at_once=images_at_once,
    )
    assert clipped.sensitivity == max_grad_norm
    return clipped.value


def without(inputs: Sequence[Tensor], number: int) -> list[Tensor]:
    return [torch.cat([tensor[:number], tensor[number + 1 :]]) for tensor in inputs]


def gradient_of(denoiser: Denoiser, inputs: Sequence[Tensor], number: int) -> Tensor:
    """By ordinary backward passes over the draws of one image: the oracle."""
    parameters = {name: tensor.detach().requires_grad_() for name, tensor in denoiser.named_parameters()}
    image, label, sigmas, noises = (tensor[number] for tensor in inputs)
    losses = []
    for sigma, noise in zip(sigmas, noises, strict=True):
        arguments = ((image + sigma * noise)[None], sigma[None], label[None])
        weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
        losses.append(weight * ((functional_call(denoiser, parameters, arguments) - image) ** 2).mean())
    torch.stack(losses).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in parameters.values()])


def test_the_denoisers_clipped_sum_is_that_of_ordinary_backward_passes(
    denoiser: Denoiser, inputs: list[Tensor]
) -> None:
    rows = torch.stack([gradient_of(denoiser, inputs, number) for number in range(IMAGES)])
    bound = float(rows.norm(dim=1).median())
    expected = slow_clip_and_sum([rows], bound)
    found = total(denoiser, inputs, bound).double()
    assert (found - expected).norm() <= 1e-4 * IMAGES * bound


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1.0])
def test_removing_any_image_changes_the_sum_by_at_most_the_bound(
    denoiser: Denoiser, inputs: list[Tensor], max_grad_norm: float
) -> None:
    whole = total(denoiser, inputs, max_grad_norm)
    changes = [
        float((whole - total(denoiser, without(inputs, number), max_grad_norm)).norm()) for number in range(IMAGES)
    ]
    assert max(changes) <= max_grad_norm * ROUNDING
    assert max(changes) >= 0.999 * max_grad_norm, "no image reaches the bound: this test would show nothing"


@pytest.mark.parametrize("draws", [1, 3, 8])
def test_one_image_counts_once_however_many_noise_draws_it_has(denoiser: Denoiser, draws: int) -> None:
    image = np.full((1, 1, 8, 8), 200, dtype=np.uint8)
    inputs = _draws(image, np.zeros(1, dtype=np.int64), 2, FinetuneConfig(noise_samples=draws), seed=1)
    norm = float(total(denoiser, inputs, 1e-4).norm())
    assert 0.999e-4 <= norm <= 1e-4 * ROUNDING


def test_no_image_changes_the_gradient_of_another(denoiser: Denoiser, inputs: list[Tensor]) -> None:
    changed = [tensor.clone() for tensor in inputs]
    changed[0][2] = from_pixels(torch.randint(0, 256, (1, 8, 8), generator=seeded(9)))
    alone, alone_changed = ([tensor[2:3] for tensor in rows] for rows in (inputs, changed))
    difference = total(denoiser, changed, 0.5) - total(denoiser, inputs, 0.5)
    alone_difference = total(denoiser, alone_changed, 0.5) - total(denoiser, alone, 0.5)
    assert alone_difference.norm() > 0.01
    torch.testing.assert_close(difference, alone_difference, rtol=0, atol=1e-5)


def test_images_at_once_changes_nothing(denoiser: Denoiser, inputs: list[Tensor]) -> None:
    whole = total(denoiser, inputs, 0.5, images_at_once=100)
    for images_at_once in (1, 2, 3, IMAGES):
        other = total(denoiser, inputs, 0.5, images_at_once=images_at_once)
        assert float((other - whole).norm() / whole.norm()) <= 1e-6


def test_an_empty_batch_gives_zeros(denoiser: Denoiser, inputs: list[Tensor]) -> None:
    found = total(denoiser, [tensor[:0] for tensor in inputs], 0.5)
    assert found.shape == (sum(parameter.numel() for parameter in denoiser.parameters()),)
    assert not found.any()


def test_an_image_of_nan_pixels_counts_as_zero(denoiser: Denoiser, inputs: list[Tensor]) -> None:
    broken = [tensor.clone() for tensor in inputs]
    broken[0][3] = float("nan")
    torch.testing.assert_close(total(denoiser, broken, 0.5), total(denoiser, without(inputs, 3), 0.5))


@pytest.mark.parametrize("max_grad_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_none_is_refused(denoiser: Denoiser, inputs: list[Tensor], max_grad_norm: float) -> None:
    with pytest.raises(ConfigError, match="max_grad_norm must be positive and finite"):
        total(denoiser, inputs, max_grad_norm)


def test_randomness_inside_the_loss_is_an_error() -> None:
    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return ((parameters["w"] - image) * torch.rand(2)).sum()

    with pytest.raises(RuntimeError, match="random"):
        clipped_gradient_sum(loss, {"w": torch.zeros(2)}, [torch.ones(3, 2)], max_grad_norm=1.0, images_at_once=3)
