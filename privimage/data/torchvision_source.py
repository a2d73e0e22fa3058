"""The data sets of torchvision, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from privimage.config.sources import TorchvisionSource
from privimage.data.problems import UnusableImage
from privimage.data.records import Source, SourceImage
from privimage.errors import ConfigError, DataError

__all__ = ["open_torchvision"]

_SPLITS = {
    "MNIST": ("train", "test"),
    "FashionMNIST": ("train", "test"),
    "EMNIST": ("train", "test"),
    "CIFAR10": ("train", "test"),
    "CIFAR100": ("train", "test"),
    "EuroSAT": ("train",),
    "CelebA": ("train", "val", "test"),
    "PCAM": ("train", "val", "test"),
    "ImageNet": ("train", "val"),
}


def open_torchvision(config: TorchvisionSource) -> Source:
    """A torchvision data set in its own order, with its own labels.

    EMNIST's images, which torchvision gives transposed, are put upright, and its letters are labelled from 0.
    ImageNet's classes are named `first name (WordNet number)`, since two of them share their names.

    Raises:
        DataError: the files are not there, or torchvision cannot read or download them.
        ConfigError: no such split, or a `subset` that is missing or unknown.
    """
    known = _SPLITS[config.name]
    if config.split not in known:
        raise ConfigError(f"{config.name} has no split {config.split!r}: choose from {', '.join(known)}.")
    dataset = _open(config)
    if config.name == "PCAM":
        return _pcam(config, dataset)
    names, labels = _names_and_labels(config, dataset)
    return _source(config, names, len(labels), partial(_images, config, labels, _loader(config, dataset)))


def _open(config: TorchvisionSource) -> Any:
    import torchvision.datasets  # slow to import, and needed by this source only

    root = str(Path(config.root).expanduser())
    options: dict[str, Any] = {} if config.name == "ImageNet" else {"download": config.download}
    if config.name == "EMNIST":
        splits = torchvision.datasets.EMNIST.splits
        if config.subset not in splits:
            raise ConfigError(f"EMNIST needs `subset`, one of {', '.join(splits)}; found {config.subset!r}.")
        options["split"] = config.subset
    elif config.subset is not None and config.name != "CelebA":
        raise ConfigError(f"{config.name} has no subsets: leave `subset` out.")
    if config.name in ("CelebA", "PCAM", "ImageNet"):
        options["split"] = "valid" if (config.name, config.split) == ("CelebA", "val") else config.split
    elif config.name != "EuroSAT":
        options["train"] = config.split == "train"
    try:
        return getattr(torchvision.datasets, config.name)(root, **options)
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        # ImageNet cannot be downloaded by torchvision: its archives have to be placed by hand.
        cure = "place its files there" + ("" if config.name == "ImageNet" else ", or set `download: true`")
        raise DataError(f"torchvision found no usable {config.name} in {root} ({error}): {cure}.") from None


def _names_and_labels(config: TorchvisionSource, dataset: Any) -> tuple[Sequence[str], list[int]]:
    match config.name:
        case "CelebA":
            return (f"not {config.subset}", str(config.subset)), _celeba_labels(dataset, config.subset)
        case "ImageNet":
            names = [f"{names[0]} ({wnid})" for names, wnid in zip(dataset.classes, dataset.wnids, strict=True)]
            return names, list(dataset.targets)
        case "EMNIST" if config.subset == "letters":
            # torchvision counts the letters from 1 and fills class 0 with a name that no image has.
            return dataset.classes[1:], [int(label) - 1 for label in dataset.targets]
        case _:
            return dataset.classes, [int(label) for label in dataset.targets]


def _celeba_labels(dataset: Any, attribute: str | None) -> list[int]:
    if not attribute or attribute not in dataset.attr_names:
        known = ", ".join(filter(None, dataset.attr_names))
        raise ConfigError(f"CelebA needs `subset`, the attribute used as label: found {attribute!r}, not {known}.")
    return [int(label) for label in dataset.attr[:, dataset.attr_names.index(attribute)]]


def _loader(config: TorchvisionSource, dataset: Any) -> Callable[[int], bytes | Image.Image]:
    """How to load an image by its number; files are read here, so that damaged ones are refused as everywhere."""
    match config.name:
        case "EuroSAT" | "ImageNet":
            return partial(_load_file, [Path(path) for path, _ in dataset.samples])
        case "CelebA":
            folder = Path(dataset.root, dataset.base_folder, "img_align_celeba")
            return partial(_load_file, [folder / name for name in dataset.filename])
        case "EMNIST":
            return lambda index: dataset[index][0].transpose(Image.Transpose.TRANSPOSE)
        case _:
            return lambda index: dataset[index][0]


def _load_file(files: Sequence[Path], index: int) -> bytes:
    try:
        return files[index].read_bytes()
    except OSError as error:
        raise UnusableImage(f"the file cannot be read ({type(error).__name__})") from None


def _images(
    config: TorchvisionSource, labels: Sequence[int], load: Callable[[int], bytes | Image.Image]
) -> Iterator[SourceImage]:
    for index, label in enumerate(labels):
        yield SourceImage(read=partial(load, index), label=label, path=f"{config.name}/{config.split}/{index}")


def _pcam(config: TorchvisionSource, dataset: Any) -> Source:
    def images() -> Iterator[SourceImage]:
        # The labels can only be had together with the images.
        for index in range(len(dataset)):
            image, label = dataset[index]
            yield SourceImage(read=image.copy, label=int(label), path=f"{config.name}/{config.split}/{index}")

    return _source(config, ("normal", "tumor"), len(dataset), images)


def _source(
    config: TorchvisionSource, names: Sequence[str], num_images: int, images: Callable[[], Iterator[SourceImage]]
) -> Source:
    origin = f"torchvision's {config.name}"
    return Source(origin=origin, class_names=tuple(names), num_images=num_images, images=images)
