"""The sections of a configuration that belong to a stage each, and `performance`, which can change no result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from privimage.config_form import Section

__all__ = [
    "AuditConfig",
    "CentralConfig",
    "ClassifierConfig",
    "ClassifierName",
    "DenoiserConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "GanConfig",
    "MerfConfig",
    "Performance",
    "PretrainConfig",
    "QueryConfig",
    "SelectionConfig",
    "SynthesizeConfig",
]


class ClassifierConfig(Section):
    """The semantic classifier: a residual network trained on the public images."""

    base_channels: int = Field(default=32, ge=4, le=256, description="Channels of the first level.")
    blocks: tuple[int, ...] = Field(
        default=(1, 1, 1),
        min_length=1,
        max_length=5,
        description="Residual blocks per level; each level halves the size.",
    )
    bottleneck: bool = Field(default=False, description="Bottleneck blocks, as in ResNet-50.")
    epochs: int = Field(default=6, ge=1, le=1000, description="Passes over the public training images.")
    batch_size: int = Field(default=128, ge=2, le=65_536, description="Images per optimizer step.")
    learning_rate: float = Field(default=0.05, gt=0, le=10, description="Peak learning rate of SGD (cosine to zero).")
    weight_decay: float = Field(default=5e-4, ge=0, le=1, description="Weight decay of SGD.")
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5, description="Share of public images held out.")
    augment: bool = Field(default=True, description="Random shifts and small rotations of the training images.")
    horizontal_flip: bool = Field(default=False, description="Also mirror at random; wrong for letters and digits.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed (public training is reproducible).")


class QueryConfig(Section):
    """The noisy semantic query."""

    num_votes: int = Field(default=3, ge=1, le=100, description="Categories each sensitive image votes for.")


class SelectionConfig(Section):
    """Which public images the generator is pre-trained on, and who says so."""

    strategy: Literal["semantic", "random", "all", "none"] = Field(
        default="semantic",
        description="semantic: categories that the noisy query chose (PRIVIMAGE); random: as many, drawn at random; all: all "
        "public images with their own labels (PDP-Diffusion); none: no pre-training (DPDM). Only semantic asks the query.",
    )
    categories_per_class: int = Field(default=3, ge=1, le=1000, description="Public categories per sensitive class.")
    max_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        title="Max fraction",
        description="Select at most this share of the public images; none = all images of the chosen categories.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed of the random choices, under `max_fraction` and of categories."
    )

    @property
    def asks_the_query(self) -> bool:
        """Whether the sensitive images vote on what is selected. If not, no query is made, and none is paid for."""
        return self.strategy == "semantic"


class DenoiserConfig(Section):
    """The generator's network: an EDM-preconditioned, class-conditional U-Net with GroupNorm."""

    base_channels: int = Field(default=32, ge=8, le=512, multiple_of=8, description="Channels of the finest level.")
    channel_multipliers: tuple[int, ...] = Field(
        default=(1, 2), min_length=1, max_length=5, description="Channel factor per level; each level halves the size."
    )
    blocks_per_level: int = Field(default=1, ge=1, le=4, description="Residual blocks per level and direction.")
    attention_levels: tuple[int, ...] = Field(
        default=(), description="Levels with self-attention, counted from 0 = the finest."
    )
    sigma_data: float = Field(default=0.5, gt=0, le=2, description="Standard deviation of the pixels in [-1, 1].")


class GanConfig(Section):
    """The networks of the GAN: a class-conditional residual generator, and a discriminator with projection."""

    base_channels: int = Field(default=32, ge=8, le=512, multiple_of=8, description="Channels of the finest level.")
    channel_multipliers: tuple[int, ...] = Field(
        default=(1, 2, 2),
        min_length=2,
        max_length=6,
        description="Channel factor per level; each level halves the size.",
    )
    latent_dim: int = Field(default=64, ge=1, le=1024, description="Random numbers that an image is made of.")
    gradient_penalty: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        title="Gradient penalty",
        description="Weight of the discriminator's squared slope at real images, in pre-training.",
    )
    diversity: float = Field(
        default=0.1,
        ge=0,
        le=100,
        description="Weight of the likeness of images that are painted of one class from different numbers.",
    )


