"""A release as a folder that can be handed on: `releases/<name>-<key>/`, with SHA256SUMS written last."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from privimage.store.artifacts import Artifact
from privimage.store.files import Store

__all__ = ["SUMS", "export_release", "release_name", "sums"]

SUMS = "SHA256SUMS"


def release_name(name: str, artifact: Artifact) -> str:
    """Where the release lies in the store."""
    return f"releases/{name}-{artifact.ref.key[:8]}"


def sums(files: Mapping[str, bytes]) -> bytes:
    """The one spelling of SHA256SUMS for these files (as sha256sum writes and checks it)."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


def export_release(store: Store, name: str, artifact: Artifact) -> str:
    """Copy the files of a release artifact to its folder; what is there already is left as it is.

    Returns:
        The folder's name in the store.
    """
    folder = release_name(name, artifact)
    if not store.exists(f"{folder}/{SUMS}"):
        for file in artifact.names:
            store.upload(artifact.local(file), f"{folder}/{file}")
        store.create(f"{folder}/{SUMS}", sums({file: artifact.read_bytes(file) for file in artifact.names}))
    return folder
