"""What the data steward does once for a set: look at it, and at the public set beside it, and grant a budget.

Here, and nowhere else, somebody is told whether an image is in two sets. The steward is trusted with that; whoever writes
configurations is not (docs/privacy.md, "Who must not learn what").
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from privimage.data.facts import sensitive_facts
from privimage.errors import InputError, PrivacyRefused
from privimage.privacy.entry import Entry
from privimage.privacy.ledger import Ledger, check_grant
from privimage.running.declared import check_findings, check_public_artifacts, declare_form, declare_public
from privimage.running.ledgers import bind_ledger, ledger_of
from privimage.running.rollback import check_not_rolled_back
from privimage.running.runner import run_stage, write_private
from privimage.running.runs import Run
from privimage.store.artifacts import Artifact, open_ref

__all__ = ["declare", "grant"]


def grant(run: Run, *, epsilon: float, delta: float, name: str) -> tuple[Ledger, Entry]:
    """Admit both sets of a run, compare them, and write the owner's lifetime cap; again is no error.

    The form of admission (fractions, test source) is fixed with it. The public set is declared for it.

    Raises:
        InputError: epsilon or delta is out of bounds, or delta is another than the configuration states.
        DataError: a set cannot be used; images are in two sets that must not share any; or a class lacks images. Which ones,
            is written below `private/`. Nothing was granted.
        PrivacyRefused: there is another grant already, or one for another form of admission; or the store's ledgers lack
            entries that its artifacts name.
    """
    check_not_rolled_back(run.store)
    admit = _admit(run)
    facts = sensitive_facts(admit)
    check_grant(epsilon=epsilon, delta=delta, num_images=facts.num_train)
    if delta != run.config.privacy.delta:
        raise InputError(
            f"The grant's delta is {delta:g}, but the configuration states privacy.delta {run.config.privacy.delta:g}: a grant "
            "cannot be changed, and only runs of its own delta are let in. Give both the same. Nothing was granted."
        )
    public = _look_at(run, admit)
    ledger = bind_ledger(run.store, facts, run.config.sensitive.shared_ledger)
    declare_form(run.store, facts, run.config.sensitive)
    entry = ledger.grant(epsilon=epsilon, delta=delta, num_images=facts.num_train, name=name)
    declare_public(run.store, facts, public)
    return ledger, entry


def declare(run: Run) -> Ledger:
    """Compare another public set with the sensitive images, and declare it for a grant that is there; again is no error.

    Raises:
        DataError: as for `grant`.
        PrivacyRefused: there is no grant yet.
    """
    admit = _admit(run)
    facts = sensitive_facts(admit)
    ledger = ledger_of(run.store, facts, run.config.sensitive.shared_ledger)
    if ledger.grant_entry is None:
        raise PrivacyRefused("Nothing was granted for these images yet: privimage ledger grant does both.")
    declare_public(run.store, facts, _look_at(run, admit))
    return ledger


def _admit(run: Run) -> Artifact:
    return open_ref(run.store, run_stage("admit", replace(run, as_steward=True), {}).ref)


def _look_at(run: Run, admit: Artifact) -> Artifact:
    """The public set, once nothing that was found in either set stands against it."""
    check_findings(admit, partial(write_private, run.store))
    public = open_ref(run.store, run_stage("public", replace(run, as_steward=True), {}).ref)
    check_public_artifacts(run.store, partial(write_private, run.store))
    return public
