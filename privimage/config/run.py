"""The configuration of a run: one YAML file per sensitive data set, checked in full before anything happens.

Every field is described with its unit and bounds: Prefect turns the same models into the run form. Unknown keys are
refused. Privacy is stated once, in `privacy`; every noise level is derived from it. `performance` is the only
section that can change no result, and is left out of every artifact key. `generator` and `selection` are what the
registered methods declare (`privimage.methods`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from privimage.config.audit import AuditConfig
from privimage.config.classifier import ClassifierConfig
from privimage.config.evaluate import EvaluateConfig
from privimage.config.form import Section
from privimage.config.images import ImageConfig, PublicConfig, SensitiveConfig
from privimage.config.performance import Performance
from privimage.config.privacy import PrivacyConfig
from privimage.config.synthesize import SynthesizeConfig
from privimage.methods.backbone import BackboneKind
from privimage.methods.backbones.classifier import Classifier
from privimage.methods.generator import FromPublic, GeneratorKind
from privimage.methods.generators.diffusion import Diffusion
from privimage.methods.registry import BACKBONES, GENERATORS, SELECTIONS
from privimage.methods.selection import SelectionStrategy
from privimage.methods.selections.semantic import Semantic

__all__ = ["RunConfig"]


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
    backbone: Annotated[BackboneKind, BACKBONES] = Field(
        default=Classifier(), description="The public network in whose features images are compared."
    )
    classifier: ClassifierConfig = Field(
        default=ClassifierConfig(), description="Training of the semantic classifier, where it is the backbone."
    )
    selection: Annotated[SelectionStrategy, SELECTIONS] = Field(
        default=Semantic(), description="Which public images the generator is pre-trained on, and who says so."
    )
    generator: Annotated[GeneratorKind, GENERATORS] = Field(
        default=Diffusion(), description="What makes the synthetic images, and how it is trained."
    )
    synthesize: SynthesizeConfig = Field(default=SynthesizeConfig(), description="Sampling.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="Internal evaluation.")
    audit: AuditConfig = Field(default=AuditConfig(), description="Audit of fine-tuning; off unless asked for.")
    performance: Performance = Field(default=Performance(), description="Speed and memory; changes no result.")

    @property
    def public_images(self) -> FromPublic:
        """What comes of public images among the synthetic ones."""
        return self.generator.public_images(self.selection)

    @model_validator(mode="after")
    def _images_agree(self) -> RunConfig:
        if self.sensitive.train == self.public.source:
            raise ValueError(
                "the public and the sensitive images are the same source; the public set must not be sensitive"
            )
        if self.sensitive.test is None and self.sensitive.test_fraction == 0:
            raise ValueError("no test images: give sensitive.test, or a sensitive.test_fraction above 0")
        if self.sensitive.test is not None and self.sensitive.test == self.sensitive.train:
            raise ValueError("sensitive.test is the same source as sensitive.train; test images must be held out")
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
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
        if self.synthesize.class_sizes == "query" and not self.selection.asks_the_query:
            raise ValueError(
                f"synthesize.class_sizes is query, but with selection.strategy {self.selection.strategy} no query is asked: set it to "
                "equal, or the strategy to semantic"
            )
        if self.selection.asks_the_query and not self.backbone.knows_categories:
            raise ValueError(
                f"with selection.strategy {self.selection.strategy} images vote for public categories, which a backbone of kind "
                f"{self.backbone.kind} does not know: set selection.strategy to images, or backbone.kind to classifier"
            )
        if not self.generator.finetunes and not self.selection.asks_feature_means:
            raise ValueError(
                "generator.finetune.num_steps is 0, so nothing would be learned of the sensitive images but by feature means, and with "
                f"selection.strategy {self.selection.strategy} there are none: set it to images, or fine-tune"
            )
        if self.synthesize.from_public != "none" and not self.selection.asks_feature_means:
            raise ValueError(
                f"synthesize.from_public is {self.synthesize.from_public}, but with selection.strategy {self.selection.strategy} no "
                "feature means choose images: set it to none, or the strategy to images"
            )
        if self.audit.canaries and not self.generator.finetunes:
            raise ValueError("audit.canaries is above 0, but there is no fine-tuning to audit: set it to 0")
        if self.audit.canaries and not self.generator.can_be_audited:
            raise ValueError(
                f"audit.canaries is above 0, but the audit's canaries are not made for a generator of kind {self.generator.kind}: set "
                "it to 0, or generator.kind to diffusion"
            )
        if self.image.resolution // 2 ** (len(self.classifier.blocks) - 1) < 1:
            raise ValueError(f"classifier.blocks has more levels than {self.image.resolution} pixels can be halved")
        self.generator.check(self.image, self.selection)
        return self
