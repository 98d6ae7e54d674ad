"""Plumbline: a reproducible lab for multi-view depth."""

__version__ = "0.1.0"
