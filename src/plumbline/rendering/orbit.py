"""A camera that circles, and rendered pictures as files hold them."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from plumbline.files import atomic_path

_FPS = 20


def to_8_bit(colour: Float[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as files hold it: held to [0, 1], rounded."""
    return (colour.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def write_movie(path: Path, frames: Sequence[UInt8[np.ndarray, "h w 3"]]) -> None:
    """Write pictures as an endless GIF or an MP4, by the name's suffix, atomically."""
    import imageio.v3 as imageio

    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".gif":
            imageio.imwrite(temporary, frames, extension=".gif", duration=1000 / _FPS, loop=0)
        else:
            imageio.imwrite(temporary, frames, extension=".mp4", fps=_FPS, plugin="FFMPEG")


def orbit(
    world_T_cam: Float64[np.ndarray, "4 4"], distance: float, frames: int, *, angle: float = math.radians(6)
) -> Iterator[Float64[np.ndarray, "4 4"]]:
    """Cameras on a circle of `angle` (radians) about `world_T_cam`, all facing the point `distance` ahead of it."""
    target = np.array([0.0, 0.0, distance])
    for phase in 2 * math.pi * np.arange(frames) / frames:
        place = distance * math.tan(angle) * np.array([math.cos(phase), math.sin(phase), 0.0])
        forward = (target - place) / np.linalg.norm(target - place)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        cam_T_new = np.eye(4)
        cam_T_new[:3] = np.stack([right, np.cross(forward, right), forward, place], axis=1)
        yield world_T_cam @ cam_T_new
