"""The configuration of a run: one YAML file per sensitive data set, checked in full before anything happens.

Every field is described with its unit and bounds: Prefect turns the same models into the run form. Unknown keys are
refused. Privacy is stated once, in `privacy`; every noise level is derived from it. `performance` is the only
section that can change no result, and is left out of every artifact key.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from privimage.bounds import LARGEST_EPSILON, SMALLEST_DELTA, SMALLEST_EPSILON
from privimage.config_form import Section
from privimage.config_sources import (
    DemoDigits,
    DemoGlyphs,
    FolderSource,
    ParquetSource,
    SourceConfig,
    TorchvisionSource,
)
from privimage.config_stages import (
    AuditConfig,
    CentralConfig,
    ClassifierConfig,
    DenoiserConfig,
    EvaluateConfig,
    FinetuneConfig,
    GanConfig,
    MerfConfig,
    Performance,
    PretrainConfig,
    QueryConfig,
    SelectionConfig,
    SynthesizeConfig,
)
from privimage.errors import ConfigError

__all__ = [
    "AuditConfig",
    "CentralConfig",
    "ClassifierConfig",
    "DemoDigits",
    "DemoGlyphs",
    "DenoiserConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "FolderSource",
    "GanConfig",
    "ImageConfig",
    "MerfConfig",
    "ParquetSource",
    "Performance",
    "PretrainConfig",
    "PrivacyConfig",
    "PublicConfig",
    "QueryConfig",
    "RunConfig",
    "Section",
    "SelectionConfig",
    "SensitiveConfig",
    "SourceConfig",
    "SynthesizeConfig",
    "TorchvisionSource",
    "load_config",
    "parse_config",
]


class ImageConfig(Section):
    """The canonical form that all images, public and sensitive, are brought into."""

    resolution: int = Field(ge=8, le=256, multiple_of=4, description="Height and width in pixels.")
    channels: Literal[1, 3] = Field(description="1 = grayscale, 3 = RGB.")
    resize: Literal["crop", "pad", "stretch"] = Field(
        default="crop", description="How a non-square image becomes square: centre crop, pad with black, or stretch."
    )


class SensitiveConfig(Section):
    """The sensitive, labelled images. One image is the unit of privacy."""

    train: SourceConfig = Field(description="Images that the release is made from.")
    test: SourceConfig | None = Field(
        default=None, title="Test", description="Held-out images for internal evaluation; none = split off `train`."
    )
    validation_fraction: float = Field(
        default=0.0, ge=0.0, lt=0.5, description="Share of `train` held out for validation (never trained on)."
    )
    test_fraction: float = Field(
        default=0.2, ge=0.0, lt=0.9, description="Share of `train` held out for testing; ignored if `test` is given."
    )
    shared_ledger: str | None = Field(
        default=None,
        max_length=64,
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        title="Shared ledger",
        description="Name of one budget for all data sets that show the same people; none = a budget of its own.",
    )


class PublicConfig(Section):
    """The public, labelled images. Nothing about them is protected."""

    source: SourceConfig = Field(description="Where the public images come from; its labels are the categories.")


class PrivacyConfig(Section):
    """The one place where privacy is stated; every noise level is derived from it."""

    epsilon: float = Field(
        ge=SMALLEST_EPSILON,
        le=LARGEST_EPSILON,
        description="Total epsilon of the release: all that is charged, together.",
    )
    delta: float = Field(
        ge=SMALLEST_DELTA, lt=0.1, description="Total delta: from 1e-10 to below 1 / number of training images."
    )
    query_error: float | None = Field(
        default=0.02,
        gt=0,
        le=1,
        title="Query error",
        description="Standard deviation of the query's noise per category, as a share of the mean class size.",
    )
    query_noise_multiplier: float | None = Field(
        default=None,
        gt=0,
        title="Query noise multiplier",
        description="The query's noise by hand, in units of its sensitivity, instead of `query_error`.",
    )
    central_noise_multiplier: float = Field(
        default=10.0,
        gt=0,
        title="Noise multiplier of central images",
        description="Noise on the sums of images of each class, in units of the largest difference that one image makes; "
        "only where `central` is used.",
    )
    validation_error: float | None = Field(
        default=None,
        gt=0,
        le=1,
        title="Validation error",
        description="Sets budget aside to choose a classifier by the sensitive validation images: standard deviation of the "
        "noise on its accuracy, times the square root of the number of classifiers; none = no such budget.",
    )

    @model_validator(mode="after")
    def _one_way_to_choose_the_query_noise(self) -> PrivacyConfig:
        if (self.query_error is None) == (self.query_noise_multiplier is None):
            raise ValueError(
                "give exactly one of query_error and query_noise_multiplier, and set the other to null "
                f"(found {self.query_error} and {self.query_noise_multiplier})"
            )
        return self


class RunConfig(Section):
    """Everything about one run: data, privacy, one section per stage, performance."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Name of the run: small letters, digits, dashes."
    )
    description: str = Field(default="", description="One sentence for people.")
    license: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9.+-]{0,62}$",
        description="License of the release, as Hugging Face spells it, such as cc-by-4.0; none = none is stated.",
    )
    image: ImageConfig = Field(description="The canonical image form.")
    sensitive: SensitiveConfig = Field(description="The sensitive images.")
    public: PublicConfig = Field(description="The public images.")
    privacy: PrivacyConfig = Field(description="The privacy budget, stated once.")
    classifier: ClassifierConfig = Field(default=ClassifierConfig(), description="Semantic classifier.")
    query: QueryConfig = Field(default=QueryConfig(), description="Noisy semantic query.")
    selection: SelectionConfig = Field(default=SelectionConfig(), description="Selection of public images.")
    generator: Literal["diffusion", "gan", "merf"] = Field(
        default="diffusion",
        description="Kind of the generator: its network is configured in `denoiser`, `gan` or `merf`. The last one "
        "is trained on noisy mean embeddings instead of by DP-SGD.",
    )
    denoiser: DenoiserConfig = Field(default=DenoiserConfig(), description="The network of a generator by diffusion.")
    gan: GanConfig = Field(default=GanConfig(), description="The networks of a GAN.")
    merf: MerfConfig = Field(default=MerfConfig(), description="Features, network and training of DP-MERF.")
    pretrain: PretrainConfig = Field(default=PretrainConfig(), description="Training on the selection.")
    central: CentralConfig = Field(
        default=CentralConfig(), description="Central images and the warm-up with them; off unless asked for."
    )
    finetune: FinetuneConfig = Field(default=FinetuneConfig(), description="DP-SGD fine-tuning.")
    synthesize: SynthesizeConfig = Field(default=SynthesizeConfig(), description="Sampling.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="Internal evaluation.")
    audit: AuditConfig = Field(default=AuditConfig(), description="Audit of fine-tuning; off unless asked for.")
    performance: Performance = Field(default=Performance(), description="Speed and memory; changes no result.")

    @property
    def network(self) -> DenoiserConfig | GanConfig | MerfConfig:
        """The section of the generator's network."""
        sections: dict[str, DenoiserConfig | GanConfig | MerfConfig]
        sections = {"diffusion": self.denoiser, "gan": self.gan, "merf": self.merf}
        return sections[self.generator]

    @property
    def public_images(self) -> Literal["none", "mixed", "unchanged"]:
        """What comes of public images in sampling, where the configuration says nothing of it, too."""
        return self.synthesize.public_images or ("mixed" if self._chooses else "none")

    @property
    def _chooses(self) -> bool:
        return self.generator == "merf" and self.selection.strategy != "none"

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if self.sensitive.train == self.public.source:
            raise ValueError(
                "the public and the sensitive images are the same source; the public set must not be sensitive"
            )
        if self.sensitive.test is None and self.sensitive.test_fraction == 0:
            raise ValueError("no test images: give sensitive.test, or a sensitive.test_fraction above 0")
        if self.sensitive.test is not None and self.sensitive.test == self.sensitive.train:
            raise ValueError("sensitive.test is the same source as sensitive.train; test images must be held out")
        if self.privacy.validation_error is not None and not self.sensitive.validation_fraction:
            raise ValueError(
                "privacy.validation_error sets budget aside for validation images, but there are none: give a "
                "sensitive.validation_fraction above 0"
            )
        if self.evaluate.validation == "private" and self.privacy.validation_error is None:
            raise ValueError(
                "evaluate.validation is private, which has a cost: say how accurate it should be in "
                "privacy.validation_error, or choose by synthetic images"
            )
        if self.selection.strategy == "all" and not self.pretrain.label_dropout:
            raise ValueError(
                "selection.strategy all needs a pretrain.label_dropout above 0: the sensitive classes start from what the "
                "generator learned of images without a label"
            )
        if self.selection.strategy == "all" and self.generator == "gan":
            raise ValueError(
                "selection.strategy all needs a generator that learns of images without a label, which a GAN does not: set "
                "generator to diffusion, or another strategy"
            )
        if self.central.is_used and self.generator == "gan":
            raise ValueError(
                "central.num_steps is above 0, but a GAN has no noise levels at which it could learn a mean image: set it to "
                "0, or generator to diffusion"
            )
        if self.central.is_used and self.selection.strategy == "all":
            raise ValueError(
                "central.num_steps is above 0, but with selection.strategy all the generator is trained on public labels, "
                "which central images do not have: set it to 0, or choose another strategy"
            )
        if self.generator == "merf" and (self.selection.strategy == "all" or self.central.is_used):
            raise ValueError(
                "generator merf is trained on noisy mean embeddings of the sensitive classes, but selection.strategy is "
                f"{self.selection.strategy}, and central.num_steps {self.central.num_steps}: set the first to semantic, random "
                "or none, the second to 0"
            )
        if self.public_images != "none" and not self._chooses:
            raise ValueError(
                f"synthesize.public_images is {self.public_images}, but generator is {self.generator}, and selection.strategy "
                f"{self.selection.strategy}: only merf with a selection chooses from public images; leave it out, or set it to none"
            )
        if self.synthesize.class_sizes == "query" and not self.selection.asks_the_query:
            raise ValueError(
                f"synthesize.class_sizes is query, but with selection.strategy {self.selection.strategy} no query is asked: set it to "
                "equal, or the strategy to semantic"
            )
        section = "denoiser" if self.generator == "diffusion" else self.generator
        levels = len(self.network.channel_multipliers)
        if self.image.resolution % 2 ** (levels - 1) or self.image.resolution // 2 ** (levels - 1) < 2:
            raise ValueError(
                f"{section}.channel_multipliers has {levels} levels, but {self.image.resolution} pixels cannot be halved "
                f"{levels - 1} times down to at least 2: use fewer levels or another resolution"
            )
        levels = len(self.denoiser.channel_multipliers)
        if any(not 0 <= level < levels for level in self.denoiser.attention_levels):
            raise ValueError(
                f"denoiser.attention_levels must lie in 0..{levels - 1}, found {self.denoiser.attention_levels}"
            )
        if self.generator != "diffusion" and self.audit.canaries:
            raise ValueError(
                "audit.canaries is above 0, but the audit's canaries are made for a generator by diffusion: set it to 0, "
                "or generator to diffusion"
            )
        if self.image.resolution // 2 ** (len(self.classifier.blocks) - 1) < 1:
            raise ValueError(f"classifier.blocks has more levels than {self.image.resolution} pixels can be halved")
        largest = self.finetune.largest_batch_size
        if largest is not None and largest < self.finetune.expected_batch_size:
            raise ValueError(
                f"finetune.largest_batch_size ({largest}) is smaller than expected_batch_size "
                f"({self.finetune.expected_batch_size}): most batches would be cut, at a high price; raise it"
            )
        if self.finetune.restart_allowance and self.finetune.restart_allowance < self.finetune.checkpoint_steps:
            raise ValueError(
                f"finetune.restart_allowance ({self.finetune.restart_allowance}) is smaller than checkpoint_steps "
                f"({self.finetune.checkpoint_steps}): no crash could be resumed; raise it, or set it to 0 on purpose"
            )
        return self


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML).

    A section `deployment` says how Prefect runs it (`deployments/register.py`), and nothing about the run: it is skipped.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown, or a value is out of bounds.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            f"No configuration at {file}: give the path of a YAML file such as deployments/datasets/demo.yaml."
        )
    try:
        data = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {type(data).__name__}"
        raise ConfigError(f"{file} {found}, expected a mapping of configuration sections.")
    data.pop("deployment", None)
    for override in overrides or []:
        _apply(data, override)
    return parse_config(data, origin=str(file))


