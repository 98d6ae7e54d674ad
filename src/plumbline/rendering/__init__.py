"""Gaussian rasterisers behind one interface."""
