"""privimage: differentially private synthetic images from a sensitive labelled image set.

A pure library: it imports neither Prefect nor the `tasks` and `flows` of this repository, and runs anywhere.
Start reading at `privimage.pipeline`, the stages as data.
"""

import os

# OpenMP's idle threads spin by default: beside any other busy process a torch step then takes several times longer.
# It is read when torch is first imported; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["__version__"]
