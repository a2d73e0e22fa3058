"""ledger show | grant | declare | close | verify: the steward's commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from privimage.commands.shared import Commands, add_config, add_json, add_store, open_run, print_json, print_table
from privimage.data.facts import sensitive_facts
from privimage.errors import InputError
from privimage.pipeline.table import stage_named
from privimage.privacy.accounting import epsilon_of, event_in_words
from privimage.privacy.budget import left_of_grant
from privimage.privacy.entry import Entry
from privimage.privacy.ledger import Ledger
from privimage.privacy.witness import check_head
from privimage.running.granting import declare, grant
from privimage.running.ledgers import ledger_of
from privimage.running.rollback import check_not_rolled_back
from privimage.running.runs import stage_key
from privimage.store.artifacts import find
from privimage.store.files import Store

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add the commands."""
    ledger = commands.add_parser("ledger", help="what may be spent on a sensitive set, and what was")
    parts = ledger.add_subparsers(required=True, metavar="COMMAND")
    show = parts.add_parser("show", help="every entry, what was spent, what is left; without CONFIG: all ledgers")
    _add_which(show)
    show.set_defaults(command=_show)
    grant = parts.add_parser("grant", help="the owner's lifetime budget for the data set; written once")
    add_config(grant)
    grant.add_argument("--epsilon", type=float, required=True, help="lifetime epsilon over all runs on these images")
    grant.add_argument("--delta", type=float, required=True, help="lifetime delta over all runs on these images")
    grant.set_defaults(command=_grant)
    declared = parts.add_parser(
        "declare", help="look whether another public set holds sensitive images; if none, let runs use it"
    )
    add_config(declared)
    declared.set_defaults(command=_declare)
    close = parts.add_parser("close", help="give up what an abandoned run has set aside; what it spent stays spent")
    close.add_argument("plan", metavar="PLAN", help="name of the plan, as `ledger show` lists it")
    _add_which(close)
    close.add_argument("--reason", default="abandoned", help="one sentence for the ledger's readers")
    close.set_defaults(command=_close)
    verify = parts.add_parser("verify", help="check the chain of entries, and whether it holds all that artifacts name")
    _add_which(verify)
    verify.add_argument(
        "--head", metavar="NUMBER:SHA256", help="a head that was noted earlier: must still be in the ledger"
    )
    verify.set_defaults(command=_verify)


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file of a run on the data set")
    parser.add_argument("--dataset", metavar="ID", help="name of the ledger, as certificates state it; needs no images")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help=argparse.SUPPRESS)
    parser.set_defaults(draw=[])
    add_store(parser)
    add_json(parser)


def _existing(options: argparse.Namespace) -> list[Ledger]:
    """The ledgers asked for. Looking at them admits no images and writes nothing."""
    store = Store.open(options.store)
    names = sorted({name.split("/")[1] for name in store.list("ledger") if "/entries/" in name})
    if options.config and not options.dataset:
        run = open_run(options)
        anything = store.list("private/artifacts/admit")
        artifact = find(store, "admit", stage_key(stage_named("admit"), run, {}), True) if anything else None
        if artifact is None:
            raise InputError(
                f"The images of {options.config} were not admitted in {store.url}: nothing was spent on them here."
            )
        return [ledger_of(store, sensitive_facts(artifact), run.config.sensitive.shared_ledger)]
    if options.dataset and options.dataset not in names:
        raise InputError(f"{store.url} has no ledger {options.dataset}; it has {', '.join(names) or 'none'}.")
    if not names:
        raise InputError(f"{store.url} has no ledger: nothing was granted or spent here.")
    return [Ledger(store, name) for name in names if options.dataset in (None, name)]


def _grant(options: argparse.Namespace) -> int:
    run = open_run(options)
    name = options.config.rsplit("/", 1)[-1].removesuffix(".yaml")
    ledger, entry = grant(run, epsilon=options.epsilon, delta=options.delta, name=name)
    print(
        f"Granted: epsilon {entry.body['epsilon']:g}, delta {entry.body['delta']:g} over the lifetime of data set {ledger.dataset_id}."
    )
    return 0


def _declare(options: argparse.Namespace) -> int:
    ledger = declare(open_run(options))
    print(
        f"Declared: the public set of {options.config} holds no sensitive image of this store (data set {ledger.dataset_id})."
    )
    return 0


def _show(options: argparse.Namespace) -> int:
    ledgers = _existing(options)
    check_not_rolled_back(Store.open(options.store))
    if options.json:
        shown = [_as_json(ledger) for ledger in ledgers]
        print_json(shown[0] if options.config or options.dataset else shown)
        return 0
    for ledger in ledgers:
        _print(ledger, options.store)
    return 0


def _as_json(ledger: Ledger) -> dict[str, Any]:
    entries, spent, grant = ledger.entries(), ledger.spent(), ledger.grant_entry
    return {
        "dataset": ledger.dataset_id,
        "granted": dict(grant.body) if grant else None,
        "spent": {"epsilon": spent.epsilon, "delta": spent.delta, "share_of_grant": spent.share},
        "left": {
            "share_of_grant": max(1 - spent.share, 0.0),
            "epsilon_of_one_more_run": left_of_grant(grant.body, spent),
        }
        if grant
        else None,
        "plans": [
            {**asdict(plan), "run": _run_of(plan.id, entries), "stages": _by_stage(plan.id, ledger)}
            for plan in spent.plans
        ],
        "entries": [
            {
                "sequence": e.sequence,
                "kind": e.kind,
                "id": e.id,
                "written": e.written,
                "sha256": e.digest,
                "body": dict(e.body),
            }
            for e in entries
        ],
    }


