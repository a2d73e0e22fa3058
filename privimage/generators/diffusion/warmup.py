"""Warm-up of a denoiser with class mean images: post-processing of them and of public images, no privacy cost.

At a high noise level, the best denoiser's answer is the mean of the class. So it is trained on noisy mean images there, and
on selected public images below, where detail is decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from privimage.data.pixels import from_pixels
from privimage.generators.diffusion.denoiser import Denoiser
from privimage.generators.training.compute import IN_THIS_PROCESS, ComputeSettings
from privimage.generators.training.pretrain import PretrainState, random_of_step, train
from privimage.methods.generators.diffusion import ClassMeans, DiffusionPretrain

__all__ = ["draw_rows", "warm_up"]


def warm_up(
    denoiser: Denoiser,
    means: Tensor,
    public: tuple[Tensor, Tensor] | None,
    config: ClassMeans,
    pretrain: DiffusionPretrain,
    *,
    on_step: Callable[[PretrainState, float], None],
    compute: ComputeSettings = IN_THIS_PROCESS,
) -> PretrainState:
    """Train `denoiser` (changed in place) further; the result's `ema` are the weights to use.

    Args:
        means: float (classes, C, H, W).
        public: uint8 NCHW images, which may be mapped from a file, and their classes; None, and class mean images are trained
            on alone, at all noise levels (DP-FETA).
        pretrain: how public images are drawn, and labels hidden, as before.
        on_step: called after every step, with the loss.

    Raises:
        TrainingError: a loss, or a weight after the last step, is not finite.
    """
    return train(
        denoiser,
        lambda step: draw_rows(denoiser, means, public, config, pretrain, step),
        config,
        section="generator.class_means",
        state=None,
        on_step=on_step,
        compute=compute,
    )


def draw_rows(
    denoiser: Denoiser,
    means: Tensor,
    public: tuple[Tensor, Tensor] | None,
    config: ClassMeans,
    pretrain: DiffusionPretrain,
    step: int,
) -> dict[str, Tensor]:
    """The rows of one step, as `Denoiser.public_losses` takes them: mean images first."""
    random = random_of_step(config.seed, step)
    # At least one of either kind.
    of_means = config.batch_size
    if public is not None and config.share < 1:
        of_means = min(max(1, round(config.share * config.batch_size)), config.batch_size - 1)
    classes = torch.randint(len(means), (of_means,), generator=random)
    rows = denoiser.public_rows(_mirrored(means[classes], pretrain, random), classes, pretrain, random)
    if public is None:
        return rows
    span = math.log(config.sigma_max / config.sigma_min)
    rows["sigma"] = config.sigma_min * torch.exp(span * torch.rand(of_means, generator=random))
    if of_means == config.batch_size:
        return rows
    images, labels = public
    chosen = torch.randint(len(images), (config.batch_size - of_means,), generator=random)
    others = denoiser.public_rows(
        _mirrored(from_pixels(images[chosen]), pretrain, random), labels[chosen], pretrain, random
    )
    others["sigma"] = others["sigma"].clamp(max=config.sigma_min)
    return {name: torch.cat([rows[name], others[name]]) for name in rows}


def _mirrored(images: Tensor, pretrain: DiffusionPretrain, random: torch.Generator) -> Tensor:
    """As in pre-training: each image by a coin, where that is configured."""
    if not pretrain.horizontal_flip:
        return images
    mirrored = torch.rand(len(images), generator=random) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)
