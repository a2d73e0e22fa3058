"""The smallest runs that go through every stage, made once per session; tests work on copies of their stores.

granted      admitted, granted, classifier and index made: nothing charged yet
pretrained   ... and the query charged, up to the generator's pre-training
finished     ... and everything else, release and evaluation included
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from privimage.cli import main
from privimage.config.loading import load_config, parse_config
from privimage.pipeline.table import stages_of
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.entry import Entry
from privimage.privacy.ledger import Ledger
from privimage.running.runner import run_all
from privimage.running.runs import Run
from privimage.store.files import Store

__all__ = [
    "GRANT",
    "NAME_ON_FILES",
    "SETTINGS",
    "USUAL",
    "Answer",
    "Place",
    "caller",
    "finished",
    "finished_copy",
    "granted",
    "granted_copy",
    "png",
    "portraits",
    "pretrained",
    "pretrained_copy",
    "privimage",
    "tiny_config",
    "write_images",
]

NAME_ON_FILES = "Mustermann_Max"
GRANT = {"epsilon": 3.0, "delta": 1e-4}

# A small epsilon, a large noise for the query: the accountant's grid stays small, and with it the time it takes.
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "description": "The smallest run that goes through every stage.",
    "image": {"resolution": 8, "channels": 1},
    "sensitive": {"train": {"kind": "folder", "path": "set by tiny_config"}, "test_fraction": 0.2},
    "public": {"source": {"kind": "demo-glyphs", "images_per_category": 10}},
    "privacy": {"epsilon": 1.0, "delta": 1e-4, "query_error": 0.5},
    "classifier": {"base_channels": 8, "blocks": [1, 1], "epochs": 1},
    "generator": {
        "kind": "diffusion",
        "network": {"base_channels": 8, "channel_multipliers": [1, 2]},
        "pretrain": {"num_steps": 5, "batch_size": 16},
        "finetune": {
            "num_steps": 4,
            "expected_batch_size": 32,
            "noise_samples": 2,
            "checkpoint_steps": 2,
            "restart_allowance": 4,
        },
        "sampling": {"num_steps": 6},
    },
    "synthesize": {"num_images": 40},
    "evaluate": {"epochs": 1},
    # float32: the same bits on every processor.
    "performance": {"device": "cpu", "physical_batch_size": 64, "precision": "float32"},
}


# The stages that a run has which asks for no others.
USUAL = tuple(stage.name for stage in stages_of(parse_config(SETTINGS)))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command of the command line did."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that names the error; whatever else is on stderr is progress."""
        lines = [line for line in self.err.splitlines() if line.startswith("privimage: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(f"{lines[0]}\n"), self.err
        assert "Traceback" not in self.err
        return lines[0]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A store in a folder, and the configuration of the run in it."""

    config: Path
    folder: Path

    @property
    def store(self) -> Store:
        return Store.open(str(self.folder))

    @property
    def ledger(self) -> Ledger:
        """The only ledger of the store."""
        (dataset,) = (self.folder / "ledger").iterdir()
        return Ledger(self.store, dataset.name)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.ledger.entries()

    @property
    def kinds(self) -> list[str]:
        """What the ledger holds, such as ['grant', 'reserve query', 'settle']."""
        return [f"{e.kind} {e.body['stage']}" if e.kind == "reserve" else e.kind for e in self.entries]

    @property
    def release(self) -> Path:
        """The only release folder."""
        (folder,) = (self.folder / "releases").iterdir()
        return folder

    def run(
        self, *overrides: str, draws: dict[str, int] | None = None, insecure: InsecureRandomForTests | None = None
    ) -> Run:
        config = load_config(self.config, list(overrides))
        return Run(config=config, store=self.store, draws=draws or {}, insecure_random_voiding_guarantee=insecure)

    def options(self, *overrides: str) -> list[str]:
        """Configuration, store and overrides as the command line takes them."""
        settings = [part for override in overrides for part in ("--set", override)]
        return [str(self.config), "--store", str(self.folder), *settings]

    def payload(self, stage: str, name: str) -> Path:
        """A payload file of the only artifact of a stage."""
        (found,) = self.folder.glob(f"**/artifacts/{stage}/*/payload-*/{name}")
        return found

    def copy_to(self, folder: Path) -> Place:
        shutil.copytree(self.folder, folder)
        return Place(config=self.config, folder=folder)


def write_images(root: Path, classes: tuple[str, ...] = ("anna", "berta", "carla"), per_class: int = 60) -> Path:
    """A folder of class folders with images that differ, and whose file names nobody should see."""
    random = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels: NDArray[np.uint8] = random.integers(0, 256, (8, 8), dtype=np.uint8)
            (root / name / f"{NAME_ON_FILES}_{number}.png").write_bytes(png(pixels))
    return root


def png(pixels: NDArray[np.uint8]) -> bytes:
    """The pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sensitive images: 3 classes of 60."""
    return write_images(tmp_path_factory.mktemp("sensitive") / "portraits")


@pytest.fixture(scope="session")
def tiny_config(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of the smallest run."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    sensitive = {**SETTINGS["sensitive"], "train": {"kind": "folder", "path": str(portraits)}}
    file.write_text(yaml.safe_dump({**SETTINGS, "sensitive": sensitive}))
    return file


@pytest.fixture(scope="session")
def granted(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Do not change; see `granted_copy`."""
    place = Place(config=tiny_config, folder=tmp_path_factory.mktemp("granted") / "store")
    budget = [part for name, value in GRANT.items() for part in (f"--{name}", str(value))]
    assert main(["ledger", "grant", *place.options(), *budget]) == 0
    run_all(place.run(), "index")
    return place


@pytest.fixture(scope="session")
def pretrained(granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Do not change; see `pretrained_copy`."""
    place = granted.copy_to(tmp_path_factory.mktemp("pretrained") / "store")
    run_all(place.run(), "pretrain")
    return place


@pytest.fixture(scope="session")
def finished(pretrained: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Do not change; see `finished_copy`."""
    place = pretrained.copy_to(tmp_path_factory.mktemp("finished") / "store")
    run_all(place.run())
    return place


@pytest.fixture
def granted_copy(granted: Place, tmp_path: Path) -> Place:
    return granted.copy_to(tmp_path / "store")


@pytest.fixture
def pretrained_copy(pretrained: Place, tmp_path: Path) -> Place:
    return pretrained.copy_to(tmp_path / "store")


@pytest.fixture
def finished_copy(finished: Place, tmp_path: Path) -> Place:
    return finished.copy_to(tmp_path / "store")


@pytest.fixture
def privimage(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command of the command line in this process."""
    return caller(main, capsys)


def caller(command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Calls a command with its arguments, and tells what it did."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        try:
            code = command([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse: --help, or a usage that it does not know
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Answer(code=code, out=out, err=err)

    return call
