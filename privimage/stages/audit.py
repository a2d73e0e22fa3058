"""Stage `audit`: fine-tuning once more, on public images and canaries, to see whether its epsilon can be refuted.

On the sensitive images this would be a second release, and cost as much as the first. On public ones it costs nothing,
and what it audits is the same: the network, the step, and the mechanism with the noise, rate and steps that were charged.
Nothing sensitive is read, so bounds and scores could be shown to anybody; only bounds are kept.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from privimage.config.run import RunConfig
from privimage.data.facts import public_facts
from privimage.data.table import read_images
from privimage.errors import PrivacyRefused
from privimage.generators.diffusion.canaries import audited_mechanism, score_canaries, tiny_denoiser
from privimage.generators.diffusion.kind import denoiser_for_finetuning, settings_of
from privimage.generators.training.compute import ComputeSettings
from privimage.machine.device import choose_device, choose_precision
from privimage.machine.progress import Progress
from privimage.methods.generators.diffusion import DiffusionFinetune
from privimage.methods.training import LearnsByGradients
from privimage.payloads import AuditFound, GeneratorAbout
from privimage.pipeline.stage import Outcome, StageContext
from privimage.privacy.audit import Audit, audit
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.reports.figures import Figure
from privimage.store.artifacts import Artifact

__all__ = ["QUICK_STAND_INS", "audit_figures", "audit_found", "check_audit", "mechanism_of", "quick_audit", "run"]

# Of the quick audit: a U-Net on images of 4 x 4 pixels, so that steps take milliseconds.
QUICK_STAND_INS = 100


def run(context: StageContext) -> Outcome:
    """Writes audit.json: the audited mechanism, the claim, and the bounds.

    It keeps no checkpoint: where it is stopped, it begins anew, with new coins.

    Raises:
        PrivacyRefused: a bound contradicts the claim; nothing is published, and no release is made.
    """
    config, settings = context.config, context.config.audit
    mechanism = mechanism_of(context.inputs["finetune"])
    public = context.inputs["public"]
    num_public = public_facts(public).num_images
    audited = audited_mechanism(
        mechanism,
        canaries=settings.canaries,
        stand_ins=min(settings.stand_ins, num_public),
        steps=settings.num_steps or mechanism.num_steps,
    )
    denoiser, compute = denoiser_for_finetuning(config, context.inputs)
    rows = np.linspace(0, num_public - 1, audited.num_images - settings.canaries).astype(np.int64)
    images, categories = read_images(public.files("images-"), rows)
    ticker = context.progress.ticker("audit", audited.num_steps)
    with context.stop.answered_between_steps(), ticker as tick:

        def on_step(step: int) -> None:
            tick(step)
            context.stop.check()

        scores = score_canaries(
            denoiser,
            images,
            categories % denoiser.num_classes,
            audited,
            settings_of(config.generator).finetune,
            random=SecretRandom(),
            on_step=on_step,
            compute=compute,
        )
    found = audit(scores, audited, config.privacy.delta)
    check_audit(found)
    audit_found(found, audited).write(context.folder)
    return Outcome(metrics={"claimed": found.claimed, "largest_bound": max(bound.epsilon for bound in found.bounds)})


def quick_audit(config: RunConfig, audited: DPSGDMechanism, *, canaries: int, progress: Progress) -> Audit:
    """The real step as `audited_mechanism` gives it, on a tiny network and made-up images; costs nothing."""
    generator = np.random.default_rng(0)
    stand_ins = audited.num_images - canaries
    images = generator.integers(0, 256, (stand_ins, 1, 4, 4), dtype=np.uint8)
    settings = config.generator
    rate = settings.finetune.learning_rate if isinstance(settings, LearnsByGradients) else 1e-3
    with progress.ticker("audit", audited.num_steps) as tick:
        scores = score_canaries(
            tiny_denoiser(),
            images,
            generator.integers(0, 2, stand_ins),
            audited,
            # One draw: how many an image has changes the time, not what is clipped.
            DiffusionFinetune(learning_rate=rate, noise_samples=1),
            random=SecretRandom(),
            on_step=tick,
            compute=ComputeSettings(
                backend=config.performance.per_image_gradients,
                precision=choose_precision(config.performance, choose_device("cpu")),
            ),
        )
    return audit(scores, audited, config.privacy.delta)


def check_audit(found: Audit) -> None:
    """Raise PrivacyRefused if a bound contradicts the claim."""
    if found.alarms:
        raise PrivacyRefused(found.verdict)


def mechanism_of(finetune: Artifact) -> DPSGDMechanism:
    """The mechanism that fine-tuning ran."""
    told = GeneratorAbout.read(finetune).mechanism or {}
    return DPSGDMechanism(**{name: value for name, value in told.items() if name != "sample_rate"})


def audit_found(found: Audit, mechanism: DPSGDMechanism) -> AuditFound:
    """All that an audit says, for machines."""
    return AuditFound(
        claimed=found.claimed,
        delta=found.delta,
        canaries=found.canaries,
        mechanism=asdict(mechanism),
        bounds=tuple(asdict(bound) for bound in found.bounds),
        alarm=bool(found.alarms),
        verdict=found.verdict,
    )


def audit_figures(artifact: Artifact) -> list[Figure]:
    """For the report: public, since nothing sensitive went in."""
    told = AuditFound.read(artifact)
    claim = f"claimed {told.claimed:.4g} for {told.mechanism['num_steps']:,} steps"
    return [
        Figure(
            name=f"Audit: epsilon is at least, by {bound['name']}",
            value=f"{bound['epsilon']:.3g}",
            note=f"{claim}; {told.canaries:,} canaries on public images, confidence {bound['confidence']:.6g}; "
            f"assumes: {bound['assumption']}",
            kind="public",
        )
        for bound in told.bounds
    ]
