"""Stages `pretrain` and `finetune` of a run with mean embeddings: noisy embeddings are released, and learned from.

Without a selection there is one, of pixels (DP-MERF). With a selection the first is also of what a critic sees, which learned from
selected public images, and a second one follows, of what another critic sees, which learns from what the generator draws
after the first, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from privimage.config import MerfConfig, RunConfig, SynthesizeConfig
from privimage.data.facts import TableFacts
from privimage.data.table import read_images
from privimage.device import choose_device
from privimage.errors import ConfigError, Uncharged
from privimage.generators.features import Features, JointFeatures, median_distance, new_features
from privimage.generators.judged import Judged
from privimage.generators.merf import AT_ONCE, Embedded, Merf, class_means, match
from privimage.generators.sampler import synthesize_images
from privimage.pipeline import Outcome, Paid, StageContext
from privimage.privacy.class_sums import noisy_class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSumRounds
from privimage.stages.critic import (
    Critic,
    critic_of,
    examples_of,
    features_of,
    open_critic,
    open_examples,
    save_critic,
    train_critic,
    untrained_critic,
)
from privimage.stages.generation import admitted_classes, read_selection, write_untrained
from privimage.stages.models import open_generator, save_weights
from privimage.store.artifacts import JSON, Artifact
from privimage.store.checkpoints import Checkpoints
from privimage.store.tensors import pack, unpack

__all__ = ["Embedding", "draw", "open_embedding", "rehearse_finetune", "run_finetune", "run_pretrain"]

LENGTHSCALE = 0.4
"""Of the median distance of public images. The whole of it, as usual, lets images of a class be blurred into each other."""
_ROUNDS = ("pixels", "critic")  # names in saved files, from before the first had a critic too
EMBEDDING = "embedding.safetensors"
"""Of `finetune` after two rounds: `means`, (classes, features of both), and the second critic, below `critic.`."""
_CRITIC = "critic."
_SEEDS = 1 << 62  # of images that the critic learns from: far from those of released ones


def run_pretrain(context: StageContext) -> Outcome:
    """Writes denoiser.safetensors (first weights), denoiser.json, with the lengthscale, which public images set, and, with a
    selection, examples.safetensors, from which critics learn, and critic.safetensors, the first of them.
    """
    public = context.inputs["public"]
    lengthscale = context.config.merf.lengthscale
    if lengthscale is None:
        images, _ = read_images(public.files("images-"), spill=context.folder)
        lengthscale = LENGTHSCALE * median_distance(images)
        if not lengthscale > 0:
            raise ConfigError("Most public images are the same, and set no lengthscale: give merf.lengthscale.")
    facts = TableFacts.from_json(public.read_bytes("facts.json").decode())
    if context.config.selection.strategy == "none":
        return write_untrained(context, facts, admitted_classes(context), lengthscale=lengthscale)
    class_names = [row["class"] for row in context.inputs["select"].read_json("selection.json")]
    examples = examples_of(context, *read_selection(context, facts.num_images))
    critic, accuracy = _trained(context, *examples, len(class_names), seed=context.config.merf.seed)
    save_critic(context, critic, examples)
    outcome = write_untrained(context, facts, class_names, lengthscale=lengthscale)
    return Outcome(metrics={**outcome.metrics, "critic_accuracy": accuracy})


@dataclass(kw_only=True)
class _Released:
    """The noisy sums so far, one of each round, whether their noise carries a guarantee, and the critic of the second."""

    sums: list[NDArray[np.float64]] = field(default_factory=list)
    guarantee: bool = True
    critic: dict[str, Tensor] = field(default_factory=dict)


def run_finetune(context: StageContext) -> Outcome:
    """Writes denoiser.safetensors and denoiser.json, as of the other kinds, with the mechanism that ran. After two rounds the
    second critic judges what is drawn, if it may be drawn more than once, and the whole embedding is written, for who chooses
    by it (`stages.choice`).

    Noisy sums are saved below `private/` before they are trained on. An attempt that is killed while it draws them, or between
    two of them, has lost all; one that ends in any other way, or later, nothing.
    """
    paid = context.paid
    if paid is None or not isinstance(paid.mechanism, ClassSumRounds):
        raise Uncharged("The embeddings were not charged.")
    mechanism = paid.mechanism
    released = _saved(context, paid, mechanism)
    generator, facts, first = _opened(context.config, context.inputs)
    config = MerfConfig.model_validate(facts["config"])
    rounds = len(mechanism.dimensions)
    alone = config.num_steps if rounds == 1 else max(1, int(config.critic_from * config.num_steps))
    with context.stop.answered_between_steps(), context.progress.ticker("finetune", config.num_steps) as tick:

        def on_step(step: int) -> None:
            tick(step)
            context.stop.check()

        if not released.sums:
            _draw(context, paid, mechanism, first, released)
        means = _means(released.sums[0], mechanism, first.device)
        critic = None
        with ExitStack() as not_drawn:
            if len(released.sums) < rounds:
                # Whatever ends this attempt before it draws again has cost nothing; a kill alone says nothing.
                not_drawn.callback(paid.pause, len(released.sums))
            weights = match(generator, means, first, config.model_copy(update={"num_steps": alone}), on_step=on_step)
            if rounds > 1:
                generator.load_state_dict(weights)
                critic = _second_critic(context, generator, facts, released)
            not_drawn.pop_all()
        if critic is not None:
            seen = features_of(critic, config, first.device, number=2)
            if len(released.sums) < rounds:
                _draw(context, paid, mechanism, seen, released)
            its_means = _means(released.sums[1], mechanism, first.device)
            joint, target = _joined(first, means, seen, its_means, config.critic_share)
            then = config.model_copy(update={"num_steps": config.num_steps - alone})
            weights = match(generator.train(), target, joint, then, on_step=lambda step: on_step(alone + step))
            of_critic = {f"{_CRITIC}{name}": tensor for name, tensor in critic.tensors().items()}
            save_weights({"means": target, **of_critic}, context.folder / EMBEDDING)
    judged = critic is not None and config.critic_attempts > 1
    if critic is not None and judged:
        generator.load_state_dict(weights)
        weights = Judged(generator, critic.network, attempts=config.critic_attempts).state_dict()
    save_weights(weights, context.folder / "denoiser.safetensors")
    about = {
        **facts,
        "judged": judged,
        "guarantee": "differential privacy" if _has_guarantee(context, released) else "none",
        "mechanism": asdict(mechanism),
    }
    (context.folder / "denoiser.json").write_text(json.dumps(about))
    return Outcome(metrics={"noise_multiplier": mechanism.noise_multiplier, "num_steps": config.num_steps})


def _has_guarantee(context: StageContext, released: _Released) -> bool:
    """Whether all noise behind the generator carries one: that of the votes, too, which critics' public images go back to."""
    query = context.inputs["query"].read_json("query.json") if "query" in context.inputs else None
    return released.guarantee and (query is None or query["guarantee"] == "differential privacy")


