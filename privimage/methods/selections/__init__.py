"""Strategies of selection, declared."""
