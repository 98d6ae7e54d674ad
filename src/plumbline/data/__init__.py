"""Readers, canonical scenes, samples and data checks. Nothing in here imports torch."""