def rehearse_finetune(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    """Vectors of made-up images, and one step towards a made-up embedding, to find before the charge what could otherwise
    fail after it."""
    generator, facts, features = _opened(config, inputs)
    own = MerfConfig.model_validate(facts["config"])
    size = {"channels": facts["channels"], "resolution": facts["resolution"]}
    found = [features.size + 1]
    if config.selection.strategy != "none":
        open_examples(inputs["pretrain"])
        critic = untrained_critic(own, **size, num_classes=generator.num_classes, device=features.device)
        nothing = torch.zeros(generator.num_classes, 0, device=features.device)
        seen = features_of(critic, own, features.device, number=2)
        found.append(seen.size + 1)
        features, _ = _joined(features, nothing, seen, nothing, own.critic_share)
    charged = config.merf.dimensions(with_critic=config.selection.strategy != "none")
    if charged != tuple(found):
        raise ConfigError(
            f"Sums of {charged} numbers would be charged, but what `pretrain` wrote gives {tuple(found)}: this is a fault of "
            "privimage; please report it. Nothing was charged."
        )
    means = torch.zeros(generator.num_classes, features.size, device=features.device)
    images = np.zeros((AT_ONCE, size["channels"], size["resolution"], size["resolution"]), dtype=np.uint8)
    try:
        Embedded(private_images=images, features=features)[:]
        match(generator, means, features, own.model_copy(update={"num_steps": 1}))
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "A step, or the vectors of some images, does not fit into memory: lower merf.batch_size, merf.num_features or "
            "merf.critic_channels."
        ) from error


