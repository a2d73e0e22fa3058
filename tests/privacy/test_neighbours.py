"""Record and replay: the two mechanisms on a set, then on each of its neighbours, with the very same draws.

The idea is that of Re:cord-play (arXiv 2602.17454). A statistical test needs thousands of runs to see a sensitivity
that is stated 1 % too low; with equal draws one run sees it, since the noise cancels. What is asserted, for every image:

- the neighbour asks for the same draws, takes the same steps and calls the same operators on the same shapes;
- at each call of a mechanism the two inputs differ by at most the stated sensitivity, and not at all where the image
  was not drawn; and what comes out is the input plus the drawn noise, at the stated scale;
- given what came out, everything after it is equal to the bit.

"No image", in the sense of the relation (`privimage.privacy.mechanisms`), holds its place: the number of images is
public and a batch keeps its size. The library has no value for it, since it never sees one. Here it is a blank picture
in the image's place, whose loss is the constant 0 in fine-tuning (so its gradient is zero, by differentiation), and
whose votes are dropped before they are counted in the query.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from privimage.config.classifier import ClassifierConfig
from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts
from privimage.data.pixels import from_pixels
from privimage.generators.diffusion.denoiser import Denoiser
from privimage.generators.diffusion.unet import UNet
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.finetune import FinetuneState, finetune, start_state
from privimage.machine.progress import Silent
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionFinetune
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.entropy import InsecureRandomForTests, Random, SecretRandom
from privimage.privacy.mechanisms import DPSGDMechanism, HistogramQuery
from privimage.privacy.numerics import PER_STDDEV
from privimage.semantics.classifier import new_classifier
from privimage.store.artifacts import Artifact, publish
from privimage.store.files import Store
from privimage.store.weights import save_weights
from tests.engine_spy import Call, intercept
from tests.pipeline_fixtures import SETTINGS

# Typed Any: what is replaced in them is no part of their interface.
loop: Any = import_module("privimage.generators.training.finetune")
query: Any = import_module("privimage.stages.query")
engine: Any = import_module("privimage.privacy.gradients.engine")
bookkeeping: Any = import_module("privimage.privacy.gradients.bookkeeping")

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

# Pictures of one gray value each stand for what cannot be had from real ones.
NO_IMAGE, NAN_LOSS, INFINITE_LOSS, HUGE_LOSS = 77, 78, 79, 80
ODD_LOSSES = {NAN_LOSS: float("nan"), INFINITE_LOSS: float("inf"), HUGE_LOSS: 1e25}


class Noticed(AssertionError):
    """The harness found that the claim does not hold."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Noticed(otherwise)


# ------------------------------------------------------------------------------------------------------------- draws


class Tape(InsecureRandomForTests):
    """Records what is drawn from `source`; with `replay`, gives out the draws of another tape instead."""

    def __init__(self, source: Random, replay: Tape | None = None) -> None:
        self.drawn: list[tuple[str, int]] = []
        self.values: list[Any] = []
        self._source = source
        self._replay = replay

    def uniform(self, count: int) -> NDArray[np.float64]:
        draws: NDArray[np.float64] = self._draw("uniform", count, self._source.uniform)
        return draws

    def normal(self, count: int) -> NDArray[np.float64]:
        draws: NDArray[np.float64] = self._draw("normal", count, self._source.normal)
        return draws

    def seed(self) -> int:
        return int(self._draw("seed", 1, lambda count: self._source.seed()))

    def _draw(self, method: str, count: int, draw: Callable[[int], Any]) -> Any:
        if self._replay is None:
            value = draw(count)
        else:
            at = len(self.drawn)
            recorded = self._replay.drawn[at] if at < len(self._replay.drawn) else None
            expect(recorded == (method, count), f"draw {at} is {(method, count)}, on the first set it was {recorded}")
            value = self._replay.values[at]
        self.drawn.append((method, count))
        self.values.append(value)
        return value.copy() if isinstance(value, np.ndarray) else value

    def normals(self) -> list[NDArray[np.float64]]:
        return [value for (method, _), value in zip(self.drawn, self.values, strict=True) if method == "normal"]


