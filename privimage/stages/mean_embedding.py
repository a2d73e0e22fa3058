"""Stages `pretrain` and `finetune` of a run with mean embeddings: one noisy embedding is released, and learned from.

Without a selection this is DP-MERF. With one, a critic is trained on the selected public images first, in `pretrain`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privimage.config import MerfConfig, RunConfig
from privimage.data.facts import TableFacts
from privimage.data.table import read_images
from privimage.device import choose_device
from privimage.errors import ConfigError, Uncharged
from privimage.generators.features import Features, JointFeatures, median_distance, new_features
from privimage.generators.merf import AT_ONCE, Embedded, Merf, class_means, match
from privimage.pipeline import Outcome, Paid, StageContext
from privimage.privacy.class_sums import noisy_class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSums
from privimage.stages.critic import open_critic, train_critic
from privimage.stages.generation import admitted_classes, read_selection, write_untrained
from privimage.stages.models import open_generator, save_weights
from privimage.store.artifacts import JSON, Artifact
from privimage.store.checkpoints import Checkpoints
from privimage.store.tensors import pack, unpack

__all__ = ["rehearse_finetune", "run_finetune", "run_pretrain"]

LENGTHSCALE = 0.4
"""Of the median distance of public images. The whole of it, as usual, lets images of a class be blurred into each other."""


def run_pretrain(context: StageContext) -> Outcome:
    """Writes denoiser.safetensors (first weights), denoiser.json, with lengthscales, which public images set, and, with a
    selection, critic.safetensors.
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
    images, labels = read_selection(context, facts.num_images)
    device = choose_device(context.config.performance.device)
    of_critic, accuracy = train_critic(context, images, labels, len(class_names), device)
    return write_untrained(
        context,
        facts,
        class_names,
        lengthscale=lengthscale,
        critic_lengthscale=of_critic,
        critic_accuracy=round(accuracy, 4),
    )


