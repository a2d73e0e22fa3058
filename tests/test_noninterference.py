"""Two runs on entirely different sensitive images, with the same outputs of the mechanisms, look the same outside.

This is the claim without statistics: whatever leaves is a function of public data and of what the mechanisms gave.
So `add_noise`, `noisy_mean_gradient` and `noisy_class_sums` are replaced by ones that ignore their private input and give what a public
generator says, and the whole pipeline runs, by the command line, on two sets that share only their public facts: sizes
of the splits, class names, resolution. Everything outside of `private/` must then be equal *to the byte*, and so must
standard output and error, log records and progress lines.

Nothing is normalised after the fact. What has to differ between any two runs is made equal beforehand, by stand-ins
(`StandIns`), and these are all of them:

- clocks (`time.monotonic`, `datetime.now`) count how often they were asked: times and durations depend on the machine.
  A run that asks more often because of what its images are is found out;
- `secrets.token_hex` and `token_bytes` count, but where noise and coins are drawn: ids of ledger entries, writers and
  payload folders are random by intent, and so is the store's identity key;
- `blind` gives each text a name by the order in which it was first seen: the names of sealed artifacts and of the data
  set must depend on the images, and are hidden by HMAC-SHA256, which is assumed to be a random function. A text that is
  blinded in one run and not in the other is found out;
- both runs find configuration, images and store at the same paths.

That the comparison can fail is shown by planting leaks. The second half of the file looks for private values in what a
run with the real mechanisms leaves behind.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import io
import json
import logging
import pkgutil
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import privimage
from privimage.cli import main
from privimage.data.decode import pixel_digest
from privimage.data.splits import split_rows, split_sizes
from privimage.pipeline.stage import Outcome, StageContext
from privimage.pipeline.table import stage_named
from privimage.privacy.class_sums import Rows, class_sums
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.mechanisms import ClassSums, DPSGDMechanism, HistogramQuery, ValidationCount
from privimage.running.runner import run_all
from privimage.store import identity
from privimage.store.files import Store
from tests.pipeline_fixtures import GRANT, SETTINGS, USUAL, Place
from tests.private_values import files_below, plant_images

pytestmark = pytest.mark.slow

# Typed Any: what is replaced in them is no part of their interface.
loop: Any = importlib.import_module("privimage.generators.training.finetune")
query: Any = importlib.import_module("privimage.stages.query")
generation: Any = importlib.import_module("privimage.generators.diffusion.kind")
class_means: Any = importlib.import_module("privimage.stages.class_means")
embedding: Any = importlib.import_module("privimage.generators.mean_embedding.finetuning")
validation: Any = importlib.import_module("privimage.stages.validate")
evaluation: Any = importlib.import_module("privimage.stages.utility")

TEST_FRACTION = SETTINGS["sensitive"]["test_fraction"]
VALIDATION_FRACTION = 0.15
# Training, test and validation images of each class. Public about them are the sums, and that no class is empty.
FIRST = {"anna": (77, 14, 5), "berta": (30, 15, 20), "carla": (10, 7, 2)}
SECOND = {"anna": (15, 8, 16), "berta": (42, 4, 3), "carla": (60, 24, 8)}
# Of the store, as `StandIns.blind` makes it: the second text that is blinded, after the key of the admission.
ORDER_KEY = hashlib.sha256(b"name 1").digest()
assert np.array_equal(np.sum(list(FIRST.values()), 0), np.sum(list(SECOND.values()), 0))


def write_set(root: Path, sizes: dict[str, tuple[int, int, int]], draw: Callable[[], Image.Image], ending: str) -> None:
    """Class folders of images that `draw` makes, as many in each split as `sizes` says: classes follow the splits."""
    images = [draw() for _ in range(int(np.sum(list(sizes.values()))))]
    digests = [pixel_digest(image) for image in images]
    parts = split_sizes(len(images), TEST_FRACTION, VALIDATION_FRACTION)
    rows = split_rows(digests, [0] * len(images), parts, ORDER_KEY)
    for column, split in enumerate(("train", "test", "validation")):
        classes = [name for name, wanted in sizes.items() for _ in range(wanted[column])]
        for row, name in zip(rows[split], classes, strict=True):
            (root / name).mkdir(parents=True, exist_ok=True)
            images[row].save(root / name / f"{ending}-{row}.{ending}")


def write_first(root: Path) -> None:
    """Noise, as gray PNG of the final size."""
    random = np.random.default_rng(1)
    write_set(root, FIRST, lambda: Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)), "png")


def write_second(root: Path) -> None:
    """Bright colour gradients, as BMP, larger and not square."""
    random = np.random.default_rng(2)

    def gradient() -> Image.Image:
        ramp = np.linspace(random.uniform(100, 200), 255, 20)[:, None, None]
        return Image.fromarray((ramp * random.uniform(0.5, 1, 3) * np.ones((20, 16, 1))).astype(np.uint8))

    write_set(root, SECOND, gradient, "bmp")


# -------------------------------------------------------------------------------------------------------- stand-ins


def library_modules() -> list[ModuleType]:
    """Every module of the library, imported; the one that draws noise and coins keeps its real randomness."""
    for found in pkgutil.walk_packages(privimage.__path__, "privimage."):
        importlib.import_module(found.name)
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("privimage.") and name != "privimage.privacy.entropy"
    ]


class StandIns:
    """Of clocks, ids and blinding: the same values in the same order, in every run."""

    def __init__(self) -> None:
        self._asked = 0
        self._ids = count(1)
        self._names: dict[str, str] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        ours = {id(time): self._clock(), id(sys.modules["secrets"]): self._secrets(), id(datetime): self._calendar()}
        replaced = set[object]()
        for module in library_modules():
            for name, value in list(vars(module).items()):
                if id(value) in ours:
                    patch.setattr(module, name, ours[id(value)])
                    replaced.add(id(value))
                elif value is REAL_BLIND:
                    patch.setattr(module, name, self.blind)
                    replaced.add("blind")
        assert len(replaced) == 4, "clock, calendar, ids and blinding"

    def blind(self, store: Store, text: str) -> str:
        REAL_BLIND(store, text)  # for the files it writes
        return self._names.setdefault(text, hashlib.sha256(f"name {len(self._names)}".encode()).hexdigest())

    def _tick(self) -> int:
        self._asked += 1
        return self._asked

    def _clock(self) -> object:
        class Clock:
            # More than the pause between two lines of progress, so that every line is shown.
            monotonic = staticmethod(lambda: 11.0 * self._tick())

            def __getattr__(self, name: str) -> Any:
                return getattr(time, name)

        return Clock()

    def _calendar(self) -> type[datetime]:
        tick = self._tick

        class Calendar(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Self:
                then = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=tick())
                return cls.fromisoformat(then.isoformat())

        return Calendar

    def _secrets(self) -> object:
        standins = self

        class Secrets:
            @staticmethod
            def token_hex(size: int) -> str:
                return f"{next(standins._ids):0{2 * size}x}"

            @staticmethod
            def token_bytes(size: int) -> bytes:
                return next(standins._ids).to_bytes(size)

            def __getattr__(self, name: str) -> Any:
                raise AssertionError(f"secrets.{name} has no stand-in")

        return Secrets()


REAL_BLIND = identity.blind


class PublicMechanisms:
    """The outputs of the mechanisms, from a public generator; what they were given is kept for planted leaks."""

    def __init__(self) -> None:
        self.histograms: list[NDArray[np.int64]] = []
        self.sums: list[Tensor] = []
        self.counts: list[NDArray[np.int64]] = []
        self.class_sums: list[NDArray[np.int64]] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(query, "add_noise", self._add_noise)
        patch.setattr(loop, "noisy_mean_gradient", self._noisy_mean_gradient)
        patch.setattr(validation, "add_noise", self._add_noise_to_counts)
        patch.setattr(class_means, "noisy_class_sums", self._noisy_class_sums)
        patch.setattr(embedding, "noisy_class_sums", self._noisy_class_sums)

    def _add_noise(self, histogram: NDArray[np.int64], mechanism: HistogramQuery, **_: object) -> NDArray[np.float64]:
        self.histograms.append(histogram)
        shape = (mechanism.num_classes, mechanism.num_categories)
        return 30 + mechanism.noise_stddev * np.random.default_rng(0).standard_normal(shape)

    def _add_noise_to_counts(
        self, counts: NDArray[np.int64], mechanism: ValidationCount, **_: object
    ) -> NDArray[np.float64]:
        self.counts.append(counts)
        return 9 + mechanism.noise_stddev * np.random.default_rng(0).standard_normal(mechanism.num_candidates)

    def _noisy_class_sums(
        self, vectors: Rows, labels: NDArray[np.int64], mechanism: ClassSums, **_: object
    ) -> NDArray[np.float64]:
        self.class_sums.append(class_sums(vectors, labels, mechanism))
        shape = (mechanism.num_classes, mechanism.dimension)
        return mechanism.noise_stddev * np.random.default_rng(0).standard_normal(shape)

    def _noisy_mean_gradient(self, clipped: ClippedSum, mechanism: DPSGDMechanism, random: object) -> Tensor:
        self.sums.append(clipped.value)
        generator = torch.Generator().manual_seed(len(self.sums))
        return mechanism.noise_stddev * torch.randn(clipped.value.shape, generator=generator)


# ------------------------------------------------------------------------------------------------------------ runs


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All that a run shows outside of `private/`."""

    files: dict[str, bytes]
    printed: dict[str, str]

    def differences(self, other: Seen) -> list[str]:
        """Places that differ, the first difference with each."""
        mine = {**self.files, **{name: text.encode() for name, text in self.printed.items()}}
        theirs = {**other.files, **{name: text.encode() for name, text in other.printed.items()}}
        return [
            f"{name}: {self._excerpt(mine.get(name, b''), theirs.get(name, b''))}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]

    @staticmethod
    def _excerpt(one: bytes, other: bytes) -> str:
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        return f"{one[max(0, at - 60) : at + 40]!r} or {other[max(0, at - 60) : at + 40]!r}"


class LogRecords(logging.Handler):
    """Every log record, from DEBUG of this library on, and from `others` on of all other libraries."""

    def __init__(self, others: int = logging.INFO) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._others = others

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= self._others or record.name.split(".")[0] in ("privimage", "tasks", "flows"):
            self.lines.append(f"{record.name} {record.levelname} {record.getMessage()}")

    def __enter__(self) -> Self:
        self._level = logging.getLogger().level
        logging.getLogger().addHandler(self)
        logging.getLogger().setLevel(logging.DEBUG)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
        logging.getLogger().setLevel(self._level)


@dataclass(kw_only=True)
class World:
    """One sensitive set and what was run on it, kept aside; it is put in place for the time of a run."""

    here: Path
    aside: Path
    standins: StandIns = field(default_factory=StandIns)
    mechanisms: PublicMechanisms = field(default_factory=PublicMechanisms)

    @classmethod
    def made_by(cls, write: Callable[[Path], None], here: Path, aside: Path) -> World:
        write(aside / "portraits")
        settings = copy.deepcopy(SETTINGS)
        settings["sensitive"]["train"] = {"kind": "folder", "path": str(here / "portraits")}
        settings["sensitive"]["validation_fraction"] = VALIDATION_FRACTION
        settings["privacy"]["validation_error"] = 0.5
        settings["generator"]["class_means"] = {"num_steps": 3, "batch_size": 16}
        settings["evaluate"]["validation"] = "private"
        settings["classifier"] = {"base_channels": 4, "blocks": [1], "epochs": 1}
        (aside / "tiny.yaml").write_text(yaml.safe_dump(settings))
        return cls(here=here, aside=aside)

    def copied(self, aside: Path) -> World:
        """As it stands now, to go on from more than once."""
        shutil.copytree(self.aside, aside, copy_function=shutil.copy2)
        standins, mechanisms = copy.deepcopy((self.standins, self.mechanisms))
        return replace(self, aside=aside, standins=standins, mechanisms=mechanisms)

    def run(
        self,
        commands: list[list[str]],
        plant: Callable[[pytest.MonkeyPatch, World], None] = lambda patch, world: None,
    ) -> Seen:
        """Run commands of the command line in place; `CONFIG`, `STORE` and `RELEASE` stand for what they say."""
        out, err, log = io.StringIO(), io.StringIO(), LogRecords()
        self.aside.rename(self.here)
        try:
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), log:
                self.standins.install(patch)
                self.mechanisms.install(patch)
                plant(patch, self)
                for command in commands:
                    assert main([self._filled(word) for word in command]) == 0, err.getvalue()
            files = files_below(self.here / "store", besides="private")
        finally:
            self.here.rename(self.aside)
        return Seen(
            files=files, printed={"stdout": out.getvalue(), "stderr": err.getvalue(), "log": "\n".join(log.lines)}
        )

    def _filled(self, word: str) -> str:
        if word == "RELEASE":
            (folder,) = (self.here / "store" / "releases").iterdir()
            return str(folder)
        return {"CONFIG": str(self.here / "tiny.yaml"), "STORE": str(self.here / "store")}.get(word, word)