class PlannedCoins(InsecureRandomForTests):
    """In the steps in turn: no image is drawn, every other one, all of them."""

    def __init__(self) -> None:
        super().__init__(0)
        self._step = 0
        self._coins_were_thrown = False

    def uniform(self, count: int) -> NDArray[np.float64]:
        if self._coins_were_thrown:
            return super().uniform(count)
        self._coins_were_thrown = True
        number = np.arange(count)
        drawn = (number < 0, number % 2 == 0, number >= 0)[self._step % 3]
        return np.where(drawn, 1e-9, 1 - 1e-9)

    def seed(self) -> int:
        """Drawn once a step, after the coins."""
        self._step += 1
        self._coins_were_thrown = False
        return super().seed()


def shape_or_number(argument: object) -> object:
    """What of an operator's argument is control flow."""
    if isinstance(argument, Tensor):
        return tuple(argument.shape)
    if isinstance(argument, (list, tuple)):
        return tuple(map(shape_or_number, argument))
    if isinstance(argument, float):
        return repr(argument)  # a NaN is not equal to itself
    return argument if isinstance(argument, (int, str, torch.dtype)) else type(argument)


class Operators(TorchDispatchMode):
    """Every operator that torch runs, with the shapes of its tensors and its numbers: the control flow, to the last
    matrix product."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[object, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.seen.append((func, *map(shape_or_number, args), *map(shape_or_number, (kwargs or {}).values())))
        return func(*args, **(kwargs or {}))


def check_same_operators(first: Operators, second: Operators) -> None:
    for number, (one, other) in enumerate(zip(first.seen, second.seen, strict=False)):
        expect(one == other, f"operator {number} is {other}, on the first set it was {one}")
    expect(len(first.seen) == len(second.seen), f"{len(second.seen)} operators, on the first set {len(first.seen)}")


# ----------------------------------------------------------------------------------------------------------- DP-SGD


class MarkedDenoiser(Denoiser):
    """A real denoiser to which blank pictures of certain gray values mean "no image", or an image of odd loss."""

    def weighted_error(self, denoised: Tensor, images: Tensor, sigma: Tensor) -> Tensor:
        absent = self._marked(images, NO_IMAGE)
        error = super().weighted_error(torch.where(absent.view(-1, 1, 1, 1), images, denoised), images, sigma)
        factor = torch.ones_like(error)
        for gray, odd in ODD_LOSSES.items():
            factor = torch.where(self._marked(images, gray), torch.full_like(error, odd), factor)
        return error * factor

    @staticmethod
    def _marked(images: Tensor, gray: int) -> Tensor:
        value = from_pixels(torch.tensor(gray, dtype=torch.uint8)).to(images.device)
        return (images == value).flatten(1).all(1)


def new_marked_denoiser(broken_weight: float | None = None) -> MarkedDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = DenoiserConfig(base_channels=8, channel_multipliers=(1,), blocks_per_level=1)
        denoiser = MarkedDenoiser(UNet(config, channels=1, num_classes=2), sigma_data=0.5, num_classes=2)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
            if broken_weight is not None:
                next(denoiser.parameters()).view(-1)[0] = broken_weight
    return denoiser


MAX_GRAD_NORM = 1e-3  # below every gradient of these images: each that is drawn reaches the bound
CONFIG = DiffusionFinetune(noise_samples=2, learning_rate=1e-3, ema_decay=0.5, label_dropout=0.3)


def mechanism_for(images: Images, num_steps: int = 3) -> DPSGDMechanism:
    return DPSGDMechanism(
        num_images=len(images),
        expected_batch_size=max(1, len(images) // 2),
        num_steps=num_steps,
        restart_allowance=0,
        max_grad_norm=MAX_GRAD_NORM,
        noise_multiplier=0.7,
    )


def blank(gray: int) -> Images:
    return np.full((1, 8, 8), gray, dtype=np.uint8)


def plain_images(count: int = 4) -> tuple[Images, Labels]:
    generator = np.random.default_rng(1)
    return generator.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), np.arange(count) % 2


def odd_images() -> tuple[Images, Labels]:
    """Two identical ones, and ones whose gradient is NaN, infinite, or beyond every float."""
    images, labels = plain_images(6)
    images[1], labels[1] = images[0], labels[0]
    images[2], images[3], images[4] = blank(NAN_LOSS), blank(INFINITE_LOSS), blank(HUGE_LOSS)
    return images, labels


@dataclass(kw_only=True)
class Recording:
    """One run of `finetune`: what each mechanism call got and gave, and all that came after it."""

    tape: Tape
    operators: Operators = field(default_factory=Operators)
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    sums: list[ClippedSum] = field(default_factory=list)
    released: list[Tensor] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)


def state_bytes(state: FinetuneState) -> bytes:
    groups = (state.weights, state.ema, state.exp_avg, state.exp_avg_sq)
    return b"".join(tensor.numpy().tobytes() for group in groups for tensor in group.values()) + bytes([state.step])


def play(
    images: Images,
    labels: Labels,
    *,
    tape: Tape,
    frozen: Recording | None = None,
    denoiser: Denoiser | None = None,
    mechanism: DPSGDMechanism | None = None,
    config: DiffusionFinetune = CONFIG,
    rows_at_once: int = 1000,
) -> Recording:
    """Fine-tune; with `frozen`, each mechanism call gives what it gave in that recording."""
    denoiser = denoiser or new_marked_denoiser()
    record = Recording(tape=tape)
    real_batch, real_gradient = loop.poisson_batch, loop.noisy_mean_gradient

    def batch(*arguments: Any) -> NDArray[np.int64]:
        record.rows.append(real_batch(*arguments))
        return record.rows[-1]

    def gradient(clipped: ClippedSum, mechanism: DPSGDMechanism, random: Random) -> Tensor:
        released = real_gradient(clipped, mechanism, random)
        record.sums.append(replace(clipped, value=clipped.value.clone()))
        record.released.append(released)
        return (frozen.released[len(record.released) - 1] if frozen else released).clone()

    with pytest.MonkeyPatch.context() as patch, record.operators:
        patch.setattr(loop, "poisson_batch", batch)
        patch.setattr(loop, "noisy_mean_gradient", gradient)
        finetune(
            denoiser,
            images,
            labels,
            mechanism or mechanism_for(images),
            config,
            state=start_state({name: tensor.detach() for name, tensor in denoiser.named_parameters()}),
            random=tape,
            compute=ComputeSettings(rows_at_once=rows_at_once),
            on_step=lambda state: record.states.append(state_bytes(state)),
        )
    return record


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm())


def check_gaussian_mechanism(record: Recording, mechanism: DPSGDMechanism) -> None:
    """Each release is (input + noise of the accounted scale) / public number, with the noise that was drawn for it."""
    noises = record.tape.normals()
    expect(len(noises) == len(record.sums) == mechanism.num_steps, f"noise was drawn in {len(noises)} steps")
    step_event = mechanism.event.event
    accounted = getattr(step_event, "event", step_event).noise_multiplier * mechanism.max_grad_norm
    for step, (clipped, released, noise) in enumerate(zip(record.sums, record.released, noises, strict=True)):
        expected = (clipped.value.double() + accounted * torch.from_numpy(noise)) / mechanism.expected_batch_size
        point = accounted / PER_STDDEV / mechanism.expected_batch_size
        off = float((released.double() - expected).abs().max()) / point
        expect(
            off < 0.501,
            f"step {step} does not release (sum + accounted noise) / expected batch size, rounded: off by {off:.1f} points",
        )


def check_neighbour(record: Recording, other: Recording, number: int, mechanism: DPSGDMechanism) -> list[float]:
    """Every assertion of the module's docstring; returns the distances of the steps in which the image was drawn."""
    expect(record.tape.drawn == other.tape.drawn, "the neighbour asks for fewer draws")
    check_same_operators(record.operators, other.operators)
    expect(len(record.states) == len(other.states) == mechanism.num_steps, "the neighbour takes other steps")
    check_gaussian_mechanism(other, mechanism)
    moved = []
    for step, rows in enumerate(record.rows):
        expect(np.array_equal(rows, other.rows[step]), "the neighbour draws other images")
        apart = distance(record.sums[step].value, other.sums[step].value)
        allowed = mechanism.sensitivity if number in rows else 0.0
        expect(
            apart <= allowed, f"image {number} moves step {step} by {apart:.6g}, but at most {allowed:.6g} is accounted"
        )
        if number in rows:
            moved.append(apart)
        expect(
            record.states[step] == other.states[step], f"after step {step}, more differs than the mechanism released"
        )
    return moved


