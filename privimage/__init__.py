"""privimage: differentially private synthetic images from a sensitive labelled image set.

A pure library: it imports neither Prefect nor the `tasks` and `flows` of this repository, and runs anywhere.
Start reading at `privimage.pipeline`, the stages as data.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
