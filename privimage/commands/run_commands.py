"""plan, run, stage."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from privimage.commands.shared import Commands, add_config, add_json, open_run, print_json, print_table
from privimage.errors import ConfigError
from privimage.machine.interrupts import stop_on_signals
from privimage.pipeline.stage import Stage
from privimage.pipeline.table import STAGES
from privimage.release.export import release_name
from privimage.running.plan import grant_in_words, plan_run
from privimage.running.runner import StageResult, run_all
from privimage.running.runs import Run
from privimage.store.artifacts import open_ref

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add the commands."""
    plan = commands.add_parser(
        "plan", help="what a run would do, reuse and cost; runs nothing; exit code 3 if it would be refused"
    )
    add_config(plan)
    add_json(plan)
    plan.set_defaults(command=_plan)

    run = commands.add_parser("run", help="run all stages, reusing what is there")
    add_config(run)
    run.add_argument("--until", metavar="STAGE", choices=[s.name for s in STAGES], help="stop after this stage")
    run.set_defaults(command=_run)

    stage = commands.add_parser("stage", help="run one stage (and what it needs); --draw N asks for another draw of it")
    stage.add_argument("name", metavar="NAME", choices=[s.name for s in STAGES], help="name of the stage")
    add_config(stage)
    stage.set_defaults(command=_stage)


def _plan(options: argparse.Namespace) -> int:
    run = open_run(options)
    plan = plan_run(run)
    code = plan.refused.exit_code if plan.refused else 0
    if options.json:
        shown = {name: value for name, value in asdict(plan).items() if name != "refused"}
        print_json({**shown, "refusal": plan.refusal})
        return code
    rows = [
        [
            row.stage,
            row.action,
            row.key[:12] if row.key else "(later)",
            "?" if row.epsilon is None else (f"{row.epsilon:.4g}" if row.epsilon else "-"),
            row.about,
        ]
        for row in plan.stages
    ]
    print_table(["stage", "action", "key", "of epsilon", "what"], rows)
    print(f"\nThis run states epsilon {plan.epsilon:g}, delta {plan.delta:g} in all.")
    print(grant_in_words(plan))
    return code


def _run(options: argparse.Namespace) -> int:
    return _execute(open_run(options, wait=True), options.until)


def _stage(options: argparse.Namespace) -> int:
    plain = [text for text in options.draw if text.isdigit()]
    if len(plain) > 1:
        raise ConfigError(f"--draw was given {len(plain)} numbers for one stage; give one.")
    options.draw = [f"{options.name}={text}" if text.isdigit() else text for text in options.draw]
    return _execute(open_run(options, wait=True), options.name)


def _execute(run: Run, until: str | None) -> int:
    """Run, one line a stage, and say at the end where things are."""

    def start(stage: Stage) -> None:
        print(f"{stage.name:<11} {stage.about} ...", file=sys.stderr, flush=True)

    def end(stage: Stage, result: StageResult) -> None:
        how = f"reused, made {result.written}" if result.reused else f"done in {result.seconds:.1f} s"
        print(f"{stage.name:<11} {how}  [{result.ref.key[:12]}]", file=sys.stderr, flush=True)

    with stop_on_signals(run.stop):
        results = run_all(run, until, start, end)
    artifacts = {name: open_ref(run.store, result.ref) for name, result in results.items()}
    if "evaluate" in artifacts:
        private = artifacts["evaluate"]
        place = (
            private.local("internal.html")
            if run.store.local_path("private")
            else f"{run.store.url}/private/artifacts/evaluate"
        )
        print(f"internal evaluation (private, not for release): {place}")
    if "release" in artifacts:
        folder = release_name(run.config.name, artifacts["release"])
        local = run.store.local_path(folder)
        print(f"release:  {local or f'{run.store.url}/{folder}'}")
        print(f"report:   {local / 'report.html' if local else f'{run.store.url}/{folder}/report.html'}")
    return 0
