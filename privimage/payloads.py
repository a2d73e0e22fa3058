"""What stages write beside images and tensors: one JSON file each, with one reader and one writer.

Other programs may read these files; privimage does by these classes alone. All of it may leave the private side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from privimage.config.images import ImageConfig
from privimage.errors import ArtifactDamaged
from privimage.store.artifacts import Artifact

__all__ = [
    "CHARGED",
    "GUARANTEE",
    "AuditFound",
    "BackboneAbout",
    "ClassMeanImages",
    "ClassifierAbout",
    "Downstream",
    "FeatureMeans",
    "GeneratorAbout",
    "Guarantee",
    "Payload",
    "Query",
    "Released",
    "SelectedCategory",
    "SelectedClass",
    "SelectedImages",
    "Selection",
    "SpaceAbout",
    "Synthesis",
    "TrainedClassifier",
    "Validation",
    "finished",
    "guarantee_of",
    "guarantee_said",
    "is_guaranteed",
]

Guarantee = Literal["differential privacy", "none"]
GUARANTEE: Guarantee = "differential privacy"
Curve = tuple[tuple[int, float], ...]


def guarantee_of(*guaranteed: bool) -> Guarantee:
    """What is said of something that was made with all of this noise; one that is reproducible voids it for good."""
    return "differential privacy" if all(guaranteed) else "none"


class Payload(BaseModel):
    """One JSON file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    FILE: ClassVar[str]

    def write(self, folder: Path) -> None:
        """Write it into the folder of a payload."""
        (folder / self.FILE).write_text(self.model_dump_json(indent=1, exclude_none=True))

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """What an artifact has in its file.

        Raises:
            ArtifactDamaged: the file is missing, or is none of this version.
        """
        try:
            return cls.model_validate_json(artifact.read_bytes(cls.FILE))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ArtifactDamaged(
                f"{cls.FILE} of {artifact.ref.stage} {artifact.ref.key[:12]} cannot be read ({place}: {first['msg']}): it was not "
                "written by this version of privimage."
            ) from None


class Released(Payload):
    """Something computed from sensitive images under a charge, or from what was."""

    guarantee: Guarantee

    @property
    def is_guaranteed(self) -> bool:
        return self.guarantee == GUARANTEE


class ClassifierAbout(Payload):
    """The semantic classifier: what rebuilds its network, and how training went on public images."""

    FILE: ClassVar[str] = "classifier.json"

    config: dict[str, Any]
    channels: int
    resolution: int
    class_names: tuple[str, ...]
    validation_accuracy: float
    loss_curve: Curve
    accuracy_curve: Curve


class BackboneAbout(Payload):
    """A network that was trained elsewhere, whose weights lie beside it: what rebuilds it, and where it is from.

    Attributes:
        trained_on: what images it has seen: they are public, as the public set is.
        weights_sha256: of the file that its weights were read from.
        settings: as its kind declares them.
    """

    FILE: ClassVar[str] = "backbone.json"
    WEIGHTS: ClassVar[str] = "backbone.safetensors"

    kind: str
    name: str
    trained_on: str
    weights_sha256: str
    settings: dict[str, Any]
    num_features: int


class Query(Released):
    """The noisy votes, (classes, categories), and the mechanism that made them."""

    FILE: ClassVar[str] = "query.json"

    num_votes: int
    noise_multiplier: float
    noise_stddev: float
    class_names: tuple[str, ...]
    category_names: tuple[str, ...]
    noisy_histogram: tuple[tuple[float, ...], ...]


class ClassMeanImages(Released):
    """The noisy mean images of the classes, whose pixels lie beside it, and the mechanism.

    Attributes:
        class_sizes: what sums were divided by, and where it is from.
        noise_in_means: standard deviation of the noise on each pixel in [-1, 1], by class.
    """

    FILE: ClassVar[str] = "class_means.json"

    noise_multiplier: float
    noise_stddev: float
    max_norm: float
    class_names: tuple[str, ...]
    class_sizes: tuple[float, ...]
    class_sizes_are: str
    noise_in_means: tuple[float, ...]


class FeatureMeans(Released):
    """The noisy class means of features, which lie beside it (`means`, (classes, dimensions)), and the mechanism.

    Attributes:
        dimensions: of the space that vectors of norm 1 were summed in.
        class_sizes: noisy numbers of images, which the sums were divided by.
        noise_in_means: standard deviation of the noise on each number of a mean, by class.
        temperature: what differences of scores are divided by to be those of log-probabilities.
    """

    FILE: ClassVar[str] = "feature_means.json"
    MEANS: ClassVar[str] = "feature_means.safetensors"

    noise_multiplier: float
    noise_stddev: float
    class_names: tuple[str, ...]
    dimensions: int
    class_sizes: tuple[float, ...]
    noise_in_means: tuple[float, ...]
    temperature: float


class SpaceAbout(Payload):
    """The space of public features that class means are released in, which lies beside it.

    Attributes:
        dimensions: how many of its directions are worth the noise on the means.
        noise_in_means: what the noise was taken to be, by public numbers.
        overconfidence: how many times the temperature of probabilities has to be what one covariance for all classes would
            make it; by public categories.
    """

    FILE: ClassVar[str] = "space.json"
    DIRECTIONS: ClassVar[str] = "space.safetensors"

    num_features: int
    dimensions: int
    noise_in_means: float
    overconfidence: float