class MerfConfig(Section):
    """A generator that is trained to match noisy mean embeddings of the classes, and sees no image.

    With `selection.strategy: none` it is DP-MERF. With a selection, `critic_share` of the first embedding is of what a critic sees: a
    classifier that was trained on selected public images. A second embedding follows, of what another critic sees, which is
    trained on these and on images that were drawn after the first.
    """

    num_features: int = Field(
        default=2000,
        ge=2,
        le=100_000,
        multiple_of=2,
        title="Number of features",
        description="Numbers of an image's embedding: cosines and sines of random directions.",
    )
    lengthscale: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Width of the kernel: a Euclidean distance of images with pixels in [-1, 1]; none = 0.4 times the median "
        "distance of public images.",
    )
    critic_features: int = Field(
        default=2000,
        ge=2,
        le=100_000,
        multiple_of=2,
        title="Critic features",
        description="Those of what each of two critics sees, where there is a selection.",
    )
    critic_share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        title="Critic share",
        description="Weight of each critic's features among its own and those before, 0 to 1.",
    )
    critic_from: float = Field(
        default=0.6,
        gt=0,
        lt=1,
        title="Critic from",
        description="After this share of the steps the second critic is trained, and its features count too.",
    )
    critic_channels: int = Field(
        default=16, ge=4, le=256, title="Critic channels", description="Channels of a critic's first level."
    )
    critic_images: int = Field(
        default=4000,
        ge=10,
        le=10_000_000,
        title="Critic images",
        description="Selected public images that critics are trained on, at most; the second on as many drawn ones, too.",
    )
    critic_steps: int = Field(
        default=400,
        ge=1,
        le=10_000_000,
        title="Critic steps",
        description="About how many steps each critic is trained.",
    )
    critic_attempts: int = Field(
        default=4,
        ge=1,
        le=1000,
        title="Critic attempts",
        description="Images painted for each that is drawn: the first whose class the second critic sees is taken, else the last.",
    )
    base_channels: int = Field(default=16, ge=8, le=512, multiple_of=8, description="Channels of the finest level.")
    channel_multipliers: tuple[int, ...] = Field(
        default=(1, 2, 2),
        min_length=2,
        max_length=6,
        description="Channel factor per level; each level halves the size.",
    )
    latent_dim: int = Field(default=16, ge=1, le=1024, description="Random numbers that an image is made of.")
    num_steps: int = Field(default=2500, ge=2, le=10_000_000, description="Optimizer steps on noisy embeddings.")
    batch_size: int = Field(
        default=200,
        ge=1,
        le=65_536,
        description="Images of a step; rounded up to as many of each class, and an even number.",
    )
    learning_rate: float = Field(default=2e-3, gt=0, le=1, description="Peak learning rate of Adam (cosine to zero).")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="Decay of the weight average per step.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="Seed of directions, first weights and training; that of the noise is secret.",
    )

    def dimensions(self, *, with_critic: bool) -> tuple[int, ...]:
        """Numbers that an image adds to its class's sum, in each release: features, and one that counts it."""
        if not with_critic:
            return (self.num_features + 1,)
        return self.num_features + self.critic_features + 1, self.critic_features + 1


