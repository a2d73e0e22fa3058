"""Per-image clipped gradient sums, by interchangeable engines.

engine.py        the interface, the choice, and the check that a network suits an engine
bookkeeping.py   the default: one forward and one backward pass
layers.py        the layers that it knows
pieces.py        how per-image gradients are kept until all norms are known
vectorised.py    the oracle: vmap of grad
opacus_hooks.py  Opacus, for comparison
full_precision.py  no TF32 or bfloat16 in sums, whatever was switched on outside
rows.py          how images and noise draws lie in rows
"""

from privimage.privacy.gradients.engine import Backend, GradientEngine, check_engine, gradient_engine
from privimage.privacy.gradients.memory import bytes_per_image
from privimage.privacy.gradients.rows import LossOfRows, Network, Precision, autocast

__all__ = [
    "Backend",
    "GradientEngine",
    "LossOfRows",
    "Network",
    "Precision",
    "autocast",
    "bytes_per_image",
    "check_engine",
    "gradient_engine",
]
