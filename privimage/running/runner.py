"""Running one stage: key -> published already? -> charge -> run or resume -> publish -> settle.

What is common to all stages is done here, once. A stage that is killed anywhere leaves a store in which the same call
goes on: nothing published is run again, nothing charged is forgotten, nothing is charged twice.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from privimage.data.facts import SensitiveFacts, TableFacts, public_facts, sensitive_facts
from privimage.data.marks import DIGESTS_FILE, read_digests
from privimage.errors import PrivacyRefused, PrivimageError, Uncharged
from privimage.machine.progress import Interruptible, Progress
from privimage.pipeline.preflight import check_against_data
from privimage.pipeline.stage import Outcome, Stage, StageContext
from privimage.pipeline.table import stage_of, stages_until
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.ledger import Ledger
from privimage.release.code import code_digest
from privimage.running.charging import Door, Payment, check_paid, pay
from privimage.running.declared import (
    check_declared,
    check_holds_nothing_sensitive,
    check_may_be_admitted,
    check_may_be_published,
    public_sets_of,
)
from privimage.running.jobs import collect_parts, jobs_for
from privimage.running.ledgers import bind_ledger, ledger_of
from privimage.running.plan import check_affordable
from privimage.running.rollback import check_not_rolled_back
from privimage.running.runs import Run, stage_key
from privimage.store.artifacts import Artifact, ArtifactRef, find, open_ref, publish
from privimage.store.checkpoints import Checkpoints
from privimage.store.files import Store
from privimage.store.scratch import scratch_folder

__all__ = ["Run", "StageResult", "check_run", "run_all", "run_stage", "stage_key", "write_private"]

PACKAGES = ("privimage", "torch", "numpy", "pyarrow", "opacus", "dp-accounting", "opendp")


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The artifact of a stage, and whether it was there already (since `written`) or was made now."""

    ref: ArtifactRef
    reused: bool
    written: str
    seconds: float


def run_all(
    run: Run,
    until: str | None = None,
    on_start: Callable[[Stage], None] = lambda stage: None,
    on_end: Callable[[Stage, StageResult], None] = lambda stage, result: None,
) -> dict[str, StageResult]:
    """Run, or reuse, every stage that `until` needs (None: all), in order."""
    results: dict[str, StageResult] = {}
    check_affordable(run, until)
    for stage in stages_until(until, run.config):
        run.stop.check()
        on_start(stage)
        results[stage.name] = run_stage(stage.name, run, {name: results[name].ref for name in stage.inputs})
        on_end(stage, results[stage.name])
        if stage.name == "admit" and "public" in results:
            check_run(run, results["public"].ref, results["admit"].ref, until)
    return results


def check_run(run: Run, public: ArtifactRef, admit: ArtifactRef, until: str | None = None) -> None:
    """Raise before hours of training, not after: configuration and data contradict each other, the ledger would refuse, or
    no release could come of it (`stages/rehearsal.py`).

    The charge of each private stage checks the same again, before it spends.

    Raises:
        InputError: configuration and admitted data contradict each other.
        PrivacyRefused: the owner of the images granted no budget, or too little for what `until` needs, or for another form of
            admission, or did not declare the public set; or the images are charged to another ledger.
        StoreError: there is too little room for the release.
    """
    check_not_rolled_back(run.store)
    admitted_now = open_ref(run.store, admit)
    facts = public_facts(open_ref(run.store, public))
    sensitive = sensitive_facts(admitted_now)
    check_against_data(run.config, facts, sensitive)
    ledger = ledger_of(run.store, sensitive, run.config.sensitive.shared_ledger)
    privacy = run.config.privacy
    ledger.check_granted(epsilon=privacy.epsilon, delta=privacy.delta, num_images=sensitive.num_train)
    check_declared(run.store, run.config.sensitive, sensitive, admitted_now, [facts])
    if check_affordable(run, until).charges:
        _rehearse(run, facts, sensitive)


def _rehearse(run: Run, public: TableFacts, sensitive: SensitiveFacts) -> None:
    from privimage.running.rehearsal import rehearse_release  # torch is loaded where something is to be computed only

    rehearse_release(run.config, sensitive, public, run.store)


