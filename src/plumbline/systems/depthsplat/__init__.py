"""DepthSplat: depth and Gaussians of a scene from a few posed views, in one pass (CVPR 2025)."""

from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.system import System

__all__ = ["Config", "System"]