def check_all_neighbours(images: Images, labels: Labels, *, reaching: bool = True, **settings: Any) -> int:
    """Replay on every neighbour; returns in how many steps an image was drawn.

    With `reaching`, each drawn image must also move the sum by the whole of its bound: a harness in which nothing moves
    would find nothing, and a mean in the place of the sum would pass.
    """
    mechanism = settings.pop("mechanism", None) or mechanism_for(images)
    source = settings.pop("source", None) or PlannedCoins()
    record = play(images, labels, tape=Tape(source), mechanism=mechanism, **settings)
    check_gaussian_mechanism(record, mechanism)
    drawn = 0
    for number in range(len(images)):
        without = images.copy()
        without[number] = blank(NO_IMAGE)
        tape = Tape(source, replay=record.tape)
        other = play(without, labels, tape=tape, frozen=record, mechanism=mechanism, **settings)
        for apart in check_neighbour(record, other, number, mechanism):
            drawn += 1
            full = 0.999 * mechanism.sensitivity
            expect(not reaching or apart >= full, f"image {number} moves the sum by {apart:.6g}, less than its bound")
    return drawn


@pytest.mark.parametrize(("draws", "rows_at_once"), [(1, 1), (1, 1000), (4, 1), (4, 8)])
def test_no_image_moves_a_step_by_more_than_is_accounted_nor_anything_but_the_sum(
    draws: int, rows_at_once: int
) -> None:
    config = CONFIG.model_copy(update={"noise_samples": draws})
    assert check_all_neighbours(*plain_images(), config=config, rows_at_once=rows_at_once) == 2 + 4


