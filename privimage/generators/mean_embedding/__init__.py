"""Generators trained on noisy mean embeddings, their critics, and images that are chosen together."""
