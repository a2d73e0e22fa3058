"""The pipeline as data: the stages, in order, with what each reads, which settings can change it, and what runs it.

 public images ─► classifier ─► index ─────────────┐
                      │                            ▼
 sensitive images ─► query (charged) ─► selection ─► pretrain ─► finetune (charged) ─► synthesize ─► release
                                                                                          └─► downstream ─► evaluate (sealed)

Which stages a run has is asked of its declarations (`methods`). A selection that asks no query has no stage query, and
fine-tuning is then the first charged stage. A selection of single images has two other stages after the index: space
(public) and feature_means (charged); a generator that is not fine-tuned learns of the sensitive images by these alone.
A generator with class mean images has two more: class_means (charged) after these, and warmup (free) between pretrain and
finetune.

With `evaluate.validation: private` a charged stage, validate, comes after downstream; release and evaluate use it.
With `audit.canaries` above 0 the stage audit comes after finetune; release uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from privimage.config.run import RunConfig
from privimage.errors import ConfigError
from privimage.pipeline import charges, key_fields
from privimage.pipeline.stage import Stage
from privimage.release.export import export_release

__all__ = ["STAGES", "stage_named", "stage_of", "stages_of", "stages_until"]


def _start(config: RunConfig) -> str:
    """The stage whose generator fine-tuning starts from."""
    return "warmup" if "warmup" in config.generator.further_stages else "pretrain"


def _released(config: RunConfig) -> tuple[str, ...]:
    """What of the sensitive images a selection reads."""
    means = ("space", "feature_means") if config.selection.asks_feature_means else ()
    return (*(("query",) if config.selection.asks_the_query else ()), *means)


def _later(module: str, function: str = "run") -> Callable[..., Any]:
    """A function of a module of `stages`, imported when it is called: a plan, or a run in which all is reused, loads no torch."""

    def call(*args: Any) -> Any:
        return getattr(import_module(f"privimage.stages.{module}"), function)(*args)

    return call


STAGES: tuple[Stage, ...] = (
    Stage(
        name="public",
        version=1,
        about="public images -> canonical image table",
        inputs=(),
        fields=key_fields.public_fields,
        run=_later("public"),
        admits="public",
    ),
    Stage(
        name="admit",
        version=1,
        about="sensitive images -> sealed image table",
        inputs=(),
        fields=key_fields.admit_fields,
        run=_later("admit"),
        sealed=True,
        admits="sensitive",
    ),
    Stage(
        name="classifier",
        version=1,
        about="backbone: a network trained on public images",
        inputs=("public",),
        fields=lambda config: config.backbone.fields_of(config.classifier),
        run=_later("classifier"),
    ),
    Stage(
        name="index",
        version=1,
        about="Parquet index of the public images",
        inputs=("public", "classifier"),
        fields=key_fields.index_fields,
        run=_later("index"),
        make_part=_later("index", "make_part"),
        part_of=lambda config: config.selection.selects,
    ),
    Stage(
        name="query",
        version=1,
        about="noisy semantic query",
        inputs=("admit", "classifier"),
        fields=key_fields.query_fields,
        charge=charges.charge_query,
        run=_later("query"),
        part_of=lambda config: config.selection.asks_the_query,
    ),
    Stage(
        name="space",
        version=1,
        about="space of public features that class means are released in",
        inputs=("public", "admit", "index"),  # of the sensitive images no more than how many there are
        fields=key_fields.feature_means_fields,
        run=_later("space"),
        part_of=lambda config: config.selection.asks_feature_means,
    ),
    Stage(
        name="feature_means",
        version=1,
        about="noisy class means of features",
        inputs=("public", "admit", "classifier", "query", "space"),
        fields=key_fields.feature_means_fields,
        charge=charges.charge_feature_means,
        run=_later("feature_means"),
        part_of=lambda config: config.selection.asks_feature_means,
    ),
    Stage(
        name="class_means",
        version=1,
        about="noisy mean image of each class",
        inputs=("public", "admit", "query", "feature_means"),
        fields=key_fields.class_means_fields,
        charge=charges.charge_class_means,
        rehearse=_later("class_means", "rehearse"),
        run=_later("class_means"),
        part_of=lambda config: "class_means" in config.generator.further_stages,
    ),
    Stage(
        name="select",
        version=1,
        about="public images that look like the sensitive ones",
        inputs=("admit", "query", "space", "feature_means", "index"),
        # Of the sensitive images only the names of the classes, where nothing released tells them.
        reads=lambda config: (*_released(config), "index") if _released(config) else ("admit", "index"),
        fields=key_fields.selection_fields,
        run=_later("select"),
        part_of=lambda config: config.selection.selects,
    ),
    Stage(
        name="pretrain",
        version=1,
        about="generator, trained on the selection",
        inputs=("public", "admit", "select"),
        reads=lambda config: ("public", "select" if config.selection.selects else "admit"),
        fields=key_fields.generator_fields("pretrain"),
        run=_later("pretrain"),
    ),
    Stage(
        name="warmup",
        version=1,
        about="generator, trained further on class mean images",
        inputs=("public", "select", "class_means", "pretrain"),
        reads=lambda config: (
            *(("public", "select") if config.selection.selects else ()),
            "class_means",
            "pretrain",
        ),
        fields=key_fields.generator_fields("warmup"),
        run=_later("warmup"),
        part_of=lambda config: "warmup" in config.generator.further_stages,
    ),
    Stage(
        name="finetune",
        version=1,
        about="generator, trained on the sensitive images with noise",
        inputs=("admit", "query", "feature_means", "class_means", "pretrain", "warmup"),
        reads=lambda config: ("admit", "query", "feature_means", "class_means", _start(config)),
        fields=key_fields.finetune_fields,
        charge=charges.charge_finetune,
        rehearse=_later("finetune", "rehearse"),
        run=_later("finetune"),
        part_of=lambda config: config.generator.finetunes,
    ),
    Stage(
        name="audit",
        version=1,
        about="canaries through the real step, on public images",
        inputs=("public", "pretrain", "warmup", "finetune"),
        reads=lambda config: ("public", _start(config), "finetune"),
        fields=key_fields.audit_fields,
        run=_later("audit"),
        part_of=lambda config: config.audit.canaries > 0,
    ),
    Stage(
        name="synthesize",
        version=1,
        about="synthetic images",
        inputs=(
            *("public", "classifier", "index", "query", "space", "feature_means", "class_means", "select", "pretrain"),
            *("warmup", "finetune"),
        ),
        reads=lambda config: (
            *(["query"] if config.synthesize.class_sizes == "query" else []),
            *(["classifier", "space", "feature_means"] if config.selection.asks_feature_means else []),
            *(["public", "index", "select"] if config.synthesize.from_public != "none" else []),
            *(["pretrain"] if config.public_images != "none" else []),
            *(["finetune"] if config.generator.finetunes else ["class_means", _start(config)]),
        ),
        fields=key_fields.synthesize_fields,
        run=_later("synthesize"),
        make_part=_later("synthesize", "make_part"),
    ),
    Stage(
        name="downstream",
        version=1,
        about="classifiers, trained on the synthetic images",
        inputs=("synthesize",),
        fields=key_fields.downstream_fields,
        run=_later("downstream"),
    ),
    Stage(
        name="validate",
        version=1,
        about="noisy choice among them by sensitive validation images",
        inputs=("admit", "feature_means", "finetune", "downstream"),
        reads=lambda config: ("admit", "finetune" if config.generator.finetunes else "feature_means", "downstream"),
        fields=key_fields.validate_fields,
        charge=charges.charge_validate,
        rehearse=_later("validate", "rehearse"),
        run=_later("validate"),
        part_of=lambda config: config.evaluate.validation == "private",
    ),
    Stage(
        name="evaluate",
        version=1,
        about="internal figures against held-out sensitive images",
        inputs=(
            *("public", "admit", "classifier", "query", "space", "feature_means", "class_means", "select", "pretrain"),
            *("warmup", "finetune"),
            *("synthesize", "downstream", "validate"),
        ),
        fields=key_fields.section("evaluate"),
        run=_later("evaluate"),
        sealed=True,
        opens=("test", "train"),
    ),
    Stage(
        name="release",
        version=1,
        about="synthetic.parquet, datasheet, certificate, report",
        inputs=(
            *(
                "public",
                "admit",
                "classifier",
                "query",
                "feature_means",
                "class_means",
                "select",
                "pretrain",
                "warmup",
                "finetune",
                "audit",
            ),
            *("synthesize", "validate"),
        ),
        fields=key_fields.section("name", "description", "license"),
        run=_later("release"),
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
        "selection.strategy semantic; space and feature_means: images; index and select: any but none; finetune: generator.finetune."
        "num_steps above 0; class_means and warmup: generator.class_means; "
        "audit: audit.canaries above 0; validate: evaluate.validation private)."
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
