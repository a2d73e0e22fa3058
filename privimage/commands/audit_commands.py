"""audit."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from privimage.commands.shared import Commands, add_config, add_json, open_run, print_json, print_table
from privimage.data.facts import public_facts, sensitive_facts
from privimage.errors import ConfigError
from privimage.methods.training import LearnsByGradients
from privimage.pipeline.plans import planned_finetune
from privimage.pipeline.preflight import check_against_data
from privimage.running.plan import look_up
from privimage.running.runner import run_all
from privimage.running.runs import Run
from privimage.store.artifacts import open_ref

if TYPE_CHECKING:
    from privimage.privacy.mechanisms import DPSGDMechanism

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add the command."""
    audit = commands.add_parser(
        "audit",
        help="try to refute the run's epsilon: canaries through the real DP-SGD step on a tiny network; costs no budget",
    )
    add_config(audit)
    add_json(audit)
    audit.add_argument(
        "--canaries", type=int, default=1000, metavar="N", help="made-up images, at least 100; more show more (1000)"
    )
    audit.add_argument("--steps", type=int, metavar="N", help="steps to audit (as many as fine-tuning has)")
    audit.set_defaults(command=_audit)


def _audit(options: argparse.Namespace) -> int:
    from privimage.generators.diffusion.canaries import audited_mechanism
    from privimage.stages.audit import QUICK_STAND_INS, audit_found, check_audit, quick_audit

    if options.steps is not None and options.steps < 1:
        raise ConfigError(f"--steps {options.steps}: expected at least 1.")
    run = open_run(options)
    mechanism = _mechanism(run)
    audited = audited_mechanism(
        mechanism,
        canaries=options.canaries,
        stand_ins=QUICK_STAND_INS,
        steps=options.steps or mechanism.num_steps,
    )
    found = quick_audit(run.config, audited, canaries=options.canaries, progress=run.progress)
    if options.json:
        print_json(audit_found(found, audited).model_dump(mode="json"))
    else:
        print(
            f"Fine-tuning's step: noise multiplier {audited.noise_multiplier:.4g}, sampling rate "
            f"{audited.sample_rate:.4g}, {audited.num_steps:,} steps; {found.canaries:,} canaries.\n"
            f"Claimed: epsilon {found.claimed:.4g} at delta {found.delta:g}.\n"
        )
        print_table(
            ["bound", "epsilon at least", "confidence", "assumes"],
            [
                [bound.name, f"{bound.epsilon:.3g}", f"{bound.confidence:.2%}", bound.assumption]
                for bound in found.bounds
            ],
        )
        if not found.alarms:
            print(f"\n{found.verdict}")
    check_audit(found)
    return 0


def _mechanism(run: Run) -> DPSGDMechanism:
    """Fine-tuning's mechanism: the one that ran if it did, or else the one that is planned. Admits the images."""
    from privimage.privacy.mechanisms import DPSGDMechanism
    from privimage.stages.audit import mechanism_of

    if not isinstance(run.config.generator, LearnsByGradients):
        raise ConfigError(
            f"The audit is of DP-SGD's step, and a generator of kind {run.config.generator.kind} takes none: its one mechanism is a "
            "noisy sum. Nothing to audit."
        )
    public = open_ref(run.store, run_all(run, "public")["public"].ref)
    facts = sensitive_facts(open_ref(run.store, run_all(run, "admit")["admit"].ref))
    ran = look_up(run, "finetune")[0]["finetune"]
    if ran:
        return mechanism_of(ran)
    categories = public_facts(public)
    check_against_data(run.config, categories, facts)
    planned = planned_finetune(run.config, facts, len(categories.class_names))
    if not isinstance(planned, DPSGDMechanism):
        raise ConfigError(
            "The audit is of DP-SGD's step, and this run's fine-tuning takes none: there is nothing to audit."
        )
    return planned
