"""What an entry says is a number, to the last digit; and a plan is what its first entry says."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import dp_accounting as dpa
import pytest

from privimage.errors import BudgetExceeded, LedgerBroken
from privimage.privacy.budget import Plan, spent_by
from privimage.privacy.ledger import Ledger
from privimage.store.files import Store
from tests.privacy.test_ledger import DELTA, PLAN, granted, reserve, taking


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
@pytest.mark.parametrize("field", ["epsilon", "delta"])
def test_a_grant_of_a_number_that_json_has_and_arithmetic_has_not_is_refused(
    number: str, field: str, tmp_path: Path
) -> None:
    """1e999 is JSON, and is read as infinity: a grant that holds everything."""
    store = Store.open(str(tmp_path))
    granted(store)
    file = tmp_path / "ledger" / "faces" / "entries" / "000000.json"
    text = file.read_text()
    (old,) = [line for line in text.splitlines() if f'"{field}"' in line]
    comma = "," if old.endswith(",") else ""
    file.write_text(text.replace(old, f'  "{field}": {number}{comma}'))
    with pytest.raises(LedgerBroken):
        Ledger(store, "faces").entries()


@pytest.mark.parametrize("place", ["restart_allowance", "epsilon", "noise_multiplier"])
def test_a_charge_of_such_a_number_is_refused_too(place: str, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    reserve(granted(store))
    file = tmp_path / "ledger" / "faces" / "entries" / "000001.json"
    found = json.loads(file.read_text())
    body = found["body"]
    {"restart_allowance": body, "epsilon": body["plan"], "noise_multiplier": body["event"]}[place][place] = "HERE"
    file.write_text(json.dumps(found).replace('"HERE"', "1e999"))
    with pytest.raises(LedgerBroken):
        Ledger(store, "faces").entries()


def test_a_plan_that_took_the_whole_grant_has_it_though_a_later_entry_of_it_intends_less() -> None:
    """Which of two bounds holds was settled when it was opened, before anything was seen."""
    ledger = granted(Store.open(f"memory://{secrets.token_hex(6)}"))
    large, small = taking(0.46), dpa.GaussianDpEvent(100.0)

    def plan(*intends: dpa.DpEvent) -> Plan:
        return Plan(id="whole", epsilon=5.0, delta=DELTA, intends=intends)

    reserve(ledger, small, plan(small, large, large), key="first")
    reserve(ledger, small, plan(small, small, small), key="second")
    assert spent_by(ledger.entries()).share == 1.0
    with pytest.raises(BudgetExceeded, match="has the whole grant"):
        reserve(ledger, plan=PLAN, key="third")
