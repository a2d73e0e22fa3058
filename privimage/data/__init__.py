"""Images in and out: sources of every kind become the canonical Parquet image table, which the stages read.

Nothing is imported here: the process that decodes sensitive images (`decoder`) would load it with every start.
"""

import logging

__all__: list[str] = []

# At DEBUG, Pillow logs what it decodes: EXIF values, sizes of compressed pixels.
logging.getLogger("PIL").setLevel(logging.INFO)
