"""Warm-up with class mean images: which rows a step has, that it is reproducible, and that it learns the means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from privimage.data.pixels import from_pixels
from privimage.errors import TrainingError
from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.generators.diffusion.warmup import draw_rows, warm_up
from privimage.methods.generators.diffusion import ClassMeans, DenoiserConfig, DiffusionPretrain

CLASSES = 3
PRETRAIN = DiffusionPretrain(label_dropout=0.2)


def denoiser() -> Denoiser:
    config = DenoiserConfig(base_channels=8, channel_multipliers=(1, 2))
    return new_denoiser(config, channels=1, num_classes=CLASSES, seed=0)


def means() -> Tensor:
    """Of each class a constant picture, beyond what pixels can be: as noise makes them."""
    return torch.tensor([-1.5, 0.25, 1.25]).view(CLASSES, 1, 1, 1).expand(CLASSES, 1, 8, 8).clone()


def public() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (50, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (50,), generator=generator)


def of_means(rows: dict[str, Tensor]) -> Tensor:
    return rows["images"].flatten(1).std(dim=1) == 0


def test_a_step_has_its_share_of_mean_images_at_high_noise_and_public_ones_below() -> None:
    config = ClassMeans(num_steps=1, batch_size=1000, share=0.3, sigma_min=0.8, sigma_max=40)
    rows = draw_rows(denoiser(), means(), public(), config, PRETRAIN, 0)
    drawn = of_means(rows)
    assert drawn.sum() == 300
    high, low = rows["sigma"][drawn], rows["sigma"][~drawn]
    assert 0.8 <= high.min() < 0.9 and 35 < high.max() <= 40
    # Uniform in its logarithm.
    assert float(high.log().mean()) == pytest.approx(np.log(0.8 * 40) / 2, abs=0.2)
    assert low.max() == pytest.approx(0.8) and low.min() < 0.1
    assert float(rows["noise"].std()) == pytest.approx(1, abs=0.02)


def test_each_image_keeps_its_class_or_hides_it() -> None:
    config = ClassMeans(num_steps=1, batch_size=1000)
    rows = draw_rows(denoiser(), means(), public(), config, PRETRAIN, 0)
    images, labels = public()
    known = {
        tuple(image.flatten().tolist()): int(label) for image, label in zip(from_pixels(images), labels, strict=True)
    }
    known |= {tuple(mean.flatten().tolist()): number for number, mean in enumerate(means())}
    hidden = rows["labels"] == CLASSES
    assert 0.15 < float(hidden.double().mean()) < 0.25
    for image, label in zip(rows["images"][~hidden], rows["labels"][~hidden], strict=True):
        assert known[tuple(image.flatten().tolist())] == label
    assert set(rows["labels"][of_means(rows)].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("share", "expected"), [(0.001, 1), (0.5, 8), (0.999, 15), (1.0, 16)])
def test_a_batch_has_rows_of_both_kinds_unless_all_are_asked_for(share: float, expected: int) -> None:
    config = ClassMeans(num_steps=1, batch_size=16, share=share)
    rows = draw_rows(denoiser(), means(), public(), config, PRETRAIN, 0)
    assert len(rows["images"]) == 16
    assert of_means(rows).sum() == expected


def test_without_public_images_all_rows_are_of_means_at_the_noise_levels_of_training() -> None:
    config = ClassMeans(num_steps=1, batch_size=4000)
    rows = draw_rows(denoiser(), means(), None, config, PRETRAIN, 0)
    assert bool(of_means(rows).all())
    logs = rows["sigma"].log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.1)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.1)


def test_steps_draw_by_themselves_and_a_seed_gives_the_same_weights() -> None:
    config = ClassMeans(num_steps=3, batch_size=8, seed=5)
    losses: list[list[float]] = [[], []]
    found = [
        warm_up(denoiser(), means(), public(), config, PRETRAIN, on_step=lambda _, loss, at=at: losses[at].append(loss))
        for at in range(2)
    ]
    assert losses[0] == losses[1] and len(set(losses[0])) == 3
    assert all(torch.equal(found[0].ema[name], found[1].ema[name]) for name in found[0].ema)
    other = warm_up(
        denoiser(), means(), public(), config.model_copy(update={"seed": 6}), PRETRAIN, on_step=lambda *_: None
    )
    assert any(not torch.equal(found[0].ema[name], other.ema[name]) for name in other.ema)


def test_at_high_noise_the_warmed_up_denoiser_answers_with_the_mean_of_the_class() -> None:
    config = ClassMeans(num_steps=150, batch_size=64, learning_rate=5e-3, ema_decay=0.9)
    warmed = denoiser()

    @torch.no_grad()
    def error() -> float:
        noised = means() + 20 * torch.randn(means().shape, generator=torch.Generator().manual_seed(0))
        return float((warmed(noised, torch.full((CLASSES,), 20.0), torch.arange(CLASSES)) - means()).square().mean())

    before = error()
    state = warm_up(warmed, means(), public(), config, PRETRAIN, on_step=lambda *_: None)
    warmed.load_state_dict(state.ema)
    assert error() < 0.1 * before


def test_training_that_diverges_says_which_setting_to_lower() -> None:
    broken = means()
    broken[0] = float("nan")
    with pytest.raises(TrainingError, match=r"lower generator\.class_means\.learning_rate"):
        warm_up(denoiser(), broken, public(), ClassMeans(num_steps=5), PRETRAIN, on_step=lambda *_: None)
