"""Stage `finetune` of a run with mean embeddings: noisy embeddings are released, and learned from.

Without a selection there is one, of pixels (DP-MERF). With a selection the first is also of what a critic sees, which
learned from selected public images. A second one follows, of what another critic sees, which learns from what the
generator draws after the first, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.config.run import RunConfig
from privimage.errors import ConfigError, Uncharged
from privimage.generators.mean_embedding.critic import Critic, critic_of, features_of, open_examples, untrained_critic
from privimage.generators.mean_embedding.embedding import (
    EMBEDDING,
    OF_CRITIC,
    draw,
    joined,
    means_of,
    opened,
    settings_of,
)
from privimage.generators.mean_embedding.features import Features
from privimage.generators.mean_embedding.matching import AT_ONCE, Embedded, EmbeddingGenerator, match
from privimage.generators.mean_embedding.pretraining import trained_critic
from privimage.generators.mean_embedding.rejection import RejectionSampling
from privimage.generators.opening import save_generator
from privimage.methods.generators.mean_embedding import MeanEmbedding
from privimage.payloads import GeneratorAbout, guarantee_of, is_guaranteed
from privimage.pipeline.stage import Outcome, Paid, StageContext
from privimage.privacy.class_sums import noisy_class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSumRounds
from privimage.store.artifacts import JSON, Artifact
from privimage.store.checkpoints import Checkpoints
from privimage.store.tensors import pack, unpack
from privimage.store.weights import save_weights

__all__ = ["rehearse_finetune", "run_finetune"]

_ROUNDS = ("first", "second")  # names in saved files
_SEEDS = 1 << 62  # of images that the critic learns from: far from those of released ones


@dataclass(kw_only=True)
class _Released:
    """The noisy sums so far, one of each round, whether their noise carries a guarantee, and the critic of the second."""

    sums: list[NDArray[np.float64]] = field(default_factory=list)
    guarantee: bool = True
    critic: dict[str, Tensor] = field(default_factory=dict)


def run_finetune(context: StageContext) -> Outcome:
    """Writes generator.safetensors and generator.json, as of the other kinds, with the mechanism that ran. After two rounds the
    second critic looks at what is drawn, if it may be drawn more than once, and the whole embedding is written, for who chooses
    by it (`stages.choice`).

    Noisy sums are saved below `private/` before they are trained on. An attempt that is killed while it draws them, or between
    two of them, has lost all; one that ends in any other way, or later, nothing.
    """
    paid = context.paid
    if paid is None or not isinstance(paid.mechanism, ClassSumRounds):
        raise Uncharged("The embeddings were not charged.")
    mechanism = paid.mechanism
    released = _saved(context, paid, mechanism)
    generator, about, first = opened(context.config, context.inputs)
    config = MeanEmbedding.model_validate(about.network)
    rounds = len(mechanism.dimensions)
    alone = config.num_steps if rounds == 1 else max(1, int(config.critic_from * config.num_steps))
    with context.stop.answered_between_steps(), context.progress.ticker("finetune", config.num_steps) as tick:

        def on_step(step: int) -> None:
            tick(step)
            context.stop.check()

        if not released.sums:
            _draw(context, paid, mechanism, first, released)
        means = means_of(released.sums[0], mechanism, first.device)
        critic = None
        with ExitStack() as not_drawn:
            if len(released.sums) < rounds:
                # Whatever ends this attempt before it draws again has cost nothing; a kill alone says nothing.
                not_drawn.callback(paid.pause, len(released.sums))
            weights = match(generator, means, first, config.model_copy(update={"num_steps": alone}), on_step=on_step)
            if rounds > 1:
                generator.load_state_dict(weights)
                critic = _second_critic(context, generator, about, released)
            not_drawn.pop_all()
        if critic is not None:
            seen = features_of(critic, config, first.device, number=2)
            if len(released.sums) < rounds:
                _draw(context, paid, mechanism, seen, released)
            its_means = means_of(released.sums[1], mechanism, first.device)
            joint, target = joined(first, means, seen, its_means, config.critic_share)
            then = config.model_copy(update={"num_steps": config.num_steps - alone})
            weights = match(generator.train(), target, joint, then, on_step=lambda step: on_step(alone + step))
            of_critic = {f"{OF_CRITIC}{name}": tensor for name, tensor in critic.tensors().items()}
            save_weights({"means": target, **of_critic}, context.folder / EMBEDDING)
    rejects = critic is not None and config.critic_attempts > 1
    if critic is not None and rejects:
        generator.load_state_dict(weights)
        weights = RejectionSampling(generator, critic.network, attempts=config.critic_attempts).state_dict()
    tuned = about.model_copy(
        update={
            "rejects": rejects,
            "guarantee": guarantee_of(released.guarantee, is_guaranteed(context.inputs)),
            "mechanism": asdict(mechanism),
        }
    )
    save_generator(context.folder, tuned, weights)
    return Outcome(metrics={"noise_multiplier": mechanism.noise_multiplier, "num_steps": config.num_steps})


def rehearse_finetune(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    """Vectors of made-up images, and one step towards a made-up embedding, to find before the charge what could otherwise
    fail after it."""
    generator, about, features = opened(config, inputs)
    own = MeanEmbedding.model_validate(about.network)
    size = {"channels": about.channels, "resolution": about.resolution}
    found = [features.size + 1]
    if config.selection.selects:
        open_examples(inputs["pretrain"])
        critic = untrained_critic(own, **size, num_classes=generator.num_classes, device=features.device)
        nothing = torch.zeros(generator.num_classes, 0, device=features.device)
        seen = features_of(critic, own, features.device, number=2)
        found.append(seen.size + 1)
        features, _ = joined(features, nothing, seen, nothing, own.critic_share)
    charged = settings_of(config).dimensions(with_critic=config.selection.selects)
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
            "A step, or the vectors of some images, does not fit into memory: lower generator.batch_size, "
            "generator.num_features or generator.critic_channels."
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


def _second_critic(
    context: StageContext, generator: EmbeddingGenerator, about: GeneratorAbout, released: _Released
) -> Critic:
    """The critic of the second round: the one that its sums are of, if there are any, or a new one."""
    device = next(generator.parameters()).device
    own = MeanEmbedding.model_validate(about.network)
    if released.critic:
        size = {"channels": about.channels, "num_classes": generator.num_classes}
        return critic_of(released.critic, own, **size, device=device)
    images, labels = open_examples(context.inputs["pretrain"])
    drawn, classes = draw(generator, about, _SEEDS + torch.arange(len(images)))
    mixed = torch.randperm(2 * len(images), generator=torch.Generator().manual_seed(own.seed))
    images, labels = torch.cat([images, drawn])[mixed], torch.cat([labels, classes])[mixed]
    critic, _ = trained_critic(context, images, labels, generator.num_classes, seed=own.seed + 1)
    released.critic = critic.tensors()
    return critic
