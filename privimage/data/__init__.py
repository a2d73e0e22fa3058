"""Images in and out: sources of every kind become the canonical Parquet image table, which the stages read."""

import logging

from privimage.data.admission import SensitiveDataProblem, admit_public, admit_sensitive
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.data.sources import Source, SourceImage, open_source
from privimage.data.table import TableWriter, iterate_images, read_images

__all__ = [
    "SensitiveDataProblem",
    "SensitiveFacts",
    "Source",
    "SourceImage",
    "TableFacts",
    "TableWriter",
    "admit_public",
    "admit_sensitive",
    "iterate_images",
    "open_source",
    "read_images",
]

# At DEBUG, Pillow logs what it decodes: EXIF values, sizes of compressed pixels.
logging.getLogger("PIL").setLevel(logging.INFO)
