"""Stages as data: what a stage is, which there are, what goes into their keys, and what they cost."""