BUDGET = [part for name, value in GRANT.items() for part in (f"--{name}", str(value))]
PREPARE = [
    ["ledger", "grant", "CONFIG", "--store", "STORE", *BUDGET],
    ["run", "CONFIG", "--store", "STORE", "--until", "index"],
]
TO_PRETRAIN = [["run", "CONFIG", "--store", "STORE", "--until", "pretrain"]]
TO_THE_END = [
    ["run", "CONFIG", "--store", "STORE"],
    ["run", "CONFIG", "--store", "STORE"],
    ["plan", "CONFIG", "--store", "STORE", "--json"],
    ["ledger", "show", "CONFIG", "--store", "STORE"],
    ["verify", "RELEASE", "--store", "STORE"],
]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[World, ...], tuple[Seen, ...]]:
    """Both sets admitted and granted, public stages made; nothing charged yet."""
    base = tmp_path_factory.mktemp("worlds")
    worlds = tuple(
        World.made_by(write, base / "here", base / name)
        for name, write in (("first", write_first), ("second", write_second))
    )
    seen = tuple(world.run(PREPARE) for world in worlds)
    return worlds, seen


@pytest.fixture(scope="module")
def pretrained_worlds(
    indexed: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[World, ...], tuple[Seen, ...]]:
    """... the query charged, the generator pre-trained."""
    worlds = tuple(world.copied(tmp_path_factory.mktemp("pretrained") / "world") for world in indexed[0])
    seen = tuple(world.run(TO_PRETRAIN) for world in worlds)
    return worlds, seen


