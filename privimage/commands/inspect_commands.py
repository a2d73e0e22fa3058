"""artifacts, verify, report, doctor."""

from __future__ import annotations

import argparse
import os
import platform
import webbrowser
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from privimage.commands.shared import Commands, add_json, add_store, print_json, print_table
from privimage.config import load_config
from privimage.errors import InputError, PrivimageError, StoreError
from privimage.release.verify import read_release, verify_release
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

    verify = commands.add_parser("verify", help="check a release: files, epsilon, ledger")
    verify.add_argument(
        "release",
        metavar="RELEASE",
        help="path or URL of the release folder, or the beginning of its name in the store",
    )
    verify.add_argument(
        "--config", metavar="CONFIG", help="YAML file of the run, to check the certificate's digest of it"
    )
    verify.add_argument("--set", action="append", default=[], metavar="A.B=C", help="as it was given to the run")
    add_store(verify)
    add_json(verify)
    verify.set_defaults(command=_verify)

    report = commands.add_parser("report", help="where a release's report is; --open shows it in a browser")
    report.add_argument(
        "release",
        metavar="RELEASE",
        help="path or URL of the release folder, or the beginning of its name in the store",
    )
    report.add_argument("--open", action="store_true", help="open it in a browser")
    add_store(report)
    report.set_defaults(command=_report)

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


def _open_release(options: argparse.Namespace) -> Store:
    """The release folder as a store: a path, a URL, or a name in --store."""
    given: str = options.release.rstrip("/")
    if "://" in given:
        return Store.open(given)
    if Path(given).is_dir():
        return Store.open(str(Path(given).resolve()))
    known: list[str] = []
    if "://" in options.store or Path(options.store).is_dir():
        known = sorted({name.split("/")[1] for name in Store.open(options.store).list("releases")})
    matching = [name for name in known if name.startswith(given.removeprefix("releases/"))]
    if len(matching) != 1:
        raise StoreError(
            f"{given} is no folder, and begins the names of {len(matching)} releases in {options.store} (there are: "
            f"{', '.join(known) or 'none'}); give one of them, or the folder that holds certificate.json."
        )
    return Store.open(f"{options.store.rstrip('/')}/releases/{matching[0]}")


def _verify(options: argparse.Namespace) -> int:
    files = read_release(_open_release(options))
    there = "://" in options.store or Path(options.store).is_dir()
    config = load_config(options.config, options.set) if options.config else None
    checks = verify_release(files, Store.open(options.store) if there else None, config)
    failed = any(check.outcome == "failed" for check in checks)
    if options.json:
        complete = all(check.outcome == "passed" for check in checks)
        print_json({"verified": not failed, "complete": complete, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            print(f"{check.outcome:<8} {check.step}: {check.why}")
        skipped = {check.step for check in checks if check.outcome == "skipped"}
        passed = (
            "Consistent with itself, but not proven: without the ledger, a certificate that was made up as a whole passes."
            if "ledger" in skipped
            else "Verified."
        )
        print("\nNOT VERIFIED" if failed else f"\n{passed}")
    return 1 if failed else 0


def _report(options: argparse.Namespace) -> int:
    release = _open_release(options)
    place = release.local_path("report.html")
    print(place or f"{release.url}/report.html")
    if options.open and place:
        webbrowser.open(place.as_uri())
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from privimage.device import choose_device
    from privimage.evaluation.features import inception_extractor

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
