"""Which ledger a sensitive data set is charged to: its own, or one that it shares with sets that show the same people.

The answer is written once, beside the ledgers, and never changes: `ledger/<data set>/charged-to.json`.
"""

from __future__ import annotations

import json

from privimage.data.facts import SensitiveFacts
from privimage.errors import LedgerBroken, PrivacyRefused
from privimage.privacy.ledger import Ledger
from privimage.store.files import Store
from privimage.store.identity import blind

__all__ = ["bind_ledger", "ledger_of", "place_of"]


def ledger_of(store: Store, facts: SensitiveFacts, shared: str | None) -> Ledger:
    """The ledger of a data set; nothing is written.

    Names of ledgers are blinded digests, of the images or of the shared ledger's name: they tell nothing about either.

    Raises:
        PrivacyRefused: the data set is charged to another ledger already.
    """
    name = _name(store, facts, shared)
    _check(store, facts, name, _read(store, facts))
    return Ledger(store, name)


def bind_ledger(store: Store, facts: SensitiveFacts, shared: str | None) -> Ledger:
    """The same, and the answer is settled for good. To be called before anything is granted or charged.

    Raises:
        PrivacyRefused: the data set is charged to another ledger already.
    """
    name = _name(store, facts, shared)
    store.create(_file(store, facts), json.dumps({"ledger": name}).encode())
    _check(store, facts, name, _read(store, facts))
    return Ledger(store, name)


def _name(store: Store, facts: SensitiveFacts, shared: str | None) -> str:
    return blind(store, facts.identity if shared is None else f"shared ledger {shared}")[:32]


def place_of(store: Store, facts: SensitiveFacts) -> str:
    """The folder of what is settled for a data set, whichever ledger it is charged to."""
    return f"ledger/{_name(store, facts, None)}"


def _file(store: Store, facts: SensitiveFacts) -> str:
    return f"{place_of(store, facts)}/charged-to.json"


def _read(store: Store, facts: SensitiveFacts) -> str | None:
    try:
        return str(json.loads(store.read(_file(store, facts)))["ledger"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerBroken(f"{_file(store, facts)} cannot be read: {error!r}; restore it from a backup.") from error


def _check(store: Store, facts: SensitiveFacts, name: str, found: str | None) -> None:
    if found in (None, name):
        return
    own = found == _name(store, facts, None)
    where = "a ledger of its own" if own else f"the shared ledger {found}"
    raise PrivacyRefused(
        f"These images are charged to {where} already, and what was spent there would be forgotten: "
        f"{'remove sensitive.shared_ledger' if own else 'state the sensitive.shared_ledger that was stated first'}."
    )