def _saved(context: StageContext, paid: Paid, mechanism: ClassSumRounds) -> _Released:
    """What earlier attempts released and saved.

    If that is all, this attempt draws nothing, and says so before all else: whatever becomes of it, the next may use them too.
    """
    saved = Checkpoints(context.store, "finetune", context.key, sealed=True).latest()
    if (saved.step if saved else 0) < paid.from_step:
        raise Uncharged("The saved embedding of this stage vanished while it was resumed; run again.")
    if saved is None:
        return _Released()
    tensors, about = unpack(saved.data)
    if about["reservation"] != paid.reservations[-1]:
        raise Uncharged(
            "The saved embedding of this stage was paid for by another reservation; remove it, or restore the ledger."
        )
    if saved.step == len(mechanism.dimensions):
        paid.pause(saved.step)
    prefix = "network."
    return _Released(
        sums=[tensors[name].numpy() for name in _ROUNDS[: saved.step]],
        guarantee=about["guarantee"],
        critic={name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)},
    )


def _draw(
    context: StageContext, paid: Paid, mechanism: ClassSumRounds, features: Features, released: _Released
) -> None:
    """Release the sums of the next round, and save all so far."""
    number = len(released.sums)
    images, labels = context.private_images("train")
    released.sums.append(
        noisy_class_sums(
            Embedded(private_images=images, features=features),
            labels,
            mechanism.round(number),
            insecure_random=paid.random if isinstance(paid.random, InsecureRandomForTests) else None,
        )
    )
    released.guarantee = released.guarantee and paid.random.guarantee
    about: dict[str, JSON] = {"reservation": paid.reservations[-1], "guarantee": released.guarantee}
    tensors = {name: torch.from_numpy(sums) for name, sums in zip(_ROUNDS, released.sums, strict=False)}
    tensors |= {f"network.{name}": value for name, value in released.critic.items()}
    step = number + 1
    if not Checkpoints(context.store, "finetune", context.key, sealed=True).save(step, pack(tensors, about)):
        raise Uncharged("Another process is fine-tuning under the same reservation; this one stops here.")
    paid.record_step(step)
    if step == len(mechanism.dimensions):
        # Said at once, not only when it is stopped: this attempt draws nothing more, whatever becomes of it.
        paid.pause(step)


def _second_critic(context: StageContext, generator: Merf, facts: Mapping[str, Any], released: _Released) -> Critic:
    """The critic of the second round: the one that its sums are of, if there are any, or a new one."""
    device = next(generator.parameters()).device
    own = MerfConfig.model_validate(facts["config"])
    if released.critic:
        size = {"channels": facts["channels"], "num_classes": generator.num_classes}
        return critic_of(released.critic, own, **size, device=device)
    images, labels = open_examples(context.inputs["pretrain"])
    drawn, classes = draw(generator, facts, _SEEDS + torch.arange(len(images)))
    mixed = torch.randperm(2 * len(images), generator=torch.Generator().manual_seed(own.seed))
    images, labels = torch.cat([images, drawn])[mixed], torch.cat([labels, classes])[mixed]
    critic, _ = _trained(context, images, labels, generator.num_classes, seed=own.seed + 1)
    released.critic = critic.tensors()
    return critic


