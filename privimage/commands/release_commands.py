"""verify, report, export: what can be done with a finished release."""

from __future__ import annotations

import argparse
import tempfile
import webbrowser
from dataclasses import asdict
from pathlib import Path

from privimage.commands.shared import Commands, add_json, add_store, print_json
from privimage.config import load_config
from privimage.errors import DataError, StoreError
from privimage.release.formats import FORMATS, export_images
from privimage.release.verify import check_files, read_release, verify_certificate, verify_release
from privimage.store.files import Store

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add the commands."""
    verify = commands.add_parser("verify", help="check a release, or a certificate alone: files, epsilon, ledger")
    _add_release(verify, or_else="; or a certificate (a file NAME.json) without its release")
    verify.add_argument(
        "--config", metavar="CONFIG", help="YAML file of the run, to check the certificate's digest of it"
    )
    verify.add_argument("--set", action="append", default=[], metavar="A.B=C", help="as it was given to the run")
    add_json(verify)
    verify.set_defaults(command=_verify)

    report = commands.add_parser("report", help="where a release's report is; --open shows it in a browser")
    _add_release(report)
    report.add_argument("--open", action="store_true", help="open it in a browser; of a remote store, a copy")
    report.set_defaults(command=_report)

    export = commands.add_parser("export", help="a release's images as an image folder or as WebDataset shards")
    _add_release(export)
    export.add_argument(
        "--format",
        required=True,
        choices=sorted(FORMATS),
        help="folder: one folder per class, as torchvision's ImageFolder reads it; webdataset: tar shards; "
        "parquet: the release as it is, such as from S3",
    )
    export.add_argument("--to", required=True, metavar="DIR", help="a new or empty folder")
    export.set_defaults(command=_export)


def _add_release(parser: argparse.ArgumentParser, *, or_else: str = "") -> None:
    """RELEASE, --store."""
    told = f"path or URL of the release folder, or the beginning of its name in the store{or_else}"
    parser.add_argument("release", metavar="RELEASE", help=told)
    add_store(parser)


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
        begins = f"begins the names of {len(matching)} releases" if matching else "begins no release's name"
        raise StoreError(
            f"{given} is no folder, and {begins} in {options.store} (there are: {', '.join(known) or 'none'}); give one of "
            "them, or the folder that holds certificate.json."
        )
    return Store.open(f"{options.store.rstrip('/')}/releases/{matching[0]}")


def _verify(options: argparse.Namespace) -> int:
    there = "://" in options.store or Path(options.store).is_dir()
    ledgers = Store.open(options.store) if there else None
    config = load_config(options.config, options.set) if options.config else None
    alone = Path(options.release)
    if alone.suffix == ".json" and alone.is_file():
        checks = verify_certificate(alone.read_bytes(), ledgers, config)
    else:
        checks = verify_release(read_release(_open_release(options)), ledgers, config)
    failed = any(check.outcome == "failed" for check in checks)
    if options.json:
        complete = all(check.outcome == "passed" for check in checks)
        print_json({"verified": not failed, "complete": complete, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            print(f"{check.outcome:<8} {check.step}: {check.why}")
        skipped = {check.step for check in checks if check.outcome == "skipped"}
        passed = "Verified."
        if "ledger" in skipped:
            passed = "Consistent with itself, but not proven: without the ledger, a certificate that was made up as a whole passes."
        elif "files" in skipped:
            passed = "The certificate is verified; whether any images are those that it was made for is not known."
        print("\nNOT VERIFIED" if failed else f"\n{passed}")
    return 1 if failed else 0


def _report(options: argparse.Namespace) -> int:
    release = _open_release(options)
    place = release.local_path("report.html")
    if place is None and options.open:
        place = Path(tempfile.mkdtemp(prefix="privimage-report-")) / "report.html"
        release.download("report.html", place)
    print(place or f"{release.url}/report.html")
    if options.open and place:
        webbrowser.open(place.as_uri())
    return 0


def _export(options: argparse.Namespace) -> int:
    files = read_release(_open_release(options))
    for check in check_files(files):
        if check.outcome != "passed":
            raise DataError(f"Nothing was exported, because the release is not as it was written: {check.why}.")
    num_images = export_images(files, options.format, Path(options.to))
    print(f"{num_images:,} images in {options.to}")
    return 0
