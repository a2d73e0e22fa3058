"""Kinds of backbones, one a file."""