def _trained(
    context: StageContext, images: Tensor, labels: Tensor, num_classes: int, *, seed: int
) -> tuple[Critic, float]:
    """A critic of these images, and its accuracy on some that were held out."""
    steps = context.config.merf.critic_steps
    device = choose_device(context.config.performance.device)
    with context.progress.ticker("critic", steps) as tick:

        def on_step(step: int, count: int) -> None:
            tick(min(step * steps // count, steps))
            context.stop.check()

        return train_critic(images, labels, num_classes, context.config, seed=seed, device=device, on_step=on_step)


def draw(
    generator: Merf, facts: Mapping[str, Any], seeds: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """An image of each seed, uint8, and their classes, which are `labels`, or else classes in turn."""
    shape = (facts["channels"], facts["resolution"], facts["resolution"])
    device = next(generator.parameters()).device
    labels = torch.arange(len(seeds)) % generator.num_classes if labels is None else labels
    generator.eval()
    images = [
        synthesize_images(generator, of_images.to(device), part, shape, SynthesizeConfig()).cpu()
        for of_images, part in zip(labels.split(AT_ONCE), seeds.split(AT_ONCE), strict=True)
    ]
    return torch.cat(images), labels


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What both rounds released, for choosing by it.

    Attributes:
        means: (classes, features).
        features: of both rounds side by side.
        critic: the second one.
    """

    means: Tensor
    features: Features
    critic: Critic


def open_embedding(config: RunConfig, pretrained: Artifact, tuned: Artifact) -> Embedding:
    """Read back what `run_finetune` wrote after two rounds.

    Raises:
        ConfigError: an earlier version of privimage fine-tuned, and did not write it.
    """
    if EMBEDDING not in tuned.names:
        raise ConfigError(
            "This fine-tuning is of an earlier version of privimage, which did not keep the embedding that images are chosen by: "
            "set synthesize.public_images to none, or fine-tune again with another merf.seed, which is charged again."
        )
    generator, facts, first = _opened(config, {"pretrain": pretrained})
    own = MerfConfig.model_validate(facts["config"])
    tensors = load_file(tuned.local(EMBEDDING))
    means = tensors.pop("means").to(first.device)
    size = {"channels": facts["channels"], "num_classes": generator.num_classes}
    critic = critic_of(
        {name.removeprefix(_CRITIC): tensor for name, tensor in tensors.items()}, own, **size, device=first.device
    )
    seen = features_of(critic, own, first.device, number=2)
    joint = JointFeatures(parts=(first, seen), shares=(1 - own.critic_share, own.critic_share))
    return Embedding(means=means, features=joint, critic=critic)


def _joined(
    first: Features, of_first: Tensor, seen: Features, of_critic: Tensor, share: float
) -> tuple[JointFeatures, Tensor]:
    """Features of both rounds side by side, and their means, (classes, numbers), likewise."""
    joint = JointFeatures(parts=(first, seen), shares=(1 - share, share))
    return joint, torch.cat([math.sqrt(1 - share) * of_first, math.sqrt(share) * of_critic], dim=1)


def _means(sums: NDArray[np.float64], mechanism: ClassSumRounds, device: torch.device) -> Tensor:
    return class_means(sums, mechanism.num_images).to(device)


def _opened(config: RunConfig, inputs: Mapping[str, Artifact]) -> tuple[Merf, dict[str, Any], Features]:
    """The generator with its first weights, the facts beside it, and the features of the first round: of pixels, and, with a
    selection, of what the first critic sees."""
    device = choose_device(config.performance.device)
    generator, facts = open_generator(inputs["pretrain"], device)
    if not isinstance(generator, Merf):
        raise ConfigError(f"Mean embeddings train a Merf, and {type(generator).__name__} is none.")
    own = MerfConfig.model_validate(facts["config"])
    numbers = math.prod((facts["channels"], facts["resolution"], facts["resolution"]))
    pixels = new_features(numbers, own.num_features, lengthscale=facts["lengthscale"], seed=own.seed, device=device)
    if config.selection.strategy == "none":
        return generator, facts, pixels
    size = {"channels": facts["channels"], "num_classes": generator.num_classes}
    seen = features_of(open_critic(inputs["pretrain"], own, **size, device=device), own, device, number=1)
    return generator, facts, JointFeatures(parts=(pixels, seen), shares=(1 - own.critic_share, own.critic_share))
