"""DeltaZ: a U-Net that corrects another method's depth."""

from plumbline.systems.deltaz.system import Config, System

__all__ = ["Config", "System"]
