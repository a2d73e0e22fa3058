"""Artifacts: what a stage made, published once under its key and never changed.

    artifacts/<stage>/<key>/manifest.json                  written last, create-only: no manifest, no artifact
    artifacts/<stage>/<key>/payload-<8 hex>/...            the files
    private/artifacts/<stage>/<key>/...                    the same for sealed artifacts, made of sensitive data

Several writers of one key are no danger: each uploads a payload of its own, one manifest wins, the others use it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from privimage.errors import ArtifactDamaged, PrivacyRefused, StoreError
from privimage.store.files import Store
from privimage.store.identity import blind
from privimage.store.manifest import (
    FORMAT,
    JSON,
    ArtifactRef,
    FileEntry,
    Manifest,
    artifact_key,
    canonical_json,
    parse_manifest,
)

__all__ = [
    "JSON",
    "Artifact",
    "ArtifactRef",
    "Manifest",
    "artifact_key",
    "blind",
    "canonical_json",
    "find",
    "list_artifacts",
    "open_ref",
    "publish",
    "remove",
]

# Files of this process that were found to be what their manifest says: (store, object) -> where they lie.
_verified: dict[tuple[str, str], Path] = {}
_download_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A published artifact, whose files are checked against the manifest before they are handed out."""

    store: Store
    manifest: Manifest

    @property
    def ref(self) -> ArtifactRef:
        return self.manifest.ref

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the payload files, sorted."""
        return tuple(sorted(self.manifest.files))

    def check_sizes(self) -> None:
        """Look up every payload file, without reading it.

        Raises:
            ArtifactDamaged: one is missing or has another size; the message names it and says what heals it.
        """
        for name in self.names:
            expected = self.manifest.files[name].size
            try:
                found = self.store.size(self._object(name))
            except FileNotFoundError as error:
                raise self._damaged(name, "is missing") from error
            if found != expected:
                raise self._damaged(name, "has another size than its manifest says", f"{found} bytes, not {expected}")

    def local(self, name: str) -> Path:
        """The payload file on this machine's disk; do not write to it.

        In a local store it is the file itself, else a copy, made once per process and removed at its end. Its digest
        is verified at the first use in each process.

        Raises:
            ArtifactDamaged: the artifact has no such file, or it is missing or differs from the manifest.
        """
        if name not in self.manifest.files:
            raise self._damaged(name, "was never in its manifest")
        source = self._object(name)
        known = _verified.get((self.store.url, source))
        if known is not None and known.exists():
            return known
        path = self.store.local_path(source)
        try:
            if path is None:
                store_folder = hashlib.sha256(self.store.url.encode()).hexdigest()[:16]
                path = _process_folder() / store_folder / source
                found = self.store.download(source, path)
            else:
                found = _sha256(path)
        except FileNotFoundError as error:
            raise self._damaged(name, "is missing") from error
        if found != self.manifest.files[name].sha256:
            expected = self.manifest.files[name].sha256
            raise self._damaged(name, "has another content than its manifest says", f"SHA-256 {found}, not {expected}")
        _verified[self.store.url, source] = path
        return path

    def files(self, prefix: str = "") -> list[Path]:
        """The local files of all names that begin with `prefix`, in the order of their names."""
        return [self.local(name) for name in self.names if name.startswith(prefix)]

    def read_bytes(self, name: str) -> bytes:
        """The verified content of a payload file; errors as for `local`."""
        return self.local(name).read_bytes()

    def read_json(self, name: str) -> Any:
        """The verified content of a JSON payload file; errors as for `local`."""
        return json.loads(self.read_bytes(name))

    def _object(self, name: str) -> str:
        return f"{_folder(self.ref.stage, self.ref.key, self.ref.sealed)}/{self.manifest.payload}/{name}"

    def _damaged(self, name: str, what: str, figures: str = "") -> ArtifactDamaged:
        # Sizes and hashes of sealed files are values computed from sensitive images: no message may carry them.
        detail = f": {figures}" if figures and not self.ref.sealed else ""
        return ArtifactDamaged(
            f"File {name} of artifact {self.ref.stage} {self.ref.key} {what}{detail} "
            f"({self._object(name)} in {self.store.url}). {self.manifest.healing}"
        )


def publish(
    store: Store,
    *,
    stage: str,
    version: int,
    key: str,
    draw: int,
    sealed: bool,
    folder: Path,
    config: JSON,
    inputs: Mapping[str, ArtifactRef],
    metrics: Mapping[str, JSON],
    reservations: Sequence[str],
    provenance: Mapping[str, JSON],
) -> Artifact:
    """Upload all files of `folder` and make them an artifact; return it, or the one that another writer made first.

    Guarantee: nothing is visible before everything is uploaded; a published artifact is never changed. The digest of a
    sealed artifact is blinded (see `blind`), so that manifests and certificates may name it.

    Raises:
        ValueError: the folder is empty, a file's name cannot be stored, or a metric is NaN; nothing was written.
        StoreError: the storage failed.
    """
    sources = _sources(folder)
    place = _folder(stage, key, sealed)
    payload = f"payload-{secrets.token_hex(4)}"
    manifest: dict[str, JSON] = {
        "format": FORMAT,
        "stage": stage,
        "version": version,
        "key": key,
        "draw": draw,
        "sealed": sealed,
        "payload": payload,
        "config": config,
        "inputs": {name: ref.to_json() for name, ref in inputs.items()},
        "metrics": metrics,
        "reservations": list(reservations),
        "provenance": provenance,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "writer": secrets.token_hex(16),
    }

    def described(files: Mapping[str, FileEntry], digest: str) -> bytes:
        whole = {**manifest, "files": {name: entry.model_dump() for name, entry in files.items()}, "digest": digest}
        data = json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()
        Manifest.model_validate_json(data)
        return data

    # What is wrong with names or metrics is told now, before anything is written.
    described({name: FileEntry(size=0, sha256="0" * 64) for name in sources}, "0" * 64)
    files = _upload(store, sources, f"{place}/{payload}")
    data = described(files, _content_digest(store, files, sealed))
    if not store.create(f"{place}/manifest.json", data):
        store.delete_tree(f"{place}/{payload}")
    artifact = find(store, stage, key, sealed)
    if artifact is None:
        raise StoreError(f"Artifact {stage} {key} was removed from {store.url} while it was published; run again.")
    return artifact


def _sources(folder: Path) -> dict[str, Path]:
    sources = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if not sources:
        raise ValueError(f"{folder} holds no files: a stage has to write its result there before it is published.")
    return sources


def _upload(store: Store, sources: Mapping[str, Path], place: str) -> dict[str, FileEntry]:
    """Upload files, and describe them; digests are computed while they travel."""
    with ThreadPoolExecutor(1) as hashing:
        digests = hashing.map(_sha256, sources.values())
        for name, path in sources.items():
            store.upload(path, f"{place}/{name}")
        sizes = [path.stat().st_size for path in sources.values()]
        entries = [FileEntry(size=size, sha256=digest) for size, digest in zip(sizes, digests, strict=True)]
    return dict(zip(sources, entries, strict=True))


def find(store: Store, stage: str, key: str, sealed: bool) -> Artifact | None:
    """The artifact of this key, if it is published. Its files are not looked at: see `Artifact.check_sizes`.

    Raises:
        ArtifactDamaged: the manifest cannot be read, belongs elsewhere, or contradicts its own digest.
    """
    name = f"{_folder(stage, key, sealed)}/manifest.json"
    try:
        data = store.read(name)
    except FileNotFoundError:
        return None
    manifest = parse_manifest(data, name=name, stage=stage, key=key, sealed=sealed)
    if _content_digest(store, manifest.files, sealed) != manifest.digest:
        raise ArtifactDamaged(f"{name} contradicts itself: its digest is not that of its files. {manifest.healing}")
    return Artifact(store=store, manifest=manifest)


def open_ref(store: Store, ref: ArtifactRef) -> Artifact:
    """The artifact that a reference names, with exactly the content it had then.

    Raises:
        StoreError: there is no such artifact here.
        ArtifactDamaged: it has other content than the reference says, or its manifest is damaged.
    """
    artifact = find(store, ref.stage, ref.key, ref.sealed)
    if artifact is None:
        raise StoreError(f"There is no artifact {ref.stage} {ref.key} in {store.url}: run that stage first.")
    if artifact.ref.digest != ref.digest:
        raise ArtifactDamaged(
            f"Artifact {ref.stage} {ref.key} has content digest {artifact.ref.digest}, expected {ref.digest}: it was "
            "made anew since; run again what refers to the old one."
        )
    return artifact


def list_artifacts(store: Store) -> list[Artifact]:
    """All published artifacts, public ones first, by stage and key.

    Raises:
        ArtifactDamaged: as for `find`.
    """
    artifacts = []
    for sealed, root in ((False, "artifacts"), (True, "private/artifacts")):
        for name in store.list(root):
            stage, key, *rest = name.removeprefix(f"{root}/").split("/")
            if rest == ["manifest.json"] and (artifact := find(store, stage, key, sealed)):
                artifacts.append(artifact)
    return artifacts


def remove(store: Store, stage: str, key: str, *, force: bool = False) -> None:
    """Delete an artifact, or what a crash left of one: first the manifest, then the files.

    Raises:
        PrivacyRefused: privacy budget paid for it, or its manifest is too damaged to tell; `force` deletes it anyway.
        StoreError: there is nothing of that stage and key.
    """
    present = [sealed for sealed in (False, True) if store.list(_folder(stage, key, sealed))]
    if not present:
        raise StoreError(f"There is no artifact {stage} {key} in {store.url}: check stage and key.")
    for sealed in present:
        if not force:
            _refuse_if_paid(store, stage, key, sealed)
    for sealed in present:
        store.delete(f"{_folder(stage, key, sealed)}/manifest.json")
        store.delete_tree(_folder(stage, key, sealed))


def _refuse_if_paid(store: Store, stage: str, key: str, sealed: bool) -> None:
    try:
        artifact = find(store, stage, key, sealed)
    except ArtifactDamaged as error:
        raise PrivacyRefused(
            f"The manifest of {stage} {key} is damaged, so that nobody can tell whether privacy budget paid for it: "
            "restore it from a backup, or use --force if the stage is public."
        ) from error
    if artifact is not None and artifact.manifest.reservations:
        raise PrivacyRefused(
            f"Artifact {stage} {key} was paid for by ledger entries {', '.join(artifact.manifest.reservations)}: "
            "making it again would cost that budget again; use --force to delete it all the same."
        )


def _folder(stage: str, key: str, sealed: bool) -> str:
    return f"{'private/' if sealed else ''}artifacts/{stage}/{key}"


def _content_digest(store: Store, files: Mapping[str, FileEntry], sealed: bool) -> str:
    plain = hashlib.sha256(canonical_json({name: entry.sha256 for name, entry in files.items()})).hexdigest()
    return blind(store, plain) if sealed else plain


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _process_folder() -> Path:
    """A folder for downloads that only this user can read and that goes when the process ends."""
    with _download_lock:
        return Path(_temporary_directory().name)


@cache
def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="privimage-", ignore_cleanup_errors=True)
