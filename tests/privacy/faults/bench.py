"""The two private stages as schedules run them: real charging, checkpoints, publishing; stand-ins for networks and noise.

The stand-ins are where the truth is seen: the door to the images, each noisy histogram, each noisy step. All that the
suite knows about the library's inside is in this file.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import dp_accounting as dpa
import numpy as np
import pytest
import torch
from dp_accounting import rdp
from numpy.typing import NDArray
from safetensors.torch import load

from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts, public_facts, sensitive_facts
from privimage.errors import BudgetExceeded
from privimage.generators.diffusion import kind as diffusion
from privimage.generators.diffusion.denoiser import new_denoiser
from privimage.generators.opening import open_generator, save_generator
from privimage.generators.training import gradients
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.finetune import FinetuneState, finetune
from privimage.payloads import ClassifierAbout, GeneratorAbout
from privimage.pipeline import charges
from privimage.pipeline.stage import Charge, Outcome, StageContext
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.ledger import Ledger, Reservation
from privimage.privacy.mechanisms import RELATION, DPSGDMechanism, HistogramQuery
from privimage.running import runner
from privimage.running.declared import declare_form, declare_public
from privimage.running.ledgers import ledger_of
from privimage.running.runner import run_stage
from privimage.running.runs import Run
from privimage.stages import classifier as classifier_stage
from privimage.stages import query as query_stage
from privimage.store.artifacts import Artifact, ArtifactRef, open_ref
from privimage.store.files import Store
from tests.pipeline_fixtures import SETTINGS, write_images
from tests.privacy.faults.witness import Witness

__all__ = ["MOMENTS", "SHAPES", "SHORT_SHAPES", "Bench", "Scene", "Shape", "make_bench"]

# Small costs and large noise: the accountant's grid stays small, and with it the time it takes.
EPSILON, DELTA, QUERY_NOISE = 0.1, 1e-4, 100.0
_LADDER, _RUNGS = 1.1, 40
_ORDERS = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256]

_rungs: dict[tuple[dpa.DpEvent, float, float, tuple[dpa.DpEvent, ...]], float] = {}
OnStep = Callable[[FinetuneState], None]
# Of the thread: what pays for the stage that it runs, and the number of its attempt at fine-tuning.
_here = threading.local()

MOMENTS = ("before door", "door open", "before noise", "after noise", "before step", "after step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """How long fine-tuning is, how often it saves, and how many lost steps it may run again."""

    num_steps: int
    checkpoint_steps: int
    restart_allowance: int


SHORT_SHAPES = (
    Shape(num_steps=4, checkpoint_steps=2, restart_allowance=4),
    Shape(num_steps=3, checkpoint_steps=1, restart_allowance=3),
)
SHAPES = (
    *SHORT_SHAPES,
    Shape(num_steps=7, checkpoint_steps=2, restart_allowance=6),
    Shape(num_steps=7, checkpoint_steps=3, restart_allowance=3),
)


class Scene(Protocol):
    """The schedule that the stand-ins play in."""

    witness: Witness
    real_network: bool

    def moment(self, kind: str) -> None:
        """A place between operations where other processes may go on, or this one may die."""
        ...


@dataclasses.dataclass(kw_only=True)
class Bench:
    """Inputs of the private stages, made once; and the stand-ins, which play in `scene`."""

    folder: Path
    config: RunConfig
    refs: Mapping[str, ArtifactRef]
    facts: SensitiveFacts
    dataset_id: str
    scene: Scene | None = None

    @property
    def template(self) -> Path:
        """A store that holds the inputs, and nothing charged."""
        return self.folder / "template"

    @cached_property
    def fixed(self) -> dict[str, bytes]:
        """The template's objects."""
        return {
            file.relative_to(self.template).as_posix(): file.read_bytes()
            for file in sorted(self.template.rglob("*"))
            if file.is_file()
        }

    def open_ledger(self, store: Store) -> Ledger:
        """The ledger of the sensitive images."""
        return Ledger(store, self.dataset_id)

    def grant(self, store: Store, targets: float) -> None:
        """A grant that holds so many runs, if nothing is lost."""
        self.open_ledger(store).grant(
            epsilon=targets * EPSILON, delta=DELTA, num_images=self.facts.num_train, name="faults"
        )

    def run(self, store: Store, shape: Shape, draws: Mapping[str, int]) -> Run:
        """A configuration of the private stages."""
        settings = diffusion.settings_of(self.config.generator)
        finetune = settings.finetune.model_copy(update=dataclasses.asdict(shape))
        generator = settings.model_copy(update={"finetune": finetune})
        return Run(config=self.config.model_copy(update={"generator": generator}), store=store, draws=draws)

    def charge(self, store: Store, key: str, ledger: Ledger) -> Charge:
        """What the query stage asks of the ledger; each key opens a plan of its own."""
        inputs = {"classifier": open_ref(store, self.refs["classifier"])}
        return charges.charge_query(self.config, key, inputs, self.facts, ledger)

    def run_private_stages(self, run: Run) -> ArtifactRef:
        """The query, then fine-tuning, as `run_all` would."""
        refs = self.refs
        self.begin_attempt(1)
        query = run_stage("query", run, {"admit": refs["admit"], "classifier": refs["classifier"]})
        inputs = {"admit": refs["admit"], "query": query.ref, "pretrain": refs["pretrain"]}
        return run_stage("finetune", run, inputs).ref

    def trained_steps(self, store: Store, ref: ArtifactRef) -> int:
        """How many steps the stand-in's weights say they went through."""
        return int(load(open_ref(store, ref).read_bytes("generator.safetensors"))["weight"])

    @contextmanager
    def stand_ins(self) -> Iterator[pytest.MonkeyPatch]:
        """Networks and noise are stood in for within the block; the patch takes planted faults."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "PACKAGES", ())  # a tenth of the time, for versions that nobody reads
            patch.setattr(charges, "calibrate_noise_multiplier", _calibrate_roughly)
            self._stand_in_for_query(patch)
            self._stand_in_for_finetuning(patch)
            yield patch

    @staticmethod
    def begin_attempt(number: int) -> None:
        """Says which attempt at fine-tuning the calling thread makes."""
        _here.attempt = number

    @property
    def playing(self) -> Scene:
        if self.scene is None:
            raise RuntimeError("The stand-ins have no scene to play in.")
        return self.scene

    def _stand_in_for_query(self, patch: pytest.MonkeyPatch) -> None:
        def add_noise(
            histogram: NDArray[np.int64], mechanism: HistogramQuery, *, insecure_random: object
        ) -> NDArray[np.float64]:
            self.playing.moment("before noise")
            self.playing.witness.query_ran(_here.reservation, mechanism)
            self.playing.moment("after noise")
            # Two queries never give the same answer, so neither do two artifacts.
            return (
                histogram + np.frombuffer(secrets.token_bytes(histogram.size), np.int8).reshape(histogram.shape) / 8.0
            )

        patch.setattr(query_stage, "run", self._watched(query_stage.run))
        patch.setattr(query_stage, "open_classifier", lambda artifact, device: (None, _categories(artifact)))
        patch.setattr(query_stage, "predict", lambda model, images, device: (torch.zeros(len(images), 64),))
        patch.setattr(
            query_stage, "top_votes", lambda scores, num_votes: np.tile(np.arange(num_votes), (len(scores), 1))
        )
        patch.setattr(query_stage, "add_noise", add_noise)

    def _stand_in_for_finetuning(self, patch: pytest.MonkeyPatch) -> None:
        real_resume = Ledger.resume

        def some_denoiser(config: RunConfig, inputs: Mapping[str, Artifact]) -> Any:
            compute = ComputeSettings()
            if self.playing.real_network:
                return *open_generator(inputs["pretrain"], compute.devices[0]), compute
            return _OneWeight(), NOTHING, compute

        def some_finetune(*given: Any, state: FinetuneState, on_step: OnStep, **others: Any) -> FinetuneState:
            scene, reservation = self.playing, _here.reservation
            mechanism = next(argument for argument in given if isinstance(argument, DPSGDMechanism))
            attempt = scene.witness.attempt_began(reservation, _here.attempt, state.step)

            def seen(state: FinetuneState) -> None:
                scene.witness.step_ran(reservation, attempt, state.step, mechanism)
                scene.moment("after step")
                on_step(state)
                scene.moment("before step")

            scene.moment("before step")
            if scene.real_network:
                return finetune(*given, state=state, on_step=seen, **others)
            while state.step < mechanism.num_steps:
                state.step += 1
                state.ema["weight"] += 1
                seen(state)
            return state

        def resume(ledger: Ledger, reservation: Reservation, *, repeated: int, guarantee: bool) -> int:
            self.playing.witness.resume_called(reservation.id)
            attempt = real_resume(ledger, reservation, repeated=repeated, guarantee=guarantee)
            self.begin_attempt(attempt)
            return attempt

        patch.setattr(diffusion, "run_finetune", self._watched(diffusion.run_finetune))
        patch.setattr(diffusion, "rehearse_finetune", lambda config, inputs: None)
        patch.setattr(gradients, "open_for_finetuning", some_denoiser)
        patch.setattr(gradients, "finetune", some_finetune)
        patch.setattr(Ledger, "resume", resume)

    def _watched(self, run: Callable[[StageContext], Outcome]) -> Callable[[StageContext], Outcome]:
        """The stage, with a witness at its door."""

        def watched(context: StageContext) -> Outcome:
            scene = self.playing
            reservation = context.paid.reservations[-1] if context.paid else "nothing"
            _here.reservation = reservation

            def door(split: Literal["train", "validation", "test"]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
                scene.moment("before door")
                images = context.private_images(split)
                scene.witness.door_opened(reservation)
                scene.moment("door open")
                return images

            return run(dataclasses.replace(context, private_images=door))

        return watched


def make_bench(folder: Path) -> Bench:
    """Admit a few images and publish what else the private stages read; a second or two."""
    config = RunConfig.model_validate(
        {
            **SETTINGS,
            "sensitive": {
                "train": {"kind": "folder", "path": str(write_images(folder / "portraits", per_class=40))},
                "test_fraction": 0.5,  # no class may lack images in a split, however the secret order falls
            },
            "privacy": {"epsilon": EPSILON, "delta": DELTA, "query_error": None, "query_noise_multiplier": QUERY_NOISE},
            "generator": {
                "network": {"base_channels": 8, "channel_multipliers": [1]},
                "finetune": {"expected_batch_size": 2, "noise_samples": 1},
            },
        }
    )
    run = Run(config=config, store=Store.open(str(folder / "template")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_stage, "run", _write_classifier)
        patch.setattr(diffusion, "run_pretrain", _write_denoiser)
        public = run_stage("public", run, {}).ref
        refs = {
            "admit": run_stage("admit", run, {}).ref,
            "classifier": run_stage("classifier", run, {"public": public}).ref,
            "pretrain": run_stage("pretrain", run, {"public": public, "select": public}).ref,
        }
    facts = sensitive_facts(open_ref(run.store, refs["admit"]))
    declare_form(run.store, facts, config.sensitive)
    declare_public(run.store, facts, open_ref(run.store, public))
    return Bench(
        folder=folder,
        config=config,
        refs=refs,
        facts=facts,
        dataset_id=ledger_of(run.store, facts, None).dataset_id,
    )


NOTHING = GeneratorAbout(
    kind="diffusion", network={}, channels=1, resolution=8, class_names=(), num_parameters=1, loss_curve=()
)


class _OneWeight(torch.nn.Module):
    """The least network: its weight counts the steps that it went through."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))


