"""Every seeded bug still has its place in the code, and the test that should notice it still exists."""

from __future__ import annotations

from pathlib import Path

from tests.privacy.mutants.mutants import MUTANTS

ROOT = Path(__file__).parents[2]


def test_every_seeded_bug_has_exactly_one_place_in_the_code() -> None:
    places = {mutant.name: (ROOT / mutant.file).read_text().count(mutant.old) for mutant in MUTANTS}
    assert {name: count for name, count in places.items() if count != 1} == {}


def test_every_seeded_bug_changes_something_and_is_named_once() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
    assert [mutant.name for mutant in MUTANTS if mutant.old == mutant.new] == []


def test_the_test_that_should_notice_it_exists() -> None:
    missing = []
    for mutant in MUTANTS:
        file, function = mutant.test.split("[")[0].split("::")
        if f"def {function}(" not in (ROOT / "tests" / file).read_text():
            missing.append(mutant.test)
    assert missing == []
