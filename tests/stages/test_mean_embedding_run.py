"""A run with DP-MERF: one noisy embedding is charged with all of epsilon, and everything else follows from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from privimage.config.loading import load_config
from privimage.errors import BudgetExceeded, ConfigError, PrivacyRefused, Uncharged
from privimage.generators.mean_embedding import finetuning
from privimage.generators.opening import open_generator
from privimage.pipeline.table import stage_named, stage_of
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.events import event_to_json
from privimage.privacy.mechanisms import ClassSumRounds
from privimage.release.export import SUMS, sums
from privimage.release.verify import read_release, verify_release
from privimage.running.plan import plan_run
from privimage.running.runner import run_all, run_stage
from privimage.stages import finetune as stage
from privimage.store.artifacts import open_ref
from privimage.store.files import Store
from tests.pipeline_fixtures import Answer, Place

SMALL = {"num_features": 60, "base_channels": 8, "channel_multipliers": [1, 2], "latent_dim": 4, "num_steps": 5}
COMPLETE = ["grant", "reserve finetune", "pause", "settle"]


@pytest.fixture(scope="module")
def small_config(granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = yaml.safe_load(granted.config.read_text())
    config = tmp_path_factory.mktemp("small") / "small.yaml"
    config.write_text(
        yaml.safe_dump(
            {**settings, "generator": {"kind": "mean_embedding", **SMALL}, "selection": {"strategy": "none"}}
        )
    )
    return config


@pytest.fixture
def place(granted: Place, small_config: Path, tmp_path: Path) -> Place:
    return Place(config=small_config, folder=granted.copy_to(tmp_path / "store").folder)


@pytest.fixture(scope="module")
def made(granted: Place, small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run; do not change."""
    place = Place(config=small_config, folder=granted.copy_to(tmp_path_factory.mktemp("made") / "store").folder)
    run_all(place.run())
    return place


def test_it_goes_through_every_stage_and_its_release_is_verified(made: Place, privimage: Callable[..., Answer]) -> None:
    assert made.kinds == COMPLETE
    told = json.loads(made.payload("finetune", "generator.json").read_text())
    (charged,) = (entry for entry in made.entries if entry.kind == "reserve")
    assert event_to_json(ClassSumRounds(**told["mechanism"]).event) == charged.body["event"]
    assert set(charged.body["event"]) == {"event", "noise_multiplier"}, (
        "one Gaussian mechanism, not sampled or repeated"
    )
    assert told["mechanism"]["dimensions"] == [61] and told["guarantee"] == "differential privacy"
    assert told["own"]["lengthscale"] > 0
    verified = privimage("verify", made.release, "--store", made.folder, "--config", made.config)
    assert verified.code == 0, verified.out


def test_its_certificate_and_datasheet_say_how_it_was_made(made: Place) -> None:
    certificate = json.loads((made.release / "certificate.json").read_text())
    assert (certificate["generator"], certificate["selection"]) == ("mean_embedding", "none")
    assert [mechanism["stage"] for mechanism in certificate["mechanisms"]] == ["finetune"]
    assert certificate["mechanisms"][0]["in_words"].startswith("Gaussian noise, ")
    card = (made.release / "README.md").read_text()
    assert "DP-MERF" in card
    for text in (card, json.dumps(certificate), (made.release / "report.html").read_text()):
        assert "Poisson" not in text and "DP-SGD" not in text


def test_a_certificate_that_tells_of_another_kind_of_generator_does_not_verify(made: Place, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.release, tmp_path / "forged"))
    stated = json.loads((folder / "certificate.json").read_text())
    (folder / "certificate.json").write_text(json.dumps({**stated, "generator": "diffusion"}, indent=1, sort_keys=True))
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != SUMS}
    (folder / SUMS).write_bytes(sums(files))
    checks = verify_release(read_release(Store.open(str(folder))), made.store)
    assert [check.step for check in checks if check.outcome == "failed"] == ["epsilon", "store"]


