"""Gaussian rasterisers behind one interface: `render(gaussians, cameras, size, background, backend=...)`."""

from plumbline.rendering.cameras import Cameras, centre_origin, corner_origin, symmetric
from plumbline.rendering.gaussians import Gaussians
from plumbline.rendering.harmonics import to_standard
from plumbline.rendering.render import BACKENDS, Backend, Rendering, chosen_backend, render
from plumbline.rendering.rules import GSPLAT, OFFICIAL, Rules

__all__ = [
    "BACKENDS",
    "GSPLAT",
    "OFFICIAL",
    "Backend",
    "Cameras",
    "Gaussians",
    "Rendering",
    "Rules",
    "centre_origin",
    "chosen_backend",
    "corner_origin",
    "render",
    "symmetric",
    "to_standard",
]
