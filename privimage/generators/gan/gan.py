"""A GAN as a generator: a painter, and a discriminator, of which only the second ever learns from sensitive images.

A step of DP-SGD trains the discriminator. Each sensitive image is paired with fakes of its label, painted for it, and the
gradient of the pair's hinge losses is clipped as one vector. The painter learns from the discriminator's weights alone.

Why a step's sensitivity is `max_grad_norm`: what is added up is one vector for each image of the batch. It is a function of
that image, its label, the weights, and numbers drawn for its place in the batch; it has norm at most `max_grad_norm`,
since clipping comes after the fakes' part was added; and it is zero for "no image", which brings no fakes. The fakes
could have been kept outside, since they depend on nothing private but then on labels of their own. In the pair, what real
and fake images have in common cancels before the gradient is clipped, and both sides have the same weight after it.
The weights are those of earlier steps: released, or computed from what was. So is all that the painter learns
(`Gan.follow`): it sees the discriminator's weights, and labels and latent numbers from a seed that is independent of the
images. Both claims hold for every value of the seeds, so these need not be secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from privimage.data.pixels import from_pixels
from privimage.generators.gan.networks import Discriminator, Painter
from privimage.generators.interface import Following, ImageGenerator, Weights
from privimage.methods.generators.gan import GanConfig, GanFinetune
from privimage.methods.training import PretrainConfig
from privimage.privacy.gradients import Network

__all__ = ["Gan", "new_gan"]

_PAINTER, _DISCRIMINATOR = "painter.", "discriminator."


class Gan(ImageGenerator[PretrainConfig, GanFinetune]):
    """Hinge losses (Lim and Ye 2017, arXiv:1705.02894); labels condition both networks."""

    # With a longer memory of gradients the two networks chase each other: fine-tuning then ended below where it began.
    betas = (0.5, 0.99)
    learner_prefix = _DISCRIMINATOR

    def __init__(self, painter: Painter, discriminator: Discriminator, *, config: GanConfig, num_classes: int) -> None:
        super().__init__()
        self.painter = painter
        self.discriminator = discriminator
        self.config = config
        self.num_classes = num_classes

    @property
    def learner(self) -> nn.Module:
        learner: nn.Module = self.discriminator
        return learner

    def public_rows(
        self, images: Tensor, labels: Tensor, config: PretrainConfig, random: torch.Generator
    ) -> dict[str, Tensor]:
        return {
            "images": images,
            "labels": labels,
            "latent": torch.randn(len(images), self.config.latent_dim, generator=random),
        }

    def public_losses(self, weights: Weights, rows: Mapping[str, Tensor]) -> Tensor:
        """Both networks' losses, each as a function of its own weights: both are trained at once.

        The discriminator's includes a gradient penalty on real images (Mescheder et al. 2018, arXiv:1801.04406).
        """
        images, labels = rows["images"].requires_grad_(), rows["labels"]
        fakes = self._paint(weights, rows["latent"], labels)
        discriminator = self._discriminator(weights)
        real = discriminator(images, labels)
        slopes = torch.autograd.grad(real.sum(), images, create_graph=True)[0].flatten(1)
        pair = functional.relu(1 - real) + functional.relu(1 + discriminator(fakes.detach(), labels))
        fixed = {name: tensor.detach() for name, tensor in weights.items()}
        penalty = self.config.gradient_penalty / 2 * (slopes**2).sum(1)
        return pair + penalty + self._painter_losses(weights, self._discriminator(fixed), fakes, rows["latent"], labels)

    def private_rows(
        self, images: Tensor, labels: Tensor, config: GanFinetune, random: torch.Generator, weights: Weights
    ) -> Sequence[Tensor]:
        """Images in [-1, 1], each draw mirrored by a coin of its own if so configured; fakes of their labels; labels."""
        x, shown = _drawn(images, labels, config, random)
        latent = torch.randn(len(x), self.config.latent_dim, generator=random, device=random.device)
        with torch.no_grad():
            return x, self._paint(weights, latent, shown), shown

    def made_up_rows(
        self, images: Tensor, labels: Tensor, config: GanFinetune, random: torch.Generator
    ) -> Sequence[Tensor]:
        """Noise as fakes too: a discriminator that tells made-up images from painted ones would have no gradient."""
        x, shown = _drawn(images, labels, config, random)
        return x, 2 * torch.rand(x.shape, generator=random, device=random.device) - 1, shown

    def private_loss(self, network: Network, *rows: Tensor) -> Tensor:
        images, fakes, labels = rows
        losses: Tensor = functional.relu(1 - network(images, labels)) + functional.relu(1 + network(fakes, labels))
        return losses

    def first_following(self, config: GanFinetune) -> int:
        return config.discriminator_steps

    def follow(self, weights: Weights, config: GanFinetune, *, step: int, seed: int) -> Following | None:
        """The painter's gradient, of -score of fakes with uniform labels, every `discriminator_steps` steps."""
        if step % config.discriminator_steps:
            return None
        device = next(iter(weights.values())).device
        # Apart from what was drawn for the images, and mixed into 32 bits: torch's CPU generator takes no more.
        mixed = np.random.SeedSequence([seed], spawn_key=(1,)).generate_state(1)
        random = torch.Generator(device).manual_seed(int(mixed[0]))
        labels = torch.randint(self.num_classes, (config.generator_batch_size,), generator=random, device=device)
        latent = torch.randn(len(labels), self.config.latent_dim, generator=random, device=device)
        own = {name: tensor.detach().requires_grad_() for name, tensor in weights.items() if name.startswith(_PAINTER)}
        fakes = self._paint(own, latent, labels)
        losses = self._painter_losses(own, self._discriminator(weights), fakes, latent, labels)
        gradients = torch.autograd.grad(losses.mean(), list(own.values()))
        return Following(
            gradient=dict(zip(own, gradients, strict=True)),
            learning_rate=config.generator_learning_rate,
            number=step // config.discriminator_steps,
        )

    def noise_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        return (self.config.latent_dim,)

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        """One pass of the painter."""
        images: Tensor = self.painter(noise, labels)
        return images

    def _painter_losses(
        self, weights: Weights, discriminator: Network, fakes: Tensor, latent: Tensor, labels: Tensor
    ) -> Tensor:
        """Low scores, and likeness of what is painted from opposite latent numbers, (batch,).

        Without the second the painter paints one image a class (after Mao et al. 2019, arXiv:1903.05628).
        """
        apart = (fakes - self._paint(weights, -latent, labels)).abs().flatten(1).mean(1)
        losses: Tensor = self.config.diversity / (apart + 0.01) - discriminator(fakes, labels)
        return losses

    def _paint(self, weights: Weights, latent: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = functional_call(self.painter, _part(weights, _PAINTER), (latent, labels))
        return images.float()

    def _discriminator(self, weights: Weights) -> Network:
        own = _part(weights, _DISCRIMINATOR)

        def network(*args: Tensor) -> Any:
            return functional_call(self.discriminator, own, args).float()

        return network


def _part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _drawn(images: Tensor, labels: Tensor, config: GanFinetune, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rows of some images and their labels, without fakes."""
    x = from_pixels(images.to(random.device)).repeat_interleave(config.noise_samples, 0)
    if config.horizontal_flip:
        mirrored = torch.rand(len(x), generator=random, device=random.device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x, labels.to(random.device).repeat_interleave(config.noise_samples)


def new_gan(config: GanConfig, *, channels: int, resolution: int, num_classes: int, seed: int) -> Gan:
    """A GAN with weights initialised from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        painter = Painter(config, channels=channels, resolution=resolution, num_classes=num_classes)
        discriminator = Discriminator(config, channels=channels, num_classes=num_classes)
    return Gan(painter, discriminator, config=config, num_classes=num_classes)
