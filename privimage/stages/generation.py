"""Stages `pretrain` and `finetune`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.config import RunConfig
from privimage.data.facts import TableFacts
from privimage.device import choose_devices, rows_with_gradients
from privimage.errors import ArtifactDamaged, ConfigError, Uncharged
from privimage.generators.execution import Execution
from privimage.generators.finetune import FinetuneState, finetune, start_state
from privimage.generators.interface import ImageGenerator, ImageSource
from privimage.generators.labels import with_other_classes
from privimage.generators.pretrain import PretrainState, pretrain
from privimage.generators.private_sum import PrivateSum
from privimage.pipeline import Outcome, StageContext
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.semantics.index import require_table
from privimage.semantics.selection import read_selected
from privimage.stages.models import new_generator, open_generator, save_weights
from privimage.store.artifacts import JSON, Artifact
from privimage.store.checkpoints import Checkpoint, Checkpoints
from privimage.store.tensors import pack, unpack

__all__ = [
    "admitted_classes",
    "execution_of",
    "open_for_finetuning",
    "read_selection",
    "rehearse_finetune",
    "run_finetune",
    "run_pretrain",
    "write_untrained",
]

CURVE_POINTS = 200
_GROUPS = ("weights", "ema", "exp_avg", "exp_avg_sq")


def run_pretrain(context: StageContext) -> Outcome:
    """Writes denoiser.safetensors (averaged weights) and denoiser.json, for the classes of the sensitive images.

    Checkpoints on a clock and when it is asked to stop; resumes exactly. With strategy none: the first weights.
    """
    config = context.config
    public = context.inputs["public"]
    facts = TableFacts.from_json(public.read_bytes("facts.json").decode())
    if config.selection.strategy == "none":
        return write_untrained(context, facts, admitted_classes(context))
    class_names = [row["class"] for row in context.inputs["select"].read_json("selection.json")]
    own_labels = config.selection.strategy == "all"
    images, labels = read_selection(context, facts.num_images)
    execution = execution_of(config)
    generator = _learner(
        new_generator(
            config.network,
            channels=facts.channels,
            resolution=facts.resolution,
            num_classes=len(facts.class_names if own_labels else class_names),
            seed=config.pretrain.seed,
        )
    ).to(execution.devices[0])
    # Here too, because what fine-tuning cannot use is better found before hours of training than after.
    _private_sum(generator, config, execution).check(facts.channels, facts.resolution)
    checkpoints = Checkpoints(context.store, "pretrain", context.key, sealed=False)
    saved = _latest(checkpoints, context)
    state = None
    if saved:
        tensors, about = unpack(saved.data)
        if about.get("key") != context.key:
            raise ArtifactDamaged(
                f"The checkpoint of step {saved.step} in checkpoints/pretrain/{context.key} was saved by another run or "
                "version: remove that folder, and training begins anew."
            )
        state = PretrainState(
            curve=[tuple(point) for point in about["curve"]], **_ungrouped(tensors), step=about["step"]
        )
    clock = _Clock(config.performance.checkpoint_seconds)
    every = max(1, config.pretrain.num_steps // CURVE_POINTS)
    block = config.performance.checkpoint_steps
    ticker = context.progress.ticker("pretrain", config.pretrain.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(state: PretrainState, loss: float) -> None:
            if state.step % every == 0 or state.step == 1:
                state.curve.append((state.step, loss))
            if context.stop.asked or (block and state.step % block == 0) or clock.due():
                data = pack(_grouped(state), {"key": context.key, "step": state.step, "curve": state.curve})
                checkpoints.save(state.step, data)
                clock.restart()
            tick(state.step, loss)
            context.stop.check()

        state = pretrain(
            generator,
            torch.from_numpy(images),
            torch.from_numpy(labels),
            config.pretrain,
            state=state,
            on_step=on_step,
            execution=execution,
        )
    weights = with_other_classes(state.ema, len(class_names)) if own_labels else state.ema
    return _write_pretrained(context, facts, class_names, weights, state.curve, len(images))


def read_selection(context: StageContext, num_public: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The selected public images, uint8 NCHW, and their classes."""
    select, public = context.inputs["select"], context.inputs["public"]
    selected = pq.read_table(select.local("selected.parquet"), columns=["shard", "row", "class"])
    require_table("The selection", selected.schema, digest=public.ref.digest, num_images=num_public)
    shards = [name for name in public.names if name.startswith("images-")]
    return read_selected(selected, lambda shard: public.local(shards[shard]), spill=context.folder)