class PretrainConfig(Section):
    """Training of the generator on the selected public images (no privacy cost)."""

    num_steps: int = Field(default=1500, ge=1, le=10_000_000, description="Optimizer steps.")
    batch_size: int = Field(default=128, ge=1, le=65_536, description="Images per step.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate of Adam.")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="Decay of the weight average per step.")
    label_dropout: float = Field(default=0.1, ge=0, le=0.9, description="Share of labels hidden, for guidance.")
    horizontal_flip: bool = Field(default=False, description="Mirror images at random; wrong for letters and digits.")
    sigma_mean: float = Field(default=-1.2, description="Mean of ln sigma, the noise level drawn in training.")
    sigma_std: float = Field(default=1.2, gt=0, description="Standard deviation of ln sigma.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed (public training is reproducible).")


class CentralConfig(Section):
    """Central images: the noisy mean image of each class, released once, and the warm-up of the generator with them."""

    num_steps: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        title="Number of steps",
        description="Optimizer steps of the warm-up; 0 = none, and no central image is asked for or paid for.",
    )
    batch_size: int = Field(
        default=128, ge=2, le=65_536, description="Rows per step, central and public ones together."
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate of Adam.")
    ema_decay: float = Field(default=0.98, ge=0, lt=1, description="Decay of the weight average per step.")
    share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the rows that are central images; the others are selected public ones. Without a selection "
        "all are central images.",
    )
    sigma_min: float = Field(
        default=0.8,
        gt=0,
        description="Lowest noise level of central images, and the highest of public ones: above it, the best denoised "
        "image is nearly the mean of the class.",
    )
    sigma_max: float = Field(default=40.0, gt=0, description="Highest noise level of central images.")
    max_norm: float | None = Field(
        default=None,
        gt=0,
        title="Largest norm",
        description="Bound on the norm of an image's difference from the mean public image, pixels in [-1, 1]; longer ones "
        "are cut. None = the median of public images.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed of the warm-up (it is reproducible; the noise is not)."
    )

    @property
    def is_used(self) -> bool:
        """Whether the run has central images at all."""
        return self.num_steps > 0

    @model_validator(mode="after")
    def _sigmas_ordered(self) -> CentralConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max})")
        return self


class FinetuneConfig(Section):
    """DP-SGD on the sensitive images. Its noise is derived from `privacy`, never given here."""

    num_steps: int = Field(default=100, ge=1, le=10_000_000, description="DP-SGD steps.")
    expected_batch_size: int = Field(default=256, ge=1, description="Mean of the Poisson batch; at most all images.")
    largest_batch_size: int | None = Field(
        default=None,
        ge=1,
        title="Largest batch size",
        description="Cap on the images of one step, which bounds memory and time; none = no cap. Nearly free from 6 "
        "standard deviations (sqrt(expected_batch_size)) above the mean.",
    )
    noise_samples: int = Field(default=4, ge=1, le=128, description="Noise draws per image, averaged before clipping.")
    max_grad_norm: float = Field(default=1e-3, ge=1e-6, le=1e6, description="Per-image gradient norm bound.")
    learning_rate: float = Field(default=5e-4, gt=0, le=1, description="Learning rate of Adam.")
    ema_decay: float = Field(default=0.95, ge=0, lt=1, description="Decay of the weight average per step.")
    label_dropout: float = Field(default=0.1, ge=0, le=0.9, description="Share of images trained without their label.")
    horizontal_flip: bool = Field(
        default=False,
        description="Mirror at random, each noise draw of an image by itself; wrong for letters and digits.",
    )
    sigma_mean: float = Field(default=-1.2, description="Mean of ln sigma, the noise level drawn in training.")
    sigma_std: float = Field(default=1.2, gt=0, description="Standard deviation of ln sigma.")
    discriminator_steps: int = Field(
        default=1,
        ge=1,
        le=1000,
        title="Discriminator steps",
        description="GAN: DP-SGD steps of the discriminator for each step of the generator.",
    )
    generator_learning_rate: float = Field(
        default=5e-4,
        gt=0,
        le=1,
        title="Generator learning rate",
        description="GAN: learning rate of the generator's Adam.",
    )
    generator_batch_size: int = Field(
        default=128,
        ge=1,
        le=65_536,
        title="Generator batch size",
        description="GAN: images of a step of the generator.",
    )
    checkpoint_steps: int = Field(
        default=10, ge=1, description="Steps between checkpoints: at most so many are lost, and charged, per crash."
    )
    restart_allowance: int = Field(
        default=20, ge=0, description="Extra steps accounted for from the start, to resume after crashes."
    )


