"""What every source of labelled images looks like, wherever its images come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from PIL import Image

from privimage.data.class_names import check_class_names
from privimage.data.decode import open_image
from privimage.data.problems import UnusableImage, printable
from privimage.errors import DataError

__all__ = ["Source", "SourceImage", "refused_file"]


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One labelled image that has not been decoded yet.

    `read` returns the bytes of its file, or, where the source has no files, the decoded and upright original; it raises
    DataError with a short reason. `label` indexes the source's class names; one outside of them (-1 where it is missing)
    is the admission's to refuse. `path` says to a person where the image is. `bits` is what the source states about
    integer gray values of more than 8 bits (see `depth`).
    """

    read: Callable[[], bytes | Image.Image]
    label: int
    path: str
    bits: int | None = None

    def load(self) -> Image.Image:
        """The decoded, upright original, decoded in this process: not for sensitive images (see `private_decoder`).

        Raises:
            DataError: it cannot be read or decoded; the message is a short reason without the file's name.
        """
        found = self.read()
        return open_image(found, self.bits) if isinstance(found, bytes) else found


def refused_file(path: str, reason: str, cure: str) -> SourceImage:
    """A file that a source found and cannot take for an image of a class: refused by name, never dropped in silence."""
    return SourceImage(read=partial(_refuse, reason, cure), label=0, path=printable(path))


def _refuse(reason: str, cure: str) -> NoReturn:
    raise UnusableImage(reason, cure)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images in a fixed order; iterating twice yields the same images in the same order.

    `remote_files` says that each image is fetched by itself from far away, so that loading many at once pays.

    Raises:
        DataError: fewer than two classes, a class name that cannot be published (see `class_names`), or no image.
    """

    origin: str
    class_names: tuple[str, ...]
    num_images: int
    images: Callable[[], Iterator[SourceImage]]
    remote_files: bool = False

    def __post_init__(self) -> None:
        check_class_names(self.origin, self.class_names)
        if len(self.class_names) < 2:
            raise DataError(f"{self.origin} has {len(self.class_names)} class(es), expected at least two.")
        if not self.num_images:
            raise DataError(f"{self.origin} holds no images.")

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[SourceImage]:
        return self.images()