@pytest.mark.parametrize("rows_at_once", [6, 1000])
def test_neither_do_images_with_a_twin_or_whose_gradient_is_no_number(rows_at_once: int) -> None:
    assert check_all_neighbours(*odd_images(), reaching=False, rows_at_once=rows_at_once) == 3 + 6


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_neither_do_images_seen_by_a_network_that_has_diverged(weight: float) -> None:
    denoiser = new_marked_denoiser(broken_weight=weight)
    check_all_neighbours(*plain_images(3), reaching=False, denoiser=denoiser)


def test_neither_does_the_only_image_of_a_set() -> None:
    assert check_all_neighbours(*plain_images(1)) == 3, "at a rate of 1 it is in every step"


def test_neither_does_any_image_where_batches_are_cut() -> None:
    images, labels = plain_images()
    cut = replace(mechanism_for(images), largest_batch_size=3)
    assert check_all_neighbours(images, labels, mechanism=cut) == 2 + 3


def test_neither_does_any_image_over_many_steps_with_real_coins() -> None:
    images, labels = plain_images(3)
    drawn = check_all_neighbours(
        images, labels, mechanism=mechanism_for(images, num_steps=6), source=SecretRandom(), reaching=False
    )
    assert 0 < drawn < 18


def clip_one_percent_too_late(patch: pytest.MonkeyPatch) -> None:
    real = bookkeeping.clip_factors
    for module in (bookkeeping, engine):  # the second checks the first
        patch.setattr(module, "clip_factors", lambda norms, bound: real(norms, 1.01 * bound))


