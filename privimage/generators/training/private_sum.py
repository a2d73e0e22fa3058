"""What a DP-SGD step adds up: the clipped gradients of the images of a batch, each with its own draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privimage.errors import ConfigError
from privimage.generators.interface import ImageGenerator
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.workers import Job
from privimage.methods.training import FinetuneConfig
from privimage.privacy.gradients import GradientEngine, bytes_per_image, check_engine, gradient_engine
from privimage.privacy.gradients.full_precision import full_float32

__all__ = ["PrivateSum"]

# Images that share a generator of what is drawn for them. A batch is cut into blocks by position, whatever computes them.
BLOCK = 16


@dataclass(kw_only=True)
class PrivateSum:
    """The sum of clipped per-image gradients, as work that devices share (`team.Work`).

    Guarantee: an image adds a vector of norm at most `max_grad_norm`, which depends on that image, its label, the weights
    and the job's seed only, once, on one device. The number of devices, `rows_at_once` and the engine change rounding only.
    """

    generator: ImageGenerator[Any, Any]
    config: FinetuneConfig
    max_grad_norm: float
    compute: ComputeSettings
    _engine: GradientEngine = field(init=False, repr=False)
    _device: torch.device = field(init=False, repr=False)

    def to(self, device: torch.device) -> None:
        self.generator.to(device)
        self._device = device
        self._engine = gradient_engine(
            self.generator.learner,
            self.generator.private_loss,
            backend=self.compute.backend,
            precision=self.compute.precision,
        )

    @full_float32()
    def share(self, weights: Tensor, job: Job, part: int, parts: int) -> Tensor:
        """The sum for the learner's parameters, in their order.

        The job has `images` uint8 NCHW, `labels` int64, and `seed` int64 (1,) of what is drawn for the images.
        """
        whole = self._named(weights)
        parameters = self.generator.of_learner(whole)
        images, labels = job["images"], job["labels"]
        total = torch.zeros(sum(parameter.numel() for parameter in parameters.values()), device=weights.device)
        mine = range(part, -(-len(images) // BLOCK), parts)
        at_once = max(1, self.compute.rows_at_once // (BLOCK * self.config.noise_samples))
        for first in range(0, len(mine), at_once):
            drawn = [
                self.generator.private_rows(
                    images[block * BLOCK : (block + 1) * BLOCK],
                    labels[block * BLOCK : (block + 1) * BLOCK],
                    self.config,
                    _generator(int(job["seed"]), block, self._device),
                    whole,
                )
                for block in mine[first : first + at_once]
            ]
            total += self._engine.clipped_sum(
                parameters,
                [torch.cat(tensors) for tensors in zip(*drawn, strict=True)],
                draws=self.config.noise_samples,
                max_grad_norm=self.max_grad_norm,
                rows_at_once=self.compute.rows_at_once,
            ).value
        return total

    def check(self, channels: int, resolution: int) -> None:
        """Raise ConfigError unless the engine computes this network's gradients right; to be asked before a charge."""
        check_engine(
            self.generator.learner,
            self.generator.private_loss,
            dict(self.generator.learner.named_parameters()),
            self._made_up_rows(2, channels, resolution),
            draws=self.config.noise_samples,
            backend=self.compute.backend,
        )

    def bytes_per_image(self, channels: int, resolution: int) -> int:
        """Memory that `share` takes for each image of a physical batch, about and at most."""
        return bytes_per_image(
            self.generator.learner,
            self.generator.private_loss,
            dict(self.generator.learner.named_parameters()),
            self._made_up_rows(1, channels, resolution),
            backend=self.compute.backend,
        )

    def rehearse(self, channels: int, resolution: int) -> None:
        """Compute one physical batch of made-up images, and what follows a step.

        Raises:
            ConfigError: it does not fit into the device's memory.
        """
        device = next(self.generator.parameters()).device
        self.to(device)
        count = max(1, self.compute.rows_at_once // self.config.noise_samples)
        job = {
            "images": torch.zeros(count, channels, resolution, resolution, dtype=torch.uint8),
            "labels": torch.zeros(count, dtype=torch.int64),
            "seed": torch.zeros(1, dtype=torch.int64),
        }
        weights = torch.cat([parameter.detach().flatten() for parameter in self.generator.parameters()])
        try:
            self.share(weights, job, 0, 1)
            self.generator.follow(
                self._named(weights), self.config, step=self.generator.first_following(self.config), seed=0
            )
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"A physical batch of {self.compute.rows_at_once} rows does not fit into the memory of {device}: lower "
                "performance.physical_batch_size or performance.memory_gb, or, of a GAN, generator.finetune.generator_batch_size."
            ) from None

    def _made_up_rows(self, count: int, channels: int, resolution: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, channels, resolution, resolution), generator=generator).to(torch.uint8)
        labels = torch.arange(count) % self.generator.num_classes
        rows = self.generator.made_up_rows(images, labels, self.config, generator)
        return [tensor.to(next(self.generator.parameters()).device) for tensor in rows]

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        parameters = dict(self.generator.named_parameters())
        parts = weights.split([parameter.numel() for parameter in parameters.values()])
        return {
            name: part.view_as(parameter) for (name, parameter), part in zip(parameters.items(), parts, strict=True)
        }


def _generator(seed: int, block: int, device: torch.device) -> torch.Generator:
    # Mixed into 32 bits, because torch's CPU generator ignores the others of a seed.
    mixed = np.random.SeedSequence([seed, block]).generate_state(1)
    return torch.Generator(device).manual_seed(int(mixed[0]))
