"""A ledger that was cut, or replaced by an old copy, is found out: by what artifacts name, and by heads kept elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from privimage.errors import LedgerBroken
from privimage.privacy.ledger import Ledger
from privimage.privacy.witness import VARIABLE
from privimage.running.housekeeping import ledger_states
from privimage.running.rollback import check_not_rolled_back
from privimage.running.runner import run_all
from privimage.store.files import Store
from tests.pipeline_fixtures import Answer, Place

Command = Callable[..., Answer]


def cut(place: Place, keep: int) -> None:
    """Throw away all entries but the first ones: a chain that is whole in itself."""
    for file in sorted(place.folder.glob("ledger/*/entries/*.json"))[keep:]:
        file.unlink()
    assert len(place.entries) == keep


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_cut_ledger_is_refused_wherever_it_would_be_believed(
    privimage: Command, finished_copy: Place, keep: int
) -> None:
    """It said "100 % left"."""
    check_not_rolled_back(finished_copy.store)
    cut(finished_copy, keep)
    for command in ("show", "verify"):
        answer = privimage("ledger", command, "--store", finished_copy.folder)
        assert answer.code != 0 and "Restore the whole ledger from a backup" in answer.complaint
    with pytest.raises(LedgerBroken):
        ledger_states(finished_copy.store)
    for overrides in ((), ("privacy.epsilon=0.5",)):
        with pytest.raises(LedgerBroken):
            run_all(finished_copy.run(*overrides))
    assert len(finished_copy.entries) == keep


def test_what_artifacts_name_is_missed_before_anything_was_released(pretrained_copy: Place) -> None:
    cut(pretrained_copy, 1)
    with pytest.raises(LedgerBroken, match=r"Artifact query \w+ was paid for by ledger entry \w+, which no ledger"):
        check_not_rolled_back(pretrained_copy.store)


def test_without_its_last_entry_the_ledger_differs_from_the_certificate(finished_copy: Place) -> None:
    """The charge is there, but whatever came after it may be gone as well: steps that a restart repeated, say."""
    cut(finished_copy, len(finished_copy.entries) - 1)
    with pytest.raises(LedgerBroken, match=r"names 5 entries of ledger \w+, which has 4"):
        check_not_rolled_back(finished_copy.store)


def test_heads_in_a_second_place_show_a_cut_that_left_no_other_trace(
    granted_copy: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "witness"))
    (tmp_path / "witness").mkdir()
    run_all(granted_copy.run(), "query")
    shutil.rmtree(granted_copy.folder / "artifacts" / "query")
    cut_to = sorted(granted_copy.folder.glob("ledger/*/entries/*.json"))[1:]
    for file in cut_to:
        file.unlink()
    with pytest.raises(LedgerBroken, match="ends with entry 000000, but once had entry 00000"):
        run_all(granted_copy.run(), "query")
    # Without the second place nothing is left that could tell.
    monkeypatch.delenv(VARIABLE)
    assert len(granted_copy.entries) == 1


def test_a_witness_that_begins_later_checks_from_there_and_an_edit_is_found(
    granted_copy: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "witness").mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "witness"))
    dataset = granted_copy.ledger.dataset_id
    assert len(Ledger(granted_copy.store, dataset).entries()) == 1
    Store.open(str(tmp_path / "witness")).create(f"heads/{dataset}/000000-{'0' * 64}", b"")
    with pytest.raises(LedgerBroken, match="entry 000000 is another than there once was"):
        Ledger(granted_copy.store, dataset).entries()


def test_a_head_that_the_steward_noted_is_compared(privimage: Command, finished_copy: Place) -> None:
    shown = privimage("ledger", "show", "--store", finished_copy.folder).out
    head = shown.rstrip().rsplit(" ", 1)[-1]
    last = finished_copy.entries[-1]
    assert head == f"{last.sequence}:{last.digest}"
    options = ["ledger", "verify", "--store", finished_copy.folder, "--head"]
    assert privimage(*options, head).code == 0
    assert privimage(*options, f"{last.sequence}:{'0' * 64}").code != 0
    assert "but once had entry 000009" in privimage(*options, f"9:{last.digest}").complaint
    assert privimage(*options, "nonsense").code == 2
