"""From the configuration of a source to its images: one way in for every kind."""

from __future__ import annotations

from privimage.config.sources import (
    DemoDigits,
    DemoGlyphs,
    FolderSource,
    ParquetSource,
    SourceConfig,
    TorchvisionSource,
)
from privimage.data.demo import demo_digits, demo_glyphs
from privimage.data.folder_source import open_folder
from privimage.data.parquet_source import open_parquet
from privimage.data.records import Source, SourceImage
from privimage.data.torchvision_source import open_torchvision

__all__ = ["Source", "SourceImage", "open_source"]


def open_source(config: SourceConfig) -> Source:
    """Find the images of a source without decoding any.

    Raises:
        DataError: the source is missing, unreadable, or has fewer than two classes or no images; only facts that its
            configuration or its class names show are in the message.
        ConfigError: the source has no such split or subset.
    """
    match config:
        case TorchvisionSource():
            return open_torchvision(config)
        case FolderSource():
            return open_folder(config)
        case ParquetSource():
            return open_parquet(config)
        case DemoDigits():
            return demo_digits()
        case DemoGlyphs():
            return demo_glyphs(config.images_per_category, config.seed)
