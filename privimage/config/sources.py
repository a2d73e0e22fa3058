"""Where images come from: the `kind`s of source that a configuration may name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from privimage.config.form import Section

__all__ = ["DemoDigits", "DemoGlyphs", "FolderSource", "ParquetSource", "SourceConfig", "TorchvisionSource"]


class TorchvisionSource(Section):
    """A data set of torchvision, by name."""

    kind: Literal["torchvision"] = Field(default="torchvision", description="A data set of torchvision.")
    name: Literal["MNIST", "FashionMNIST", "EMNIST", "CIFAR10", "CIFAR100", "EuroSAT", "CelebA", "PCAM", "ImageNet"] = (
        Field(description="Name of the data set in torchvision.datasets.")
    )
    root: str = Field(description="Folder that holds, or will hold, the data set's files.")
    split: str = Field(
        default="train",
        description="Which part: 'train', 'val' or 'test', as far as the data set has it; EuroSAT has one, 'train'.",
    )
    subset: str | None = Field(
        default=None,
        description="EMNIST: its split ('letters', 'digits', ...). CelebA: the attribute used as label ('Male').",
    )
    download: bool = Field(default=False, description="Let torchvision download the files if they are not there.")


def _bits() -> Any:
    return Field(
        default=None,
        ge=8,
        le=16,
        title="Bits",
        description="How many bits gray values use in files that store them in 16 or 32, such as 12 for radiographs; none = 16.",
    )


class FolderSource(Section):
    """A folder (or zip) with one sub-folder of image files per class."""

    kind: Literal["folder"] = Field(default="folder", description="A folder of image files.")
    path: str = Field(description="Folder or .zip file, local or s3://, that holds one folder per class.")
    split: str | None = Field(
        default=None,
        min_length=1,
        title="Split",
        description="Read only the folder of this name, such as 'train', at the top or in every class folder; none = all.",
    )
    bits: int | None = _bits()


class ParquetSource(Section):
    """Parquet in the Hugging Face convention: an image struct<bytes, path> and an integer label."""

    kind: Literal["parquet"] = Field(default="parquet", description="Parquet files.")
    path: str = Field(description="A .parquet file, or a folder of them, local or s3://.")
    image_column: str = Field(default="image", description="Column with the images.")
    label_column: str = Field(default="label", description="Column with the class numbers.")
    split: str | None = Field(
        default=None,
        min_length=1,
        title="Split",
        description="Of a folder, read only the files of this split, such as 'train' for train-00000-of-00001.parquet; 'all' = "
        "all files, whatever they are called; none = all, if none of them looks like a split.",
    )
    bits: int | None = _bits()
    max_images: int | None = Field(
        default=None,
        ge=2,
        title="Max images",
        description="Take only so many of the rows, always the same; none = all. A sensitive set is then those images: with "
        "another number it is another data set, with a ledger of its own.",
    )


class DemoDigits(Section):
    """1,797 real handwritten digits, 8x8, that scikit-learn ships: a stand-in for sensitive images."""

    kind: Literal["demo-digits"] = Field(default="demo-digits", description="The demo's digits.")


class DemoGlyphs(Section):
    """Letters and digits rendered from the fonts that matplotlib ships: a public set without a download."""

    kind: Literal["demo-glyphs"] = Field(default="demo-glyphs", description="The demo's glyphs.")
    images_per_category: int = Field(default=250, ge=10, le=10_000, description="Images of each of the 62 categories.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of the distortions (public data: reproducible).")


SourceConfig = Annotated[
    # A form opens at the first one that has the given keys.
    DemoDigits | DemoGlyphs | FolderSource | ParquetSource | TorchvisionSource, Field(discriminator="kind")
]
