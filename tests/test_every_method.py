"""What every kind of generator and every strategy of selection has to keep, in a run of each that may be together."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from privimage.config.loading import load_config, merged
from privimage.data.facts import sensitive_facts
from privimage.errors import ConfigError
from privimage.methods.registry import GENERATORS, SELECTIONS
from privimage.payloads import GeneratorAbout, guarantee_said
from privimage.pipeline.table import stages_of
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.events import event_from_json
from privimage.release.export import SUMS, sums
from privimage.release.verify import read_release, verify_release
from privimage.running.charging import Door
from privimage.running.plan import plan_run
from privimage.running.runner import run_all
from privimage.store.artifacts import Artifact, list_artifacts
from privimage.store.files import Store
from tests.pipeline_fixtures import Place

# The smallest of each kind, where the defaults would take long.
SMALL: dict[str, dict[str, Any]] = {
    "diffusion": {},
    "gan": {"network": {"latent_dim": 4}},
    "mean_embedding": {
        "num_features": 40,
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "num_steps": 4,
        "critic_features": 20,
        "critic_channels": 4,
        "critic_steps": 4,
        "sampling": {"mixer_steps": 4},
    },
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A finished run; do not change."""

    place: Place
    kind: str
    strategy: str

    @property
    def artifacts(self) -> dict[str, Artifact]:
        return {artifact.ref.stage: artifact for artifact in list_artifacts(self.place.store)}

    @property
    def certificate(self) -> dict[str, Any]:
        stated: dict[str, Any] = json.loads((self.place.release / "certificate.json").read_text())
        return stated


def configured(granted: Place, folder: Path, kind: str, strategy: str) -> Place:
    """A run of these two on a copy of the admitted images; ConfigError if they cannot be together."""
    settings = yaml.safe_load(granted.config.read_text())
    settings = merged(settings, {"generator": {"kind": kind, **SMALL[kind]}, "selection": {"strategy": strategy}})
    config = folder / "method.yaml"
    config.write_text(yaml.safe_dump(settings))
    load_config(config)
    return Place(config=config, folder=granted.copy_to(folder / "store").folder)


def together() -> list[tuple[str, str]]:
    """All pairs, those that refuse each other among them."""
    return [(kind, strategy) for kind in GENERATORS.names for strategy in SELECTIONS.names]


