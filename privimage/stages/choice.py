"""Synthetic images that are chosen together, public ones among them: those whose features have the released means.

Post-processing: a function of what was released with noise, of the generator that was trained on it, and of public images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privimage.device import choose_device
from privimage.generators.features import Features
from privimage.generators.herding import herd
from privimage.generators.judged import Judged
from privimage.generators.merf import AT_ONCE, Merf
from privimage.generators.pixels import from_pixels
from privimage.pipeline import StageContext
from privimage.stages.critic import open_examples
from privimage.stages.mean_embedding import Embedding, draw, open_embedding
from privimage.stages.models import open_generator

__all__ = ["choose", "chosen_images"]


def chosen_images(context: StageContext) -> tuple[Tensor, Tensor]:
    """All images of stage `synthesize`, uint8 NCHW, classes in turn, and which of them are public ones, bool."""
    config = context.config
    pretrained, tuned = context.inputs["pretrain"], context.inputs["finetune"]
    device = choose_device(config.performance.device)
    embedding = open_embedding(config, pretrained, tuned)
    generator, facts = open_generator(tuned, device)
    painter = generator.source if isinstance(generator, Judged) else generator
    if not isinstance(painter, Merf):
        raise TypeError(f"Public images are chosen beside those of a Merf, and {type(painter).__name__} is none.")
    public, _ = open_examples(pretrained)
    num_images, attempts = config.synthesize.num_images, config.merf.critic_attempts
    with context.progress.ticker("choose (classes)", painter.num_classes) as tick:

        def on_class(number: int) -> None:
            tick(number)
            context.stop.check()

        images, is_public = choose(
            painter,
            facts,
            embedding,
            public,
            num_images,
            attempts,
            first=len(public) + (config.synthesize.seed << 32),
            on_class=on_class,
        )
    return images[:num_images], is_public[:num_images]


def choose(
    painter: Merf,
    facts: Mapping[str, Any],
    embedding: Embedding,
    public: Tensor,
    count: int,
    attempts: int,
    *,
    first: int,
    on_class: Callable[[int], None] = lambda number: None,
) -> tuple[Tensor, Tensor]:
    """`count` images, rounded up to as many of each class, uint8 NCHW, classes in turn; and which of them are public ones.

    Candidates of a class are images that are painted for it, `attempts` times as many as are chosen, and that the second critic
    gives to it, and public ones that the critic gives to it. Where these are too few, painted ones of which it says otherwise go
    behind them.

    Args:
        facts: beside the painter: `channels` and `resolution`.
        public: uint8 NCHW.
        first: number of the first seed that is painted from: the critic may have learned from images of those before.
        on_class: called with the number of classes that are done.
    """
    features, judge = embedding.features, embedding.critic.network
    each = -(-count // painter.num_classes)
    painted, labels = draw(painter, facts, attempts * each * painter.num_classes, first=first)
    agreed = _judged(judge, painted, features.device) == labels
    seen = _judged(judge, public, features.device)
    images, is_public = [], []
    for label in range(painter.num_classes):
        own, others = painted[(labels == label) & agreed], painted[(labels == label) & ~agreed]
        candidates = torch.cat([own, public[seen == label]])
        rows = herd(_embedded(features, candidates), embedding.means[label], min(each, len(candidates))).cpu()
        rest = others[: each - len(rows)]
        images.append(torch.cat([candidates[rows], rest]))
        is_public.append(torch.cat([rows >= len(own), torch.zeros(len(rest), dtype=torch.bool)]))
        on_class(label + 1)
    return torch.stack(images, dim=1).flatten(0, 1), torch.stack(is_public, dim=1).flatten()


@torch.no_grad()
def _judged(judge: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    return torch.cat([judge(from_pixels(part.to(device))).argmax(1).cpu() for part in images.split(AT_ONCE)])


@torch.no_grad()
def _embedded(features: Features, images: Tensor) -> Tensor:
    if not len(images):
        return torch.empty(0, features.size, device=features.device)
    return torch.cat([features(from_pixels(part.to(features.device))) for part in images.split(AT_ONCE)])
