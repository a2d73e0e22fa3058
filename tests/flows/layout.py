"""What a store holds, without what is random or names one run."""

from __future__ import annotations

from privimage.store.files import Store

__all__ = ["layout"]


def layout(store: Store) -> set[str]:
    """Names in a store with keys, payload folders and ids of ledgers taken out."""
    shapes = set()
    for name in store.list(""):
        parts = name.split("/")
        if "artifacts" in parts:
            at = parts.index("artifacts") + 2
            inside = ["PAYLOAD", *parts[at + 2 :]] if len(parts) > at + 2 else parts[at + 1 :]
            shapes.add("/".join([*parts[:at], "KEY", *inside]))
        elif "steps" in parts:
            shapes.add("/".join([parts[0], "NAME", "steps", "RESERVATION", *parts[4:]]))
        elif parts[0] in ("ledger", "releases"):
            shapes.add("/".join([parts[0], "NAME", *parts[2:]]))
        else:
            shapes.add(name)
    return shapes