def on_inputs(change: Callable[[list[Tensor]], list[Tensor]]) -> Callable[[pytest.MonkeyPatch], None]:
    """Plants a change of what the clipped sum is computed from: images, labels, sigmas, noise."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        intercept(patch, lambda call: call.go_on(change(list(call.rows))))

    return plant


def each_draw_clipped_alone(patch: pytest.MonkeyPatch) -> None:
    intercept(patch, lambda call: call.go_on(draws=1))


def normalised_by_the_batch(inputs: list[Tensor]) -> list[Tensor]:
    image, *others = inputs
    return [image - image.mean(0, keepdim=True) if len(image) else image, *others]


def without_blank_pictures(inputs: list[Tensor]) -> list[Tensor]:
    kept = inputs[0].flatten(1).amax(1) > inputs[0].flatten(1).amin(1)  # all draws of an image alike
    return [tensor[kept] for tensor in inputs]


def mean_of_the_clipped(patch: pytest.MonkeyPatch) -> None:
    def mean(call: Call) -> ClippedSum:
        clipped = call.go_on()
        return replace(clipped, value=clipped.value / max(1, len(call.images())))

    intercept(patch, mean)


def on_release(change: Callable[[Tensor, ClippedSum, int, DPSGDMechanism], Tensor]) -> Callable[..., None]:
    """Plants a change of what is released: (noisy mean, sum, true batch size, mechanism) -> noisy mean."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        real_batch, real = loop.poisson_batch, loop.noisy_mean_gradient
        sizes: list[int] = []

        def batch(*arguments: Any) -> NDArray[np.int64]:
            rows: NDArray[np.int64] = real_batch(*arguments)
            sizes.append(len(rows))
            return rows

        def changed(clipped: ClippedSum, mechanism: DPSGDMechanism, random: Random) -> Tensor:
            return change(real(clipped, mechanism, random), clipped, sizes[-1], mechanism)

        patch.setattr(loop, "poisson_batch", batch)
        patch.setattr(loop, "noisy_mean_gradient", changed)

    return plant


def divided_by_the_true_batch_size(released: Tensor, _: ClippedSum, size: int, mechanism: DPSGDMechanism) -> Tensor:
    return released * mechanism.expected_batch_size / max(1, size)


def noise_one_percent_too_small(released: Tensor, clipped: ClippedSum, _: int, mechanism: DPSGDMechanism) -> Tensor:
    mean = clipped.value / mechanism.expected_batch_size
    return mean + 0.99 * (released - mean)


def no_noise_on_an_empty_batch(released: Tensor, _: ClippedSum, size: int, __: DPSGDMechanism) -> Tensor:
    return released if size else torch.zeros_like(released)


def more_draws_the_longer_the_sum(patch: pytest.MonkeyPatch) -> None:
    real = loop.noisy_mean_gradient

    def draws_again(clipped: ClippedSum, mechanism: DPSGDMechanism, random: Random) -> Tensor:
        released: Tensor = real(clipped, mechanism, random)
        for _ in range(int(100 * float(clipped.value.norm()) / mechanism.max_grad_norm)):
            random.seed()
        return released

    patch.setattr(loop, "noisy_mean_gradient", draws_again)


