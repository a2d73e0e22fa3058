"""The GAN: no layer mixes images, sensitive ones reach the discriminator alone, and a painted image is its seed's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privimage.data.pixels import from_pixels
from privimage.errors import ConfigError
from privimage.generators.gan.gan import Gan, new_gan
from privimage.generators.sampling.batches import sample_in_order
from privimage.generators.sampling.sampler import synthesize_images
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.finetune import FinetuneState, finetune, start_state
from privimage.generators.training.pretrain import PretrainState, evenly, pretrain
from privimage.generators.training.private_sum import PrivateSum
from privimage.methods.generators.gan import GanConfig, GanFinetune
from privimage.methods.training import PretrainConfig
from privimage.privacy.entropy import InsecureRandomForTests, Random, SecretRandom
from privimage.privacy.gradients import Backend
from privimage.privacy.mechanisms import DPSGDMechanism

IMAGES = 40
SHAPE = (1, 8, 8)
SMALL = GanConfig(base_channels=8, channel_multipliers=(1, 2), latent_dim=6)
CONFIG = GanFinetune(noise_samples=2, ema_decay=0.5, discriminator_steps=2, generator_batch_size=8)
MECHANISM = DPSGDMechanism(
    num_images=IMAGES, expected_batch_size=20, num_steps=4, restart_allowance=0, max_grad_norm=0.5, noise_multiplier=1.0
)


def small_gan(num_classes: int = 2, seed: int = 0, config: GanConfig = SMALL) -> Gan:
    return new_gan(config, channels=1, resolution=8, num_classes=num_classes, seed=seed)


def some_images(seed: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (IMAGES, *SHAPE), dtype=np.uint8), generator.integers(0, 2, IMAGES)


def begin(gan: Gan) -> FinetuneState:
    return start_state({name: tensor.detach() for name, tensor in gan.named_parameters()})


def run(
    gan: Gan,
    *,
    mechanism: DPSGDMechanism = MECHANISM,
    state: FinetuneState | None = None,
    random: Random | None = None,
    images: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None,
    on_step: Callable[[FinetuneState], None] = lambda state: None,
    compute: ComputeSettings | None = None,
) -> FinetuneState:
    return finetune(
        gan,
        *(images or some_images()),
        mechanism,
        CONFIG,
        state=state or begin(gan),
        random=random or SecretRandom(),
        on_step=on_step,
        compute=compute or ComputeSettings(),
    )


def flat(weights: dict[str, Tensor], prefix: str = "") -> Tensor:
    return torch.cat([tensor.flatten() for name, tensor in weights.items() if name.startswith(prefix)])


@pytest.mark.parametrize("backend", ["bookkeeping", "vmap", "opacus"])
def test_every_engine_knows_the_discriminators_gradients_image_by_image(backend: Backend) -> None:
    gan = small_gan()
    work = PrivateSum(generator=gan, config=CONFIG, max_grad_norm=1.0, compute=ComputeSettings(backend=backend))
    work.check(1, 8)


def test_a_discriminator_with_batch_statistics_is_refused_before_anything_is_drawn() -> None:
    class Nothing(SecretRandom):
        def uniform(self, count: int) -> NDArray[np.float64]:
            raise AssertionError("drawn")

    gan = small_gan()
    gan.discriminator.norm = nn.BatchNorm2d(16)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"norm \(BatchNorm2d\) mixes images; use GroupNorm"):
        run(gan, random=Nothing())


def test_a_discriminator_that_tells_everything_apart_still_passes_the_check() -> None:
    gan = small_gan()
    with torch.no_grad():
        gan.discriminator.score.weight.mul_(20)
    PrivateSum(generator=gan, config=CONFIG, max_grad_norm=1.0, compute=ComputeSettings()).check(1, 8)


def test_a_step_of_the_painter_that_does_not_fit_is_found_in_the_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*given: object, **named: object) -> Tensor:
        raise torch.OutOfMemoryError("the painter's batch")

    work = PrivateSum(generator=small_gan(), config=CONFIG, max_grad_norm=1.0, compute=ComputeSettings())
    work.rehearse(1, 8)
    monkeypatch.setattr(Gan, "_painter_losses", too_large)
    with pytest.raises(ConfigError, match=r"of a GAN, generator\.finetune\.generator_batch_size"):
        work.rehearse(1, 8)


def test_the_private_sum_has_the_discriminators_parameters_and_no_others() -> None:
    gan = small_gan()
    work = PrivateSum(generator=gan, config=CONFIG, max_grad_norm=1.0, compute=ComputeSettings())
    work.to(torch.device("cpu"))
    images, labels = (torch.from_numpy(array) for array in some_images())
    weights = torch.cat([parameter.detach().flatten() for parameter in gan.parameters()])
    total = work.share(weights, {"images": images, "labels": labels, "seed": torch.tensor([3])}, 0, 1)
    assert total.shape == (sum(parameter.numel() for parameter in gan.discriminator.parameters()),)
    parts = work.share(weights, {"images": images[:1], "labels": labels[:1], "seed": torch.tensor([3])}, 0, 1)
    assert 0 < float(parts.double().norm()) <= 1.0


def test_noise_is_the_accounted_one_for_every_weight_of_the_discriminator_and_none_is_added_to_the_painter() -> None:
    gan = small_gan()
    loud = replace(MECHANISM, num_steps=1, noise_multiplier=1000.0)
    state = run(gan, mechanism=loud)
    released = flat(state.exp_avg, "discriminator.") / 0.5 * loud.expected_batch_size / loud.noise_stddev
    # Of 1,000 times the sum: false alarms below 1e-6.
    assert float(released.std()) == pytest.approx(1.0, abs=0.01 + 5 / (2 * len(released)) ** 0.5)
    assert abs(float(released.mean())) < 0.01 + 5 / len(released) ** 0.5
    assert not flat(state.exp_avg, "painter.").any(), "the first of two steps leaves the painter alone"


def test_the_painter_learns_nothing_from_sensitive_images_but_what_the_discriminator_released() -> None:
    """Equal released weights, other images: the painter's step is the same to the bit."""
    gan = small_gan()
    weights = begin(gan).weights
    steps = [gan.follow(weights, CONFIG, step=2, seed=5) for _ in range(2)]
    assert all(torch.equal(steps[0].gradient[name], steps[1].gradient[name]) for name in steps[0].gradient)  # type: ignore[union-attr]
    assert set(steps[0].gradient) == {name for name in weights if name.startswith("painter.")}  # type: ignore[union-attr]

    class NoCoinFalls(InsecureRandomForTests):
        def uniform(self, count: int) -> NDArray[np.float64]:
            return np.full(count, 1 - 1e-9)

    # No image is drawn: what is released is noise alone, and all that follows from it is one and the same.
    one, other = (run(gan, images=some_images(seed), random=NoCoinFalls(0)) for seed in (1, 2))
    assert torch.equal(flat(one.weights), flat(other.weights)) and torch.equal(flat(one.ema), flat(other.ema))
    assert flat(one.exp_avg, "painter.").any()