def test_no_certificate_tells_of_another_kind_of_generator(place: Place) -> None:
    results = {**run_all(place.run(), "classifier"), **run_all(place.run(), "synthesize")}
    run = place.run("generator.kind=diffusion")
    inputs = {name: results[name].ref for name in stage_of("release", run.config).inputs}
    with pytest.raises(
        PrivacyRefused, match=r"states generator\.kind diffusion, but fine-tuning was charged as Gaussian noise"
    ):
        run_stage("release", run, inputs)


def test_membership_inference_says_why_it_was_not_tried(made: Place) -> None:
    metrics = json.loads(made.payload("evaluate", "metrics.json").read_text())
    assert "has no loss of a given image" in json.dumps(metrics)


def test_a_plan_says_that_fine_tuning_takes_all_and_then_that_it_is_there(made: Place, place: Place) -> None:
    ahead = {row.stage: row for row in plan_run(place.run()).stages}
    assert "query" not in ahead and "select" not in ahead
    assert ahead["finetune"].epsilon == 1.0
    assert all(row.action == "reused" for row in plan_run(made.run()).stages)


# ------------------------------------------------------------------ interrupted


def stop_in(patch: pytest.MonkeyPatch, function: str) -> None:
    """The attempt ends where `function` is called for the first time after the charge."""

    def stop(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    patch.setattr(stage, "rehearse", lambda *given: None)
    patch.setattr(finetuning, function, stop)


def test_an_embedding_that_was_saved_is_trained_on_again_and_is_not_charged_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, trained_on, events = list[Any](), list[Any](), list[Any]()
    real_sums, real_means = finetuning.noisy_class_sums, finetuning.means_of

    def sums(*given: Any, **named: Any) -> Any:
        events.append(event_to_json(given[2].event))
        drawn.append(real_sums(*given, **named))
        return drawn[-1]

    def means(noisy: Any, *rest: Any) -> Any:
        trained_on.append(noisy)
        return real_means(noisy, *rest)

    monkeypatch.setattr(finetuning, "noisy_class_sums", sums)
    monkeypatch.setattr(finetuning, "means_of", means)
    for _ in range(2):
        with monkeypatch.context() as patch:
            stop_in(patch, "match")
            with pytest.raises(KeyboardInterrupt):
                run_all(place.run(), "finetune")
    run_all(place.run(), "finetune")
    assert len(drawn) == 1
    assert events == [entry.body["event"] for entry in place.entries if entry.kind == "reserve"]
    assert [(noisy == drawn[0]).all() for noisy in trained_on] == [True] * 3
    assert place.kinds == ["grant", "reserve finetune", "pause", "resume", "pause", "resume", "pause", "settle"]
    assert [entry.body["lost_steps"] for entry in place.entries if entry.kind == "resume"] == [0, 0]
    (plan,) = place.ledger.spent().plans
    assert plan.epsilon <= plan.target == 1.0


def test_an_embedding_that_may_have_been_drawn_and_was_not_saved_is_never_drawn_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_in(patch, "pack")
        with pytest.raises(KeyboardInterrupt):
            run_all(place.run(), "finetune")
    with pytest.raises(BudgetExceeded, match="another draw"):
        run_all(place.run(), "finetune")
    assert place.kinds == ["grant", "reserve finetune"]
    run_all(place.run(draws={"finetune": 2}), "finetune")
    assert sum(plan.epsilon for plan in place.ledger.spent().plans) == pytest.approx(2.0, rel=0.01)


def test_a_saved_embedding_survives_an_attempt_that_ends_before_it_trains(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function in ("match", "opened"):
        with monkeypatch.context() as patch:
            stop_in(patch, function)
            with pytest.raises(KeyboardInterrupt):
                run_all(place.run(), "finetune")
    run_all(place.run(), "finetune")
    assert place.kinds == ["grant", "reserve finetune", "pause", "resume", "pause", "resume", "pause", "settle"]


def test_a_saved_embedding_of_another_reservation_is_not_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_in(patch, "match")
        with pytest.raises(KeyboardInterrupt):
            run_all(place.run(), "finetune")
    real = finetuning.unpack

    def foreign(data: bytes) -> Any:
        tensors, about = real(data)
        return tensors, {**about, "reservation": "r-of-somebody-else"}

    monkeypatch.setattr(finetuning, "unpack", foreign)
    with pytest.raises(Uncharged, match="paid for by another reservation"):
        run_all(place.run(), "finetune")


def test_reproducible_noise_is_marked_also_after_it_was_resumed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_in(patch, "match")
        with pytest.raises(KeyboardInterrupt):
            run_all(place.run(insecure=InsecureRandomForTests(0)), "finetune")
    result = run_all(place.run(), "finetune")["finetune"]
    assert open_ref(place.store, result.ref).read_json("generator.json")["guarantee"] == "none"


# ------------------------------------------------------------------ configuration


def test_its_keys_hold_its_own_settings_and_none_that_do_nothing(place: Place) -> None:
    usual = load_config(place.config)
    others = load_config(
        place.config,
        [
            "generator.critic_share=0.4",
            "generator.critic_steps=7",
            "generator.horizontal_flip=true",
            "generator.sampling.mixer_steps=9",
        ],
    )
    public, private = stage_named("pretrain").fields, stage_named("finetune").fields
    used = {*SMALL, "lengthscale", "batch_size", "learning_rate", "ema_decay", "seed"}
    of_pixels = usual.generator.model_dump(mode="json", include={"kind", *used})
    assert public(usual) == public(others) == {"generator": of_pixels}
    assert private(usual) == private(others)
    assert private(usual)["generator"] == {"kind": "mean_embedding"}


def test_every_setting_of_it_is_in_what_the_charged_stage_starts_from(place: Place) -> None:
    """Its own key has none of them: it must not find a generator of other settings."""
    keys = {
        run_all(place.run(*overrides), "pretrain")["pretrain"].ref.digest
        for overrides in ((), ("generator.num_steps=6",), ("generator.seed=1",), ("generator.lengthscale=3",))
    }
    assert len(keys) == 4


def test_a_lengthscale_that_is_given_is_taken(place: Place) -> None:
    result = run_all(place.run("generator.lengthscale=3.5"), "pretrain")["pretrain"]
    artifact = open_ref(place.store, result.ref)
    assert artifact.read_json("generator.json")["own"]["lengthscale"] == 3.5
    assert type(open_generator(artifact, torch.device("cpu"))[0]).__name__ == "EmbeddingGenerator"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("selection.strategy=all", "selection.strategy is all: set it to semantic, random or none"),
        ("audit.canaries=100", "not made for a generator of kind mean_embedding: set it to 0"),
        ("generator.class_means.num_steps=5", "generator.class_means: this key is unknown"),
        ("generator.num_features=7", "generator.num_features"),
        ("generator.channel_multipliers=[1, 1, 1, 1, 1]", "generator.channel_multipliers has 5 levels, but 8 pixels"),
    ],
)
def test_a_configuration_that_it_could_not_run_is_refused(place: Place, override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(place.config, [override])


def test_there_is_nothing_to_audit_and_nothing_is_charged(place: Place, privimage: Callable[..., Answer]) -> None:
    answer = privimage("audit", *place.options())
    assert answer.code == 2
    assert "The audit is of DP-SGD's step, and a generator of kind mean_embedding takes none" in answer.complaint
    assert place.kinds == ["grant"]


def test_a_step_that_does_not_fit_is_found_before_the_charge(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*given: object, **named: object) -> Any:
        raise torch.OutOfMemoryError("a step")

    monkeypatch.setattr(finetuning, "match", too_large)
    with pytest.raises(ConfigError, match=r"lower generator\.batch_size"):
        run_all(place.run(), "finetune")
    assert place.kinds == ["grant"]


def test_vectors_that_do_not_fit_are_found_before_the_charge(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*given: object) -> Any:
        raise torch.OutOfMemoryError("vectors")

    monkeypatch.setattr(finetuning.Embedded, "__getitem__", too_large)
    with pytest.raises(ConfigError, match="does not fit into memory"):
        run_all(place.run(), "finetune")
    assert place.kinds == ["grant"]
