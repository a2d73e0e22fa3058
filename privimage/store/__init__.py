"""Where results live: byte objects (`files`), artifacts with manifests (`artifacts`), and checkpoints (`checkpoints`).

`checkpoints` is imported on its own, because it alone needs torch and the ledger, which uses a store, must not.
"""

from privimage.store.artifacts import (
    Artifact,
    ArtifactRef,
    Manifest,
    artifact_key,
    blind,
    canonical_json,
    find,
    list_artifacts,
    open_ref,
    publish,
    remove,
)
from privimage.store.files import Store

__all__ = [
    "Artifact",
    "ArtifactRef",
    "Manifest",
    "Store",
    "artifact_key",
    "blind",
    "canonical_json",
    "find",
    "list_artifacts",
    "open_ref",
    "publish",
    "remove",
]
