"""Synthetic images that are chosen together, public ones among them: those whose features have the released means.

Post-processing: a function of what was released with noise, of the generator that was trained on it, and of public images.
"""

from __future__ import annotations

from collections.abc import Callable

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

_COMPARED = 20_000  # candidates whose features are held
_TOGETHER = 500  # images of a class that are chosen together: for more, the time would grow with the square


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
    public = open_examples(pretrained)
    num_images = config.synthesize.num_images
    each = -(-num_images // painter.num_classes)
    seeds = torch.arange(config.merf.critic_attempts * each * painter.num_classes) + (config.synthesize.seed << 32)
    with context.progress.ticker("choose (classes)", painter.num_classes) as tick:
        images, is_public = choose(draw(painter, facts, seeds), public, embedding, each, on_class=tick)
    return images[:num_images], is_public[:num_images]


def choose(
    painted: tuple[Tensor, Tensor],
    public: tuple[Tensor, Tensor],
    embedding: Embedding,
    each: int,
    *,
    on_class: Callable[[int], None] = lambda number: None,
) -> tuple[Tensor, Tensor]:
    """`each` images of each class, uint8 NCHW, classes in turn; and which of them are public ones.

    Candidates of a class are images that were painted for it, and public ones whose category was selected for it, where the second
    critic sees it in them, too. Where these are too few, painted ones of which it says otherwise go behind them.

    Args:
        painted: images, uint8 NCHW, and their classes; `each` of each class at least.
        public: images, uint8 NCHW, and the classes for which their categories were selected.
        on_class: called with the number of classes that are done.
    """
    features, judge, means = embedding.features, embedding.critic.network, embedding.means
    (drawn, labels), (selected, of_class) = painted, public
    agreed = _judged(judge, drawn, features.device) == labels
    seen = _judged(judge, selected, features.device) == of_class
    images, is_public = [], []
    for label in range(len(means)):
        own, others = drawn[(labels == label) & agreed], drawn[(labels == label) & ~agreed]
        candidates = torch.cat([own, selected[(of_class == label) & seen]])
        rows = _herded(features, candidates, means[label], each)
        rest = others[: each - len(rows)]
        # The order in which images were taken says how well they fit: the first ones would be a favourable sample.
        mixed = torch.randperm(each, generator=torch.Generator().manual_seed(label))
        images.append(torch.cat([candidates[rows], rest])[mixed])
        is_public.append(torch.cat([rows >= len(own), torch.zeros(len(rest), dtype=torch.bool)])[mixed])
        on_class(label + 1)
    return torch.stack(images, dim=1).flatten(0, 1), torch.stack(is_public, dim=1).flatten()


def _herded(features: Features, candidates: Tensor, mean: Tensor, count: int) -> Tensor:
    """Numbers of at most so many candidates. A part of them after the other, so that the time grows no faster than their number,
    and memory does not grow with it."""
    parts = min(count, max(-(-count // _TOGETHER), -(-len(candidates) // _COMPARED)))
    taken = [torch.empty(0, dtype=torch.int64)]
    for part in range(parts):
        rows = torch.arange(len(candidates))[part::parts]
        wanted = len(range(part, count, parts))
        vectors = _embedded(features, candidates[rows])
        taken.append(rows[herd(vectors, mean, min(wanted, len(rows))).cpu()])
    return torch.cat(taken)


@torch.no_grad()
def _judged(judge: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    return torch.cat([judge(from_pixels(part.to(device))).argmax(1).cpu() for part in images.split(AT_ONCE)])


@torch.no_grad()
def _embedded(features: Features, images: Tensor) -> Tensor:
    if not len(images):
        return torch.empty(0, features.size, device=features.device)
    return torch.cat([features(from_pixels(part.to(features.device))) for part in images.split(AT_ONCE)])