def admitted_classes(context: StageContext) -> Sequence[str]:
    """Names of the classes: all that a stage without a selection uses of the sensitive images."""
    if context.facts is None:
        raise Uncharged("A generator without pre-training needs the class names of the admitted images.")
    return context.facts.class_names


def write_untrained(context: StageContext, facts: TableFacts, class_names: Sequence[str], **more: JSON) -> Outcome:
    """Random weights: fine-tuning starts from nothing.

    Args:
        more: public facts that go into denoiser.json too.
    """
    config = context.config
    generator = new_generator(
        config.network,
        channels=facts.channels,
        resolution=facts.resolution,
        num_classes=len(class_names),
        seed=config.merf.seed if config.generator == "merf" else config.pretrain.seed,
    )
    weights = {name: parameter.detach() for name, parameter in generator.named_parameters()}
    return _write_pretrained(context, facts, class_names, weights, [], 0, **more)


def _write_pretrained(
    context: StageContext,
    facts: TableFacts,
    class_names: Sequence[str],
    weights: Mapping[str, Tensor],
    curve: Sequence[tuple[int, float]],
    num_images: int,
    **more: JSON,
) -> Outcome:
    num_parameters = sum(tensor.numel() for tensor in weights.values())
    save_weights(weights, context.folder / "denoiser.safetensors")
    config = context.config
    about = {
        **({} if config.generator == "diffusion" else {"kind": config.generator}),
        "config": config.network.model_dump(mode="json"),
        "channels": facts.channels,
        "resolution": facts.resolution,
        "class_names": list(class_names),
        "num_parameters": num_parameters,
        "loss_curve": curve,
        **more,
    }
    (context.folder / "denoiser.json").write_text(json.dumps(about))
    return Outcome(metrics={"num_parameters": num_parameters, "num_images": num_images})


