"""Pre-training and DP-SGD fine-tuning as stages, for every kind that learns by gradients of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.config.run import RunConfig
from privimage.data.facts import TableFacts, public_facts
from privimage.errors import ArtifactDamaged, ConfigError, Uncharged
from privimage.generators.interface import ImageGenerator, code_of
from privimage.generators.opening import open_generator, save_generator
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.finetune import FinetuneState, finetune, start_state
from privimage.generators.training.pretrain import PretrainState, by_probability, evenly, pretrain
from privimage.generators.training.private_sum import PrivateSum
from privimage.machine.device import choose_devices, choose_precision, rows_with_gradients
from privimage.methods.training import LearnsByGradients
from privimage.payloads import GeneratorAbout, Selection, guarantee_of, is_guaranteed
from privimage.pipeline.stage import Outcome, Paid, StageContext
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.semantics.index import require_table
from privimage.semantics.selection import probabilities_of, read_selected
from privimage.store.artifacts import Artifact
from privimage.store.checkpoints import Checkpoint, Checkpoints
from privimage.store.tensors import pack, unpack

__all__ = [
    "admitted_classes",
    "compute_settings",
    "open_for_finetuning",
    "read_selection",
    "rehearse_finetune",
    "run_finetune",
    "run_pretrain",
    "settings_of",
]

CURVE_POINTS = 200
_GROUPS = ("weights", "ema", "exp_avg", "exp_avg_sq")

Generator = ImageGenerator[Any, Any]
OtherClasses = Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]


def run_pretrain(context: StageContext, with_other_classes: OtherClasses | None = None) -> Outcome:
    """Writes generator.safetensors (averaged weights) and generator.json, for the classes of the sensitive images.

    Checkpoints on a clock and when it is asked to stop; resumes exactly. Without a selection: the first weights.

    Args:
        with_other_classes: what makes of weights that learned public categories those for so many other classes; a kind
            without it takes no selection that keeps public labels.
    """
    config, settings = context.config, settings_of(context.config)
    facts = public_facts(context.inputs["public"])
    if not config.selection.selects:
        class_names = admitted_classes(context)
        first = _new_generator(config, facts, len(class_names))
        weights = {name: parameter.detach() for name, parameter in first.named_parameters()}
        return _write_pretrained(context, facts, class_names, weights, [], 0)
    class_names = Selection.read(context.inputs["select"]).class_names
    own_labels = config.selection.keeps_public_labels
    images, labels, probabilities = read_selection(context, facts.num_images)
    rows = (
        evenly(torch.from_numpy(labels))
        if probabilities is None
        else by_probability(torch.from_numpy(probabilities), settings.pretrain.sharpness)
    )
    compute = compute_settings(config)
    generator = _new_generator(config, facts, len(facts.class_names if own_labels else class_names))
    generator.to(compute.devices[0])
    # Here too, because what fine-tuning cannot use is better found before hours of training than after.
    if settings.finetunes:
        _private_sum(generator, settings, compute).check(facts.channels, facts.resolution)
    checkpoints = Checkpoints(context.store, "pretrain", context.key, sealed=False)
    state = _resumed(checkpoints, context)
    save_if_due = _saver(checkpoints, context)
    every = max(1, settings.pretrain.num_steps // CURVE_POINTS)
    ticker = context.progress.ticker("pretrain", settings.pretrain.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(state: PretrainState, loss: float) -> None:
            if state.step % every == 0 or state.step == 1:
                state.curve.append((state.step, loss))
            save_if_due(state)
            tick(state.step, loss)
            context.stop.check()

        state = pretrain(
            generator,
            torch.from_numpy(images),
            rows,
            settings.pretrain,
            state=state,
            on_step=on_step,
            compute=compute,
        )
    weights = state.ema
    if own_labels:
        if with_other_classes is None:
            raise ConfigError(f"A generator of kind {settings.kind} cannot keep public labels: set another selection.")
        weights = with_other_classes(weights, len(class_names))
    return _write_pretrained(context, facts, class_names, weights, state.curve, len(images))


def _resumed(checkpoints: Checkpoints, context: StageContext) -> PretrainState | None:
    """Where the newest sound checkpoint stands, if there is one."""
    saved = _latest(checkpoints, context)
    if saved is None:
        return None
    tensors, about = unpack(saved.data)
    if about.get("key") != context.key:
        raise ArtifactDamaged(
            f"The checkpoint of step {saved.step} in checkpoints/pretrain/{context.key} was saved by another run or "
            "version: remove that folder, and training begins anew."
        )
    return PretrainState(curve=[tuple(point) for point in about["curve"]], **_ungrouped(tensors), step=about["step"])


def _saver(checkpoints: Checkpoints, context: StageContext) -> Callable[[PretrainState], None]:
    """Saves a state where a checkpoint is due: by the clock, by steps, or because the run is to stop."""
    performance = context.config.performance
    clock, block = _Clock(performance.checkpoint_seconds), performance.checkpoint_steps

    def save_if_due(state: PretrainState) -> None:
        if context.stop.asked or (block and state.step % block == 0) or clock.due():
            data = pack(_grouped(state), {"key": context.key, "step": state.step, "curve": state.curve})
            checkpoints.save(state.step, data)
            clock.restart()

    return save_if_due


def read_selection(
    context: StageContext, num_public: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32] | None]:
    """The selected public images, uint8 NCHW, their classes, and probabilities of all classes, if single images were selected."""
    select, public = context.inputs["select"], context.inputs["public"]
    selected = pq.read_table(select.local("selected.parquet"), columns=None)
    require_table("The selection", selected.schema, digest=public.ref.digest, num_images=num_public)
    shards = [name for name in public.names if name.startswith("images-")]
    images, labels = read_selected(selected, lambda shard: public.local(shards[shard]), spill=context.folder)
    return images, labels, probabilities_of(selected)


def admitted_classes(context: StageContext) -> Sequence[str]:
    """Names of the classes: all that a stage without a selection uses of the sensitive images."""
    if context.facts is None:
        raise Uncharged("A generator without pre-training needs the class names of the admitted images.")
    return context.facts.class_names


def settings_of(config: RunConfig) -> LearnsByGradients:
    """The settings of a generator that learns by gradients of images.

    Raises:
        ConfigError: the run has another kind of generator.
    """
    if not isinstance(config.generator, LearnsByGradients):
        raise ConfigError(f"A generator of kind {config.generator.kind} does not learn by gradients of images.")
    return config.generator


def _new_generator(config: RunConfig, facts: TableFacts, num_classes: int) -> Generator:
    settings = settings_of(config)
    source = code_of(settings).new_generator(
        settings.network_settings,
        channels=facts.channels,
        resolution=facts.resolution,
        num_classes=num_classes,
        seed=settings.pretrain.seed,
    )
    if not isinstance(source, ImageGenerator):
        raise ConfigError(f"A {type(source).__name__} does not learn by gradients of images: DP-SGD cannot train it.")
    return source


def _write_pretrained(
    context: StageContext,
    facts: TableFacts,
    class_names: Sequence[str],
    weights: Mapping[str, Tensor],
    curve: Sequence[tuple[int, float]],
    num_images: int,
) -> Outcome:
    num_parameters = sum(tensor.numel() for tensor in weights.values())
    settings = settings_of(context.config)
    about = GeneratorAbout(
        kind=settings.kind,
        network=settings.network_settings,
        channels=facts.channels,
        resolution=facts.resolution,
        class_names=tuple(class_names),
        num_parameters=num_parameters,
        loss_curve=tuple(curve),
    )
    save_generator(context.folder, about, weights)
    return Outcome(metrics={"num_parameters": num_parameters, "num_images": num_images})


def run_finetune(context: StageContext) -> Outcome:
    """Writes generator.safetensors (averaged weights) and generator.json with the mechanism that ran.

    Checkpoints lie below `private/`, one every `checkpoint_steps`: no attempt runs further than that past one. Where it
    is asked to stop it saves one more and says so in the ledger, and has lost nothing.
    """
    paid = context.paid
    if paid is None or not isinstance(paid.mechanism, DPSGDMechanism):
        raise Uncharged("Fine-tuning was not charged.")
    mechanism, config = paid.mechanism, settings_of(context.config).finetune
    generator, about, compute = open_for_finetuning(context.config, context.inputs)
    checkpoints = Checkpoints(context.store, "finetune", context.key, sealed=True)
    state, guaranteed = _paid_state(checkpoints, context, paid, generator)
    private_images, private_labels = context.private_images("train")
    ticker = context.progress.ticker("finetune", mechanism.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(state: FinetuneState) -> None:
            done, stopping = state.step == mechanism.num_steps, context.stop.asked
            # Not by a clock: names in the ledger would tell how long steps took, and so how many images they drew.
            if state.step % config.checkpoint_steps == 0 or done or stopping:
                reservation = paid.reservations[-1]
                data = pack(_grouped(state), {"step": state.step, "reservation": reservation, "guarantee": guaranteed})
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
            compute=compute,
        )
    tuned = about.model_copy(
        update={
            "guarantee": guarantee_of(guaranteed),
            "mechanism": {**asdict(mechanism), "sample_rate": mechanism.sample_rate},
        }
    )
    save_generator(context.folder, tuned, state.ema)
    return Outcome(metrics={"noise_multiplier": mechanism.noise_multiplier, "num_steps": mechanism.num_steps})


def _paid_state(
    checkpoints: Checkpoints, context: StageContext, paid: Paid, generator: Generator
) -> tuple[FinetuneState, bool]:
    """Where this attempt goes on, and whether all noise behind it carries a guarantee.

    One attempt, or one earlier release, with reproducible noise voids it for good.
    """
    saved = _latest(checkpoints, context)
    guaranteed = paid.random.guarantee and is_guaranteed(context.inputs)
    if (saved.step if saved else 0) < paid.from_step:
        raise Uncharged("A checkpoint of this stage vanished while it was resumed; run again.")
    if saved is None:
        return start_state({name: tensor.detach() for name, tensor in generator.named_parameters()}), guaranteed
    tensors, about = unpack(saved.data)
    if about["reservation"] != paid.reservations[-1]:
        raise Uncharged(
            "The checkpoint of this stage was paid for by another reservation; remove it, or restore the ledger."
        )
    return FinetuneState(step=about["step"], **_ungrouped(tensors)), guaranteed and about["guarantee"]


def rehearse_finetune(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    """One physical batch of noise, to find before the charge what could otherwise fail after it.

    Raises:
        ConfigError: the generator has a layer that fine-tuning cannot use, or a batch does not fit into memory.
    """
    generator, about, compute = open_for_finetuning(config, inputs)
    work = _private_sum(generator, settings_of(config), compute)
    work.check(about.channels, about.resolution)
    work.rehearse(about.channels, about.resolution)


def open_for_finetuning(
    config: RunConfig, inputs: Mapping[str, Artifact]
) -> tuple[Generator, GeneratorAbout, ComputeSettings]:
    """The generator to start from, the facts beside it, and settings whose physical batch fits the device."""
    compute, settings = compute_settings(config), settings_of(config)
    source, about = open_generator(inputs.get("warmup") or inputs["pretrain"], compute.devices[0], settings)
    if not isinstance(source, ImageGenerator):
        raise ConfigError(f"A {type(source).__name__} does not learn by gradients of images: DP-SGD cannot train it.")
    rows = rows_with_gradients(
        config.performance,
        compute.devices[0],
        bytes_per_image=_private_sum(source, settings, compute).bytes_per_image(about.channels, about.resolution),
        draws=settings.finetune.noise_samples,
    )
    return source, about, replace(compute, rows_at_once=rows)


def compute_settings(config: RunConfig) -> ComputeSettings:
    performance = config.performance
    devices = tuple(choose_devices(performance))
    return ComputeSettings(
        devices=devices,
        backend=performance.per_image_gradients,
        precision=choose_precision(performance, devices[0]),
    )


def _private_sum(generator: Generator, settings: LearnsByGradients, compute: ComputeSettings) -> PrivateSum:
    return PrivateSum(
        generator=generator,
        config=settings.finetune,
        max_grad_norm=settings.finetune.max_grad_norm,
        compute=compute,
    )


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
