"""A new method is one declaration: from plan to verified release, through the command line and through the flow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from numpy.testing import assert_array_equal

from privimage.config.loading import load_config, merged
from privimage.data.table import read_images
from privimage.errors import ConfigError
from privimage.methods.registry import GENERATORS, SELECTIONS, Registry
from privimage.pipeline.table import stage_named
from privimage.store.artifacts import list_artifacts
from tests.flows.prefect_server import Server
from tests.pipeline_fixtures import Answer, Place
from tests.plugins.gaussian import Gaussian
from tests.plugins.greedy import Greedy

METHODS: dict[str, tuple[Registry[Any], Any, dict[str, Any]]] = {
    "gaussian": (GENERATORS, Gaussian, {"generator": {"kind": "gaussian", "width": 0.2}}),
    "greedy": (SELECTIONS, Greedy, {"selection": {"strategy": "greedy", "take": 1}}),
}

# What a program does that brings a method along.
FLOW = """
from flows.synthesize import synthesize
from privimage.config.loading import load_config
from privimage.methods.registry import GENERATORS, SELECTIONS
from tests.plugins.gaussian import Gaussian
from tests.plugins.greedy import Greedy

GENERATORS.register(Gaussian)
SELECTIONS.register(Greedy)
answer = synthesize(store={store!r}, config=load_config({config!r}), return_state=True)
print(answer.message)
print(answer.name)
"""


@pytest.fixture(params=METHODS)
def place(request: pytest.FixtureRequest, granted: Place, tmp_path: Path) -> Iterator[Place]:
    """A run of the method, up to the index, and the method registered for one test."""
    registry, declaration, change = METHODS[request.param]
    registry.register(declaration)
    config = tmp_path / f"{request.param}.yaml"
    config.write_text(yaml.safe_dump(merged(yaml.safe_load(granted.config.read_text()), change)))
    yield Place(config=config, folder=granted.copy_to(tmp_path / "store").folder)
    del registry._declared[request.param]


def test_it_goes_from_plan_to_verified_release_through_the_command_line(
    place: Place, privimage: Callable[..., Answer]
) -> None:
    planned = privimage("plan", *place.options(), "--json")
    assert planned.code == 0, planned.err
    rows = {row["stage"]: row for row in json.loads(planned.out)["stages"]}
    assert rows["finetune"]["epsilon"] > 0 and place.kinds == ["grant"]
    ran = privimage("run", *place.options())
    assert ran.code == 0, ran.err
    assert place.kinds.count("settle") == 2
    assert sum(plan.epsilon for plan in place.ledger.spent().plans) <= 1.0
    verified = privimage("verify", place.release, "--store", place.folder, "--config", place.config)
    assert verified.code == 0, verified.out
    certificate = json.loads((place.release / "certificate.json").read_text())
    config = place.run().config
    assert (certificate["generator"], certificate["selection"]) == (config.generator.kind, config.selection.strategy)
    card = " ".join((place.release / "README.md").read_text().split())
    assert config.selection.in_words in card
    assert config.generator.in_words(selects=config.selection.selects, finetunes=True) in card
    images, labels = read_images([place.release / "synthetic.parquet"])
    assert len(images) == 40 and len({image.tobytes() for image in images}) == 40
    again = privimage("run", *place.options())
    assert again.code == 0 and "done in" not in again.err, "all is reused"
    assert_array_equal(read_images([place.release / "synthetic.parquet"])[1], labels)


def test_it_goes_the_same_way_through_the_flow(place: Place, server: Server) -> None:
    done = server.python("-c", FLOW.format(store=str(place.folder), config=str(place.config)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Completed", done.stdout + done.stderr
    made = {artifact.ref.stage for artifact in list_artifacts(place.store)}
    assert {"query", "select", "pretrain", "finetune", "synthesize", "release"} <= made
    assert place.kinds.count("settle") == 2 and place.release.is_dir()


def test_its_settings_are_checked_and_in_the_keys_of_its_stages(place: Place) -> None:
    config = place.run().config
    assert (config.generator.kind == "gaussian") != (config.selection.strategy == "greedy")
    with pytest.raises(ConfigError, match="unknown"):
        load_config(place.config, ["generator.surprise=1"])
    other = "generator.width=0.5" if config.generator.kind == "gaussian" else "selection.take=2"
    stage = "finetune" if config.generator.kind == "gaussian" else "select"
    assert place.run().config.model_dump() != place.run(other).config.model_dump()
    keys = [fields_of(place.run(*overrides), stage) for overrides in ((), (other,))]
    assert keys[0] != keys[1]


def fields_of(run: Any, stage: str) -> dict[str, Any]:
    return stage_named(stage).fields(run.config)


def test_two_declarations_of_one_name_are_refused() -> None:
    class Other(Gaussian):
        pass

    registry: Registry[Any] = Registry("kind", Gaussian)
    assert registry.register(Gaussian) is Gaussian
    with pytest.raises(ConfigError, match="two declarations with kind gaussian"):
        registry.register(Other)
