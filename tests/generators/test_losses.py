"""Denoising losses: one noise for all images, whatever the batches, and lower where the network was trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from privimage.evaluation.membership import membership
from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.generators.diffusion.losses import denoising_losses
from privimage.generators.training.pretrain import evenly, pretrain
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionFinetune, DiffusionPretrain

CPU = torch.device("cpu")


def some(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (num, 1, 8, 8), dtype=np.uint8), generator.integers(0, 2, num)


def losses(denoiser: Denoiser, images: np.ndarray, labels: np.ndarray, batch_size: int = 64) -> np.ndarray:
    return denoising_losses(denoiser, images, labels, DiffusionFinetune(), device=CPU, batch_size=batch_size)


def test_an_image_has_the_same_loss_in_any_batch_and_each_time(awake: Callable[..., Denoiser]) -> None:
    denoiser, (images, labels) = awake(), some(21, 0)
    whole = losses(denoiser, images, labels)
    assert np.allclose(whole, losses(denoiser, images, labels, batch_size=4), rtol=1e-5)
    assert np.allclose(whole[5:9], losses(denoiser, images[5:9], labels[5:9]), rtol=1e-5)
    assert len(set(whole.round(4))) > 15


def test_the_attack_finds_the_images_of_a_generator_that_learned_them_by_heart() -> None:
    denoiser = new_denoiser(
        DenoiserConfig(base_channels=16, channel_multipliers=(1, 2)), channels=1, num_classes=2, seed=0
    )
    (members, labels), (others, other_labels) = some(100, 1), some(100, 2)
    state = pretrain(
        denoiser,
        torch.from_numpy(members),
        evenly(torch.from_numpy(labels)),
        DiffusionPretrain(num_steps=200, batch_size=50, learning_rate=3e-3, ema_decay=0.9),
        state=None,
        on_step=lambda state, loss: None,
    )
    denoiser.load_state_dict(state.ema)
    one, other = (-losses(denoiser, images, shown) for images, shown in ((members, labels), (others, other_labels)))
    assert membership(one, other, 1e-5).auc.low > 0.6