def test_the_painter_takes_a_step_after_every_so_many_of_the_discriminator() -> None:
    gan = small_gan()
    before, moved = [flat(begin(gan).weights, "painter.")], []

    def look(state: FinetuneState) -> None:
        now = flat(state.weights, "painter.").clone()
        moved.append(not torch.equal(now, before[-1]))
        before.append(now)

    run(gan, on_step=look)
    assert moved == [False, True, False, True]


def test_going_on_from_a_state_is_going_on() -> None:
    """With the draws of the second half alone, the second half is the same: nothing else is carried over."""
    gan = small_gan()
    states: list[FinetuneState] = []

    def keep(state: FinetuneState) -> None:
        states.append(
            replace(state, **{group: {n: t.clone() for n, t in getattr(state, group).items()} for group in GROUPS})
        )

    class FreshEachStep(InsecureRandomForTests):
        """Draws that depend on the number of the step only."""

        def __init__(self, step: int) -> None:
            self.step = step
            super().__init__(step)

        def normal(self, count: int) -> NDArray[np.float64]:
            drawn = super().normal(count)
            self.step += 1
            super().__init__(self.step)
            return drawn

    whole = run(gan, random=FreshEachStep(0), on_step=keep)
    again = run(gan, random=FreshEachStep(2), state=states[1])
    for group in GROUPS:
        assert torch.equal(flat(getattr(again, group)), flat(getattr(whole, group))), group
    assert again.step == whole.step == 4


GROUPS = ("weights", "ema", "exp_avg", "exp_avg_sq")


def test_two_processes_release_what_one_does() -> None:
    quiet = replace(MECHANISM, num_steps=2, noise_multiplier=1e-9)
    cpu = torch.device("cpu")
    one, two = (
        run(
            small_gan(),
            mechanism=quiet,
            random=InsecureRandomForTests(3),
            compute=ComputeSettings(devices=(cpu,) * count),
        )
        for count in (1, 2)
    )
    assert float((flat(one.exp_avg) - flat(two.exp_avg)).norm() / flat(one.exp_avg).norm()) < 1e-4


