"""Per-image clipped gradient sums, by interchangeable engines.

engine.py        the interface, the choice, and the check that a network suits an engine
bookkeeping.py   the default: one forward and one backward pass
layers.py        the layers that it knows
pieces.py        how per-image gradients are kept until all norms are known
rule.py          the clipping rule in parts
vectorised.py    the oracle: vmap of grad
opacus_hooks.py  Opacus, for comparison
rows.py          how images and noise draws lie in rows
"""

from privimage.privacy.gradients.engine import Backend, GradientEngine, check_engine, gradient_engine
from privimage.privacy.gradients.rows import LossOfRows, Network, Precision

__all__ = [
    "Backend",
    "GradientEngine",
    "LossOfRows",
    "Network",
    "Precision",
    "check_engine",
    "gradient_engine",
]