class SelectedCategory(BaseModel):
    """A public category; its noisy votes only where a query was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    name: str
    noisy_votes: float | None = None


class SelectedImages(BaseModel):
    """What single public images are to a class, by the released means.

    Attributes:
        likeliest: how many have this class as their likeliest.
        expected: sum of all images' probabilities for it.
        sure: how many have it with a probability above a half.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    likeliest: int
    expected: float
    sure: int


class SelectedClass(BaseModel):
    """A sensitive class and its public categories, best first; none where single images were selected, or all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    categories: tuple[SelectedCategory, ...]
    images: SelectedImages | None = None


class Selection(Payload):
    """The categories that were selected."""

    FILE: ClassVar[str] = "selection.json"

    classes: tuple[SelectedClass, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.classes)

    @property
    def numbers(self) -> list[list[int]]:
        """Numbers of the categories of each class, best first."""
        return [[category.number for category in row.categories] for row in self.classes]


class GeneratorAbout(Payload):
    """A generator, whose weights lie beside it: what rebuilds it, and how it was trained.

    Attributes:
        network: the settings of its network, as its kind declares them.
        rejects: whether a critic rejects some of what is drawn.
        own: public facts that only its kind knows.
        guarantee: of a fine-tuned one.
        mechanism: of fine-tuning, by its fields.
    """

    FILE: ClassVar[str] = "generator.json"
    WEIGHTS: ClassVar[str] = "generator.safetensors"

    kind: str
    network: dict[str, Any]
    channels: int
    resolution: int
    class_names: tuple[str, ...]
    num_parameters: int
    loss_curve: Curve
    rejects: bool = False
    own: dict[str, Any] = {}
    guarantee: Guarantee | None = None
    mechanism: dict[str, Any] | None = None

    @property
    def image(self) -> ImageConfig:
        """The form of its images."""
        return ImageConfig(resolution=self.resolution, channels=1 if self.channels == 1 else 3)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        return self.channels, self.resolution, self.resolution


class Synthesis(Released):
    """The synthetic images, which lie beside it.

    Attributes:
        num_public, num_mixed: how many are public images, unchanged, or mixtures of two, where they may be.
        drawn_rejected: where images were chosen together: whether a critic rejected some of the drawn ones.
        class_size_stddev: of the noise on class sizes, where these follow the votes.
        num_candidates: how many were drawn to choose from by feature means, where it was so.
        as_asked: share of these whose likeliest class, by the means, is the one that they were drawn as.
    """

    FILE: ClassVar[str] = "synthesis.json"

    class_names: tuple[str, ...]
    num_public: int | None = None
    num_mixed: int | None = None
    drawn_rejected: bool | None = None
    class_size_stddev: float | None = None
    num_candidates: int | None = None
    as_asked: float | None = None


class TrainedClassifier(BaseModel):
    """One training on synthetic images; `accuracy` is that on held-out ones, at the epoch that was kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    file: str
    num_parameters: int
    epoch: int
    accuracy: float
    curve: tuple[float, ...]
    num_steps: int


class Downstream(Released):
    """The classifiers that were trained on the synthetic images, by architecture."""

    FILE: ClassVar[str] = "downstream.json"

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    about: dict[str, str]
    classifiers: dict[str, tuple[TrainedClassifier, ...]]
    chosen: str


class Validation(Released):
    """Noisy accuracies on sensitive validation images, and the classifier that is best by them."""

    FILE: ClassVar[str] = "validation.json"

    noise_multiplier: float
    noise_stddev: float
    num_images: int
    noisy_accuracies: dict[str, float]
    chosen: str


class AuditFound(Payload):
    """What an audit of fine-tuning found; nothing sensitive was read for it."""

    FILE: ClassVar[str] = "audit.json"

    kind: Literal["public"] = "public"
    about: str = "made-up canaries and public images through the real step; nothing sensitive was read"
    claimed: float
    delta: float
    canaries: int
    mechanism: dict[str, Any]
    bounds: tuple[dict[str, Any], ...]
    alarm: bool
    verdict: str


def finished(inputs: Mapping[str, Artifact]) -> Artifact:
    """The generator that images are drawn from: the last that the run made of it."""
    return next(inputs[stage] for stage in ("finetune", "warmup", "pretrain") if stage in inputs)


def guarantee_said(stage: str, artifact: Artifact) -> Guarantee:
    """What the artifact of a charged stage says of its own randomness."""
    if stage == "finetune":
        return GeneratorAbout.read(artifact).guarantee or "none"
    return RELEASED[stage].read(artifact).guarantee


def is_guaranteed(inputs: Mapping[str, Artifact]) -> bool:
    """Whether all noise behind some artifacts, as far as they say so themselves, carries a guarantee."""
    return all(guarantee_said(stage, inputs[stage]) == GUARANTEE for stage in CHARGED if stage in inputs)


RELEASED: dict[str, type[Released]] = {
    "query": Query,
    "feature_means": FeatureMeans,
    "class_means": ClassMeanImages,
    "validate": Validation,
}
CHARGED = ("query", "feature_means", "class_means", "finetune", "validate")
"""Stages that may be charged, in the order of a plan."""
