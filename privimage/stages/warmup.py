"""Stage `warmup`: the generator, trained further on class mean images; free, since these were paid for."""

from __future__ import annotations

import torch

from privimage.data.facts import public_facts
from privimage.errors import ConfigError
from privimage.generators.diffusion.kind import open_generator, settings_of
from privimage.generators.diffusion.warmup import warm_up
from privimage.generators.opening import save_generator
from privimage.generators.training.gradients import CURVE_POINTS, compute_settings, read_selection
from privimage.generators.training.pretrain import PretrainState
from privimage.payloads import GeneratorAbout
from privimage.pipeline.stage import Outcome, StageContext
from privimage.stages.class_means import open_class_means

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes generator.safetensors (averaged weights) and generator.json, as pre-training does.

    It keeps no checkpoint: where it is stopped, it begins anew.
    """
    settings, compute = settings_of(context.config.generator), compute_settings(context.config)
    if settings.class_means is None:
        raise ConfigError("The configuration has no class mean images: give generator.class_means.")
    class_means = settings.class_means
    denoiser = open_generator(context.inputs["pretrain"], settings, compute.devices[0])
    about = GeneratorAbout.read(context.inputs["pretrain"])
    public = None
    if "select" in context.inputs:
        num_public = public_facts(context.inputs["public"]).num_images
        images, labels, _ = read_selection(context, num_public)
        public = torch.from_numpy(images), torch.from_numpy(labels)
    every = max(1, class_means.num_steps // CURVE_POINTS)
    curve: list[tuple[int, float]] = []
    ticker = context.progress.ticker("warmup", class_means.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(state: PretrainState, loss: float) -> None:
            if state.step % every == 0 or state.step == 1:
                curve.append((state.step, loss))
            tick(state.step, loss)
            context.stop.check()

        state = warm_up(
            denoiser,
            open_class_means(context.inputs["class_means"]),
            public,
            class_means,
            settings.pretrain,
            on_step=on_step,
            compute=compute,
        )
    save_generator(context.folder, about.model_copy(update={"loss_curve": tuple(curve)}), state.ema)
    return Outcome(metrics={"num_steps": state.step, "num_images": 0 if public is None else len(public[0])})
