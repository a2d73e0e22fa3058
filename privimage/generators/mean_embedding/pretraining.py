"""Stage `pretrain` of a run with mean embeddings: first weights, the width of the kernel, and the first critic."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from privimage.data.facts import TableFacts, public_facts
from privimage.data.table import read_images
from privimage.errors import ConfigError
from privimage.generators.mean_embedding.critic import Critic, examples_of, save_critic, train_critic
from privimage.generators.mean_embedding.embedding import settings_of
from privimage.generators.mean_embedding.features import median_distance
from privimage.generators.mean_embedding.matching import new_embedding_generator
from privimage.generators.opening import save_generator
from privimage.generators.training.gradients import admitted_classes, read_selection
from privimage.machine.device import choose_device
from privimage.payloads import GeneratorAbout, Selection
from privimage.pipeline.stage import Outcome, StageContext

__all__ = ["run_pretrain", "trained_critic"]

LENGTHSCALE = 0.4
"""Of the median distance of public images. The whole of it, as usual, lets images of a class be blurred into each other."""


def run_pretrain(context: StageContext) -> Outcome:
    """Writes generator.safetensors (first weights), generator.json, with the lengthscale, which public images set, and, with a
    selection, examples.safetensors, from which critics learn, and critic.safetensors, the first of them.
    """
    public = context.inputs["public"]
    lengthscale = settings_of(context.config).lengthscale
    if lengthscale is None:
        images, _ = read_images(public.files("images-"), spill=context.folder)
        lengthscale = LENGTHSCALE * median_distance(images)
        if not lengthscale > 0:
            raise ConfigError("Most public images are the same, and set no lengthscale: give generator.lengthscale.")
    facts = public_facts(public)
    if not context.config.selection.selects:
        return _write_untrained(context, facts, admitted_classes(context), lengthscale)
    class_names = Selection.read(context.inputs["select"]).class_names
    examples = examples_of(settings_of(context.config), *read_selection(context, facts.num_images)[:2])
    critic, accuracy = trained_critic(context, *examples, len(class_names), seed=settings_of(context.config).seed)
    save_critic(context.folder, critic, examples)
    outcome = _write_untrained(context, facts, class_names, lengthscale)
    return Outcome(metrics={**outcome.metrics, "critic_accuracy": accuracy})


def _write_untrained(
    context: StageContext, facts: TableFacts, class_names: Sequence[str], lengthscale: float
) -> Outcome:
    settings = settings_of(context.config)
    size = {"channels": facts.channels, "resolution": facts.resolution, "num_classes": len(class_names)}
    weights = dict(new_embedding_generator(settings, **size, seed=settings.seed).state_dict())
    num_parameters = sum(tensor.numel() for tensor in weights.values())
    about = GeneratorAbout(
        kind=settings.kind,
        network=settings.model_dump(mode="json", exclude={"sampling"}),
        channels=facts.channels,
        resolution=facts.resolution,
        class_names=tuple(class_names),
        num_parameters=num_parameters,
        loss_curve=(),
        own={"lengthscale": lengthscale},
    )
    save_generator(context.folder, about, weights)
    return Outcome(metrics={"num_parameters": num_parameters, "num_images": 0})


def trained_critic(
    context: StageContext, images: Tensor, labels: Tensor, num_classes: int, *, seed: int
) -> tuple[Critic, float]:
    """A critic of these images, and its accuracy on some that were held out."""
    steps = settings_of(context.config).critic_steps
    device = choose_device(context.config.performance.device)
    with context.progress.ticker("critic", steps) as tick:

        def on_step(step: int, count: int) -> None:
            tick(min(step * steps // count, steps))
            context.stop.check()

        return train_critic(
            images,
            labels,
            num_classes,
            settings_of(context.config),
            context.config.classifier,
            seed=seed,
            device=device,
            on_step=on_step,
        )