def test_what_leaves_is_the_same_to_the_byte_whatever_the_images_are(
    indexed: Any, pretrained_worlds: Any, tmp_path: Path
) -> None:
    for _, (one, other) in (indexed, pretrained_worlds):
        assert one.differences(other) == []
    first, second = (world.copied(tmp_path / str(at)) for at, world in enumerate(pretrained_worlds[0]))
    one, other = first.run(TO_THE_END), second.run(TO_THE_END)
    assert one.differences(other) == []
    # None of this is so because nothing ran, or because both saw the same images.
    made = {name.split("/")[1] for name in one.files if name.startswith("artifacts/")}
    assert made == {"class_means", "warmup", "validate", *(name for name in USUAL if not stage_named(name).sealed)}
    assert sum(name.startswith("releases/") for name in one.files) == 6
    assert sum(name.startswith("ledger/") for name in one.files) >= 5
    printed = "".join(text for _, (run, _) in (pretrained_worlds, (0, (one, other))) for text in run.printed.values())
    for word in (
        "query (batches): 1 of 1",
        "pretrain: 5 of 5",
        "warmup: 3 of 3",
        "finetune: 4 of 4",
        "on sensitive images",
        "evaluate: fidelity",
        "Verified.",
    ):
        assert word in printed
    assert not np.array_equal(first.mechanisms.histograms[0], second.mechanisms.histograms[0])
    assert not np.array_equal(first.mechanisms.class_sums[0], second.mechanisms.class_sums[0])
    assert not np.array_equal(first.mechanisms.counts[0], second.mechanisms.counts[0])
    sealed = [files_below(world.aside / "store", besides="artifacts") for world in (first, second)]
    assert sealed[0] != sealed[1]


