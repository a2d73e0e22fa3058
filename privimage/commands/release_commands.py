"""verify, sign, report, export: what can be done with a finished release."""

from __future__ import annotations

import argparse
import os
import tempfile
import webbrowser
from dataclasses import asdict
from getpass import getpass
from pathlib import Path

from privimage.commands.shared import DEFAULT_STORE, Commands, add_json, add_store, print_json
from privimage.config.loading import load_config
from privimage.errors import DataError, StoreError
from privimage.release.check import Check
from privimage.release.formats import FORMATS, export_images
from privimage.release.signature import SIGNATURE, check_signature, sign
from privimage.release.store_checks import knows
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
    verify.add_argument(
        "--signer",
        metavar="KEY",
        help="the steward's SSH public key (a .pub file, or its text): was the certificate signed by it?",
    )
    add_json(verify)
    verify.set_defaults(command=_verify, store=None)

    signing = commands.add_parser("sign", help="sign a release's certificate with the steward's SSH key (Ed25519)")
    _add_release(signing)
    signing.add_argument("--key", required=True, metavar="FILE", help="the private key, such as ~/.ssh/id_ed25519")
    signing.add_argument("--ask-passphrase", action="store_true", help="the key has one: ask for it")
    signing.set_defaults(command=_sign)

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
    store = options.store or os.environ.get("PRIVIMAGE_STORE", DEFAULT_STORE)
    if "://" in store or Path(store).is_dir():
        known = sorted({name.split("/")[1] for name in Store.open(store).list("releases")})
    matching = [name for name in known if name.startswith(given.removeprefix("releases/"))]
    if len(matching) != 1:
        begins = f"begins the names of {len(matching)} releases" if matching else "begins no release's name"
        raise StoreError(
            f"{given} is no folder, and {begins} in {store} (there are: {', '.join(known) or 'none'}); give one of "
            "them, or the folder that holds certificate.json."
        )
    return Store.open(f"{store.rstrip('/')}/releases/{matching[0]}")


def _verify(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.set) if options.config else None
    alone = Path(options.release)
    if alone.suffix == ".json" and alone.is_file():
        data = alone.read_bytes()
        beside = alone.with_name(f"{alone.name}.sig")
        signature = beside.read_bytes() if beside.is_file() else None
        store = _store_of(options, data, named=False)
        checks = verify_certificate(data, store, config)
    else:
        release = _open_release(options)
        files = read_release(release)
        data, signature = files.get("certificate.json", b""), files.get(SIGNATURE)
        store = _store_of(options, data, named=not ("://" in options.release or Path(options.release).is_dir()))
        checks = verify_release(files, store, config)
    if options.signer:
        checks.insert(0, _check_signer(data, signature, options.signer))
    failed = any(check.outcome == "failed" for check in checks)
    if options.json:
        complete = all(check.outcome == "passed" for check in checks)
        print_json({"verified": not failed, "complete": complete, "checks": [asdict(check) for check in checks]})
        return 1 if failed else 0
    unproven = store is None and not any((check.step, check.outcome) == ("signature", "passed") for check in checks)
    if unproven and not failed:
        print(
            "Not proven: without the store that made it, or its steward's signature, a release that was made up as a whole passes. "
            "Give --store, or --signer.\n"
        )
    for check in checks:
        print(f"{check.outcome:<8} {check.step}: {check.why}")
    skipped = {check.step for check in checks if check.outcome == "skipped"}
    passed = "Consistent with itself, and no more." if unproven else "Verified."
    if "files" in skipped and not unproven:
        passed = "The certificate is verified; whether any images are those that it was made for is not known."
    print("\nNOT VERIFIED" if failed else f"\n{passed}")
    return 1 if failed else 0


def _store_of(options: argparse.Namespace, certificate: bytes, *, named: bool) -> Store | None:
    """The store to compare with: the one that was given; the usual one only if it has to do with the release."""
    given = options.store or os.environ.get("PRIVIMAGE_STORE")
    if given:
        if "://" not in given and not Path(given).is_dir():
            raise StoreError(f"No store at {given}: give the one that made the release, or leave --store out.")
        return Store.open(given)
    if not Path(DEFAULT_STORE).is_dir():
        return None
    usual = Store.open(DEFAULT_STORE)
    return usual if named or knows(usual, certificate) else None


def _check_signer(certificate: bytes, signature: bytes | None, signer: str) -> Check:
    public = Path(signer).read_text() if Path(signer).is_file() else signer
    why = f"there is no {SIGNATURE} beside the certificate"
    if signature is not None:
        why = check_signature(certificate, signature.decode(errors="replace"), public) or ""
    good = "the certificate, and by its digests every file, is what the holder of the given key signed"
    bad = f"the certificate was not signed by the given key: {why}"
    return Check(step="signature", outcome="failed" if why else "passed", why=bad if why else good)


def _sign(options: argparse.Namespace) -> int:
    release = _open_release(options)
    files = read_release(release)
    for check in check_files(files):
        if check.outcome != "passed":
            raise DataError(f"Nothing was signed, because the release is not as it was written: {check.why}.")
    passphrase = getpass(f"Passphrase of {options.key}: ").encode() if options.ask_passphrase else None
    signature = sign(files["certificate.json"], Path(options.key).expanduser(), passphrase)
    if not release.create(SIGNATURE, signature.encode()) and files.get(SIGNATURE) != signature.encode():
        raise DataError(f"{release.url} has a {SIGNATURE} already, of another key or certificate: take it away first.")
    print(f"Signed: {release.url}/{SIGNATURE}. Recipients check it with privimage verify RELEASE --signer KEY.pub")
    return 0


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