def _print(ledger: Ledger, store: str) -> None:
    entries, states, spent, grant = ledger.entries(), ledger.states(), ledger.spent(), ledger.grant_entry
    print(f"store {store}, data set {ledger.dataset_id}\n")
    if grant is None:
        print("No grant yet: no private stage will run.")
        return
    numbers = {entry.id: f"{entry.sequence:06d}" for entry in entries}
    print_table(
        ["entry", "written", "kind", "what"],
        [[numbers[e.id], e.written[:19], e.kind, _what(e, states, numbers)] for e in entries],
    )
    print()
    print_table(
        ["run", "plan", "states epsilon", "spent", "by stage, each alone", "delta", "of the grant"],
        [
            [
                _run_of(p.id, entries),
                p.id,
                f"{p.target:g}",
                f"{p.epsilon:.4g}",
                ", ".join(f"{paid['stage']} {paid['epsilon_alone']:.4g}" for paid in _by_stage(p.id, ledger)),
                f"{p.delta:g}",
                f"{min(p.share, 1):.1%}{' (closed)' if p.closed else ''}",
            ]
            for p in spent.plans
        ],
    )
    body: Any = grant.body
    left = left_of_grant(body, spent)
    print(
        f"\nGranted: epsilon {body['epsilon']:g}, delta {body['delta']:g} for all runs together, as a Rényi filter of order "
        f"{body['order']}.\nOf it, {spent.share:.1%} is spent or set aside for the runs above; {max(1 - spent.share, 0):.1%} is left"
        f": {f'one more run of epsilon {left:.3g}, about' if left > body['epsilon'] / 1000 else 'no other run fits'}.\n"
        f"Added up, the runs spent at most epsilon {spent.epsilon:.4g}, delta {spent.delta:g}.\n"
        f"Relation: zero-out ({body['adjacency']}); unit: {body['unit']}.\n"
        f"Head, to be noted outside of the store: {entries[-1].sequence}:{entries[-1].digest}\n"
    )


def _run_of(plan: str, entries: Sequence[Entry]) -> str:
    """The name of the run that a plan belongs to."""
    return next((str(e.body["run"]) for e in entries if e.kind == "reserve" and e.body["plan"]["id"] == plan), "")


def _by_stage(plan: str, ledger: Ledger) -> list[dict[str, Any]]:
    """What counts of a plan's reservations, each with what it would cost alone."""
    states = ledger.states()
    return [
        {
            "entry": entry.sequence,
            "stage": entry.body["stage"],
            "state": states[entry.id],
            "epsilon_alone": epsilon_of([entry.event], entry.body["plan"]["delta"]),
        }
        for entry in ledger.reservations().values()
        if entry.body["plan"]["id"] == plan
    ]


def _what(entry: Entry, states: dict[str, str], numbers: dict[str, str]) -> str:
    body: Any = entry.body
    match entry.kind:
        case "grant":
            return f"epsilon {body['epsilon']:g}, delta {body['delta']:g}, {body['num_images']} images"
        case "reserve":
            return f"{body['run']}: {body['stage']} ({states[entry.id]}): {event_in_words(entry.event)}"
        case "resume":
            return f"attempt {body['attempt']}, up to {body['lost_steps']} steps lost"
        case "pause":
            return f"attempt {body['attempt']} stopped after step {body['step']}, nothing lost"
        case "settle":
            return f"of {numbers[body['reservation']]}: artifact {body['artifact'][:12]}"
        case "close":
            return f"{body['plan']}: {body['reason']}"
        case _:
            return str(body.get("reason", ""))


def _close(options: argparse.Namespace) -> int:
    holders = [ledger for ledger in _existing(options) if options.plan in {plan.id for plan in ledger.spent().plans}]
    if not holders:
        raise InputError(f"No ledger in {options.store} has a plan {options.plan}: privimage ledger show lists them.")
    for ledger in holders:
        ledger.close(options.plan, reason=options.reason)
        print(f"Closed {options.plan}; {max(1 - ledger.spent().share, 0):.1%} of the grant is left.")
    return 0


def _verify(options: argparse.Namespace) -> int:
    ledgers = _existing(options)
    check_not_rolled_back(Store.open(options.store))
    if options.head:
        sequence, _, digest = options.head.partition(":")
        if len(ledgers) != 1 or not sequence.isdigit() or not digest:
            raise InputError(
                f"--head {options.head!r}: expected NUMBER:SHA256 of one ledger, as `ledger show` prints it."
            )
        check_head(ledgers[0].dataset_id, ledgers[0].entries(), int(sequence), digest)
    found = [{"dataset": ledger.dataset_id, "entries": len(ledger.entries())} for ledger in ledgers]
    if options.json:
        shown = [{**row, "chain": "whole"} for row in found]
        print_json(shown[0] if options.config or options.dataset else shown)
        return 0
    for row in found:
        print(
            f"Ledger {row['dataset']}: {row['entries']} entries, the chain is whole, and holds all that artifacts name."
        )
    return 0
