"""A suite: methods x data sets x epsilons x seeds, from one YAML file.

Each combination is a run, and each generator a draw of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from privimage.config.form import Section
from privimage.config.loading import merged, parse_config
from privimage.config.run import RunConfig
from privimage.errors import ConfigError
from privimage.methods.registry import GENERATORS, SELECTIONS
from privimage.pipeline.table import stages_of

__all__ = [
    "METHODS",
    "Cell",
    "DataSet",
    "Part",
    "Suite",
    "cells_in",
    "cells_of",
    "first_charged",
    "load_suite",
    "parse_suite",
]

METHODS: Mapping[str, dict[str, Any]] = {
    "privimage": {},
    "random-selection": {"selection": {"strategy": "random"}},
    "pdp-diffusion": {"generator": {"kind": "diffusion"}, "selection": {"strategy": "all"}},
    "dpdm": {"generator": {"kind": "diffusion"}, "selection": {"strategy": "none"}},
    "dp-feta": {
        "generator": {"kind": "diffusion", "class_means": {"num_steps": 400}},
        "selection": {"strategy": "none"},
    },
    "dp-merf": {"generator": {"kind": "mean_embedding"}, "selection": {"strategy": "none"}},
}
"""What every suite may name, as what it changes in a configuration."""

# What makes runs comparable: a method that changed them would not be another method.
_NOT_OF_A_METHOD = ("name", "image", "sensitive", "public", "privacy.epsilon", "privacy.delta", "classifier")
_DRAWS = 1_000_000


class DataSet(Section):
    """A public set and a sensitive one, as what they change in the suite's settings."""

    settings: dict[str, Any] = Field(description="Configuration sections; `sensitive` and `public` among them.")
    seconds: float | None = Field(
        default=None, gt=0, description="Time of one run, for the estimate before any was made."
    )


class Suite(Section):
    """All that a benchmark says of itself."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$", description="Name; a folder below `private/benchmarks`.")
    description: str = Field(default="", description="One sentence for people.")
    public_stand_ins: bool = Field(
        default=False,
        description="The sensitive sets are public. Then figures that no budget paid for may leave the private side, "
        "and the suite grants its budget itself.",
    )
    budget: float = Field(gt=0, le=1000, description="Epsilon to grant for each data set, over all runs on it.")
    epsilons: tuple[float, ...] = Field(min_length=1, description="Of each method.")
    seeds: tuple[int, ...] = Field(min_length=1, description="Each a run with other seeds and another private draw.")
    methods: tuple[str, ...] = Field(min_length=1, description="Names of methods: built-in ones, or of `variants`.")
    variants: dict[str, dict[str, Any]] = Field(default={}, description="Further methods: name -> changed settings.")
    datasets: dict[str, DataSet] = Field(min_length=1, description="Name -> data set.")
    settings: dict[str, Any] = Field(
        default={},
        description="Configuration sections that all runs share; `generators` says by kind what those of it share.",
    )


class Part(Section):
    """Which runs of a suite to make, so that several processes may share the work; the table is of the whole suite."""

    methods: tuple[str, ...] = Field(default=(), description="Only these methods; empty: all.")
    datasets: tuple[str, ...] = Field(default=(), description="Only these data sets; empty: all.")
    epsilons: tuple[float, ...] = Field(default=(), description="Only these epsilons; empty: all.")
    seeds: tuple[int, ...] = Field(default=(), description="Only these seeds; empty: all.")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a suite.

    `trained_as` is the method whose generator it samples from: its own, or one that differs from it in sampling alone.
    """

    dataset: str
    method: str
    trained_as: str
    epsilon: float
    seed: int
    config: RunConfig
    draws: Mapping[str, int]

    @property
    def label(self) -> str:
        return f"{self.dataset}, {self.method}, epsilon {self.epsilon:g}, seed {self.seed}"


def load_suite(path: Path) -> Suite:
    """Read a suite.

    Raises:
        ConfigError: the file is missing or no mapping; a key is unknown, or a value out of bounds; a method is unknown.
    """
    if not path.is_file():
        near = sorted(file.stem for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"There is no suite {path}; beside it are {', '.join(near) or 'none'}.")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, expected a mapping.")
    return parse_suite(data, str(path))


def parse_suite(data: Mapping[str, Any], origin: str = "the suite") -> Suite:
    """Validate a suite, each of its configurations included."""
    try:
        suite = Suite.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)
        )
        raise ConfigError(f"{origin}: {problems}") from None
    _check_known(origin, "method", suite.methods, [*METHODS, *suite.variants])
    for name, change in suite.variants.items():
        for path in _NOT_OF_A_METHOD:
            section, _, key = path.partition(".")
            if section in change and (not key or key in change[section]):
                raise ConfigError(f"{origin}: variant {name} changes {path}, which all methods have to share.")
    cells_of(suite)
    return suite


def cells_of(suite: Suite) -> list[Cell]:
    """All runs, those of one data set together; cheap methods do not wait for dear ones of another data set.

    Raises:
        ConfigError: a configuration is not valid, or two generators would share a private draw.
    """
    cells = [
        _cell(suite, dataset, method, epsilon, seed)
        for dataset in suite.datasets
        for seed in suite.seeds
        for epsilon in suite.epsilons
        for method in suite.methods
    ]
    drawn: dict[tuple[str, int], Cell] = {}
    for cell in cells:
        first = drawn.setdefault((cell.dataset, cell.draws["finetune"]), cell)
        if (first.trained_as, first.epsilon, first.seed) != (cell.trained_as, cell.epsilon, cell.seed):
            raise ConfigError(f"Two runs are the same draw ({first.label}; {cell.label}): rename a method.")
    return cells


