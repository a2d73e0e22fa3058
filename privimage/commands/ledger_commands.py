"""ledger show | grant | verify: the steward's commands."""

from __future__ import annotations

import argparse
from typing import Any

from privimage.commands.shared import Commands, add_config, add_json, open_run, print_json, print_table
from privimage.privacy.accounting import event_in_words
from privimage.privacy.ledger import Entry, Ledger
from privimage.runner import admitted, ledger_of, run_all
from privimage.store.artifacts import open_ref

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add the commands."""
    ledger = commands.add_parser("ledger", help="what may be spent on a sensitive set, and what was")
    parts = ledger.add_subparsers(required=True, metavar="COMMAND")
    show = parts.add_parser("show", help="every entry, what was spent, what is left")
    add_config(show)
    add_json(show)
    show.set_defaults(command=_show)
    grant = parts.add_parser("grant", help="the owner's lifetime budget for the data set; written once")
    add_config(grant)
    grant.add_argument("--epsilon", type=float, required=True, help="lifetime epsilon over all runs on these images")
    grant.add_argument("--delta", type=float, required=True, help="lifetime delta over all runs on these images")
    grant.set_defaults(command=_grant)
    verify = parts.add_parser("verify", help="check the chain of entries")
    add_config(verify)
    add_json(verify)
    verify.set_defaults(command=_verify)


def _ledger(options: argparse.Namespace) -> tuple[Ledger, int]:
    """The ledger of the configuration's sensitive set (admitted if it is not yet), and its number of training images."""
    run = open_run(options)
    artifact = open_ref(run.store, run_all(run, "admit")["admit"].ref)
    facts = admitted(artifact)
    return ledger_of(run.store, facts), facts.num_train


def _grant(options: argparse.Namespace) -> int:
    ledger, num_images = _ledger(options)
    name = options.config.rsplit("/", 1)[-1].removesuffix(".yaml")
    entry = ledger.grant(epsilon=options.epsilon, delta=options.delta, num_images=num_images, name=name)
    print(
        f"Granted: epsilon {entry.body['epsilon']:g}, delta {entry.body['delta']:g} over the lifetime of data set {ledger.dataset_id}."
    )
    return 0


def _show(options: argparse.Namespace) -> int:
    ledger, _ = _ledger(options)
    entries = ledger.entries()
    spent = ledger.spent()
    grant = ledger.grant_entry
    if options.json:
        print_json(
            {
                "dataset": ledger.dataset_id,
                "granted": dict(grant.body) if grant else None,
                "spent": {"epsilon": spent.epsilon, "delta": spent.delta, "set_aside": spent.set_aside},
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
        )
        return 0
    print(f"data set {ledger.dataset_id}\n")
    states = ledger.states()
    print_table(
        ["entry", "written", "kind", "what"],
        [[f"{e.sequence:06d}", e.written[:19], e.kind, _what(e, states)] for e in entries],
    )
    if grant is None:
        print("\nNo grant yet: no private stage will run.")
        return 0
    body: Any = grant.body
    print(
        f"\nSpent: epsilon {spent.epsilon:.4g}, delta {spent.delta:g} (an upper bound), of a grant of epsilon "
        f"{body['epsilon']:g}, delta {body['delta']:g}.\nSet aside for the runs above: epsilon {spent.set_aside:.4g}; left for others: "
        f"epsilon {max(body['epsilon'] - spent.set_aside, 0):.4g}, delta {max(body['delta'] - spent.delta, 0):.3g}.\n"
        f"Relation: {body['adjacency']} (zero-out); unit: {body['unit']}."
    )
    return 0


def _what(entry: Entry, states: dict[str, str]) -> str:
    body: Any = entry.body
    match entry.kind:
        case "grant":
            return f"epsilon {body['epsilon']:g}, delta {body['delta']:g}, {body['num_images']} images"
        case "reserve":
            return f"{body['run']}: {body['stage']} ({states[entry.id]}): {event_in_words(entry.event)}"
        case "resume":
            return f"attempt {body['attempt']}, up to {body['lost_steps']} steps lost"
        case "settle":
            return f"of {body['reservation']}: artifact {body['artifact'][:12]}"
        case _:
            return str(body.get("reason", ""))


def _verify(options: argparse.Namespace) -> int:
    ledger, _ = _ledger(options)
    entries = ledger.entries()
    if options.json:
        print_json({"dataset": ledger.dataset_id, "entries": len(entries), "chain": "whole"})
    else:
        print(f"Ledger {ledger.dataset_id}: {len(entries)} entries, the chain is whole.")
    return 0