def run_stage(name: str, run: Run, inputs: Mapping[str, ArtifactRef]) -> StageResult:
    """Make the artifact of stage `name`, or find it.

    Guarantee: what a private stage releases was charged before a sensitive image was opened, with the mechanism that
    ran; an artifact is reused only if the ledger holds the entries that paid for it.

    Raises:
        PrivacyRefused: no grant, or too small a one; or an artifact that this ledger never paid for.
        ArtifactDamaged: the artifact, or one of its inputs, is not what its manifest says.
        InputError: configuration or data cannot be used.
    """
    stage = stage_of(name, run.config)
    opened = {source: open_ref(run.store, inputs[source]) for source in stage.inputs}
    sealed = [artifact for artifact in opened.values() if artifact.ref.sealed]
    facts = sensitive_facts(sealed[0]) if sealed else None
    ledger = ledger_of(run.store, facts, run.config.sensitive.shared_ledger) if facts else None
    key = stage_key(stage, run, {source: artifact.ref.digest for source, artifact in opened.items()})
    existing = _reused(run, stage, key, ledger)
    if existing is not None:
        return existing
    with run.turn(stage):
        # Looked up again: while it waited for its turn, another run may have made it.
        return _reused(run, stage, key, ledger) or _make(run, stage, key, opened, facts, ledger)


def _make(
    run: Run,
    stage: Stage,
    key: str,
    opened: Mapping[str, Artifact],
    facts: SensitiveFacts | None,
    ledger: Ledger | None,
) -> StageResult:
    """Charge, run or resume, publish, settle."""
    if stage.admits == "sensitive" and not run.as_steward:
        check_may_be_admitted(run.store, run.config.sensitive)
    sealed = [artifact for artifact in opened.values() if artifact.ref.sealed]
    started = time.monotonic()
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    with scratch_folder(run.store) as folder:
        try:
            payment = _pay(stage, key, run, opened, facts, ledger) if stage.charge else None
        except PrivacyRefused:
            # Another process may have published it since: then there is nothing to refuse.
            existing = _reused(run, stage, key, ledger)
            if existing is not None:
                return existing
            raise
        door = Door(stage, sealed, payment.live if payment else None, spill=folder)
        context = _context(run, stage, key, opened, facts, ledger, folder, payment, door)
        outcome = _run_guarded(stage, context, door, payment)
        if stage.admits == "public":
            _check_publishable(run, folder)
        seconds = time.monotonic() - started
        artifact = publish(
            run.store,
            stage=stage.name,
            version=stage.version,
            key=key,
            draw=run.draws.get(stage.name, 1),
            sealed=stage.sealed,
            folder=folder,
            config=stage.fields(run.config),
            inputs={source: item.ref for source, item in opened.items()},
            metrics=outcome.metrics,
            reservations=payment.paid.reservations if payment else (),
            provenance=_provenance(run, begun, seconds),
        )
    if stage.charge:
        check_paid(artifact, ledger)
    if stage.finish:
        stage.finish(run.config, run.store, artifact)
    _clear_checkpoints(run.store, stage, key)
    return StageResult(ref=artifact.ref, reused=False, written=artifact.manifest.written, seconds=seconds)


def _context(
    run: Run,
    stage: Stage,
    key: str,
    opened: Mapping[str, Artifact],
    facts: SensitiveFacts | None,
    ledger: Ledger | None,
    folder: Path,
    payment: Payment | None,
    door: Door,
) -> StageContext:
    """What the stage is given: no sealed input, and of sensitive images the door alone."""
    # What was charged is not broken off: fine-tuning answers by itself, and the query runs in one go.
    progress = run.progress if stage.charge else Interruptible(run.progress, run.stop.check)
    return StageContext(
        config=run.config,
        key=key,
        inputs={source: artifact for source, artifact in opened.items() if not artifact.ref.sealed},
        facts=facts,
        ledger=ledger,
        folder=folder,
        store=run.store,
        progress=progress,
        paid=payment.paid if payment else None,
        private_images=door,
        make_parts=lambda ranges: _parts(run, stage, key, opened, ranges, progress, folder),
        write_private=lambda title, text: write_private(run.store, title, text),
        stop=run.stop,
    )


def _check_publishable(run: Run, folder: Path) -> None:
    """Raise before a table that was said to be public becomes one that everybody reads, if it should not."""
    if run.as_steward:
        digests = read_digests(folder / DIGESTS_FILE)
        check_holds_nothing_sensitive(run.store, digests, lambda title, text: write_private(run.store, title, text))
    else:
        check_may_be_published(run.store, folder)


