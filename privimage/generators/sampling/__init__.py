"""Sampling that all kinds share: an image a seed, batches in order, sizes of classes."""