@pytest.mark.parametrize("strategy", ["none", "semantic"])
def test_neither_does_a_run_with_mean_embeddings_show_more_than_was_released(
    strategy: str, indexed: Any, tmp_path: Path
) -> None:
    settings = ["generator.kind=mean_embedding", f"selection.strategy={strategy}"]
    settings += [
        "generator.num_steps=5",
        "generator.num_features=40",
        "generator.critic_features=20",
        "generator.critic_channels=4",
    ]
    settings += ["generator.critic_steps=4"]
    if strategy == "semantic":
        settings += ["synthesize.class_sizes=query", "synthesize.num_images=300"]
    commands = [
        [*command, *(part for setting in settings if "CONFIG" in command for part in ("--set", setting))]
        for command in TO_THE_END
    ]
    first, second = (world.copied(tmp_path / str(at)) for at, world in enumerate(indexed[0]))
    one, other = first.run(commands), second.run(commands)
    assert one.differences(other) == []
    assert "finetune: 5 of 5" in one.printed["stderr"] and "Verified." in one.printed["stdout"]
    assert sum(name.startswith("releases/") for name in one.files) == 6
    assert ("critic: " in one.printed["stderr"]) == (strategy == "semantic") == bool(first.mechanisms.histograms)
    assert not np.array_equal(first.mechanisms.class_sums[0], second.mechanisms.class_sums[0])


