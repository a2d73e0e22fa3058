"""A certificate as a run might get one; its digests are made up."""

from __future__ import annotations

from typing import Any

import dp_accounting as dpa

from privimage.privacy.accounting import epsilon_of_plan
from privimage.privacy.crosscheck import prv_interval
from privimage.privacy.events import event_to_json
from privimage.privacy.mechanisms import RELATION, RELATION_IN_WORDS
from privimage.release.certificate import (
    SCHEMA,
    UNIT,
    Certificate,
    Code,
    Granted,
    Interval,
    Ledgers,
    Listed,
    Mechanism,
    Paid,
    Plan,
    Spent,
    certified_interval,
    groups_of,
)

QUERY = Mechanism(
    stage="query",
    event=event_to_json(dpa.GaussianDpEvent(9.0)),
    in_words="Gaussian noise of 50 votes",
    epsilon_alone=0.21,
    ledger_entry=Paid(sequence=2, id="query-1", sha256="ab" * 32),
)
CERTIFICATE = Certificate(
    schema=SCHEMA,
    name="digits",
    guarantee="differential privacy",
    epsilon=10.0,
    delta=1e-5,
    epsilon_computed=9.99,
    epsilon_certified_interval=Interval(lower=9.98, upper=10.0, accountant="Opacus PRV", absent_because=None),
    accountant="dp_accounting PLD, pessimistic",
    relation=RELATION.name,
    relation_in_words=RELATION_IN_WORDS,
    unit=UNIT,
    num_training_images=55_000,
    selection="semantic",
    generator="diffusion",
    mechanisms=(QUERY,),
    plan=Plan(id="plan-1", builds_on=()),
    ledger=Ledgers(
        dataset="digits-1",
        entries=(Listed(sequence=2, kind="reserve", id="query-1", sha256="ab" * 32),),
        spent_in_all=Spent(epsilon=9.99, delta=1e-5),
        granted_in_all=Granted(epsilon=10.0, delta=1e-5, order=8.0),
    ),
    assumptions=("The number of training images is public.",),
    code=Code(privimage="0.1.0", sha256="cd" * 32, covers="all files", stages={}),
    artifacts={},
    config_sha256="ef" * 32,
    packages={},
    files={},
)


def hide(stated: dict[str, Any], stage: str) -> None:
    """A certificate as JSON without the mechanisms of a stage; everything that can be computed again is."""
    stated["mechanisms"] = [mechanism for mechanism in stated["mechanisms"] if mechanism["stage"] != stage]
    groups = groups_of([Mechanism.model_validate(mechanism) for mechanism in stated["mechanisms"]], [])
    stated["epsilon_computed"] = epsilon_of_plan(groups.own, [], stated["delta"])
    stated["epsilon_certified_interval"] = certified_interval(groups, stated["delta"], prv_interval).model_dump()