class SynthesizeConfig(Section):
    """Sampling from the fine-tuned generator (free: post-processing)."""

    num_images: int = Field(default=2000, ge=1, le=10_000_000, description="Synthetic images, of all classes together.")
    class_sizes: Literal["equal", "query"] = Field(
        default="equal",
        title="Sizes of the classes",
        description="The same number of images of each class, or in proportion to the noisy votes of the query (a tenth of the mean at "
        "least): then common classes are common among the synthetic images, too, and nothing more is paid for it.",
    )
    num_steps: int = Field(
        default=18, ge=2, le=1000, description="Evaluations of the network per image; twice as many with guidance."
    )
    sigma_min: float = Field(default=0.03, gt=0, description="Smallest noise level; 0.008 is one level of 255.")
    sigma_max: float = Field(default=80.0, gt=0, description="Largest noise level.")
    rho: float = Field(default=7.0, gt=0, description="Spacing of the noise levels (Karras et al. 2022, Eq. 5).")
    guidance: float = Field(
        default=0.0, ge=0, le=20, description="Classifier-free guidance weight; 0 = none, which is twice as fast."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="First of the per-image seeds (sampling is reproducible).")
    public_images: Literal["none", "mixed", "unchanged"] | None = Field(
        default=None,
        title="What comes of public images",
        description="With generator merf and a selection, images are chosen together, among drawn ones and mixtures of two selected public "
        "images each (mixed, the default there), or these unchanged: then see to their licence, and to the people in them. With none, and "
        "by default elsewhere, all are drawn.",
    )
    mixer_steps: int = Field(
        default=800, ge=1, le=10_000_000, description="Optimizer steps of the autoencoder that mixes public images."
    )
    judge_below: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Where images are chosen together, drawn ones in which the second critic does not see their class are left out "
        "if it sees it in less than this share of all drawn ones; 1 = always, 0 = never. Others are judged always.",
    )

    @model_validator(mode="after")
    def _sigmas_ordered(self) -> SynthesizeConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max})")
        return self


ClassifierName = Literal["cnn", "resnet", "wrn", "resnext", "logistic-regression", "mlp"]


class EvaluateConfig(Section):
    """Classifiers trained on synthetic images, and what is measured on held-out sensitive ones, below `private/`."""

    classifiers: tuple[ClassifierName, ...] = Field(
        default=("cnn", "logistic-regression"),
        min_length=1,
        max_length=6,
        description="Which classifiers are trained on the synthetic images; each name once.",
    )
    seeds: int = Field(
        default=1, ge=1, le=100, description="How often each is trained; figures get a deviation from 2."
    )
    validation: Literal["synthetic", "private"] = Field(
        default="synthetic",
        description="What chooses among them: held-out synthetic images, for free, or noisy counts on the sensitive "
        "validation images, charged out of what `privacy.validation_error` sets aside.",
    )
    held_out_fraction: float = Field(
        default=0.1, gt=0, lt=0.5, description="Share of the synthetic images that choose the epoch, not trained on."
    )
    ceiling: bool = Field(
        default=True, description="Also train them on the sensitive images, as many steps, for comparison (private)."
    )
    safety: bool = Field(
        default=True, description="Also look for memorized training images and attack the generator (private)."
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Epochs of each training on synthetic images; none = 15, and of few images so many that there are 1,000 steps.",
    )
    batch_size: int = Field(default=32, ge=2, description="Images per step of these trainings.")
    learning_rate: float = Field(
        default=1e-3, gt=0, le=1, description="Their peak learning rate (Adam, cosine to zero)."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="The first of their seeds.")
    inception_weights: str | None = Field(
        default=None,
        title="Inception weights",
        description="Folder with clean-fid's inception-2015-12-05.pt; none = skip Inception figures if it is not cached.",
    )

    @model_validator(mode="after")
    def _each_classifier_once(self) -> EvaluateConfig:
        if len(set(self.classifiers)) < len(self.classifiers):
            raise ValueError(f"classifiers names one of them twice: {', '.join(self.classifiers)}")
        return self


