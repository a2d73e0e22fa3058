"""Running a suite: a budget that holds all of its runs, then one run after the other, and the table after each.

Its figures are computed from sensitive images without a charge (`evaluate`). They are written below `private/`, marked
as internal. Only a suite that declares its sensitive sets to be public may hand them out, or grant its own budget.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks.harness.results import OWN, Row, empty_row, plots, row_of, table
from benchmarks.harness.suite import Cell, Part, Suite, cells_in, cells_of, first_charged
from privimage.data.facts import SensitiveFacts, TableFacts, public_facts, sensitive_facts
from privimage.errors import BudgetExceeded, DataError, PrivacyRefused, PrivimageError, Stopped
from privimage.machine.interrupts import StopRequest
from privimage.machine.progress import Progress, Silent
from privimage.pipeline.plans import plan_id, run_plan
from privimage.pipeline.preflight import check_against_data
from privimage.privacy.budget import Plan, share_of_grant
from privimage.privacy.ledger import Ledger
from privimage.privacy.renyi import best_order
from privimage.reports.figures import INTERNAL
from privimage.running.granting import grant
from privimage.running.ledgers import ledger_of
from privimage.running.plan import look_up
from privimage.running.runner import run_all
from privimage.running.runs import Run
from privimage.store.artifacts import open_ref
from privimage.store.files import Store

__all__ = [
    "WHOLE",
    "Estimate",
    "Prepared",
    "check_public",
    "estimate",
    "hand_out",
    "prepare",
    "results_folder",
    "run_of",
    "run_suite",
    "write_results",
]

WHOLE = Part()
STAND_INS = "Figures of public sets that stand in for sensitive ones; no budget was paid for them"
_OF_A_GENERATOR = tuple(name for name in OWN if name != "synthesize")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What can be run, and what cannot: data sets that are skipped, each with a reason."""

    cells: tuple[Cell, ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a run will take: 0 if it is there; from its like, or from the suite, or unknown."""

    cell: Cell
    done: bool
    seconds: float | None


def run_of(cell: Cell, store: Store, progress: Progress | None = None, stop: StopRequest | None = None) -> Run:
    """The run of a cell; all runs of a suite share the store, and with it all public stages that are the same."""
    return Run(
        config=cell.config,
        store=store,
        draws=cell.draws,
        progress=progress or Silent(),
        stop=stop or StopRequest(),
        provenance={"benchmark": cell.label},
    )


def prepare(
    suite: Suite, store: Store, progress: Progress | None = None, *, part: Part = WHOLE, dry: bool = False
) -> Prepared:
    """Admit all images of a part, and see to it that each of its data sets has a grant that holds its generators.

    Nothing is charged. A data set whose images are missing, or cannot be used, is skipped. `dry`: nothing is admitted
    or granted either; only of sets that were admitted before the budget is looked at.

    Raises:
        ConfigError: a configuration contradicts its data, or the part names what the suite does not have.
        BudgetExceeded: the budget does not hold all runs; the message says what they take.
        PrivacyRefused: a data set has no grant, and the suite does not say that it is public.
    """
    cells = cells_in(suite, part)
    skipped: dict[str, str] = {}
    admissions: dict[str, tuple[SensitiveFacts, TableFacts]] = {}
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        own = [cell for cell in cells if cell.dataset == dataset]
        try:
            run = replace(run_of(own[0], store, progress), as_steward=suite.public_stand_ins)
            found = _admitted(run, dry)
        except DataError as error:
            skipped[dataset] = " ".join(str(error).split())
            continue
        if found:
            admissions[dataset] = found
    # All are looked at before one is granted anything.
    budgets = [
        _fitting(suite, store, [cell for cell in cells if cell.dataset == dataset], *found)
        for dataset, found in admissions.items()
    ]
    for cell, ledger in budgets:
        if ledger.grant_entry is None and not dry:
            grant(
                run_of(cell, store, progress), epsilon=suite.budget, delta=cell.config.privacy.delta, name=cell.dataset
            )
    return Prepared(cells=tuple(cell for cell in cells if cell.dataset not in skipped), skipped=skipped)


def _admitted(run: Run, dry: bool) -> tuple[SensitiveFacts, TableFacts] | None:
    """Facts of both image sets; None where they are not there, and nothing is to be made."""
    if dry:
        there = {name: look_up(run, name)[0][name] for name in ("public", "admit")}
    else:
        there = {name: open_ref(run.store, run_all(run, name)[name].ref) for name in ("public", "admit")}
    public, admit = there["public"], there["admit"]
    if public is None or admit is None:
        return None
    return sensitive_facts(admit), public_facts(public)


def _fitting(
    suite: Suite, store: Store, cells: Sequence[Cell], facts: SensitiveFacts, public: TableFacts
) -> tuple[Cell, Ledger]:
    """One of the runs, and the ledger, if its grant holds all that were not opened yet, a plan for each generator."""
    dataset, config = cells[0].dataset, cells[0].config
    ledger = ledger_of(store, facts, config.sensitive.shared_ledger)
    delta = config.privacy.delta
    if ledger.grant_entry is None and not suite.public_stand_ins:
        raise PrivacyRefused(
            f"Data set {dataset} has no grant, and suite {suite.name} does not say that its sensitive sets are public "
            f"(public_stand_ins): their owner has to grant epsilon {suite.budget:g}, delta {delta:g} first."
        )
    for cell in cells:
        check_against_data(cell.config, public, facts)

    @cache
    def intended(method: str, epsilon: float) -> Plan:
        (config, *_) = (c.config for c in cells if (c.method, c.epsilon) == (method, epsilon))
        return run_plan(config, "", facts, len(public.class_names))

    opened = {plan.id for plan in ledger.spent().plans}
    generators = {cell.draws["finetune"]: cell for cell in cells}.values()
    ahead = [intended(cell.method, cell.epsilon) for cell in generators if _plan_of(cell, store) not in opened]
    grant = ledger.grant_entry.body if ledger.grant_entry else _granted(suite.budget, delta)
    spent = ledger.spent().share

    def taken(grant: Mapping[str, float]) -> float:
        return sum(share_of_grant(grant, plan.intends) for plan in ahead)

    if ahead and (found := spent + taken(grant)) > 1 + 1e-9:
        enough = suite.budget
        while ledger.grant_entry is None and taken(_granted(enough, delta)) > 1:
            enough *= 1.05
        advice = "the grant is for good: use another store" if ledger.grant_entry else f"set budget to {enough:.3g}"
        raise BudgetExceeded(
            f"The {len(ahead)} generators on {dataset} that are left would spend {taken(grant):.0%} of the grant of "
            f"epsilon {grant['epsilon']:g}, delta {grant['delta']:g}, of which {max(1 - spent, 0):.0%} is left "
            f"({found:.0%} in all): {advice}, or run fewer. Nothing was charged."
        )
    return cells[0], ledger


def _granted(epsilon: float, delta: float) -> dict[str, float]:
    """What a grant would be."""
    return {"epsilon": epsilon, "delta": delta, "order": best_order(epsilon, delta)}


def _plan_of(cell: Cell, store: Store) -> str | None:
    """The plan that a run opens, as far as it can be known: it is named after the first stage that is charged."""
    first = first_charged(cell.config)
    key = look_up(run_of(cell, store), first)[1][first]
    return plan_id(key) if key else None


def estimate(suite: Suite, cells: Sequence[Cell], store: Store) -> list[Estimate]:
    """How long each run will take: what its missing stages took in a run like it, else what the suite says of a run.

    A generator that several runs sample from is counted with the first of them.
    """
    rows = {cell.label: row_of(cell, run_of(cell, store)) for cell in cells}
    known = {(row.dataset, row.method): row.seconds for row in rows.values() if row.seconds}
    trained: set[tuple[str, int]] = set()

    def ahead(cell: Cell) -> float | None:
        found, _ = look_up(run_of(cell, store))
        there = {name for name, artifact in found.items() if artifact}
        generator = (cell.dataset, cell.draws["finetune"])
        if generator in trained:
            there.update(_OF_A_GENERATOR)
        trained.add(generator)
        like = known.get((cell.dataset, cell.method))
        if like is None:
            return suite.datasets[cell.dataset].seconds
        return sum(like.get(name, 0.0) for name in (*OWN, "downstream", "evaluate") if name not in there)

    return [
        Estimate(cell=cell, done=(done := rows[cell.label].status == "done"), seconds=0.0 if done else ahead(cell))
        for cell in cells
    ]


def run_suite(
    suite: Suite,
    store: Store,
    execute: Callable[[Cell], object],
    *,
    part: Part = WHOLE,
    progress: Progress | None = None,
    note: Callable[[str], object] = lambda text: None,
) -> list[Row]:
    """Run, or find, every run of a part, and write the suite's table after each; an interrupted suite goes on.

    A run that fails is a row that says why, and does not end the suite; neither does a data set that is missing. The
    table and the rows are of the whole suite: what other processes have made by then is in them.

    Args:
        execute: makes a run, in this store.

    Raises:
        Stopped: it was asked to stop.
        PrivimageError: as for `prepare`.
    """
    prepared = prepare(suite, store, progress, part=part)
    rows = _looked_up(suite, store, prepared.skipped, {})
    for number, cell in enumerate(prepared.cells, 1):
        at = f"[{number}/{len(prepared.cells)}] {cell.label}"
        if rows[cell.label].status == "done":
            note(f"{at}: there already")
            continue
        note(f"{at} ...")
        rows[cell.label] = row = _made(cell, store, execute)
        note(f"  {row.status}{f': {row.why}' if row.why else ''}")
        rows = _looked_up(suite, store, prepared.skipped, rows)
        write_results(suite, list(rows.values()), store)
    write_results(suite, list(rows.values()), store)
    return list(rows.values())


def _looked_up(suite: Suite, store: Store, skipped: Mapping[str, str], known: Mapping[str, Row]) -> dict[str, Row]:
    """The row of each run of the suite; what is known to have ended is not looked up."""
    ended = {label: row for label, row in known.items() if row.status != "not run"}
    return {cell.label: ended.get(cell.label) or _found(cell, store, skipped) for cell in cells_of(suite)}


def _found(cell: Cell, store: Store, skipped: Mapping[str, str]) -> Row:
    if why := skipped.get(cell.dataset):
        return empty_row(cell, "skipped", why)
    try:
        return row_of(cell, run_of(cell, store))
    except DataError as error:
        # Of a data set that is not in this part, and was not looked for.
        return empty_row(cell, "not run", " ".join(str(error).split()))


def _made(cell: Cell, store: Store, execute: Callable[[Cell], object]) -> Row:
    try:
        execute(cell)
    except Stopped:
        raise
    except PrivimageError as error:
        return row_of(cell, run_of(cell, store), "failed", " ".join(str(error).split()))
    return row_of(
        cell, run_of(cell, store), "failed", "it ended without an error, and some of its stages are not there"
    )


def results_folder(suite: Suite) -> str:
    """Where a suite's table lies in the store: always on the private side."""
    return f"private/benchmarks/{suite.name}"


def write_results(suite: Suite, rows: Sequence[Row], store: Store) -> str:
    """Write table.md, table.json and plots below `private/`, in the place of earlier ones; the folder's name."""
    folder = results_folder(suite)
    notice = STAND_INS if suite.public_stand_ins else f"{INTERNAL}. Not for release"
    files = _files(suite, rows, notice, lambda row: f"../../../{row.release}/certificate.json")
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in files.items():
            file = Path(scratch, name)
            file.touch(mode=0o600)
            file.write_bytes(data)
            store.upload(file, f"{folder}/{name}")
    return folder


def hand_out(suite: Suite, rows: Sequence[Row], store: Store, folder: Path) -> None:
    """Write the same outside of the store, with the certificates that the table links.

    Raises:
        PrivacyRefused: the suite does not declare its sensitive sets to be public.
    """
    check_public(suite)
    files = _files(suite, rows, STAND_INS, lambda row: f"certificates/{Path(row.release or '').name}.json")
    (folder / "certificates").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for row in rows:
        if row.release:
            certificate = store.read(f"{row.release}/certificate.json")
            (folder / "certificates" / f"{Path(row.release).name}.json").write_bytes(certificate)


def check_public(suite: Suite) -> None:
    """Raise PrivacyRefused unless the suite declares its sensitive sets to be public."""
    if not suite.public_stand_ins:
        raise PrivacyRefused(
            f"The figures of suite {suite.name} were computed from sensitive images without a charge, and stay below "
            "private/. Only a suite whose sensitive sets are public (public_stand_ins: true) hands them out."
        )


def _files(suite: Suite, rows: Sequence[Row], notice: str, link: Callable[[Row], str]) -> dict[str, bytes]:
    whole = {"suite": suite.model_dump(mode="json"), "notice": notice, "rows": [row.to_json() for row in rows]}
    return {
        "table.md": table(suite, rows, notice, link).encode(),
        "table.json": json.dumps(whole, indent=1, allow_nan=False).encode(),
        **plots(rows),
    }