def cells_in(suite: Suite, part: Part) -> list[Cell]:
    """The runs of a part of a suite; ConfigError if it names something that the suite does not have."""
    origin = f"suite {suite.name}"
    _check_known(origin, "method", part.methods, suite.methods)
    _check_known(origin, "data set", part.datasets, list(suite.datasets))
    _check_known(origin, "epsilon", part.epsilons, suite.epsilons)
    _check_known(origin, "seed", part.seeds, suite.seeds)
    return [
        cell
        for cell in cells_of(suite)
        if cell.method in (part.methods or suite.methods)
        and cell.dataset in (part.datasets or suite.datasets)
        and cell.epsilon in (part.epsilons or suite.epsilons)
        and cell.seed in (part.seeds or suite.seeds)
    ]


def _cell(suite: Suite, dataset: str, method: str, epsilon: float, seed: int) -> Cell:
    """A run: what suite, data set and method say, then epsilon and all seeds but the classifier's, in this order.

    Noise is never seeded: another seed is another draw of query and fine-tuning. Each generator has draws of its own,
    so that each is a plan of its own in the ledger, accounted as tightly as a first run. Methods that differ in sampling
    alone have one generator, which is paid for once.
    """
    settings: dict[str, Any] = {}
    for change in (suite.settings, suite.datasets[dataset].settings, {**METHODS, **suite.variants}[method]):
        settings = _merged(settings, change)
    settings = _of_its_kind(settings)
    seeds = {
        "privacy": {"epsilon": epsilon},
        "selection": _seeded(SELECTIONS.meant_by(settings.get("selection", {})), seed),
        "generator": _seeded(GENERATORS.meant_by(settings["generator"]), seed),
        # Of images and of classifiers: a run takes as many seeds as it has of these, from here on.
        "synthesize": {"seed": seed * 10_000_000},
        "evaluate": {"seed": seed * 1000},
    }
    name = f"{suite.name}-{dataset}-{method}-eps{epsilon:g}-{seed}".replace(".", "-")
    config = parse_config(merged(settings, {**seeds, "name": name}), f"suite {suite.name}, {dataset}, {method}")
    # A validation that is charged is a part of the plan, and each plan intends one.
    trained_as = method if config.evaluate.validation == "private" else _trained_as(suite, method)
    digest = hashlib.sha256(f"{suite.name}/{trained_as}/{epsilon!r}/{seed}".encode()).hexdigest()
    draw = 1 + int(digest, 16) % _DRAWS
    return Cell(
        dataset=dataset,
        method=method,
        trained_as=trained_as,
        epsilon=epsilon,
        seed=seed,
        config=config,
        draws={first_charged(config): draw, "finetune": draw},
    )


def _of_its_kind(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose `generator` is filled up with what `generators` says of its kind."""
    rest = {name: value for name, value in settings.items() if name != "generators"}
    own = rest.get("generator", {})
    kind = own.get("kind", GENERATORS.names[0]) if isinstance(own, Mapping) else own
    shared = settings.get("generators", {}).get(kind, {})
    return {**rest, "generator": merged({"kind": kind, **shared}, own)}


def _seeded(method: type[Section] | None, seed: int) -> dict[str, Any]:
    """The seeds that a method has."""
    fields = method.model_fields if method else {}
    return {
        **({"seed": seed} if "seed" in fields else {}),
        **({"pretrain": {"seed": seed}} if "pretrain" in fields else {}),
    }


def _trained_as(suite: Suite, method: str) -> str:
    """The method that names the generator, of those that differ from this one in sampling alone, itself included.

    That is one that says nothing of sampling, a built-in one first. So it stays the same when others join, in whatever
    order.
    """
    known = {**METHODS, **suite.variants}

    def training(name: str) -> dict[str, Any]:
        changes = {section: change for section, change in known[name].items() if section != "synthesize"}
        generator = {key: value for key, value in changes.pop("generator", {}).items() if key != "sampling"}
        return {**changes, "generator": generator}

    alike = [name for name in known if training(name) == training(method)]
    return min(alike, key=lambda name: (_says_of_sampling(known[name]), name not in METHODS, name))


def _says_of_sampling(changes: Mapping[str, Any]) -> bool:
    return "synthesize" in changes or "sampling" in changes.get("generator", {})


def first_charged(config: RunConfig) -> str:
    """The stage that opens the run's plan."""
    return next(stage.name for stage in stages_of(config) if stage.charge)


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """As `merged`; but an image source is replaced as a whole."""
    sources = {
        section: {**base.get(section, {}), **change[section]}
        for section in ("sensitive", "public")
        if section in change
    }
    return {**merged(base, change), **sources}


def _check_known(origin: str, what: str, named: Sequence[object], known: Sequence[object]) -> None:
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ConfigError(f"{origin}: there is no {what} {unknown[0]!r}; there are {', '.join(map(str, known))}.")
