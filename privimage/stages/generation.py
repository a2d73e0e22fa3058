"""Stages `pretrain`, `finetune` and `synthesize`."""

from __future__ import annotations

import json
import time
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from privimage.config import ImageConfig
from privimage.data.facts import TableFacts
from privimage.data.table import TableWriter
from privimage.device import choose_device, rows_without_gradients
from privimage.errors import Uncharged
from privimage.generators.denoiser import new_denoiser
from privimage.generators.finetune import FinetuneState, check_layers, finetune, start_state
from privimage.generators.pretrain import PretrainState, pretrain
from privimage.generators.sampler import synthesize_images
from privimage.pipeline import Outcome, StageContext
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.semantics.index import require_table
from privimage.semantics.selection import read_selected
from privimage.stages.models import open_denoiser, save_weights
from privimage.store.checkpoints import Checkpoints
from privimage.store.tensors import pack, unpack

__all__ = ["run_finetune", "run_pretrain", "run_synthesize"]

CHECKPOINT_SECONDS = 120.0
CURVE_POINTS = 200
_GROUPS = ("weights", "ema", "exp_avg", "exp_avg_sq")


def run_pretrain(context: StageContext) -> Outcome:
    """Writes denoiser.safetensors (averaged weights) and denoiser.json.

    Checkpoints on a clock and when it is asked to stop; resumes exactly.
    """
    config = context.config
    public, select = context.inputs["public"], context.inputs["select"]
    facts = TableFacts.from_json(public.read_bytes("facts.json").decode())
    class_names = [row["class"] for row in select.read_json("selection.json")]
    selected = pq.read_table(select.local("selected.parquet"), columns=["shard", "row", "class"])
    require_table("The selection", selected.schema, digest=public.ref.digest, num_images=facts.num_images)
    shards = [name for name in public.names if name.startswith("images-")]
    images, labels = read_selected(selected, lambda shard: public.local(shards[shard]), spill=context.folder)
    denoiser = new_denoiser(
        config.denoiser, channels=facts.channels, num_classes=len(class_names), seed=config.pretrain.seed
    ).to(choose_device(config.performance.device))
    check_layers(denoiser)  # here, because what fine-tuning cannot use must be found before it is charged
    checkpoints = Checkpoints(context.store, "pretrain", context.key, sealed=False)
    saved = checkpoints.latest()
    state = None
    if saved:
        tensors, about = unpack(saved.data)
        state = PretrainState(
            curve=[tuple(point) for point in about["curve"]], **_ungrouped(tensors), step=about["step"]
        )
    last_save = time.monotonic()
    every = max(1, config.pretrain.num_steps // CURVE_POINTS)
    ticker = context.progress.ticker("pretrain", config.pretrain.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(state: PretrainState, loss: float) -> None:
            nonlocal last_save
            if state.step % every == 0 or state.step == 1:
                state.curve.append((state.step, loss))
            if context.stop.asked or time.monotonic() - last_save > CHECKPOINT_SECONDS:
                checkpoints.save(state.step, pack(_grouped(state), {"step": state.step, "curve": state.curve}))
                last_save = time.monotonic()
            tick(state.step)
            context.stop.check()

        state = pretrain(
            denoiser, torch.from_numpy(images), torch.from_numpy(labels), config.pretrain, state=state, on_step=on_step
        )
    num_parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    save_weights(state.ema, context.folder / "denoiser.safetensors")
    about = {
        "config": config.denoiser.model_dump(mode="json"),
        "channels": facts.channels,
        "resolution": facts.resolution,
        "class_names": class_names,
        "num_parameters": num_parameters,
        "loss_curve": state.curve,
    }
    (context.folder / "denoiser.json").write_text(json.dumps(about))
    return Outcome(metrics={"num_parameters": num_parameters, "num_images": len(images)})


def run_finetune(context: StageContext) -> Outcome:
    """Writes denoiser.safetensors (averaged weights) and denoiser.json with the mechanism that ran.

    Checkpoints lie below `private/`, one at least every `checkpoint_steps`: no attempt runs further than that past
    one. Where it is asked to stop it saves one more and says so in the ledger, and has lost nothing.
    """
    paid = context.paid
    if paid is None or not isinstance(paid.mechanism, DPSGDMechanism):
        raise Uncharged("Fine-tuning was not charged.")
    mechanism, config = paid.mechanism, context.config.finetune
    denoiser, facts = open_denoiser(context.inputs["pretrain"], choose_device(context.config.performance.device))
    checkpoints = Checkpoints(context.store, "finetune", context.key, sealed=True)
    saved = checkpoints.latest()
    # Of the query and of all attempts: one with reproducible noise voids it for good.
    query = context.inputs["query"].read_json("query.json")
    guarantee = paid.random.guarantee and query["guarantee"] == "differential privacy"
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
        state = start_state({name: tensor.detach() for name, tensor in denoiser.named_parameters()})
    private_images, private_labels = context.private_images("train")
    last_save = time.monotonic()
    ticker = context.progress.ticker("finetune", mechanism.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(state: FinetuneState) -> None:
            nonlocal last_save
            done, stopping = state.step == mechanism.num_steps, context.stop.asked
            due = state.step % config.checkpoint_steps == 0 or time.monotonic() - last_save > CHECKPOINT_SECONDS
            if due or done or stopping:
                reservation = paid.reservations[-1]
                data = pack(_grouped(state), {"step": state.step, "reservation": reservation, "guarantee": guarantee})
                if not checkpoints.save(state.step, data):
                    raise Uncharged("Another process is fine-tuning under the same reservation; this one stops here.")
                paid.record_step(state.step)
                last_save = time.monotonic()
            tick(state.step)
            if stopping and not done:
                paid.pause(state.step)
                context.stop.check()

        state = finetune(
            denoiser,
            private_images,
            private_labels,
            mechanism,
            config,
            state=state,
            random=paid.random,
            rows_at_once=context.config.performance.physical_batch_size or 256,
            on_step=on_step,
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


def run_synthesize(context: StageContext) -> Outcome:
    """Writes images-*.parquet: synthetic images, classes in turn, one seed an image."""
    config = context.config.synthesize
    device = choose_device(context.config.performance.device)
    denoiser, facts = open_denoiser(context.inputs["finetune"], device)
    image = ImageConfig(resolution=facts["resolution"], channels=facts["channels"])
    classes = len(facts["class_names"])
    shape = (image.channels, image.resolution, image.resolution)
    numbers = torch.arange(config.num_images)
    labels, seeds = numbers % classes, numbers + (config.seed << 32)
    parts = labels.split(rows_without_gradients(context.config.performance, device))
    with TableWriter(context.folder, "images", facts["class_names"], image) as table:
        at = 0
        for part in context.progress.track(parts, "synthesize (batches)", len(parts)):
            images = synthesize_images(denoiser, part, seeds[at : at + len(part)], shape, config).numpy()
            for pixels, label in zip(images, part.tolist(), strict=True):
                table.add(pixels, label)
            at += len(part)
    about = {"class_names": facts["class_names"], "guarantee": facts["guarantee"]}
    (context.folder / "synthesis.json").write_text(json.dumps(about))
    return Outcome(metrics={"num_images": config.num_images})


def _grouped(state: PretrainState | FinetuneState) -> dict[str, Tensor]:
    return {f"{group}.{name}": tensor for group in _GROUPS for name, tensor in getattr(state, group).items()}


def _ungrouped(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        group: {
            name.removeprefix(f"{group}."): tensor for name, tensor in tensors.items() if name.startswith(f"{group}.")
        }
        for group in _GROUPS
    }
