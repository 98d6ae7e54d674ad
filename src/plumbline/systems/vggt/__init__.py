"""VGGT: depth and cameras from images alone, by a transformer that attends within and across frames (CVPR 2025)."""

from plumbline.systems.vggt.config import Config
from plumbline.systems.vggt.system import System

__all__ = ["Config", "System"]