@pytest.fixture(scope="module", params=together(), ids="-".join)
def made(request: pytest.FixtureRequest, granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Made:
    kind, strategy = request.param
    try:
        place = configured(granted, tmp_path_factory.mktemp(f"{kind}-{strategy}"), kind, strategy)
    except ConfigError as refused:
        pytest.skip(str(refused))
    run_all(place.run())
    return Made(place=place, kind=kind, strategy=strategy)


def outcomes(release: Path, store: Store) -> dict[str, str]:
    return {check.step: check.outcome for check in verify_release(read_release(Store.open(str(release))), store)}


def forged(made: Made, folder: Path, **stated: Any) -> Path:
    """A copy with other statements in its certificate, for which all sums fit."""
    copy = Path(shutil.copytree(made.place.release, folder))
    (copy / "certificate.json").write_text(json.dumps({**made.certificate, **stated}, indent=1, sort_keys=True))
    (copy / SUMS).write_bytes(sums({file.name: file.read_bytes() for file in copy.iterdir() if file.name != SUMS}))
    return copy


def test_only_public_labels_keep_a_kind_and_a_strategy_apart(granted: Place, tmp_path: Path) -> None:
    for number, (kind, strategy) in enumerate(together()):
        folder = tmp_path / str(number)
        folder.mkdir()
        if SELECTIONS.named(strategy).keeps_public_labels and kind != "diffusion":
            with pytest.raises(ConfigError, match=f"selection.strategy.*{strategy}"):
                configured(granted, folder, kind, strategy)
        else:
            configured(granted, folder, kind, strategy)


def test_a_run_has_one_plan_that_costs_its_epsilon(made: Made) -> None:
    (plan,) = made.place.ledger.spent().plans
    assert plan.target == 1.0 and 0.99 < plan.epsilon <= 1.0
    reserved = [entry for entry in made.place.entries if entry.kind == "reserve"]
    selection = SELECTIONS.named(made.strategy)
    asked = {"query": selection.asks_the_query, "feature_means": selection.asks_feature_means, "finetune": True}
    assert [entry.body["stage"] for entry in reserved] == [stage for stage, charged in asked.items() if charged]
    intended = [event_from_json(event) for event in reserved[0].body["plan"]["intends"]]
    assert intended == [entry.event for entry in reserved]
    assert made.place.kinds.count("settle") == len(reserved)


def test_the_mechanism_that_ran_is_the_one_that_was_charged(made: Made) -> None:
    about = GeneratorAbout.read(made.artifacts["finetune"])
    charged = next(entry for entry in made.place.entries if entry.body.get("stage") == "finetune")
    config, told = made.place.run().config, about.mechanism or {}
    facts = sensitive_facts(made.artifacts["admit"])
    mechanism = config.generator.mechanism(facts, config.selection, noise_multiplier=float(told["noise_multiplier"]))
    assert mechanism.event == charged.event and config.generator.is_charged_as(charged.event)
    others = [name for name in GENERATORS.names if not GENERATORS.named(name).is_charged_as(charged.event)]
    assert others, "some other kind is charged as something else"


def test_its_release_is_verified_and_says_which_methods_made_it(made: Made) -> None:
    assert set(outcomes(made.place.release, made.place.store).values()) == {"passed"}
    assert (made.certificate["generator"], made.certificate["selection"]) == (made.kind, made.strategy)
    card = " ".join((made.place.release / "README.md").read_text().split())
    selection = SELECTIONS.named(made.strategy)
    assert selection.in_words in card
    assert GENERATORS.named(made.kind).in_words(selects=selection.selects, finetunes=True) in card


def test_a_certificate_of_another_method_or_a_smaller_epsilon_does_not_verify(made: Made, tmp_path: Path) -> None:
    asks = SELECTIONS.named(made.strategy).asks_the_query
    charged = next(entry for entry in made.place.entries if entry.body.get("stage") == "finetune").event
    other_kind = next(name for name in GENERATORS.names if not GENERATORS.named(name).is_charged_as(charged))
    statements = (
        {"generator": other_kind},
        {"generator": "nothing of that name"},
        {"selection": "random" if asks else "semantic"},
        {"epsilon": 0.5},
        {"epsilon_computed": 0.5},
    )
    for number, stated in enumerate(statements):
        found = outcomes(forged(made, tmp_path / str(number), **stated), made.place.store)
        assert "failed" in found.values(), stated


def test_the_plan_foresees_its_stages_and_that_all_of_them_are_there_afterwards(
    made: Made, granted: Place, tmp_path: Path
) -> None:
    ahead = plan_run(configured(granted, tmp_path, made.kind, made.strategy).run())
    names = [stage.name for stage in stages_of(made.place.run().config)]
    assert [row.stage for row in ahead.stages] == names
    assert sum(row.epsilon or 0.0 for row in ahead.stages) == pytest.approx(1.0)
    assert {row.action for row in plan_run(made.place.run()).stages} == {"reused"}


def test_no_sensitive_image_is_seen_before_its_charge(
    made: Made, granted: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = configured(granted, tmp_path, made.kind, made.strategy)
    seen: list[tuple[str, int]] = []
    real = Door.__call__

    def watched(door: Door, split: Any) -> Any:
        seen.append((door._stage.name, place.kinds.count(f"reserve {door._stage.name}")))
        return real(door, split)

    monkeypatch.setattr(Door, "__call__", watched)
    run_all(place.run(), "finetune")
    assert {name for name, _ in seen} == {entry.body["stage"] for entry in place.entries if entry.kind == "reserve"}
    assert all(reserved == 1 for _, reserved in seen)


def test_reproducible_noise_voids_the_guarantee_up_to_the_release(made: Made, granted: Place, tmp_path: Path) -> None:
    place = configured(granted, tmp_path, made.kind, made.strategy)
    run_all(place.run(insecure=InsecureRandomForTests(0)), stages_of(place.run().config)[-1].name)
    tuned = next(artifact for artifact in list_artifacts(place.store) if artifact.ref.stage == "finetune")
    assert guarantee_said("finetune", tuned) == "none"
    assert json.loads((place.release / "certificate.json").read_text())["guarantee"] == "none"
    assert outcomes(place.release, place.store)["promise"] == "failed"
