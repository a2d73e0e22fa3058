"""How good the synthetic images are: features, distances between sets of features, and use for training.

All of it may look at sensitive images without noise; what it computes from them is internal and no part of a release.
"""