# ---------------------------------------------------------------------------------------------------- planted leaks


def wrap_stage(patch: pytest.MonkeyPatch, module: Any, name: str, after: Callable[..., Outcome]) -> None:
    """Run `after(context, outcome)` when a stage has run."""
    real = getattr(module, name)
    patch.setattr(module, name, lambda context: after(context, real(context)))


def class_sizes_in_the_payload(patch: pytest.MonkeyPatch, world: World) -> None:
    def after(context: StageContext, outcome: Outcome) -> Outcome:
        file = context.folder / "query.json"
        released = json.loads(file.read_text())
        released["class_sizes"] = world.mechanisms.histograms[-1].sum(1).tolist()
        file.write_text(json.dumps(released))
        return outcome

    wrap_stage(patch, query, "run", after)


def class_size_in_a_metric(patch: pytest.MonkeyPatch, world: World) -> None:
    def after(context: StageContext, outcome: Outcome) -> Outcome:
        return Outcome(metrics={**outcome.metrics, "num_anna": int(world.mechanisms.histograms[-1][0].sum())})

    wrap_stage(patch, query, "run", after)


def class_size_in_the_size_of_a_file(patch: pytest.MonkeyPatch, world: World) -> None:
    def after(context: StageContext, outcome: Outcome) -> Outcome:
        file = context.folder / "query.json"
        file.write_text(file.read_text() + " " * int(world.mechanisms.histograms[-1][0].sum()))
        return outcome

    wrap_stage(patch, query, "run", after)


def class_size_in_the_log(patch: pytest.MonkeyPatch, world: World) -> None:
    def after(context: StageContext, outcome: Outcome) -> Outcome:
        logging.getLogger("privimage").debug("votes of anna: %d", world.mechanisms.histograms[-1][0].sum())
        return outcome

    wrap_stage(patch, query, "run", after)


def progress_that_counts_the_images_of_a_class(patch: pytest.MonkeyPatch, world: World) -> None:
    def after(context: StageContext, outcome: Outcome) -> Outcome:
        votes = int(world.mechanisms.histograms[-1][0].sum())
        for _ in context.progress.track(range(votes), "votes"):
            pass
        return outcome

    wrap_stage(patch, query, "run", after)


def exact_means_in_the_picture(patch: pytest.MonkeyPatch, world: World) -> None:
    real = class_means.to_pixels
    patch.setattr(class_means, "to_pixels", lambda means: real(means + world.mechanisms.class_sums[-1].mean() / 1e6))