def parse_config(data: dict[str, Any], origin: str = "the configuration") -> RunConfig:
    """Validate a mapping; every problem is named with its place, in one message."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'configuration'}: {_problem(item)}{_found(item)}"
            for item in error.errors(include_url=False)
        )
        raise ConfigError(f"{origin}: {problems}") from None


def _problem(item: Any) -> str:
    """What is wrong, in words that do not need pydantic to be known."""
    if item["type"] == "extra_forbidden":
        near = get_close_matches(str(item["loc"][-1]), _keys_beside(item["loc"]), n=1)
        return f"this key is unknown{f', did you mean {near[0]}?' if near else ''}"
    if item["type"] == "missing":
        return "this key is missing"
    return str(item["msg"]).removeprefix("Value error, ")


def _keys_beside(place: Sequence[int | str]) -> list[str]:
    """The keys that the section of this key may have; none where it is one of several kinds."""
    section: type[BaseModel] = RunConfig
    for name in place[:-1]:
        field = section.model_fields.get(str(name))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        section = field.annotation
    return list(section.model_fields)


def _found(item: Any) -> str:
    """The value that was found, where it is short enough to help."""
    if item["type"] in ("missing", "value_error", "extra_forbidden"):
        return ""
    text = repr(item["input"])
    return f" (found {text})" if len(text) <= 60 else ""


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one `a.b.c=value` in nested mappings."""
    name, separator, value = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"--set {override!r}: expected section.field=value, such as privacy.epsilon=1")
    *parents, last = name.split(".")
    target = data
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {parent} is no section")
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {value!r} is not valid YAML") from error
