"""Generators: what each kind computes, and the training and sampling that they share."""