def run_finetune(context: StageContext) -> Outcome:
    """Writes denoiser.safetensors (averaged weights) and denoiser.json with the mechanism that ran.

    Checkpoints lie below `private/`, one every `checkpoint_steps`: no attempt runs further than that past one. Where it
    is asked to stop it saves one more and says so in the ledger, and has lost nothing.
    """
    paid = context.paid
    if paid is None or not isinstance(paid.mechanism, DPSGDMechanism):
        raise Uncharged("Fine-tuning was not charged.")
    mechanism, config = paid.mechanism, context.config.finetune
    generator, facts, execution = open_for_finetuning(context.config, context.inputs)
    checkpoints = Checkpoints(context.store, "finetune", context.key, sealed=True)
    saved = _latest(checkpoints, context)
    # Of what was released before, and of all attempts: one with reproducible noise voids it for good.
    before = [context.inputs[name].read_json(f"{name}.json") for name in ("query", "central") if name in context.inputs]
    guarantee = paid.random.guarantee and all(each["guarantee"] == "differential privacy" for each in before)
    if (saved.step if saved else 0) < paid.from_step:
        raise Uncharged("A checkpoint of this stage vanished while it was resumed; run again.")
    if saved:
        tensors, about = unpack(saved.data)
        guarantee = guarantee and about["guarantee"]
        if about["reservation"] != paid.reservations[-1]:
            raise Uncharged(
                "The checkpoint of this stage was paid for by another reservation; remove it, or restore the ledger."
            )
        state = FinetuneState(step=about["step"], **_ungrouped(tensors))
    else:
        state = start_state({name: tensor.detach() for name, tensor in generator.named_parameters()})
    private_images, private_labels = context.private_images("train")
    ticker = context.progress.ticker("finetune", mechanism.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(state: FinetuneState) -> None:
            done, stopping = state.step == mechanism.num_steps, context.stop.asked
            # Not by a clock: names in the ledger would tell how long steps took, and so how many images they drew.
            if state.step % config.checkpoint_steps == 0 or done or stopping:
                reservation = paid.reservations[-1]
                data = pack(_grouped(state), {"step": state.step, "reservation": reservation, "guarantee": guarantee})
                if not checkpoints.save(state.step, data):
                    raise Uncharged("Another process is fine-tuning under the same reservation; this one stops here.")
                paid.record_step(state.step)
            tick(state.step)
            if stopping and not done:
                paid.pause(state.step)
                context.stop.check()

        state = finetune(
            generator,
            private_images,
            private_labels,
            mechanism,
            config,
            state=state,
            random=paid.random,
            on_step=on_step,
            execution=execution,
        )
    save_weights(state.ema, context.folder / "denoiser.safetensors")
    about = {
        **facts,
        "guarantee": "differential privacy" if guarantee else "none",
        "mechanism": {
            "num_images": mechanism.num_images,
            "expected_batch_size": mechanism.expected_batch_size,
            "sample_rate": mechanism.sample_rate,
            "num_steps": mechanism.num_steps,
            "restart_allowance": mechanism.restart_allowance,
            "max_grad_norm": mechanism.max_grad_norm,
            "noise_multiplier": mechanism.noise_multiplier,
            "largest_batch_size": mechanism.largest_batch_size,
        },
    }
    (context.folder / "denoiser.json").write_text(json.dumps(about))
    return Outcome(metrics={"noise_multiplier": mechanism.noise_multiplier, "num_steps": mechanism.num_steps})


def rehearse_finetune(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    """One physical batch of noise, to find before the charge what could otherwise fail after it.

    Raises:
        ConfigError: the generator has a layer that fine-tuning cannot use, or a batch does not fit into memory.
    """
    generator, facts, execution = open_for_finetuning(config, inputs)
    work = _private_sum(generator, config, execution)
    work.check(facts["channels"], facts["resolution"])
    work.rehearse(facts["channels"], facts["resolution"])


def open_for_finetuning(
    config: RunConfig, inputs: Mapping[str, Artifact]
) -> tuple[ImageGenerator, dict[str, Any], Execution]:
    """The generator to start from, the facts beside it, and an execution whose physical batch fits the device."""
    execution = execution_of(config)
    source, facts = open_generator(inputs.get("warmup") or inputs["pretrain"], execution.devices[0])
    generator = _learner(source)
    rows = rows_with_gradients(
        config.performance,
        execution.devices[0],
        bytes_per_image=_private_sum(generator, config, execution).bytes_per_image(
            facts["channels"], facts["resolution"]
        ),
        draws=config.finetune.noise_samples,
    )
    return generator, facts, replace(execution, rows_at_once=rows)


def _learner(source: ImageSource) -> ImageGenerator:
    if not isinstance(source, ImageGenerator):
        raise ConfigError(f"A {type(source).__name__} does not learn by gradients of images: DP-SGD cannot train it.")
    return source


def execution_of(config: RunConfig) -> Execution:
    performance = config.performance
    return Execution(
        devices=tuple(choose_devices(performance)),
        backend=performance.per_image_gradients,
        precision=performance.precision,
    )


def _private_sum(generator: ImageGenerator, config: RunConfig, execution: Execution) -> PrivateSum:
    settings = config.finetune
    return PrivateSum(generator=generator, config=settings, max_grad_norm=settings.max_grad_norm, execution=execution)


def _latest(checkpoints: Checkpoints, context: StageContext) -> Checkpoint | None:
    """The newest sound checkpoint; says which ones were damaged."""
    saved = checkpoints.latest()
    for name in checkpoints.damaged:
        context.progress.note(
            f"The checkpoint {name} is damaged; going on from {f'step {saved.step}' if saved else 'the beginning'}."
        )
    return saved


class _Clock:
    """Tells when the next checkpoint is due."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._began = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._began > self._seconds


def _grouped(state: PretrainState | FinetuneState) -> dict[str, Tensor]:
    return {f"{group}.{name}": tensor for group in _GROUPS for name, tensor in getattr(state, group).items()}


def _ungrouped(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        group: {
            name.removeprefix(f"{group}."): tensor for name, tensor in tensors.items() if name.startswith(f"{group}.")
        }
        for group in _GROUPS
    }
