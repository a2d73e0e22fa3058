"""Mean embeddings with a selection: a critic of public images, and one plan that holds query and embedding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from privimage.config import MerfConfig
from privimage.errors import PrivacyRefused
from privimage.generators.features import Features, JointFeatures
from privimage.generators.merf import Merf
from privimage.pipeline import stage_named
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.events import event_from_json
from privimage.privacy.mechanisms import ClassSums
from privimage.runner import run_all
from privimage.stages import mean_embedding
from privimage.stages.critic import open_critic
from privimage.store.artifacts import open_ref
from tests.pipeline_fixtures import Answer, Place
from tests.stages.test_merf_run import MERF

CRITIC = {"critic_features": 40, "critic_channels": 4, "critic_steps": 6}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["semantic", "random"])
def made(request: pytest.FixtureRequest, granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run; do not change."""
    settings = yaml.safe_load(granted.config.read_text())
    settings |= {"generator": "merf", "merf": MERF | CRITIC}
    settings["selection"] = settings.get("selection", {}) | {"strategy": request.param}
    folder = tmp_path_factory.mktemp(request.param)
    config = folder / "critic.yaml"
    config.write_text(yaml.safe_dump(settings))
    place = Place(config=config, folder=granted.copy_to(folder / "store").folder)
    run_all(place.run())
    return place


def test_query_and_embedding_are_one_plan_that_costs_what_the_run_may(
    made: Place, privimage: Callable[..., Answer]
) -> None:
    asks = made.run().config.selection.asks_the_query
    reserved = [entry for entry in made.entries if entry.kind == "reserve"]
    assert [entry.body["stage"] for entry in reserved] == [*(["query"] if asks else []), "finetune"]
    assert len({entry.body["plan"]["id"] for entry in reserved}) == 1
    intended = [event_from_json(entry.body["event"]) for entry in reserved]
    plan = reserved[-1].body["plan"]
    assert [event_from_json(event) for event in plan["intends"]] == intended
    told = json.loads(made.payload("finetune", "denoiser.json").read_text())
    assert ClassSums(**told["mechanism"]).event == intended[-1]
    assert told["mechanism"]["dimension"] == 60 + 40 + 1
    epsilon = epsilon_of(intended, plan["delta"])
    assert 0.99 * plan["epsilon"] < epsilon <= plan["epsilon"]
    verified = privimage("verify", made.release, "--store", made.folder, "--config", made.config)
    assert verified.code == 0, verified.out


def test_certificate_and_datasheet_say_how_it_was_made(made: Place) -> None:
    certificate = json.loads((made.release / "certificate.json").read_text())
    selection = made.run().config.selection
    assert (certificate["generator"], certificate["selection"]) == ("merf", selection.strategy)
    assert ("query" in {mechanism["stage"] for mechanism in certificate["mechanisms"]}) == selection.asks_the_query
    # The query reads the images as well.
    assert "Fine-tuning read the training images once" in certificate["assumptions"][-1]
    card = (made.release / "README.md").read_text()
    assert "a classifier learns from this selection" in card and "DP-SGD" not in card


def test_the_embedding_is_of_pixels_and_of_what_the_critic_sees_and_has_norm_one(made: Place) -> None:
    run = made.run()
    results = run_all(run)
    inputs = {name: open_ref(run.store, results[name].ref) for name in ("pretrain",)}
    generator, facts, features = mean_embedding._opened(run.config, inputs)
    assert isinstance(features, JointFeatures) and features.shares == (1 - 0.7, 0.7)
    images = torch.rand(7, facts["channels"], facts["resolution"], facts["resolution"]) * 2 - 1
    assert torch.allclose(features(images).square().sum(1), torch.ones(7), atol=1e-5)
    assert features(images).shape == (7, 100)
    critic = open_critic(
        inputs["pretrain"], MerfConfig(**facts["config"]), facts["channels"], generator.num_classes, CPU
    )
    assert not critic.network.training
    assert not any(parameter.requires_grad for parameter in critic.network.parameters())
    # The same image has the same features beside any others: no statistic of a batch is in them.
    assert torch.allclose(features(images[:1]), features(images)[:1], atol=1e-5)


def test_the_painter_follows_pixels_alone_at_first_and_then_both(made: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made.run("merf.num_steps=8", "merf.critic_from=0.5")
    results = run_all(run, "pretrain")
    inputs = {"pretrain": open_ref(run.store, results["pretrain"].ref)}
    generator, facts, features = mean_embedding._opened(run.config, inputs)
    assert isinstance(features, JointFeatures)
    means = torch.nn.functional.normalize(torch.randn(generator.num_classes, features.size), dim=1)
    asked: list[tuple[int, torch.Tensor]] = []
    real = mean_embedding.match

    def match(generator: Merf, means: torch.Tensor, features: Features, config: MerfConfig, **named: Any) -> Any:
        asked.append((config.num_steps, means))
        return real(generator, means, features, config, **named)

    monkeypatch.setattr(mean_embedding, "match", match)
    told: list[int] = []
    mean_embedding._matched(generator, means, features, MerfConfig(**facts["config"]), told.append)
    assert told == list(range(1, 9))
    (first, of_pixels), (then, of_both) = asked
    assert (first, then) == (4, 4)
    assert torch.equal(of_both, means)
    torch.testing.assert_close(of_pixels * (1 - 0.7) ** 0.5, means[:, :60])


@pytest.mark.parametrize(
    "override",
    [
        "pretrain.horizontal_flip=true",
        "classifier.learning_rate=0.03",
        "classifier.weight_decay=0.1",
        "classifier.augment=false",
    ],
)
def test_what_the_critic_learns_by_is_in_the_key_of_what_it_is_written_with(made: Place, override: str) -> None:
    fields = stage_named("pretrain").fields
    assert fields(made.run().config) != fields(made.run(override).config)
    without = "selection.strategy=none"
    assert fields(made.run(without).config) == fields(made.run(without, override).config)


def test_votes_with_reproducible_noise_leave_no_guarantee(made: Place, granted: Place, tmp_path: Path) -> None:
    if not made.run().config.selection.asks_the_query:
        pytest.skip("there are no votes")
    place = Place(config=made.config, folder=granted.copy_to(tmp_path / "store").folder)
    run_all(place.run(insecure=InsecureRandomForTests(0)), "query")
    result = run_all(place.run(), "finetune")["finetune"]
    assert open_ref(place.store, result.ref).read_json("denoiser.json")["guarantee"] == "none"


@pytest.mark.parametrize(("first", "then"), [("merf", "diffusion"), ("diffusion", "merf")])
def test_a_query_that_was_interrupted_is_not_repeated_for_another_kind_of_generator(
    first: str, then: str, granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan was opened for one: the other would be refused once the query was paid for again."""

    def killed(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("privimage.stages.semantics.add_noise", killed)
        run_all(granted_copy.run(f"generator={first}"), "query")
    assert granted_copy.kinds == ["grant", "reserve query"]
    with pytest.raises(PrivacyRefused, match="--draw query=2"):
        run_all(granted_copy.run(f"generator={then}"), "query")
    assert granted_copy.kinds == ["grant", "reserve query"]
    run_all(granted_copy.run(f"generator={then}", draws={"query": 2}), "query")
    run_all(granted_copy.run(f"generator={first}"), "query")