def _write_classifier(context: StageContext) -> Outcome:
    facts = public_facts(context.inputs["public"])
    ClassifierAbout(
        config={},
        channels=facts.channels,
        resolution=facts.resolution,
        class_names=facts.class_names,
        validation_accuracy=0.5,
        loss_curve=(),
        accuracy_curve=(),
    ).write(context.folder)
    return Outcome(metrics={})


def _write_denoiser(context: StageContext) -> Outcome:
    facts = public_facts(context.inputs["public"])
    class_names = ("anna", "berta", "carla")
    config = diffusion.settings_of(context.config.generator).network
    denoiser = new_denoiser(config, channels=facts.channels, num_classes=len(class_names), seed=0)
    about = NOTHING.model_copy(update={"network": config.model_dump(mode="json"), "class_names": class_names})
    save_generator(context.folder, about, denoiser.state_dict())
    return Outcome(metrics={})


def _categories(artifact: Artifact) -> list[str]:
    return list(ClassifierAbout.read(artifact).class_names)


def _calibrate_roughly(
    make_event: Callable[[float], dpa.DpEvent], *, epsilon: float, delta: float, prior: Sequence[dpa.DpEvent]
) -> float:
    """Enough noise, from a coarse ladder: quick, and many schedules share what is accounted."""
    asked = (make_event(1.0), epsilon, delta, tuple(prior))
    if asked not in _rungs:

        def cost(power: int, of: Callable[[Sequence[dpa.DpEvent], float], float]) -> float:
            return of([*prior, make_event(_LADDER**power)], delta)

        # The quick bound first: the other one takes long where the noise is small.
        rung = bisect_left(range(_RUNGS), -2 * epsilon, key=lambda power: -cost(power, _renyi_epsilon))
        rung += bisect_left(range(rung, _RUNGS), -epsilon, key=lambda power: -cost(power, epsilon_of))
        _rungs[asked] = _LADDER**rung
    if _rungs[asked] == _LADDER**_RUNGS:
        raise BudgetExceeded("What the query left of its plan is too little for fine-tuning.")
    return _rungs[asked]


def _renyi_epsilon(events: Sequence[dpa.DpEvent], delta: float) -> float:
    accountant = rdp.RdpAccountant(_ORDERS, neighboring_relation=RELATION)
    accountant.compose(dpa.ComposedDpEvent(list(events)))
    return float(accountant.get_epsilon(delta))
