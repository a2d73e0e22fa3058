"""The first images of a run with critics: of many that are drawn, those that together have the released embedding.

Post-processing: a function of the released sums, of the generator that was trained on them, and of public images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privimage.config import MerfConfig, SynthesizeConfig
from privimage.generators.features import Features
from privimage.generators.herding import herd
from privimage.generators.merf import AT_ONCE, Merf
from privimage.generators.pixels import from_pixels
from privimage.generators.sampler import synthesize_images

__all__ = ["CHOSEN", "choose", "draw"]

CHOSEN = "chosen.safetensors"
"""Of `finetune`: what `choose` returns. Synthetic image i is row i, of class i modulo their number, as long as there are rows."""
_SEEDS = 1 << 62  # of images that critics learn from, and that are chosen from: far from those of released ones


def draw(generator: Merf, facts: Mapping[str, Any], count: int, *, first: int = 0) -> tuple[Tensor, Tensor]:
    """As many images of each class, uint8, and their classes; of other seeds than released ones.

    Args:
        first: number of the first seed.
    """
    shape = (facts["channels"], facts["resolution"], facts["resolution"])
    device = next(generator.parameters()).device
    labels = torch.arange(count) % generator.num_classes
    generator.eval()
    images = [
        synthesize_images(
            generator,
            part.to(device),
            _SEEDS + first + torch.arange(start, start + len(part)),
            shape,
            SynthesizeConfig(),
        ).cpu()
        for start, part in zip(range(0, count, AT_ONCE), labels.split(AT_ONCE), strict=True)
    ]
    return torch.cat(images), labels


def choose(
    generator: Merf,
    facts: Mapping[str, Any],
    judge: nn.Module,
    features: Features,
    means: Tensor,
    config: MerfConfig,
    public: Tensor,
    *,
    on_class: Callable[[int], None] = lambda number: None,
) -> dict[str, Tensor]:
    """`critic_chosen` images, rounded up to as many of each class, classes in turn; by two choices.

    Candidates of a class are images that are drawn for it and that the judge gives to it; of the second choice public ones, too,
    that the judge gives to it. Where these are too few, drawn ones of which it says otherwise go behind them.

    Args:
        judge: images in [-1, 1] => logits (batch, classes).
        means: (classes, features), the released embedding.
        public: uint8 NCHW. The judge may have learned from the first so many images of `draw`, too: others are candidates.
        on_class: called with the number of classes that are done.

    Returns:
        `images`, uint8 NCHW, drawn ones alone; `mixed`, of the second choice; and `public`, (number,) bool: which of these are
        public images, as they were.
    """
    each = -(-config.critic_chosen // generator.num_classes)
    count = config.critic_attempts * each * generator.num_classes
    drawn, labels = draw(generator, facts, count, first=len(public))
    agreed = _judged(judge, drawn, features.device) == labels
    seen = _judged(judge, public, features.device)
    choices: dict[str, list[Tensor]] = {"images": [], "mixed": [], "public": []}
    for label in range(generator.num_classes):
        own, rest = drawn[(labels == label) & agreed], drawn[(labels == label) & ~agreed]
        candidates = torch.cat([own, public[seen == label]])
        vectors = _embedded(features, candidates)
        for name, number in (("images", len(own)), ("mixed", len(candidates))):
            rows = herd(vectors[:number], means[label], min(each, number)).cpu()
            choices[name].append(torch.cat([candidates[rows], rest[: each - len(rows)]]))
        is_public = torch.zeros(each, dtype=torch.bool)
        is_public[: len(rows)] = rows >= len(own)
        choices["public"].append(is_public)
        on_class(label + 1)
    return {name: torch.stack(of_classes, dim=1).flatten(0, 1) for name, of_classes in choices.items()}


@torch.no_grad()
def _judged(judge: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    return torch.cat([judge(from_pixels(part.to(device))).argmax(1).cpu() for part in images.split(AT_ONCE)])


@torch.no_grad()
def _embedded(features: Features, images: Tensor) -> Tensor:
    parts = [features(from_pixels(part.to(features.device))) for part in images.split(AT_ONCE)]
    return torch.cat(parts) if parts else torch.empty(0, features.size, device=features.device)
