"""Crashes and races never make the ledger count too little; and the suite that says so finds what it should.

A fast part of `python -m tests.privacy.faults`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privimage.privacy.entropy import SecretRandom
from privimage.privacy.ledger import Ledger, Reservation
from privimage.running.charging import Payment, pay
from privimage.store.files import Store
from privimage.store.s3 import S3Backend
from tests.privacy.faults.bench import SHAPES, Bench, make_bench
from tests.privacy.faults.planted import PLANTED
from tests.privacy.faults.race import race
from tests.privacy.faults.remote import s3_bucket
from tests.privacy.faults.schedule import Verdict, play

pytestmark = pytest.mark.slow

ON_A_FOLDER = range(100)
ON_S3 = range(10)
SEEDS_TO_FIND_IT = range(300)
BLOCK = max(shape.checkpoint_steps for shape in SHAPES)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """In memory where there is a folder for it: syncing to disk is not what is tried out here."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None, prefix="faults-"))
    yield make_bench(folder)
    shutil.rmtree(folder)


@pytest.fixture
def bucket() -> Iterator[S3Backend]:
    """On a server in this process, into whose memory the witness looks."""
    with s3_bucket() as bucket:
        yield bucket


def complaints(verdicts: list[Verdict]) -> list[str]:
    return [f"--seed {verdict.seed}: {text}" for verdict in verdicts for text in verdict.judgement.complaints]


def check(verdicts: list[Verdict]) -> None:
    assert complaints(verdicts) == []
    assert max(verdict.judgement.max_over_count_steps for verdict in verdicts) <= BLOCK
    # That something did happen: processes died, others finished what they left, others met an empty budget.
    assert sum(verdict.crashes for verdict in verdicts) >= len(verdicts) / 2
    assert sum(verdict.done for verdict in verdicts) >= len(verdicts) / 2
    assert sum(verdict.refused for verdict in verdicts) > 0


def test_no_crash_and_no_race_in_a_folder_makes_the_ledger_count_too_little(bench: Bench) -> None:
    with bench.stand_ins():
        check([play(seed, bench) for seed in ON_A_FOLDER])


def test_no_crash_and_no_race_on_s3_makes_the_ledger_count_too_little(bench: Bench, bucket: S3Backend) -> None:
    with bench.stand_ins():
        check([play(seed, bench, bucket) for seed in ON_S3])


def test_a_schedule_follows_from_its_seed(bench: Bench) -> None:
    def told(verdict: Verdict) -> tuple[object, ...]:
        return verdict.processes, verdict.crashes, verdict.done, verdict.refused, verdict.points, verdict.faults

    with bench.stand_ins():
        assert told(play(7, bench)) == told(play(7, bench))
        assert told(play(7, bench)) != told(play(8, bench))


def test_of_32_writers_in_a_folder_as_many_are_charged_as_the_budget_holds(bench: Bench) -> None:
    raced = race(bench)
    assert 0 < raced.expected < 32
    assert raced.sound, raced


def test_of_32_writers_on_s3_as_many_are_charged_as_the_budget_holds(bench: Bench, bucket: S3Backend) -> None:
    raced = race(bench, bucket)
    assert raced.sound, raced


def test_a_reservation_that_is_given_back_meanwhile_pays_for_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process finds another's open query and reserves its own; just before that the other gives its back."""
    store, key = Store.open(str(shutil.copytree(bench.template, tmp_path / "store"))), "a" * 64
    bench.grant(store, 3.0)
    reserve = Ledger.reserve

    def start() -> Payment:
        ledger = bench.open_ledger(store)
        charge = bench.charge(store, key, ledger)
        return pay("query", key, charge, ledger, run_name="x", latest_checkpoint=lambda: 0, random=SecretRandom())

    with bench.stand_ins():
        other = start()

        def late_reserve(ledger: Ledger, **asked: Any) -> Reservation:
            other.give_back("it failed before it opened a sensitive image")
            return reserve(ledger, **asked)

        monkeypatch.setattr(Ledger, "reserve", late_reserve)
        payment = start()
    states = bench.open_ledger(store).states()
    assert [states[paid] for paid in payment.paid.reservations] == ["open"]


@pytest.mark.parametrize("name", PLANTED)
def test_the_suite_finds(name: str, bench: Bench) -> None:
    """Each planted fault, within a few hundred schedules."""
    with bench.stand_ins() as patch:
        PLANTED[name](patch, bench)
        assert any(not play(seed, bench).judgement.sound for seed in SEEDS_TO_FIND_IT), name
