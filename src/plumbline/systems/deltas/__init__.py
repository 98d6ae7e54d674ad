"""DELTAS: match keypoints along epipolar segments, triangulate them, and densify the sparse depth (ECCV 2020)."""

from plumbline.systems.deltas.config import Config
from plumbline.systems.deltas.system import System

__all__ = ["Config", "System"]
