"""Audits of the real step: planted faults are found, and a correct step never raises an alarm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from privimage.errors import ConfigError
from privimage.generators.diffusion.canaries import CanaryDenoiser, audited_mechanism, score_canaries, tiny_denoiser
from privimage.generators.training.private_sum import PrivateSum
from privimage.methods.generators.diffusion import DiffusionFinetune
from privimage.privacy.audit import Audit, CanaryScores, audit
from privimage.privacy.dpsgd import noisy_mean_gradient
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.gradients import Backend
from privimage.privacy.mechanisms import DPSGDMechanism

pytestmark = pytest.mark.slow

DELTA = 1e-5
STAND_INS, CANARIES = 16, 400
CONFIG = DiffusionFinetune(noise_samples=2, label_dropout=0.5)
MECHANISM = DPSGDMechanism(
    num_images=STAND_INS + CANARIES,
    expected_batch_size=(STAND_INS + CANARIES) // 2,
    num_steps=3,
    restart_allowance=0,
    max_grad_norm=0.25,
    noise_multiplier=0.8,
)

# Typed Any: what is replaced in them is no part of their interface.
finetune: Any = import_module("privimage.generators.training.finetune")
engine: Any = import_module("privimage.privacy.gradients.engine")
bookkeeping: Any = import_module("privimage.privacy.gradients.bookkeeping")


def scored(mechanism: DPSGDMechanism = MECHANISM, **settings: Any) -> CanaryScores:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (STAND_INS, 1, 4, 4), dtype=np.uint8)
    labels = generator.integers(0, 2, STAND_INS)
    return score_canaries(tiny_denoiser(), images, labels, mechanism, CONFIG, **{"random": SecretRandom(), **settings})


def audited() -> Audit:
    return audit(scored(), MECHANISM, DELTA)


# ------------------------------------------------------------------ the audit


def test_a_correct_step_stays_below_the_claim_in_twenty_audits() -> None:
    audits = [audited() for _ in range(20)]
    assert [found.verdict for found in audits if found.alarms] == []
    shown = [found.bounds[-1].epsilon / found.claimed for found in audits]
    assert np.mean(shown) > 0.3, "it does not look away"


def _without_clipping(patch: pytest.MonkeyPatch) -> None:
    for module in (bookkeeping, engine):  # in the second is the check that would refuse the first
        patch.setattr(module, "clip_factors", lambda norms, bound: torch.ones(len(norms)))


def _with_noise(share: float) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        def noisy(clipped: Any, mechanism: DPSGDMechanism, random: Any) -> Any:
            return noisy_mean_gradient(clipped, replace(mechanism, noise_multiplier=share * 0.8), random)

        patch.setattr(finetune, "noisy_mean_gradient", noisy)

    return plant


def _with_every_image_twice(patch: pytest.MonkeyPatch) -> None:
    real = finetune.poisson_batch
    patch.setattr(finetune, "poisson_batch", lambda *args: np.repeat(real(*args), 2))


@pytest.mark.parametrize(
    "plant",
    [_without_clipping, _with_noise(0.5), _with_noise(1e-9), _with_every_image_twice],
    ids=["no clipping", "half the noise", "no noise", "every image twice"],
)
def test_a_planted_fault_is_found_each_time(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for _ in range(5):
        assert audited().alarms


# ------------------------------------------------------------------ what canaries are


@pytest.mark.parametrize("backend", ["bookkeeping", "vmap", "opacus"])
def test_a_canary_adds_its_own_coordinate_at_the_clipping_bound_and_one_that_is_not_inserted_adds_nothing(
    backend: Backend,
) -> None:
    denoiser = CanaryDenoiser(tiny_denoiser(), 5)
    compute = replace(finetune.IN_THIS_PROCESS, backend=backend)
    work = PrivateSum(
        generator=denoiser,
        config=CONFIG.model_copy(update={"label_dropout": 0.0}),
        max_grad_norm=0.25,
        compute=compute,
    )
    work.check(1, 4)
    work.to(torch.device("cpu"))
    weights = torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])
    job = {
        "images": torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
        "labels": torch.tensor([3 + 2, 3 + 4, 3 + 5]),  # after two classes and "no label"; the last is not inserted
        "seed": torch.tensor([1]),
    }
    total = work.share(weights, job, 0, 1)
    table = dict(zip(work._named(total), work._named(total).values(), strict=True))["canaries.weight"].flatten()
    assert table.tolist() == pytest.approx([0, 0, 0.25, 0, 0.25], abs=1e-4)
    assert float(total.norm()) == pytest.approx(0.25 * 2**0.5, rel=1e-3)


def test_scores_are_what_the_steps_released_along_the_canaries() -> None:
    silent = replace(MECHANISM, noise_multiplier=1e-6)
    scores = scored(silent)
    counts = scores.sums.round()
    assert scores.sums == pytest.approx(counts, abs=1e-3)
    assert not counts[~scores.inserted].any()
    assert set(counts[scores.inserted]) <= {0.0, 1.0, 2.0, 3.0}
    assert counts[scores.inserted].mean() == pytest.approx(1.5, abs=0.3)
    assert scores.squares == pytest.approx(counts, abs=1e-2)


def test_coins_are_fair_and_fresh() -> None:
    one, other = (scored(replace(MECHANISM, num_steps=1)).inserted for _ in range(2))
    assert 140 < one.sum() < 260
    assert 140 < (one != other).sum() < 260


def test_labels_of_ordinary_images_mean_what_they_mean_without_canaries() -> None:
    plain = tiny_denoiser()
    watched = CanaryDenoiser(plain, 5)
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(3, 1, 4, 4, generator=generator) for _ in range(2))
    sigma, labels = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0, 1, 2])
    torch.testing.assert_close(watched.loss(x, noise, sigma, labels), plain.loss(x, noise, sigma, labels))


# ------------------------------------------------------------------ which mechanism


@pytest.mark.parametrize(("rate", "cap"), [((4096, 60_000), None), ((500, 1437), None), ((7, 7), None), ((40, 90), 60)])
def test_the_audited_mechanism_samples_and_adds_noise_as_the_audited_one(
    rate: tuple[int, int], cap: int | None
) -> None:
    whole = replace(
        MECHANISM, expected_batch_size=rate[0], num_images=rate[1], largest_batch_size=cap, restart_allowance=7
    )
    small = audited_mechanism(whole, canaries=1000, stand_ins=250, steps=9)
    assert small.sample_rate == pytest.approx(whole.sample_rate, rel=1e-3)
    assert 1000 <= small.num_images <= 1250
    assert (small.noise_multiplier, small.max_grad_norm) == (whole.noise_multiplier, whole.max_grad_norm)
    assert (small.num_steps, small.restart_allowance) == (9, 0)
    if cap:
        assert small.largest_batch_size == pytest.approx(cap / whole.num_images * small.num_images, abs=1)


def test_too_few_canaries_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="at least 100 canaries, found 99"):
        audited_mechanism(MECHANISM, canaries=99, stand_ins=10, steps=1)
    with pytest.raises(ConfigError, match="at least 100 canaries, found 40"):
        scored(replace(MECHANISM, num_images=STAND_INS + 40, expected_batch_size=28))
