"""A run whose generator is a GAN: the same stages, ledger, checkpoints, release."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from privimage.config.loading import load_config, merged
from privimage.errors import ConfigError
from privimage.generators.training import pretrain
from privimage.pipeline.table import stage_named
from privimage.privacy.dpsgd import noisy_mean_gradient
from privimage.privacy.events import event_to_json
from privimage.running.runner import run_all
from privimage.stages.audit import mechanism_of
from privimage.store.artifacts import open_ref
from tests.pipeline_fixtures import Answer, Place

GAN = {"network": {"base_channels": 8, "channel_multipliers": [1, 2], "latent_dim": 8}}


@pytest.fixture
def place(granted: Place, tmp_path: Path) -> Place:
    """Up to the index, which no generator has a part in."""
    settings = merged(yaml.safe_load(granted.config.read_text()), {"generator": {"kind": "gan", **GAN}})
    config = tmp_path / "gan.yaml"
    config.write_text(yaml.safe_dump(settings))
    return Place(config=config, folder=granted.copy_to(tmp_path / "store").folder)


def test_it_goes_through_every_stage_and_its_release_is_verified(
    place: Place, privimage: Callable[..., Answer]
) -> None:
    results = run_all(place.run())
    assert place.kinds == ["grant", "reserve query", "settle", "reserve finetune", "settle"]
    finetuned = open_ref(place.store, results["finetune"].ref)
    charged = next(e for e in place.entries if e.kind == "reserve" and e.body["stage"] == "finetune")
    assert event_to_json(mechanism_of(finetuned).event) == charged.body["event"]
    assert charged.body["event"]["count"] == 4 + 4, "every step of the discriminator, and the restart allowance"
    metrics = open_ref(place.store, results["evaluate"].ref).read_json("metrics.json")
    assert "membership" in json.dumps(metrics)
    verified = privimage("verify", place.release, "--store", place.folder)
    assert verified.code == 0, verified.out


def test_an_interrupted_fine_tuning_goes_on_from_its_checkpoint_and_takes_as_many_steps(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(place.run(), "pretrain")
    steps = []

    def counted(*arguments: Any) -> Any:
        if len(steps) == 3:
            steps.append("stopped")
            raise KeyboardInterrupt
        steps.append("step")
        return noisy_mean_gradient(*arguments)

    monkeypatch.setattr("privimage.generators.training.finetune.noisy_mean_gradient", counted)
    with pytest.raises(KeyboardInterrupt):
        run_all(place.run(), "finetune")
    results = run_all(place.run(), "finetune")
    # A checkpoint every 2 steps: the third step is run again.
    assert steps == ["step"] * 3 + ["stopped"] + ["step"] * 2
    assert place.kinds == ["grant", "reserve query", "settle", "reserve finetune", "resume", "settle"]
    assert place.entries[4].body["lost_steps"] == 2
    assert open_ref(place.store, results["finetune"].ref).manifest.metrics["num_steps"] == 4
    assert all(plan.epsilon <= plan.target == 1.0 for plan in place.ledger.spent().plans)


def test_interrupted_pre_training_ends_with_the_very_weights_it_would_have_had(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = ("performance.checkpoint_seconds=0",)
    undisturbed = place.copy_to(tmp_path / "undisturbed")
    run_all(undisturbed.run(), "select")  # one query, whose noise is its own, for both
    disturbed = undisturbed.copy_to(tmp_path / "disturbed")
    seen = []

    def stop_at_third(step: int, *rest: Any) -> Any:
        seen.append(step)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(step, *rest)

    real = pretrain.learning_rate_at
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "learning_rate_at", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            run_all(disturbed.run(*eager), "pretrain")
    resumed = run_all(disturbed.run(*eager), "pretrain")["pretrain"]
    assert resumed.ref == run_all(undisturbed.run(), "pretrain")["pretrain"].ref


def test_keys_of_a_generator_by_diffusion_hold_its_own_settings_alone(tiny_config: Path) -> None:
    usual = load_config(tiny_config)
    assert set(stage_named("pretrain").fields(usual)["generator"]) == {"kind", "pretrain", "network"}
    assert set(stage_named("finetune").fields(usual)["generator"]) == {"kind", "finetune"}
    assert set(stage_named("finetune").fields(usual)["generator"]["finetune"]) == {
        *("num_steps", "expected_batch_size", "largest_batch_size", "noise_samples", "max_grad_norm", "learning_rate"),
        *("ema_decay", "label_dropout", "horizontal_flip", "sigma_mean", "sigma_std"),
        *("checkpoint_steps", "restart_allowance"),
    }


@pytest.mark.parametrize(
    "override",
    ["generator.finetune.sigma_mean=-1", "generator.sampling.num_steps=5", "generator.class_means.num_steps=5"],
)
def test_what_means_nothing_for_a_gan_cannot_be_written(place: Place, override: str) -> None:
    with pytest.raises(ConfigError, match="this key is unknown"):
        load_config(place.config, [override])


def test_settings_of_a_gan_count_where_they_are_used(place: Place) -> None:
    usual = load_config(place.config)
    network = load_config(place.config, ["generator.network.latent_dim=9", "generator.network.base_channels=16"])
    steps = load_config(place.config, ["generator.finetune.discriminator_steps=3"])
    public, private = stage_named("pretrain").fields, stage_named("finetune").fields
    assert set(public(usual)["generator"]) == {"kind", "pretrain", "network"}
    assert public(usual) != public(network) and private(usual) == private(network)
    assert public(usual) == public(steps) and private(usual) != private(steps)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("generator.kind=vae", "generator: expected a section with kind diffusion, gan, mean_embedding"),
        (
            "generator.network.channel_multipliers=[1, 1, 1, 1, 1]",
            "generator.network.channel_multipliers has 5 levels, but 8 pixels cannot be halved",
        ),
        ("generator.network.base_channels=12", "generator.network.base_channels"),
        ("audit.canaries=100", "not made for a generator of kind gan: set it to 0"),
    ],
)
def test_a_configuration_that_no_gan_could_have_is_refused(place: Place, override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(place.config, [override])
