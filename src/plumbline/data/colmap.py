"""COLMAP's text models (cameras.txt, images.txt) and depth maps in HDF5, as AerialMegaDepth is published.

Pixels: COLMAP puts the centre of the top-left pixel at (0.5, 0.5); here it is (0, 0), so principal points lose half a pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from plumbline.data.geometry import invert
from plumbline.data.reading import pinhole, read_text, to_numbers
from plumbline.errors import DataError

# Where fx, fy, cx, cy stand among the parameters. Other models distort: their images are no pinhole's.
_MODELS = {"SIMPLE_PINHOLE": (0, 0, 1, 2), "PINHOLE": (0, 1, 2, 3)}


@dataclass(frozen=True)
class ColmapImage:
    """An image of a model: its K (centre of the top-left pixel at (0, 0)), size (height, width) and world_T_cam."""

    K: Float64[np.ndarray, "3 3"]
    size: tuple[int, int]
    world_T_cam: Float64[np.ndarray, "4 4"]


def read_model(folder: Path) -> dict[str, ColmapImage]:
    """The images of a text model by name, in the file's order; DataError for a lens with distortion, cut or odd lines."""
    cameras = dict(_cameras(folder / "cameras.txt"))
    path = folder / "images.txt"
    lines = [line for line in read_text(path).splitlines() if not line.startswith("#")]
    images = {}
    # Two lines an image; the second lists its points and may be empty.
    for line in lines[::2]:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        if len(words) < 10:
            raise DataError(f"{path}: {line[:60]!r} is no image (10 words). The file may be cut: fetch it again.")
        camera = cameras.get(words[8])
        if camera is None:
            raise DataError(
                f"{path}: image {words[9]} has camera {words[8]}, which cameras.txt lacks. Fetch both again."
            )
        images[words[9]] = ColmapImage(*camera, _world_T_cam(to_numbers(words[1:8], path)))
    return images


def _cameras(path: Path) -> Iterator[tuple[str, tuple[Float64[np.ndarray, "3 3"], tuple[int, int]]]]:
    for line in read_text(path).splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        places = _MODELS.get(words[1]) if len(words) > 4 else None
        if places is None or len(words) != 5 + max(places):
            raise DataError(
                f"{path}: camera {' '.join(words[:2])} with {len(words) - 4} parameters; expected {' or '.join(_MODELS)}: images "
                "without distortion. Undistort the model with COLMAP first."
            )
        width, height, *parameters = to_numbers(words[2:], path)
        fx, fy, cx, cy = (parameters[place] for place in places)
        yield words[0], (pinhole((fx, fy, cx - 0.5, cy - 0.5)), (int(height), int(width)))


def _world_T_cam(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "4 4"]:
    """From (qw, qx, qy, qz, tx, ty, tz) of the world-to-camera transform."""
    w, x, y, z = values[:4] / np.linalg.norm(values[:4])
    cam_T_world = np.eye(4)
    cam_T_world[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    cam_T_world[:3, 3] = values[4:]
    return invert(cam_T_world)


def read_h5_depth(path: Path) -> Float32[np.ndarray, "h w"]:
    """The data set `depth` of an HDF5 file, as stored; DataError when there is none that can be read."""
    # Imported late: a stage should start its work at once.
    import h5py

    try:
        with h5py.File(path, "r") as stored:
            return np.asarray(stored["depth"], np.float32)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: no readable depth map ({error}). The file may be cut: fetch it again.") from error
