"""The quick audit: how long it takes and what it shows, of a correct step and of one with half the noise; memorization.

    python -m benchmarks.audit

Fine-tuning is 2,000 steps of 4,096 expected images of 50,000, for epsilon 10 and 1; the audit is `privimage audit`'s, with
its default of 1,000 canaries, through the real step. Memorization compares 10,000 synthetic images with 60,000 training and
10,000 test images of 28 x 28 random pixels. The last line is one JSON object.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from importlib import import_module
from typing import Any

import dp_accounting as dpa
import numpy as np

from privimage.evaluation.memorization import memorization
from privimage.generators.diffusion.canaries import audited_mechanism, score_canaries, tiny_denoiser
from privimage.methods.generators.diffusion import DiffusionFinetune
from privimage.privacy.accounting import calibrate_noise_multiplier
from privimage.privacy.audit import audit
from privimage.privacy.dpsgd import noisy_mean_gradient
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.mechanisms import DPSGDMechanism

DELTA = 1e-5
CANARIES, STAND_INS = 1000, 100

finetune: Any = import_module("privimage.generators.training.finetune")


def quick(mechanism: DPSGDMechanism, share_of_noise: float) -> dict[str, Any]:
    """One audit through the real step, which adds this share of the noise."""

    def noisy(clipped: Any, told: DPSGDMechanism, random: Any) -> Any:
        return noisy_mean_gradient(
            clipped, replace(told, noise_multiplier=share_of_noise * told.noise_multiplier), random
        )

    audited = audited_mechanism(mechanism, canaries=CANARIES, stand_ins=STAND_INS, steps=mechanism.num_steps)
    generator = np.random.default_rng(0)
    num = audited.num_images - CANARIES
    begun, used = time.monotonic(), time.process_time()
    finetune.noisy_mean_gradient = noisy
    scores = score_canaries(
        tiny_denoiser(),
        generator.integers(0, 256, (num, 1, 4, 4), dtype=np.uint8),
        generator.integers(0, 2, num),
        audited,
        DiffusionFinetune(noise_samples=1),
        random=SecretRandom(),
    )
    found = audit(scores, audited, DELTA)
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "processor_seconds": round(time.process_time() - used, 1),
        "claimed": round(found.claimed, 3),
        **{bound.name: round(bound.epsilon, 3) for bound in found.bounds},
        "alarm": bool(found.alarms),
    }


def compared() -> dict[str, float]:
    """Seconds and peak memory of memorization."""
    generator = np.random.default_rng(0)
    sets = [generator.random((num, 784), dtype=np.float32) for num in (10_000, 60_000, 10_000)]
    begun = time.monotonic()
    memorization(*sets)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(time.monotonic() - begun, 1), "peak_mb": round(peak)}


def main() -> None:
    found: dict[str, Any] = {"memorization": compared()}
    print(f"memorization: {found['memorization']}", flush=True)
    for epsilon in (10.0, 1.0):
        whole = DPSGDMechanism(
            num_images=50_000,
            expected_batch_size=4096,
            num_steps=2000,
            restart_allowance=0,
            max_grad_norm=1e-3,
            noise_multiplier=1.0,
        )
        noise = _calibrated(whole, epsilon)
        for share in (1.0, 0.5):
            name = f"epsilon {epsilon:g}, {share:g} of the noise"
            found[name] = quick(replace(whole, noise_multiplier=noise), share)
            print(f"{name}: {found[name]}", flush=True)
    print(json.dumps(found))


def _calibrated(mechanism: DPSGDMechanism, epsilon: float) -> float:
    """The noise multiplier with which a mechanism costs `epsilon`."""

    def event(noise_multiplier: float) -> dpa.DpEvent:
        return replace(mechanism, noise_multiplier=noise_multiplier).event

    return calibrate_noise_multiplier(event, epsilon=epsilon, delta=DELTA, prior=[])


if __name__ == "__main__":
    main()