def run_finetune(context: StageContext) -> Outcome:
    """Writes denoiser.safetensors and denoiser.json, as of the other kinds, with the mechanism that ran.

    The noisy sums are saved below `private/` before they are trained on, and the ledger is told that no more is drawn: an
    attempt that is stopped after that has lost nothing. One that is killed before has lost all.
    """
    paid = context.paid
    if paid is None or not isinstance(paid.mechanism, ClassSums):
        raise Uncharged("The embedding was not charged.")
    saved = _saved(context, paid)
    generator, facts, features = _opened(context.config, context.inputs)
    sums, guarantee = saved or _drawn(context, paid, paid.mechanism, features)
    # The votes that a critic goes back to may have no guarantee.
    query = context.inputs["query"].read_json("query.json") if "query" in context.inputs else None
    guarantee = guarantee and (query is None or query["guarantee"] == "differential privacy")
    means = class_means(sums, paid.mechanism.num_images).to(features.device)
    config = MerfConfig.model_validate(facts["config"])
    ticker = context.progress.ticker("finetune", config.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(step: int) -> None:
            tick(step)
            context.stop.check()

        weights = _matched(generator, means, features, config, on_step)
    save_weights(weights, context.folder / "denoiser.safetensors")
    about = {
        **facts,
        "guarantee": "differential privacy" if guarantee else "none",
        "mechanism": asdict(paid.mechanism),
    }
    (context.folder / "denoiser.json").write_text(json.dumps(about))
    return Outcome(metrics={"noise_multiplier": paid.mechanism.noise_multiplier, "num_steps": config.num_steps})


def _matched(
    generator: Merf, means: torch.Tensor, features: Features, config: MerfConfig, on_step: Callable[[int], None]
) -> dict[str, torch.Tensor]:
    """As `match`; where there is a critic, by pixels alone at first."""
    if not isinstance(features, JointFeatures) or not (before := int(config.critic_from * config.num_steps)):
        return match(generator, means, features, config, on_step=on_step)
    pixels, share = features.parts[0], features.shares[0]
    of_pixels = means[:, : pixels.size] / math.sqrt(share)
    first, then = (config.model_copy(update={"num_steps": steps}) for steps in (before, config.num_steps - before))
    generator.load_state_dict(match(generator, of_pixels, pixels, first, on_step=on_step))
    return match(generator, means, features, then, on_step=lambda step: on_step(before + step))


def rehearse_finetune(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    """Vectors of made-up images, and one step towards a made-up embedding, to find before the charge what could otherwise
    fail after it."""
    generator, facts, features = _opened(config, inputs)
    means = torch.zeros(generator.num_classes, features.size, device=features.device)
    once = MerfConfig.model_validate({**facts["config"], "num_steps": 1})
    images = np.zeros((AT_ONCE, facts["channels"], facts["resolution"], facts["resolution"]), dtype=np.uint8)
    try:
        Embedded(private_images=images, features=features)[:]
        match(generator, means, features, once)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "A step, or the vectors of some images, does not fit into memory: lower merf.batch_size, merf.num_features or "
            "merf.critic_channels."
        ) from error


def _saved(context: StageContext, paid: Paid) -> tuple[NDArray[np.float64], bool] | None:
    """The noisy sums that an earlier attempt saved, and whether their noise carries a guarantee; None if there are none.

    This attempt then draws nothing, and says so before all else: whatever becomes of it, the next may use them too.
    """
    saved = Checkpoints(context.store, "finetune", context.key, sealed=True).latest()
    if (saved.step if saved else 0) < paid.from_step:
        raise Uncharged("The saved embedding of this stage vanished while it was resumed; run again.")
    if saved is None:
        return None
    tensors, about = unpack(saved.data)
    if about["reservation"] != paid.reservations[-1]:
        raise Uncharged(
            "The saved embedding of this stage was paid for by another reservation; remove it, or restore the ledger."
        )
    paid.pause(saved.step)
    return tensors["sums"].numpy(), about["guarantee"]


def _drawn(
    context: StageContext, paid: Paid, mechanism: ClassSums, features: Features
) -> tuple[NDArray[np.float64], bool]:
    """The same, released now and saved."""
    images, labels = context.private_images("train")
    sums = noisy_class_sums(
        Embedded(private_images=images, features=features),
        labels,
        mechanism,
        insecure_random=paid.random if isinstance(paid.random, InsecureRandomForTests) else None,
    )
    guarantee = paid.random.guarantee
    about: dict[str, JSON] = {"reservation": paid.reservations[-1], "guarantee": guarantee}
    checkpoints = Checkpoints(context.store, "finetune", context.key, sealed=True)
    if not checkpoints.save(1, pack({"sums": torch.from_numpy(sums)}, about)):
        raise Uncharged("Another process is fine-tuning under the same reservation; this one stops here.")
    paid.record_step(1)
    # Said at once, not only when it is stopped: this attempt draws nothing more, whatever becomes of it.
    paid.pause(1)
    return sums, guarantee


def _opened(config: RunConfig, inputs: Mapping[str, Artifact]) -> tuple[Merf, dict[str, Any], Features]:
    """The generator with its first weights, the facts beside it, and the features that the embedding is made of."""
    device = choose_device(config.performance.device)
    generator, facts = open_generator(inputs["pretrain"], device)
    if not isinstance(generator, Merf):
        raise ConfigError(f"Mean embeddings train a Merf, and {type(generator).__name__} is none.")
    own = MerfConfig.model_validate(facts["config"])
    shape = (facts["channels"], facts["resolution"], facts["resolution"])
    of_pixels = new_features(
        math.prod(shape), own.num_features, lengthscale=facts["lengthscale"], seed=own.seed, device=device
    )
    if config.selection.strategy == "none":
        return generator, facts, of_pixels
    critic = open_critic(inputs["pretrain"], own, facts["channels"], generator.num_classes, device)
    of_critic = new_features(
        critic.numbers,
        own.critic_features,
        lengthscale=facts["critic_lengthscale"],
        seed=own.seed + 2,  # other numbers than those of pixels, and of the painter's training
        device=device,
        view=critic,
    )
    joint = JointFeatures(parts=(of_pixels, of_critic), shares=(1 - own.critic_share, own.critic_share))
    return generator, facts, joint
