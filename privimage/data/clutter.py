"""What systems leave in folders of images, which is no image of anybody's; and texts about a set that lie beside its classes."""

from __future__ import annotations

__all__ = ["is_about_the_set", "is_clutter"]

# Names in small letters, since the systems that write them do not care about case.
_LEFT_BEHIND = frozenset(
    {
        # macOS, in zips and on disks that it shares
        "__macosx", "icon\r", "network trash folder", "temporary items",
        # Windows
        "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "recycled", "system volume information",
        "found.000",
        # Linux
        "lost+found",
        # network storage: Synology, QNAP, NetApp. The first holds small copies of every picture.
        "@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot", "~snapshot",
        # Python
        "__pycache__",
    }
)  # fmt: skip
_TEXTS = (".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".xml", ".html", ".md5", ".sha256")
_TITLES = ("readme", "license", "licence", "citation", "changelog", "sha256sums", "md5sums")


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is left aside, with all that is in it: hidden ones, and what systems write."""
    return name.startswith(".") or name.casefold() in _LEFT_BEHIND


def is_about_the_set(name: str) -> bool:
    """Whether a file of this name, beside the class folders, is a text about the set, such as a README or a list of labels."""
    small = name.casefold()
    return small.endswith(_TEXTS) or small in _TITLES