def learning_rate_from_the_exact_sum(patch: pytest.MonkeyPatch) -> None:
    real_gradient, real_step = loop.noisy_mean_gradient, loop._adam_step
    norms: list[float] = []

    def gradient(clipped: ClippedSum, mechanism: DPSGDMechanism, random: Random) -> Tensor:
        norms.append(float(clipped.value.norm()))
        released: Tensor = real_gradient(clipped, mechanism, random)
        return released

    patch.setattr(loop, "noisy_mean_gradient", gradient)
    patch.setattr(loop, "_adam_step", lambda state, g, rate, betas: real_step(state, g, rate * (1 + norms[-1]), betas))


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (clip_one_percent_too_late, r"moves step \d by 0\.00100\d+, but at most 0\.001 "),
        (each_draw_clipped_alone, "but at most 0.001 is accounted"),
        (on_inputs(normalised_by_the_batch), "but at most 0.001 is accounted"),
        (on_inputs(without_blank_pictures), r"operator \d+ is"),
        (mean_of_the_clipped, "less than its bound"),
        (on_release(divided_by_the_true_batch_size), "does not release"),
        (on_release(noise_one_percent_too_small), r"does not release .*: off by \d"),
        (on_release(no_noise_on_an_empty_batch), "step 0 does not release"),
        (more_draws_the_longer_the_sum, "draw"),
        (learning_rate_from_the_exact_sum, "more differs than the mechanism released|operator"),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
)
def test_a_step_that_breaks_the_claim_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Noticed, match=complaint):
        check_all_neighbours(*plain_images(4))


# ------------------------------------------------------------------------------------------------------------ query

CATEGORIES, CLASSES = 7, 2


def classifier_artifact(folder: Path, broken_weight: float | None = None) -> Artifact:
    """A real, small classifier, published as stage `classifier` does."""
    config = ClassifierConfig(base_channels=4, blocks=(1,))
    model = new_classifier(config, channels=1, num_categories=CATEGORIES).eval()
    if broken_weight is not None:
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] = broken_weight
    folder.mkdir()
    save_weights(model.state_dict(), folder / "classifier.safetensors")
    about = {
        "config": config.model_dump(mode="json"),
        "channels": 1,
        "resolution": 8,
        "class_names": [f"category-{number}" for number in range(CATEGORIES)],
        "validation_accuracy": 0.5,
        "loss_curve": [],
        "accuracy_curve": [],
    }
    (folder / "classifier.json").write_text(json.dumps(about))
    return publish(
        Store.open(f"memory://{secrets.token_hex(6)}"),
        stage="classifier",
        version=1,
        key="0" * 64,
        draw=1,
        sealed=False,
        folder=folder,
        config={},
        inputs={},
        metrics={},
        reservations=(),
        provenance={},
    )


@dataclass(kw_only=True)
class QueryRecording:
    """One run of stage `query`."""

    operators: Operators = field(default_factory=Operators)
    votes: list[NDArray[np.int64]] = field(default_factory=list)
    histograms: list[NDArray[np.int64]] = field(default_factory=list)
    noisy: list[NDArray[np.float64]] = field(default_factory=list)
    payload: dict[str, bytes] = field(default_factory=dict)
    metrics: str = ""


def ask(
    images: Images,
    labels: Labels,
    classifier: Artifact,
    mechanism: HistogramQuery,
    folder: Path,
    *,
    random: Random,
    without: int | None = None,
    frozen: QueryRecording | None = None,
) -> QueryRecording:
    """Run stage `query`; image number `without` votes for nothing."""
    record = QueryRecording()
    real_histogram, real_noise = query.vote_histogram, query.add_noise

    def histogram(votes: NDArray[np.int64], labels: Labels, mechanism: HistogramQuery) -> NDArray[np.int64]:
        expect(len(votes) == len(labels), "some images have no vote")
        record.votes.append(votes.copy())
        voting = np.arange(len(votes)) != (-1 if without is None else without)
        record.histograms.append(real_histogram(votes[voting], labels[voting], mechanism))
        return record.histograms[-1].copy()

    def noise(
        histogram: NDArray[np.int64],
        mechanism: HistogramQuery,
        *,
        insecure_random: InsecureRandomForTests | None = None,
    ) -> NDArray[np.float64]:
        record.noisy.append(real_noise(histogram, mechanism, insecure_random=insecure_random))
        return frozen.noisy[0].copy() if frozen else record.noisy[-1]

    folder.mkdir()
    facts = SensitiveFacts(
        num_train=len(images),
        num_validation=0,
        num_test=0,
        class_names=("anna", "berta"),
        resolution=8,
        channels=1,
        identity="",
    )
    # What the stage reads of its context, and no more, so that it fails if it comes to read more.
    context = SimpleNamespace(
        config=RunConfig.model_validate(
            {**SETTINGS, "sensitive": {"train": {"kind": "folder", "path": "nowhere"}, "test_fraction": 0.2}}
        ),
        inputs={"classifier": classifier},
        facts=facts,
        folder=folder,
        progress=Silent(),
        paid=SimpleNamespace(mechanism=mechanism, random=random),
        private_images=lambda split: (images, labels),
    )
    with pytest.MonkeyPatch.context() as patch, record.operators:
        patch.setattr(query, "vote_histogram", histogram)
        patch.setattr(query, "add_noise", noise)
        record.metrics = repr(query.run(context).metrics)
    record.payload = {file.name: file.read_bytes() for file in folder.iterdir()}
    return record