def test_pre_training_resumes_to_the_bit_and_trains_both_networks() -> None:
    images, labels = (torch.from_numpy(array) for array in some_images())
    config = PretrainConfig(num_steps=6, batch_size=8)
    kept: list[PretrainState] = []

    def keep(state: PretrainState, loss: float) -> None:
        if state.step == 3:
            groups = {group: {n: t.clone() for n, t in getattr(state, group).items()} for group in GROUPS}
            kept.append(replace(state, curve=list(state.curve), **groups))

    begun = flat(dict(small_gan().named_parameters())).detach().clone()
    whole = pretrain(small_gan(), images, evenly(labels), config, state=None, on_step=keep)
    again = pretrain(small_gan(seed=1), images, evenly(labels), config, state=kept[0], on_step=lambda state, loss: None)
    assert torch.equal(flat(whole.ema), flat(again.ema))
    for prefix in ("painter.", "discriminator."):
        names = [name for name in whole.weights if name.startswith(prefix)]
        still = {name for name in names if not whole.exp_avg_sq[name].any()}
        assert still <= {"discriminator.score.bias"}, "it cancels in a pair whose losses are both above zero"
    assert not torch.equal(flat(whole.weights), begun)


def public_gradients(gan: Gan) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the pre-training loss by every weight, and the rows that it was taken of."""
    images, labels = (torch.from_numpy(array) for array in some_images())
    random = torch.Generator().manual_seed(0)
    rows = gan.public_rows(from_pixels(images[:8]), labels[:8], PretrainConfig(), random)
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in gan.named_parameters()}
    gradients = torch.autograd.grad(gan.public_losses(weights, rows).sum(), list(weights.values()))
    return dict(zip(weights, gradients, strict=True)), rows


def test_each_network_descends_its_own_loss_in_pre_training() -> None:
    gan = small_gan(config=SMALL.model_copy(update={"diversity": 0.0, "gradient_penalty": 0.0}))
    found, rows = public_gradients(gan)
    fakes = gan.painter(rows["latent"], rows["labels"])
    of_painter = torch.autograd.grad(
        -gan.discriminator(fakes, rows["labels"]).sum(), list(gan.painter.parameters()), retain_graph=True
    )
    pairs = gan.private_loss(gan.discriminator, rows["images"], fakes, rows["labels"])
    of_discriminator = torch.autograd.grad(pairs.sum(), list(gan.discriminator.parameters()))
    expected = torch.cat([gradient.flatten() for gradient in (*of_painter, *of_discriminator)])
    torch.testing.assert_close(flat(found), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_penalty_moves_the_discriminator_alone_and_diversity_the_painter_alone() -> None:
    plain = SMALL.model_copy(update={"diversity": 0.0, "gradient_penalty": 0.0})
    without, _ = public_gradients(small_gan(config=plain))
    for setting, moved, other in (
        ("gradient_penalty", "discriminator.", "painter."),
        ("diversity", "painter.", "discriminator."),
    ):
        found, _ = public_gradients(small_gan(config=plain.model_copy(update={setting: 1.0})))
        assert torch.equal(flat(found, other), flat(without, other)), setting
        assert not torch.allclose(flat(found, moved), flat(without, moved)), setting


def test_batch_size_and_devices_change_no_bit_of_an_image() -> None:
    gan = small_gan(num_classes=3).eval()
    cpu = torch.device("cpu")

    def sampled(devices: int, rows: int) -> NDArray[np.uint8]:
        batches = sample_in_order(gan, SHAPE, range(100), 7, (cpu,) * devices, rows)
        return np.concatenate([images for images, _ in batches])

    images = sampled(1, 64)
    assert images.shape == (100, *SHAPE) and images.std() > 0
    for devices, rows in ((1, 7), (2, 16), (3, 50)):
        assert np.array_equal(sampled(devices, rows), images), (devices, rows)
    alone = synthesize_images(gan, torch.tensor([2]), torch.tensor([5 + (7 << 32)]), SHAPE)
    assert np.array_equal(alone[0], images[5])
    other = synthesize_images(gan, torch.tensor([1]), torch.tensor([5 + (7 << 32)]), SHAPE)
    assert not np.array_equal(other[0], images[5]), "the label counts"
