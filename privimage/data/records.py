"""What every source of labelled images looks like, wherever its images come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from privimage.errors import DataError

__all__ = ["Source", "SourceImage"]


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One labelled image that has not been decoded yet.

    `load` returns the decoded, upright original or raises DataError with a short reason. `label` indexes the source's
    class names; one outside of them (-1 where it is missing) is the admission's to refuse. `path` says to a person
    where the image is.
    """

    load: Callable[[], Image.Image]
    label: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images in a fixed order; iterating twice yields the same images in the same order.

    `remote_files` says that each image is fetched by itself from far away, so that loading many at once pays.

    Raises:
        DataError: fewer than two classes, two classes of one name, or no image.
    """

    origin: str
    class_names: tuple[str, ...]
    num_images: int
    images: Callable[[], Iterator[SourceImage]]
    remote_files: bool = False

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise DataError(f"{self.origin} has {len(self.class_names)} class(es), expected at least two.")
        if len(set(self.class_names)) < len(self.class_names):
            raise DataError(f"{self.origin} has two classes of the same name: rename one of them.")
        if not self.num_images:
            raise DataError(f"{self.origin} holds no images.")

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[SourceImage]:
        return self.images()
