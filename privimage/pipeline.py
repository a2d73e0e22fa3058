"""The pipeline as data: the stages, in order, with what each reads, which settings can change it, and what runs it.

 public images ─► classifier ─► index ─────────────┐
                      │                            ▼
 sensitive images ─► query (charged) ─► selection ─► pretrain ─► finetune (charged) ─► synthesize ─► release
                                                                                          └─► downstream ─► evaluate (sealed)

With another `selection.strategy` than semantic nothing is queried, and fine-tuning is the first charged stage.

With `generator: merf` fine-tuning is one noisy sum, and training on it.

With `evaluate.validation: private` a third charged stage, validate, comes after downstream; release and evaluate use it.

With `central.num_steps` above 0 a charged stage, central, comes after the query, and a free one, warmup, between pretrain
and finetune.

With `audit.canaries` above 0, the stage audit comes after finetune; release uses it.

A stage is a function of (configuration, input artifacts, randomness) that writes one artifact's payload into a folder.
Keys, caching, charging, checkpoints and publishing are done once, for all stages, by `privimage.runner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from privimage import key_fields
from privimage.config import RunConfig
from privimage.data.facts import SensitiveFacts
from privimage.data.splits import Split
from privimage.errors import ConfigError, Uncharged
from privimage.interrupts import StopRequest
from privimage.privacy.budget import Plan
from privimage.privacy.entropy import Random
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import ClassSumRounds, ClassSums, DPSGDMechanism, HistogramQuery, ValidationCount
from privimage.progress import Progress
from privimage.release.export import export_release
from privimage.store.artifacts import JSON, Artifact
from privimage.store.files import Store

__all__ = [
    "STAGES",
    "Charge",
    "Mechanism",
    "Outcome",
    "Paid",
    "PartContext",
    "PrivateImages",
    "Stage",
    "StageContext",
    "stage_named",
    "stage_of",
    "stages_of",
    "stages_until",
]


Mechanism = HistogramQuery | ClassSums | ClassSumRounds | DPSGDMechanism | ValidationCount


class PrivateImages(Protocol):
    """The only door to sensitive images: refuses whatever was not charged for."""

    def __call__(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """uint8 NCHW images and int64 labels of one split."""
        ...


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What a private stage asks of the ledger: the very mechanism it will run, and the plan it belongs to."""

    mechanism: Mechanism
    plan: Plan
    num_images: int
    restart_allowance: int = 0
    checkpoint_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Paid:
    """A charge that the ledger holds, and the randomness to run its mechanism with.

    Attributes:
        reservations: ids of all entries that pay for the artifact; the last is the live one.
        from_step: no step before this one may be run: an interrupted attempt saved a checkpoint there.
        record_step: to be called after each saved checkpoint; raises Uncharged if another attempt took over.
        pause: to be called after that by an attempt that stops, with the step; it then lost nothing.
    """

    mechanism: Mechanism
    random: Random
    reservations: tuple[str, ...]
    from_step: int
    record_step: Callable[[int], None]
    pause: Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a running stage is given.

    Attributes:
        inputs: the input artifacts, sealed ones excepted.
        facts: public facts of the sensitive images (sizes of the splits, class names), if the stage has them as input.
        folder: where to write the payload.
        ledger: of the sensitive images, under the same condition.
        paid: for private stages, what was charged.
        private_images: opens sensitive images, if the stage may.
        make_parts: for stages that are made in parts: given the range of each, has them made, on other machines maybe,
            and returns their files, which lie in `folder`.
        write_private: puts a text where only the private side reads, and returns its place.
        stop: whether the run was asked to stop; long loops answer.
    """

    config: RunConfig
    key: str
    inputs: Mapping[str, Artifact]
    facts: SensitiveFacts | None
    folder: Path
    store: Store
    progress: Progress
    ledger: Ledger | None
    paid: Paid | None
    private_images: PrivateImages
    make_parts: Callable[[Sequence[range]], Sequence[Path]]
    write_private: Callable[[str, str], str]
    stop: StopRequest


@dataclass(frozen=True, kw_only=True)
class PartContext:
    """What is given to a stage that makes one part of its payload (`privimage.parts`).

    Attributes:
        items: what the part is made of, as the stage has cut itself.
        file: where to write it, as Parquet.
    """

    config: RunConfig
    inputs: Mapping[str, Artifact]
    items: range
    file: Path
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage reports beside its files; public figures only, unless its artifact is sealed."""

    metrics: Mapping[str, JSON]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One box of the picture.

    Attributes:
        version: raised by hand when results change; part of the key.
        fields: the settings that can change the result, as JSON; part of the key.
        charge: for stages that release something computed from sensitive images: what it costs. It sees public facts
            only and is called before any image is opened.
        sealed: the artifact holds private values and lives below `private/`; no stage gets it as input.
        opens: the splits that it may see without a charge. Only a sealed stage, which releases nothing, may see any.
        part_of: whether a run of this configuration has this stage.
        reads: for stages that do not read all of `inputs` in each run that has them: those that they read in this one.
        make_part: makes one part of the payload, for public stages that other machines may help with.
        admits: which images it lets in from outside. In a store that a grant was made in, a data steward has to have declared
            them (`privimage.declared`).
        rehearse: tries out, without sensitive images and before the charge, what could fail after it.
        finish: called after the artifact was published, or found; doing it again changes nothing.
    """

    name: str
    version: int
    about: str
    inputs: tuple[str, ...]
    fields: Callable[[RunConfig], dict[str, Any]]
    run: Callable[[StageContext], Outcome]
    make_part: Callable[[PartContext], object] | None = None
    charge: Callable[[RunConfig, str, Mapping[str, Artifact], SensitiveFacts, Ledger], Charge] | None = None
    rehearse: Callable[[RunConfig, Mapping[str, Artifact]], object] | None = None
    sealed: bool = False
    finish: Callable[[RunConfig, Store, Artifact], object] | None = None
    opens: tuple[Split, ...] = ()
    part_of: Callable[[RunConfig], bool] = lambda config: True
    reads: Callable[[RunConfig], tuple[str, ...]] | None = None
    admits: Literal["public", "sensitive"] | None = None

    def __post_init__(self) -> None:
        if self.opens and not self.sealed:
            raise Uncharged(f"Stage {self.name} is not sealed: it may see no sensitive image without a charge.")


def _start(config: RunConfig) -> str:
    """The stage whose generator fine-tuning starts from."""
    return "warmup" if config.central.is_used else "pretrain"


def _later(module: str, function: str) -> Callable[..., Any]:
    """A function of `privimage.stages`, imported when it is called: a plan, or a run in which all is reused, loads no torch."""

    def call(*args: Any) -> Any:
        return getattr(import_module(f"privimage.stages.{module}"), function)(*args)

    return call


_TRAINED_IN = {"diffusion": "generation", "gan": "generation", "merf": "mean_embedding"}


def _of_generator(function: str) -> Callable[..., Any]:
    """As `_later`, of the module that trains the run's kind of generator; the run's configuration, or its context, comes first."""

    def call(first: RunConfig | StageContext, *args: Any) -> Any:
        config = first if isinstance(first, RunConfig) else first.config
        return _later(_TRAINED_IN[config.generator], function)(first, *args)

    return call


STAGES: tuple[Stage, ...] = (
    Stage(
        name="public",
        version=2,
        about="public images -> canonical image table",
        inputs=(),
        fields=key_fields.public_fields,
        run=_later("admission", "run_public"),
        admits="public",
    ),
    Stage(
        name="admit",
        version=2,
        about="sensitive images -> sealed image table",
        inputs=(),
        fields=key_fields.admit_fields,
        run=_later("admission", "run_sensitive"),
        sealed=True,
        admits="sensitive",
    ),
    Stage(
        name="classifier",
        version=1,
        about="semantic classifier, trained on the public images",
        inputs=("public",),
        fields=key_fields.section("classifier"),
        run=_later("semantics", "run_classifier"),
    ),
    Stage(
        name="index",
        version=3,
        about="Parquet index of the public images",
        inputs=("public", "classifier"),
        fields=key_fields.section(),
        run=_later("semantics", "run_index"),
        make_part=_later("semantics", "make_index_part"),
        part_of=lambda config: config.selection.strategy != "none",
    ),
    Stage(
        name="query",
        version=1,
        about="noisy semantic query",
        inputs=("admit", "classifier"),
        fields=key_fields.query_fields,
        charge=_later("charges", "charge_query"),
        run=_later("semantics", "run_query"),
        part_of=lambda config: config.selection.asks_the_query,
    ),
    Stage(
        name="central",
        version=1,
        about="noisy mean image of each class",
        inputs=("public", "admit", "query"),
        fields=key_fields.central_fields,
        charge=_later("charges", "charge_central"),
        rehearse=_later("central", "rehearse"),
        run=_later("central", "run"),
        part_of=lambda config: config.central.is_used,
    ),
    Stage(
        name="select",
        version=2,
        about="public images of the chosen categories",
        inputs=("admit", "query", "index"),
        # Of the sensitive images only the names of the classes, where no query tells them.
        reads=lambda config: ("query" if config.selection.asks_the_query else "admit", "index"),
        fields=key_fields.selection_fields,
        run=_later("semantics", "run_select"),
        part_of=lambda config: config.selection.strategy != "none",
    ),
    Stage(
        name="pretrain",
        version=1,
        about="generator, trained on the selection",
        inputs=("public", "admit", "select"),
        reads=lambda config: ("public", "admit" if config.selection.strategy == "none" else "select"),
        fields=key_fields.pretrain_fields,
        run=_of_generator("run_pretrain"),
    ),
    Stage(
        name="warmup",
        version=1,
        about="generator, trained further on central images",
        inputs=("public", "select", "central", "pretrain"),
        reads=lambda config: (
            *(() if config.selection.strategy == "none" else ("public", "select")),
            "central",
            "pretrain",
        ),
        fields=key_fields.warmup_fields,
        run=_later("warmup", "run"),
        part_of=lambda config: config.central.is_used,
    ),
    Stage(
        name="finetune",
        version=1,
        about="generator, trained on the sensitive images with noise",
        inputs=("admit", "query", "central", "pretrain", "warmup"),
        reads=lambda config: ("admit", "query", "central", _start(config)),
        fields=key_fields.finetune_fields,
        charge=_later("charges", "charge_finetune"),
        rehearse=_of_generator("rehearse_finetune"),
        run=_of_generator("run_finetune"),
    ),
    Stage(
        name="audit",
        version=1,
        about="canaries through the real step, on public images",
        inputs=("public", "pretrain", "warmup", "finetune"),
        reads=lambda config: ("public", _start(config), "finetune"),
        fields=key_fields.audit_fields,
        run=_later("audit", "run"),
        part_of=lambda config: config.audit.canaries > 0,
    ),
    Stage(
        name="synthesize",
        version=3,
        about="synthetic images",
        inputs=("query", "pretrain", "finetune"),
        reads=lambda config: (
            *(["query"] if config.synthesize.class_sizes == "query" else []),
            *(["pretrain"] if config.public_images != "none" else []),
            "finetune",
        ),
        fields=key_fields.synthesize_fields,
        run=_later("synthesize", "run"),
        make_part=_later("synthesize", "make_part"),
    ),
    Stage(
        name="downstream",
        version=1,
        about="classifiers, trained on the synthetic images",
        inputs=("synthesize",),
        fields=key_fields.downstream_fields,
        run=_later("downstream", "run"),
    ),
    Stage(
        name="validate",
        version=1,
        about="noisy choice among them by sensitive validation images",
        inputs=("admit", "finetune", "downstream"),
        fields=key_fields.validate_fields,
        charge=_later("charges", "charge_validate"),
        rehearse=_later("validate", "rehearse"),
        run=_later("validate", "run"),
        part_of=lambda config: config.evaluate.validation == "private",
    ),
    Stage(
        name="evaluate",
        version=3,
        about="internal figures against held-out sensitive images",
        inputs=(
            *("public", "admit", "classifier", "query", "central", "select", "pretrain", "warmup", "finetune"),
            *("synthesize", "downstream", "validate"),
        ),
        fields=key_fields.section("evaluate"),
        run=_later("evaluate", "run"),
        sealed=True,
        opens=("test", "train"),
    ),
    Stage(
        name="release",
        version=3,
        about="synthetic.parquet, datasheet, certificate, report",
        inputs=(
            *("public", "admit", "classifier", "query", "central", "select", "pretrain", "warmup", "finetune", "audit"),
            *("synthesize", "validate"),
        ),
        fields=key_fields.section("name", "description", "license"),
        run=_later("release", "run"),
        finish=lambda config, store, artifact: export_release(store, config.name, artifact),
    ),
)


def stage_named(name: str) -> Stage:
    """The stage of that name, or ConfigError that lists the names."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ConfigError(f"There is no stage {name!r}; the stages are {', '.join(stage.name for stage in STAGES)}.")


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of a run of this configuration, in order, each with those inputs that the run has."""
    names = {stage.name for stage in STAGES if stage.part_of(config)}
    return tuple(
        replace(stage, inputs=tuple(name for name in _reads(stage, config) if name in names))
        for stage in STAGES
        if stage.name in names
    )


def _reads(stage: Stage, config: RunConfig) -> tuple[str, ...]:
    return stage.inputs if stage.reads is None else stage.reads(config)


def stage_of(name: str, config: RunConfig) -> Stage:
    """The stage of that name as this configuration has it, or ConfigError."""
    for stage in stages_of(config):
        if stage.name == name:
            return stage
    raise ConfigError(
        f"Stage {stage_named(name).name} is no part of this run: its configuration does not ask for it (query: "
        "selection.strategy semantic; index and select: any but none; central and warmup: central.num_steps "
        "above 0; audit: audit.canaries above 0; validate: evaluate.validation private)."
    )


def stages_until(last: str | None, config: RunConfig) -> tuple[Stage, ...]:
    """The stages that `last` needs, itself included, in order; all of the run for None."""
    stages = stages_of(config)
    if last is None:
        return stages
    needed = {stage_of(last, config).name}
    for stage in reversed(stages):
        if stage.name in needed:
            needed.update(stage.inputs)
    return tuple(stage for stage in stages if stage.name in needed)