def queries(
    images: Images, labels: Labels, classifier: Artifact, mechanism: HistogramQuery, folder: Path, secret: bool
) -> Iterator[None]:
    """Ask, and ask every neighbour with the same draws; checks everything, yields once for each neighbour."""

    def source(replay: Tape | None = None) -> Random:
        return SecretRandom() if secret else Tape(InsecureRandomForTests(0), replay=replay)

    tape = source()
    record = ask(images, labels, classifier, mechanism, folder / "whole", random=tape)
    expect(len(record.histograms) == len(record.noisy) == 1, "the mechanism was called more than once, or not at all")
    accounted = mechanism.event.noise_multiplier * mechanism.sensitivity
    if isinstance(tape, Tape):
        (noise,) = tape.normals()
        expected = record.histograms[0] + accounted * noise.reshape(record.histograms[0].shape)
        expect(bool(np.allclose(record.noisy[0], expected, rtol=1e-12, atol=0)), "the noise is not the accounted one")
    for number in range(len(images)):
        gone = images.copy()
        gone[number] = blank(NO_IMAGE)
        replay = source(tape if isinstance(tape, Tape) else None)
        other = ask(
            gone,
            labels,
            classifier,
            mechanism,
            folder / f"without-{number}",
            random=replay,
            without=number,
            frozen=record,
        )
        if isinstance(tape, Tape) and isinstance(replay, Tape):
            expect(tape.drawn == replay.drawn, "the neighbour asks for fewer draws")
            change = other.noisy[0] - record.noisy[0] - (other.histograms[0] - record.histograms[0])
            expect(float(np.abs(change).max()) < 1e-9, "the noise depends on the histogram")
        check_same_operators(record.operators, other.operators)
        expect(record.votes[0].shape == other.votes[0].shape, "the neighbour has another number of votes")
        same = np.delete(record.votes[0] == other.votes[0], number, axis=0)
        expect(bool(same.all()), "the vote of another image changes")
        apart = float(np.linalg.norm(record.histograms[0] - other.histograms[0]))
        expect(
            apart <= mechanism.sensitivity * (1 + 1e-12),
            f"image {number} moves the histogram by {apart:.6g}, but {mechanism.sensitivity:.6g} is accounted",
        )
        expect(apart >= 0.999 * mechanism.sensitivity, f"image {number} moves the histogram by less than its bound")
        expect(record.payload == other.payload, "the payload differs by more than the mechanism released")
        expect(record.metrics == other.metrics, "the metrics differ by more than the mechanism released")
        yield


def query_mechanism(num_votes: int) -> HistogramQuery:
    return HistogramQuery(num_votes=num_votes, num_classes=CLASSES, num_categories=CATEGORIES, noise_multiplier=2.0)