def _parts(
    run: Run,
    stage: Stage,
    key: str,
    opened: Mapping[str, Artifact],
    ranges: Sequence[range],
    progress: Progress,
    folder: Path,
) -> list[Path]:
    """Have the parts of a public stage made; their files."""
    if stage.make_part is None or stage.charge or any(artifact.ref.sealed for artifact in opened.values()):
        raise Uncharged(f"Stage {stage.name} is not public, or not made in parts: no other machine may help with it.")
    inputs = {source: artifact.ref for source, artifact in opened.items()}
    jobs = jobs_for(run.store, stage.name, key, run.config, inputs, ranges)
    return collect_parts(run.store, jobs, run.map_jobs, progress, folder)


def _reused(run: Run, stage: Stage, key: str, ledger: Ledger | None) -> StageResult | None:
    """The artifact, if it is there and paid for."""
    existing = find(run.store, stage.name, key, stage.sealed)
    if existing is None:
        return None
    existing.check_sizes()
    if stage.charge:
        check_paid(existing, ledger)
    if stage.finish:
        stage.finish(run.config, run.store, existing)
    _clear_checkpoints(run.store, stage, key)
    return StageResult(ref=existing.ref, reused=True, written=existing.manifest.written, seconds=0.0)


def _pay(
    stage: Stage,
    key: str,
    run: Run,
    opened: Mapping[str, Artifact],
    facts: SensitiveFacts | None,
    ledger: Ledger | None,
) -> Payment:
    """Charge a private stage, once everything that could fail for another reason was looked at."""
    run.store.probe()
    check_not_rolled_back(run.store)
    for artifact in opened.values():
        artifact.files()  # verified now, because a damaged input must not be found after the charge
    if stage.charge is None or ledger is None or facts is None:
        raise Uncharged(f"Stage {stage.name} is private but has no admitted images as input.")
    public = {source: artifact for source, artifact in opened.items() if not artifact.ref.sealed}
    origins = public_sets_of(public.values())
    if not origins:
        raise Uncharged(f"Stage {stage.name} goes back to no public images: nothing was charged.")
    if not ledger.open_reservations(stage.name, key):
        _rehearse(run, origins[0], facts)
    if stage.rehearse:
        stage.rehearse(run.config, public)
    bind_ledger(run.store, facts, run.config.sensitive.shared_ledger)
    (admit,) = (artifact for artifact in opened.values() if artifact.ref.sealed)
    if ledger.grant_entry:  # else the charge is refused for that
        check_declared(run.store, run.config.sensitive, facts, admit, origins)
    return pay(
        stage.name,
        key,
        stage.charge(run.config, key, public, facts, ledger),
        ledger,
        run_name=run.config.name,
        latest_checkpoint=lambda: _latest_step(run.store, stage, key),
        random=run.insecure_random_voiding_guarantee or SecretRandom(),
    )


def _run_guarded(stage: Stage, context: StageContext, door: Door, payment: Payment | None) -> Outcome:
    """Run a stage; what was reserved for nothing is given back, and no foreign error message carries a private value.

    An error of torch or the operating system may tell the size of a Poisson batch or the name of a sensitive file. Where
    sensitive images may be open, its text goes below `private/`, and a plain sentence is raised in its place.
    """
    try:
        return stage.run(context)
    except BaseException as error:
        if payment and not door.opened:
            payment.give_back("the stage failed before it opened a sensitive image")
        foreign = isinstance(error, Exception) and not isinstance(error, PrivimageError)
        if not foreign or not (door.opened or stage.sealed):
            raise
        failure = traceback.format_exc()
    place = context.write_private(stage.name, failure)
    raise PrivimageError(
        f"Stage {stage.name} failed where sensitive images are open. The error, which is private, is in {place}"
    )


def write_private(store: Store, title: str, text: str) -> str:
    """Put a text where only the private side reads; its place."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    name = f"private/problems/{stamp}-{secrets.token_hex(4)}-{title}.txt"
    # A traceback may name a file whose name is no UTF-8, which is no reason to lose it.
    store.create(name, text.encode(errors="backslashreplace"))
    local = store.local_path(name)
    return str(local) if local else f"{store.url}/{name}"


def _latest_step(store: Store, stage: Stage, key: str) -> int:
    checkpoint = Checkpoints(store, stage.name, key, sealed=True).latest()
    return checkpoint.step if checkpoint else 0


def _clear_checkpoints(store: Store, stage: Stage, key: str) -> None:
    for sealed in (False, True):
        Checkpoints(store, stage.name, key, sealed).clear()


def _provenance(run: Run, begun: str, seconds: float) -> dict[str, Any]:
    return {
        "begun": begun,
        "seconds": round(seconds, 3),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count() or 0,
        "packages": {package: version(package) for package in PACKAGES},
        "code": code_digest(),
        **json.loads(json.dumps(dict(run.provenance))),
    }
