"""artifacts, doctor."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import version

from privimage.commands.shared import Commands, add_json, add_store, print_json, print_table
from privimage.errors import InputError, PrivimageError
from privimage.store.artifacts import list_artifacts, remove
from privimage.store.files import Store

__all__ = ["register"]

PACKAGES = (
    "privimage",
    "torch",
    "torchvision",
    "prefect",
    "opacus",
    "dp-accounting",
    "opendp",
    "pyarrow",
    "s3fs",
    "clean-fid",
)


def register(commands: Commands) -> None:
    """Add the commands."""
    artifacts = commands.add_parser("artifacts", help="what is in the store")
    parts = artifacts.add_subparsers(required=True, metavar="COMMAND")
    listing = parts.add_parser("list", help="every published artifact")
    add_store(listing)
    add_json(listing)
    listing.set_defaults(command=_list)
    show = parts.add_parser("show", help="one artifact's manifest")
    show.add_argument("stage", metavar="STAGE")
    show.add_argument("key", metavar="KEY", help="its key, or the beginning of it")
    add_store(show)
    show.set_defaults(command=_show)
    drop = parts.add_parser("remove", help="delete an artifact; paid ones only with --force")
    drop.add_argument("stage", metavar="STAGE")
    drop.add_argument("key", metavar="KEY", help="its whole key")
    drop.add_argument(
        "--force", action="store_true", help="also if privacy budget paid for it (it would be charged again)"
    )
    add_store(drop)
    drop.set_defaults(command=_remove)

    doctor = commands.add_parser("doctor", help="versions, device, store, weights at hand")
    add_store(doctor)
    add_json(doctor)
    doctor.set_defaults(command=_doctor)


def _list(options: argparse.Namespace) -> int:
    found = list_artifacts(Store.open(options.store))
    if options.json:
        print_json([{**artifact.ref.to_json(), "written": artifact.manifest.written} for artifact in found])
        return 0
    rows = [
        [
            artifact.ref.stage,
            artifact.ref.key[:16],
            artifact.manifest.written,
            f"{sum(entry.size for entry in artifact.manifest.files.values()):,}",
            "sealed" if artifact.ref.sealed else ("paid" if artifact.manifest.reservations else "public"),
        ]
        for artifact in found
    ]
    print_table(["stage", "key", "written", "bytes", "kind"], rows, lambda column: ">" if column == 3 else "<")
    return 0


def _show(options: argparse.Namespace) -> int:
    matching = [
        artifact
        for artifact in list_artifacts(Store.open(options.store))
        if artifact.ref.stage == options.stage and artifact.ref.key.startswith(options.key)
    ]
    if len(matching) != 1:
        raise InputError(
            f"{len(matching)} artifacts of stage {options.stage} have a key that begins with {options.key}; name one."
        )
    print_json(matching[0].manifest.model_dump(mode="json"))
    return 0


def _remove(options: argparse.Namespace) -> int:
    remove(Store.open(options.store), options.stage, options.key, force=options.force)
    print(f"Removed {options.stage} {options.key}.")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from privimage.evaluation.features import inception_extractor
    from privimage.machine.device import choose_device

    rows = [("python", platform.python_version()), *[(name, version(name)) for name in PACKAGES]]
    rows.append(("device", str(choose_device("auto"))))
    rows.append(("cpus, threads", f"{os.cpu_count()}, {torch.get_num_threads()}"))
    healthy = True
    try:
        store = Store.open(options.store)
        store.probe()
        rows.append(("store", f"{store.url}: conditional writes work"))
    except PrivimageError as error:
        healthy = False
        rows.append(("store", str(error)))
    try:
        inception_extractor(None, "cpu")
        rows.append(("inception weights", "at hand"))
    except PrivimageError as error:
        rows.append(("inception weights", f"not at hand (optional): {error}"))
    if options.json:
        print_json({"healthy": healthy, **dict(rows)})
    else:
        print_table(["what", "found"], rows)
    return 0 if healthy else 1
