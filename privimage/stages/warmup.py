"""Stage `warmup`: the generator, trained further on central images; free, since these were paid for."""

from __future__ import annotations

import json

import torch

from privimage.data.facts import TableFacts
from privimage.errors import ConfigError
from privimage.generators.denoiser import Denoiser
from privimage.generators.pretrain import PretrainState
from privimage.generators.warmup import warm_up
from privimage.pipeline import Outcome, StageContext
from privimage.stages.central import open_central
from privimage.stages.generation import CURVE_POINTS, execution_of, read_selection
from privimage.stages.models import open_generator, save_weights

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes denoiser.safetensors (averaged weights) and denoiser.json, as pre-training does.

    It keeps no checkpoint: where it is stopped, it begins anew.
    """
    config, execution = context.config, execution_of(context.config)
    generator, facts = open_generator(context.inputs["pretrain"], execution.devices[0])
    if not isinstance(generator, Denoiser):
        raise ConfigError("Central images warm up a generator by diffusion alone: set central.num_steps to 0.")
    public = None
    if "select" in context.inputs:
        about = TableFacts.from_json(context.inputs["public"].read_bytes("facts.json").decode())
        images, labels = read_selection(context, about.num_images)
        public = torch.from_numpy(images), torch.from_numpy(labels)
    every = max(1, config.central.num_steps // CURVE_POINTS)
    curve: list[tuple[int, float]] = []
    ticker = context.progress.ticker("warmup", config.central.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(state: PretrainState, loss: float) -> None:
            if state.step % every == 0 or state.step == 1:
                curve.append((state.step, loss))
            tick(state.step, loss)
            context.stop.check()

        state = warm_up(
            generator,
            open_central(context.inputs["central"]),
            public,
            config.central,
            config.pretrain,
            on_step=on_step,
            execution=execution,
        )
    save_weights(state.ema, context.folder / "denoiser.safetensors")
    (context.folder / "denoiser.json").write_text(json.dumps({**facts, "loss_curve": curve}))
    return Outcome(metrics={"num_steps": state.step, "num_images": 0 if public is None else len(public[0])})
