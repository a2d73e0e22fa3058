"""Kinds of generators, declared."""
