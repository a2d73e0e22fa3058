"""Methods as declarations, without torch: kinds of generators, strategies of selection, and where their code is."""