def true_class_sizes_beside_the_means(patch: pytest.MonkeyPatch, world: World) -> None:
    real = class_means.noisy_class_sums

    def tells(vectors: Rows, labels: NDArray[np.int64], mechanism: ClassSums, **named: Any) -> NDArray[np.float64]:
        noisy: NDArray[np.float64] = real(vectors, labels, mechanism, **named)
        return noisy / np.bincount(labels)[:, None]

    patch.setattr(class_means, "noisy_class_sums", tells)


def true_batch_sizes_in_a_metric(patch: pytest.MonkeyPatch, world: World) -> None:
    sizes: list[int] = []
    real = loop.poisson_batch

    def batch(*arguments: Any) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = real(*arguments)
        sizes.append(len(rows))
        return rows

    patch.setattr(loop, "poisson_batch", batch)
    wrap_stage(
        patch,
        generation,
        "run_finetune",
        lambda context, outcome: Outcome(metrics={**outcome.metrics, "batch_sizes": sizes}),
    )


def exact_sum_in_the_weights(patch: pytest.MonkeyPatch, world: World) -> None:
    real = loop._adam_step

    def step(state: Any, gradient: Any, rate: float, betas: Any) -> None:
        real(state, gradient, rate * (1 + float(world.mechanisms.sums[-1].norm())), betas)

    patch.setattr(loop, "_adam_step", step)


def exact_counts_in_the_payload(patch: pytest.MonkeyPatch, world: World) -> None:
    def after(context: StageContext, outcome: Outcome) -> Outcome:
        file = context.folder / "validation.json"
        exact = float(world.mechanisms.counts[-1].sum())
        file.write_text(json.dumps({**json.loads(file.read_text()), "noise_multiplier": exact}))
        return outcome

    wrap_stage(patch, validation, "run", after)


def ceiling_in_a_progress_line(patch: pytest.MonkeyPatch, world: World) -> None:
    real = evaluation.train

    def train(*arguments: Any, progress: Any, **named: Any) -> Any:
        found = real(*arguments, progress=progress, **named)
        for _ in progress(range(1), f"ceiling, loss of the first weight {next(found.model.parameters()).sum():g}", 1):
            pass
        return found

    patch.setattr(evaluation, "train", train)


def plain_hashes(patch: pytest.MonkeyPatch, world: World) -> None:
    def plain(store: Store, text: str) -> str:
        REAL_BLIND(store, text)
        return hashlib.sha256(text.encode()).hexdigest()

    for module in library_modules():
        if hasattr(module, "blind"):
            patch.setattr(module, "blind", plain)


@pytest.mark.parametrize(
    ("leak", "place"),
    [
        (class_sizes_in_the_payload, "artifacts/query/.*query.json"),
        (class_size_in_a_metric, "artifacts/query/.*manifest.json"),
        (class_size_in_the_size_of_a_file, "artifacts/query/.*query.json"),
        (class_size_in_the_log, "log"),
        (progress_that_counts_the_images_of_a_class, "stderr"),
    ],
)
def test_a_leak_of_the_query_shows_as_a_difference(leak: Any, place: str, indexed: Any, tmp_path: Path) -> None:
    check_noticed(leak, place, indexed[0], [["run", "CONFIG", "--store", "STORE", "--until", "query"]], tmp_path)


@pytest.mark.parametrize(
    ("leak", "place"),
    [
        (exact_means_in_the_picture, "artifacts/class_means/.*class_means.png"),
        (true_class_sizes_beside_the_means, "artifacts/class_means/.*class_means.safetensors"),
    ],
)
def test_a_leak_of_class_mean_images_shows_as_a_difference(leak: Any, place: str, indexed: Any, tmp_path: Path) -> None:
    check_noticed(leak, place, indexed[0], [["run", "CONFIG", "--store", "STORE", "--until", "class_means"]], tmp_path)


@pytest.mark.parametrize(
    ("leak", "place"),
    [
        (true_batch_sizes_in_a_metric, "artifacts/finetune/.*manifest.json"),
        (exact_sum_in_the_weights, "artifacts/finetune/.*generator.safetensors"),
    ],
)
def test_a_leak_of_fine_tuning_shows_as_a_difference(
    leak: Any, place: str, pretrained_worlds: Any, tmp_path: Path
) -> None:
    to_finetune = [["run", "CONFIG", "--store", "STORE", "--until", "finetune"]]
    check_noticed(leak, place, pretrained_worlds[0], to_finetune, tmp_path)


