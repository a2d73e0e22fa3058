"""Everything the privacy claim rests on: mechanisms as data, accounting, the ledger, entropy, Poisson sampling,
per-image clipping and DP-SGD. `mechanisms`, `accounting` and `ledger` import no torch."""
