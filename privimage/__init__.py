"""privimage: differentially private synthetic images from a sensitive labelled image set.

A pure library: it imports neither Prefect nor the `tasks` and `flows` of this repository, and runs anywhere.
Start reading at `privimage.pipeline.table`, the stages as data.
"""

import os

# OpenMP's idle threads spin for long by default: beside any other busy process a torch step then takes several times
# longer. This many turns cost nothing on a quiet machine. Read when torch is first imported; what the user set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
__all__ = ["__version__"]