@pytest.mark.parametrize(
    ("leak", "place"),
    [
        (exact_counts_in_the_payload, "artifacts/validate/.*validation.json"),
        (ceiling_in_a_progress_line, "stderr"),
    ],
)
def test_a_leak_after_sampling_shows_as_a_difference(
    leak: Any, place: str, pretrained_worlds: Any, tmp_path: Path
) -> None:
    check_noticed(leak, place, pretrained_worlds[0], TO_THE_END[:1], tmp_path)


def test_names_that_are_not_blinded_show_as_a_difference(tmp_path: Path) -> None:
    worlds = tuple(
        World.made_by(write, tmp_path / "here", tmp_path / f"made-{number}")
        for number, write in enumerate((write_first, write_second))
    )
    check_noticed(plain_hashes, "ledger/[0-9a-f]{32}/", worlds, PREPARE[:1], tmp_path)


def check_noticed(leak: Any, place: str, worlds: Any, commands: list[list[str]], folder: Path) -> None:
    first, second = (world.copied(folder / f"leaky-{number}") for number, world in enumerate(worlds))
    one, other = first.run(commands, leak), second.run(commands, leak)
    differences = one.differences(other)
    assert any(re.match(place, difference) for difference in differences), differences


# ---------------------------------------------------------------------------------------------------- planted values


def keep_noise(patch: pytest.MonkeyPatch, noise: list[Tensor]) -> None:
    """Collect the noise of every step, in units of what is accounted."""
    real = loop.noisy_mean_gradient

    def gradient(clipped: ClippedSum, mechanism: DPSGDMechanism, random: Any) -> Tensor:
        released: Tensor = real(clipped, mechanism, random)
        noise.append((released * mechanism.expected_batch_size - clipped.value) / mechanism.noise_stddev)
        return released

    patch.setattr(loop, "noisy_mean_gradient", gradient)


def test_no_private_value_is_outside_of_private_not_even_after_a_failure(granted: Place, tmp_path: Path) -> None:
    spy, place = plant_images(granted, tmp_path)
    out, err, log = io.StringIO(), io.StringIO(), LogRecords()
    noise: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), log:
        spy.install(patch, fail_in_step=4)
        keep_noise(patch, noise)
        assert main(["ledger", "grant", *place.options(), *BUDGET]) == 0
        assert main(["run", *place.options()]) == 1
        spy.fail_in_step = None
        assert main(["run", *place.options()]) == 0
        assert main(["ledger", "show", *place.options()]) == 0
        assert main(["verify", str(place.release), "--store", str(place.folder)]) == 0
    shown = {
        **files_below(place.folder, besides="private"),
        "stdout": out.getvalue().encode(),
        "stderr": err.getvalue().encode(),
        "log": "\n".join(log.lines).encode(),
    }
    assert "which is private" in err.getvalue()
    assert spy.found_in(shown) == []

    # Two attempts had the third step, and no two of all the steps had common noise.
    assert len(noise) == 3 + 2
    products = torch.corrcoef(torch.stack(noise)).fill_diagonal_(0)
    assert float(products.abs().max()) < 7 / len(noise[0]) ** 0.5
    assert all(abs(float(step.std()) - 1) < 7 / (2 * len(step)) ** 0.5 for step in noise)

    # The search finds what there is: the images and the failure, on the private side.
    inside = " ".join(spy.found_in(files_below(place.folder / "private", besides="nothing")))
    for kind in ("image", "loss", "name"):
        assert kind in inside
    for planted in spy.examples():
        assert spy.found_in({**shown, "planted": planted}), planted


def test_no_private_value_is_in_the_log_of_another_library_either(granted: Place, tmp_path: Path) -> None:
    spy, place = plant_images(granted, tmp_path)
    with LogRecords(others=logging.DEBUG) as log:
        run_all(replace(place.run(), as_steward=True), "admit")
    assert spy.found_in({"log": "\n".join(log.lines).encode()}) == []
    assert not [line for line in log.lines if "IDAT" in line]