class AuditConfig(Section):
    """Audit of fine-tuning: the same mechanism and network on public images and made-up canaries; costs no epsilon."""

    canaries: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Made-up images, each inserted by a coin: at least 100, and more show more; 0 = no audit.",
    )
    stand_ins: int = Field(
        default=1000,
        ge=1,
        title="Stand-ins",
        description="Public images in the place of the sensitive ones, at most; time grows with them and the canaries.",
    )
    num_steps: int | None = Field(
        default=None,
        ge=1,
        title="Number of steps",
        description="DP-SGD steps to audit; none = as many as fine-tuning has. The claim is that of these steps.",
    )

    @model_validator(mode="after")
    def _enough_to_show_something(self) -> AuditConfig:
        if 0 < self.canaries < 100:
            raise ValueError(f"canaries is {self.canaries}, but an audit needs at least 100; 0 = no audit")
        return self


class Performance(Section):
    """Settings that change speed and memory only, never a result."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="Where to compute.")
    num_devices: int | None = Field(
        default=None,
        ge=1,
        le=64,
        title="Number of devices",
        description="Devices that share pre-training, fine-tuning and sampling; none = every GPU of the machine if `device` is "
        "auto or cuda, else one. On a CPU it is the number of processes.",
    )
    physical_batch_size: int | None = Field(
        default=None,
        ge=1,
        title="Physical batch size",
        description="Rows (images x noise draws) computed at once in fine-tuning, sampling and scoring; none = as many as "
        "suit the device and fit `memory_gb`.",
    )
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        title="Memory in GB",
        description="Memory for one physical batch of fine-tuning; none = 1 GB on a CPU, where more gains nothing, and half "
        "of what is free on a GPU.",
    )
    per_image_gradients: Literal["bookkeeping", "vmap", "opacus"] = Field(
        default="bookkeeping",
        title="Per-image gradients",
        description="How fine-tuning computes them; bookkeeping is the fastest, the others are for comparison.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of forward and backward passes in training; clipping, sums, noise and weights are float32 always.",
    )
    task_runner: Literal["threads", "dask", "ray"] = Field(
        default="threads",
        title="Task runner",
        description="Where flows make the parts of the index and of the synthetic images: in the flow's own process, or on "
        "a Dask or Ray cluster, whose machines all reach the store.",
    )
    cluster: str | None = Field(
        default=None,
        description="Address of the cluster, such as tcp://scheduler:8786 or ray://head:10001; none = one on this machine, for "
        "the time of the stage.",
    )
    num_workers: int = Field(
        default=2, ge=1, le=1024, title="Number of workers", description="Processes of a cluster on this machine."
    )
    checkpoint_seconds: float = Field(
        default=120.0,
        ge=0,
        le=86_400,
        title="Checkpoint seconds",
        description="Time between checkpoints of pre-training. Fine-tuning is saved every `finetune.checkpoint_steps`.",
    )
    checkpoint_steps: int | None = Field(
        default=None,
        ge=1,
        title="Checkpoint steps",
        description="Pre-training is saved every so many steps too; none = by the clock alone.",
    )

    @model_validator(mode="after")
    def _a_cluster_needs_its_runner(self) -> Performance:
        if self.cluster is not None and self.task_runner == "threads":
            raise ValueError(f"cluster is {self.cluster}, but task_runner is threads: set it to dask or ray")
        return self
