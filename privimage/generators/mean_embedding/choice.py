"""Synthetic images that are chosen together, so that their features have the released means.

Chosen from are images that were drawn, and mixtures of selected public ones (`generators.mixing`), or these as they are.
Post-processing: a function of what was released with noise, of the generator that was trained on it, and of public images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from privimage.data.pixels import from_pixels
from privimage.generators.interface import Chosen
from privimage.generators.mean_embedding.critic import open_examples
from privimage.generators.mean_embedding.embedding import Embedding, draw, open_embedding, open_painter, settings_of
from privimage.generators.mean_embedding.features import Features
from privimage.generators.mean_embedding.matching import AT_ONCE
from privimage.generators.mean_embedding.mixing import mixtures, train_mixer
from privimage.generators.sampling.class_sizes import labels_of
from privimage.generators.sampling.herding import herd
from privimage.machine.device import choose_device
from privimage.payloads import GeneratorAbout
from privimage.pipeline.stage import StageContext

__all__ = ["choose", "chosen_images", "share_believed"]

_TOGETHER = 500
"""Images of a class that are chosen together: for more, the time would grow with the square, and memory as well."""

Labelled = tuple[Tensor, Tensor]


def chosen_images(context: StageContext, shares: Sequence[float] | None) -> Iterator[Chosen]:
    """All images of the stage, some hundred of each class at a time; with `shares` of the classes, or else equal ones."""
    config = context.config
    pretrained, tuned = context.inputs["pretrain"], context.inputs["finetune"]
    embedding = open_embedding(config, pretrained, tuned)
    settings, about = settings_of(config), GeneratorAbout.read(tuned)
    painter = open_painter(tuned, choose_device(config.performance.device))
    examples = open_examples(pretrained)
    num_images, num_classes = config.synthesize.num_images, painter.num_classes
    each = -(-num_images // num_classes)
    largest = each if shares is None else math.ceil(num_images * max(shares))
    parts = -(-largest // _TOGETHER)
    first_seed, first = config.synthesize.seed << 32, 0
    candidates = _from_public(context, examples, parts)
    reject_drawn: bool | None = None
    for part in context.progress.track(range(parts), "choose", parts):
        numbers = first + torch.arange(len(range(part, each, parts)) * num_classes)
        first += len(numbers)
        labels = labels_of(numbers, num_classes, shares)
        seeds = first_seed + torch.arange(settings.critic_attempts * len(labels))
        first_seed += len(seeds)
        drawn = draw(painter, about, seeds, labels.repeat(settings.critic_attempts))
        if reject_drawn is None:
            # By the first part for all, so that images do not differ by which part they are of.
            reject_drawn = share_believed(drawn, embedding) < settings.sampling.reject_below
        others = candidates(part, int(labels.bincount().max()))
        images, is_other = choose(drawn, others, embedding, labels, reject_drawn=reject_drawn)
        asked = numbers < num_images
        yield Chosen(images=images[asked], labels=labels[asked], is_other=is_other[asked], drawn_rejected=reject_drawn)


def _from_public(context: StageContext, examples: Labelled, parts: int) -> Callable[[int, int], Labelled]:
    """For a part, and so many images of each class, what comes from public images: no image for two parts."""
    config, settings = context.config, settings_of(context.config)
    if config.public_images == "unchanged":
        return lambda part, wanted: (examples[0][part::parts], examples[1][part::parts])
    with context.progress.ticker("mixer", settings.sampling.mixer_steps) as tick:

        def on_step(step: int) -> None:
            tick(step)
            context.stop.check()

        mixer = train_mixer(
            examples[0],
            num_steps=settings.sampling.mixer_steps,
            seed=config.synthesize.seed,
            horizontal_flip=settings.horizontal_flip,
            device=choose_device(config.performance.device),
            on_step=on_step,
        )
    attempts = settings.critic_attempts
    return lambda part, wanted: mixtures(
        mixer, *examples, attempts * wanted, seed=(config.synthesize.seed << 20) + part
    )


def share_believed(painted: Labelled, embedding: Embedding) -> float:
    """Of how many of these images, uint8 NCHW with their classes, the second critic sees that class."""
    images, labels = painted
    return float((_seen_by(embedding.critic.network, images, embedding.features.device) == labels).float().mean())


def choose(
    painted: Labelled, others: Labelled, embedding: Embedding, wanted: Tensor, *, reject_drawn: bool
) -> tuple[Tensor, Tensor]:
    """An image of each of the `wanted` classes, uint8 NCHW; and which of them are of the others, bool.

    Candidates of a class are its images, of both kinds, in which the second critic sees it, too. Where these are too few, painted
    ones of which it says otherwise go behind them.

    Args:
        painted: images, uint8 NCHW, and their classes; of each class as many as are wanted at least.
        others: likewise, any number.
        reject_drawn: False = all painted ones are candidates. Of a painter whose images the critic mostly sees as they were
            meant, those that it would reject are what lies between classes, and worth having.
    """
    features, critic, means = embedding.features, embedding.critic.network, embedding.means
    (drawn, labels), (further, of_class) = painted, others
    agreed = torch.ones(len(drawn), dtype=torch.bool)
    if reject_drawn:
        agreed = _seen_by(critic, drawn, features.device) == labels
    agreed_too = _seen_by(critic, further, features.device) == of_class
    images = drawn.new_empty(len(wanted), *drawn.shape[1:])
    is_other = torch.zeros(len(wanted), dtype=torch.bool)
    for label in range(len(means)):
        places = torch.nonzero(wanted == label).flatten()
        each = len(places)
        own, rejected = drawn[(labels == label) & agreed], drawn[(labels == label) & ~agreed]
        candidates = torch.cat([own, further[(of_class == label) & agreed_too]])
        rows = herd(_embedded(features, candidates), means[label], min(each, len(candidates))).cpu()
        rest = rejected[: each - len(rows)]
        # The order in which images were taken says how well they fit: the first ones would be a favourable sample.
        mixed = torch.randperm(each, generator=torch.Generator().manual_seed(label))
        images[places] = torch.cat([candidates[rows], rest])[mixed]
        is_other[places] = torch.cat([rows >= len(own), torch.zeros(len(rest), dtype=torch.bool)])[mixed]
    return images, is_other


@torch.no_grad()
def _seen_by(critic: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    return torch.cat([critic(from_pixels(part.to(device))).argmax(1).cpu() for part in images.split(AT_ONCE)])


@torch.no_grad()
def _embedded(features: Features, images: Tensor) -> Tensor:
    if not len(images):
        return torch.empty(0, features.size, device=features.device)
    return torch.cat([features(from_pixels(part.to(features.device))) for part in images.split(AT_ONCE)])
