"""What identifies a raw source before it is read: its kind, and names, sizes and times (or ETags) of its files.

It enters the keys of the two admission stages only; all later stages depend on the *content* that was admitted. A
fingerprint that changes needlessly (a file was touched) costs one admission and reruns nothing else.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from privimage.config.sources import (
    DemoDigits,
    DemoGlyphs,
    FolderSource,
    ParquetSource,
    SourceConfig,
    TorchvisionSource,
)
from privimage.data.local_files import walk
from privimage.data.location import filesystem, is_remote, local_path, reading
from privimage.errors import DataError

__all__ = ["source_fingerprint"]


def source_fingerprint(source: SourceConfig) -> dict[str, Any]:
    """JSON that changes when the source's files change; the path itself is not in it.

    Raises:
        DataError: the path does not exist or cannot be listed.
    """
    match source:
        case DemoDigits() | DemoGlyphs():
            return source.model_dump(mode="json")
        case TorchvisionSource():
            # torchvision verifies its own downloads, and a root folder may hold other sets too.
            return source.model_dump(mode="json", include={"kind", "name", "root", "split", "subset"})
        case FolderSource():
            return {"kind": source.kind, "files": _listing(source.path), **_stated(source)}
        case ParquetSource():
            columns = {"image": source.image_column, "label": source.label_column}
            some = {} if source.max_images is None else {"max_images": source.max_images}
            return {"kind": source.kind, "columns": columns, "files": _listing(source.path), **some, **_stated(source)}


def _stated(source: FolderSource | ParquetSource) -> dict[str, Any]:
    """What is said about how to read the files, where anything is."""
    return source.model_dump(mode="json", include={"split", "bits"}, exclude_none=True)


def _listing(path: str) -> str:
    """Digest of (relative name, size, time or ETag) of all files at or below `path`."""
    with reading(path):
        rows = _remote_rows(path) if is_remote(path) else _local_rows(local_path(path))
    if not rows:
        raise DataError(f"Nothing found at {path}: check the path, the bucket and its endpoint.")
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update("\0".join(row).encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def _local_rows(root: Path) -> list[tuple[str, str, str]]:
    if root.is_file():
        status = root.stat()
        return [("", str(status.st_size), str(status.st_mtime_ns))]
    rows = []
    for entry in walk(root, lambda error: None):
        if entry.kind == "file":
            status = (root / entry.path).stat()
            rows.append((entry.path, str(status.st_size), str(status.st_mtime_ns)))
    return rows


def _remote_rows(path: str) -> list[tuple[str, str, str]]:
    fs, root = filesystem(path)
    found: dict[str, dict[str, Any]] = fs.find(root, detail=True)
    return [
        (name.removeprefix(root), str(info.get("size")), str(info.get("ETag") or info.get("LastModified") or ""))
        for name, info in found.items()
    ]
