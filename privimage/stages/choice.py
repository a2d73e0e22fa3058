"""Synthetic images that are chosen together, so that their features have the released means.

Chosen from are images that were drawn, and mixtures of selected public ones (`generators.mixing`), or these as they are.
Post-processing: a function of what was released with noise, of the generator that was trained on it, and of public images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from privimage.device import choose_device
from privimage.generators.features import Features
from privimage.generators.herding import herd
from privimage.generators.judged import Judged
from privimage.generators.merf import AT_ONCE, Merf
from privimage.generators.mixing import mixtures, train_mixer
from privimage.generators.pixels import from_pixels
from privimage.pipeline import StageContext
from privimage.stages.critic import open_examples
from privimage.stages.mean_embedding import Embedding, draw, open_embedding
from privimage.stages.models import open_generator

__all__ = ["choose", "chosen_images", "share_believed"]

_TOGETHER = 500
"""Images of a class that are chosen together: for more, the time would grow with the square, and memory as well."""

Labelled = tuple[Tensor, Tensor]


def chosen_images(context: StageContext) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """All images of stage `synthesize`, some hundred of each class at a time: uint8 NCHW, classes in turn; which of them are not
    drawn, but come from public images, bool; and whether drawn ones were judged, the same for all.
    """
    config = context.config
    pretrained, tuned = context.inputs["pretrain"], context.inputs["finetune"]
    embedding = open_embedding(config, pretrained, tuned)
    generator, facts = open_generator(tuned, choose_device(config.performance.device))
    painter = generator.source if isinstance(generator, Judged) else generator
    if not isinstance(painter, Merf):
        raise TypeError(f"Images are chosen among those of a Merf, and {type(painter).__name__} is none.")
    examples = open_examples(pretrained)
    num_images, num_classes = config.synthesize.num_images, painter.num_classes
    each = -(-num_images // num_classes)
    parts = -(-each // _TOGETHER)
    first_seed, left = config.synthesize.seed << 32, num_images
    candidates = _from_public(context, examples, parts)
    judge_drawn: bool | None = None
    for part in context.progress.track(range(parts), "choose", parts):
        wanted = len(range(part, each, parts))
        seeds = first_seed + torch.arange(config.merf.critic_attempts * wanted * num_classes)
        first_seed += len(seeds)
        drawn = draw(painter, facts, seeds)
        if judge_drawn is None:
            # By the first part for all, so that images do not differ by which part they are of.
            judge_drawn = share_believed(drawn, embedding) < config.synthesize.judge_below
        images, from_public = choose(drawn, candidates(part, wanted), embedding, wanted, judge_drawn=judge_drawn)
        yield images[:left], from_public[:left], judge_drawn
        left -= len(images)


def _from_public(context: StageContext, examples: Labelled, parts: int) -> Callable[[int, int], Labelled]:
    """For a part, and so many images of each class, what comes from public images: no image for two parts."""
    config = context.config
    if config.public_images == "unchanged":
        return lambda part, wanted: (examples[0][part::parts], examples[1][part::parts])
    with context.progress.ticker("mixer", config.synthesize.mixer_steps) as tick:

        def on_step(step: int) -> None:
            tick(step)
            context.stop.check()

        mixer = train_mixer(
            examples[0],
            num_steps=config.synthesize.mixer_steps,
            seed=config.synthesize.seed,
            horizontal_flip=config.pretrain.horizontal_flip,
            device=choose_device(config.performance.device),
            on_step=on_step,
        )
    attempts = config.merf.critic_attempts
    return lambda part, wanted: mixtures(
        mixer, *examples, attempts * wanted, seed=(config.synthesize.seed << 20) + part
    )


def share_believed(painted: Labelled, embedding: Embedding) -> float:
    """Of how many of these images, uint8 NCHW with their classes, the second critic sees that class."""
    images, labels = painted
    return float((_judged(embedding.critic.network, images, embedding.features.device) == labels).float().mean())


def choose(
    painted: Labelled, others: Labelled, embedding: Embedding, each: int, *, judge_drawn: bool
) -> tuple[Tensor, Tensor]:
    """`each` images of each class, uint8 NCHW, classes in turn; and which of them are of the others, bool.

    Candidates of a class are its images, of both kinds, in which the second critic sees it, too. Where these are too few, painted
    ones of which it says otherwise go behind them.

    Args:
        painted: images, uint8 NCHW, and their classes; `each` of each class at least.
        others: likewise, any number.
        judge_drawn: False = all painted ones are candidates. Of a painter whose images the critic mostly sees as they were
            meant, those that it would reject are what lies between classes, and worth having.
    """
    features, judge, means = embedding.features, embedding.critic.network, embedding.means
    (drawn, labels), (further, of_class) = painted, others
    agreed = torch.ones(len(drawn), dtype=torch.bool)
    if judge_drawn:
        agreed = _judged(judge, drawn, features.device) == labels
    agreed_too = _judged(judge, further, features.device) == of_class
    images, is_other = [], []
    for label in range(len(means)):
        own, rejected = drawn[(labels == label) & agreed], drawn[(labels == label) & ~agreed]
        candidates = torch.cat([own, further[(of_class == label) & agreed_too]])
        rows = herd(_embedded(features, candidates), means[label], min(each, len(candidates))).cpu()
        rest = rejected[: each - len(rows)]
        # The order in which images were taken says how well they fit: the first ones would be a favourable sample.
        mixed = torch.randperm(each, generator=torch.Generator().manual_seed(label))
        images.append(torch.cat([candidates[rows], rest])[mixed])
        is_other.append(torch.cat([rows >= len(own), torch.zeros(len(rest), dtype=torch.bool)])[mixed])
    return torch.stack(images, dim=1).flatten(0, 1), torch.stack(is_other, dim=1).flatten()


@torch.no_grad()
def _judged(judge: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    return torch.cat([judge(from_pixels(part.to(device))).argmax(1).cpu() for part in images.split(AT_ONCE)])


@torch.no_grad()
def _embedded(features: Features, images: Tensor) -> Tensor:
    if not len(images):
        return torch.empty(0, features.size, device=features.device)
    return torch.cat([features(from_pixels(part.to(features.device))) for part in images.split(AT_ONCE)])