@pytest.mark.parametrize("secret", [False, True], ids=["replayed draws", "OpenDP's draws"])
@pytest.mark.parametrize(("num_votes", "at_once"), [(1, 1024), (3, 2), (3, 1), (CATEGORIES, 1024)])
def test_no_image_moves_the_histogram_by_more_than_is_accounted_nor_anything_but_the_histogram(
    num_votes: int, at_once: int, secret: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "QUERY_BATCH", at_once)
    images, labels = odd_images()
    classifier = classifier_artifact(tmp_path / "classifier")
    checked = list(queries(images, labels, classifier, query_mechanism(num_votes), tmp_path, secret))
    assert len(checked) == len(images)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_nor_does_it_with_a_classifier_that_has_diverged(weight: float, tmp_path: Path) -> None:
    classifier = classifier_artifact(tmp_path / "classifier", broken_weight=weight)
    images, labels = plain_images(3)
    assert len(list(queries(images, labels, classifier, query_mechanism(2), tmp_path, False))) == 3


def test_nor_does_the_only_image(tmp_path: Path) -> None:
    images, labels = plain_images(1)
    classifier = classifier_artifact(tmp_path / "classifier")
    assert len(list(queries(images, labels, classifier, query_mechanism(2), tmp_path, False))) == 1


def sensitivity_understated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HistogramQuery, "sensitivity", property(lambda self: 0.99 * self.num_votes**0.5))


def one_more_vote_each(patch: pytest.MonkeyPatch) -> None:
    real = query.vote_histogram

    def more(votes: NDArray[np.int64], labels: Labels, mechanism: HistogramQuery) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = real(votes, labels, mechanism)
        np.add.at(counts, (labels, (votes[:, 0] + 1) % CATEGORIES), 1)
        return counts

    patch.setattr(query, "vote_histogram", more)


def share_of_its_class(patch: pytest.MonkeyPatch) -> None:
    real = query.vote_histogram

    def shares(votes: NDArray[np.int64], labels: Labels, mechanism: HistogramQuery) -> NDArray[np.float64]:
        counts: NDArray[np.float64] = real(votes, labels, mechanism).astype(np.float64)
        shares: NDArray[np.float64] = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        return shares

    patch.setattr(query, "vote_histogram", shares)


def votes_relative_to_the_batch(patch: pytest.MonkeyPatch) -> None:
    real = query.top_votes
    patch.setattr(query, "top_votes", lambda logits, count: real(logits - logits.mean(0), count))


def blank_pictures_do_not_vote(patch: pytest.MonkeyPatch) -> None:
    real = query.predict
    patch.setattr(
        query,
        "predict",
        lambda model, images, device: real(model, images[images.flatten(1).float().std(1) > 0], device),
    )


def noise_from_the_histogram(patch: pytest.MonkeyPatch) -> None:
    real = query.add_noise

    def scaled(histogram: NDArray[np.int64], mechanism: HistogramQuery, **options: Any) -> NDArray[np.float64]:
        noisy: NDArray[np.float64] = real(histogram, mechanism, **options)
        return histogram + (noisy - histogram) * (histogram > 0)

    patch.setattr(query, "add_noise", scaled)


def exact_votes_in_the_metrics(patch: pytest.MonkeyPatch) -> None:
    real = query.vote_histogram

    def tells(votes: NDArray[np.int64], labels: Labels, mechanism: HistogramQuery) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = real(votes, labels, mechanism)
        patch.setattr(HistogramQuery, "noise_stddev", property(lambda self: float(counts.sum())))
        return counts

    patch.setattr(query, "vote_histogram", tells)


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (sensitivity_understated, r"moves the histogram by 1\.41421, but 1\.40007 is accounted"),
        (one_more_vote_each, "moves the histogram by .*, but 1.41421 is accounted"),
        (share_of_its_class, "moves the histogram by less than its bound"),
        (votes_relative_to_the_batch, "vote of another image changes|but 1.41421 is accounted"),
        (blank_pictures_do_not_vote, "some images have no vote"),
        (noise_from_the_histogram, "the noise is not the accounted one"),
        (exact_votes_in_the_metrics, "the noise is not the accounted one|differ by more than the mechanism released"),
    ],
)
def test_a_query_that_breaks_the_claim_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    classifier = classifier_artifact(tmp_path / "classifier")
    with pytest.raises(Noticed, match=complaint):
        list(queries(*plain_images(6), classifier, query_mechanism(2), tmp_path, False))
