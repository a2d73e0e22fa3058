"""Methods of somebody else: what a new kind of generator and a new strategy of selection take, and nothing more."""
