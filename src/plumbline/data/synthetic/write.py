"""Writes renderings as raw DTU (MVSNet training layout) and SUN3D folders, byte for byte in the formats' own conventions."""

from decimal import Decimal
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8, UInt16

from plumbline.data.geometry import invert
from plumbline.files import write_jpg, write_pfm, write_png, write_png16

DTU_INTERVAL_MM = 2.5
# MVSNet cuts 640x512 out of 800x600 (80 columns and 44 rows off each side), which is half of DTU's 1600x1200.
_CUT = (44, 80)
_CUT_OF = (512, 640)
_SOURCES = 10


def dtu_cameras(
    root: Path,
    depth_K: Float64[np.ndarray, "3 3"],
    size: tuple[int, int],
    world_T_cam: Float64[np.ndarray, "v 4 4"],
    nearest_mm: float,
) -> None:
    """Cameras/train (intrinsics of the depth maps) and Cameras (of the full image); `size` is the image's (512 x 640 in DTU)."""
    cut = (_CUT[0] * size[0] / _CUT_OF[0], _CUT[1] * size[1] / _CUT_OF[1])
    full_K = depth_K.copy()
    full_K[0] = [depth_K[0, 0] * 8, depth_K[0, 1] * 8, (4 * depth_K[0, 2] + cut[1]) * 2]
    full_K[1] = [0, depth_K[1, 1] * 8, (4 * depth_K[1, 2] + cut[0]) * 2]
    for folder, K in ((root / "Cameras" / "train", depth_K), (root / "Cameras", full_K)):
        folder.mkdir(parents=True, exist_ok=True)
        for view, place in enumerate(world_T_cam):
            (folder / f"{view:08d}_cam.txt").write_text(cam_text(place, K, nearest_mm), encoding="ascii")


def cam_text(world_T_cam: Float64[np.ndarray, "4 4"], K: Float64[np.ndarray, "3 3"], nearest_mm: float) -> str:
    """A cam.txt: world-to-camera with its translation in mm, intrinsics, then the nearest depth and the interval in mm."""
    cam_T_world = invert(world_T_cam)
    cam_T_world[:3, 3] *= 1000
    # The published files end each row of numbers with a blank.
    rows = [" ".join(f"{value:.9g}" for value in row) + " " for row in cam_T_world]
    lines = [" ".join(f"{value:.9g}" for value in row) + " " for row in K]
    return "\n".join(["extrinsic", *rows, "", "intrinsic", *lines, "", f"{nearest_mm} {DTU_INTERVAL_MM}", ""])


def dtu_pairs(root: Path, scores: Float[np.ndarray, "v v"]) -> None:
    """Cameras/pair.txt: for each view its (at most ten) best sources with their scores, best first."""
    lines = [str(len(scores))]
    for view, row in enumerate(scores):
        best = [int(other) for other in np.argsort(-row, kind="stable") if other != view][:_SOURCES]
        lines += [str(view), " ".join([str(len(best)), *(f"{other} {row[other]:.6g}" for other in best)]) + " "]
    (root / "Cameras" / "pair.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


def dtu_view(
    root: Path,
    scan: str,
    view: int,
    light: int,
    image: UInt8[np.ndarray, "h w 3"],
    depth_mm: Float32[np.ndarray, "hd wd"],
) -> None:
    """One view of a scan: the picture (1-based name), the depth map in mm (0-based name) and its mask of reliable pixels."""
    pictures, depths = root / "Rectified" / f"{scan}_train", root / "Depths" / f"{scan}_train"
    for folder in (pictures, depths):
        folder.mkdir(parents=True, exist_ok=True)
    write_png(pictures / f"rect_{view + 1:03d}_{light}_r5000.png", image)
    write_pfm(depths / f"depth_map_{view:04d}.pfm", depth_mm)
    write_png(depths / f"depth_visual_{view:04d}.png", reliable(depth_mm))


def reliable(depth_mm: Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """depth_visual: brightness by depth, 0 where there is none and next to where there is none."""
    inner = cv2.erode((depth_mm > 0).astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0
    return np.where(inner, np.clip(depth_mm / 4, 1, 255), 0).astype(np.uint8)


def sun3d_intrinsics(root: Path, K: Float64[np.ndarray, "3 3"]) -> None:
    """intrinsics.txt: three rows of three, every digit of the doubles."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "intrinsics.txt").write_text("\n".join(_exact(row) for row in K) + "\n", encoding="ascii")


def sun3d_poses(root: Path, version: str, world_T_cam: Float64[np.ndarray, "v 4 4"]) -> None:
    """extrinsics/<version>.txt: three rows of four per colour frame, camera-to-world in metres, nothing between frames."""
    (root / "extrinsics").mkdir(parents=True, exist_ok=True)
    rows = [_exact(row) for place in world_T_cam for row in place[:3].astype(np.float32)]
    (root / "extrinsics" / f"{version}.txt").write_text("\n".join(rows) + "\n", encoding="ascii")


def sun3d_image(root: Path, number: int, microseconds: int, image: UInt8[np.ndarray, "h w 3"], *, quality: int) -> None:
    """image/FFFFFFF-TTTTTTTTTTTT.jpg, `number` counted from 1."""
    write_jpg(root / "image" / f"{number:07d}-{microseconds:012d}.jpg", image, quality=quality)


def sun3d_depth(root: Path, number: int, microseconds: int, depth: Float32[np.ndarray, "h w"]) -> None:
    """depth/FFFFFFF-TTTTTTTTTTTT.png of depth in metres: millimetres rotated left by three bits."""
    millimetres = np.clip(np.rint(depth * 1000), 0, 65535).astype(np.uint16)
    write_png16(root / "depth" / f"{number:07d}-{microseconds:012d}.png", rotated(millimetres))


def rotated(millimetres: UInt16[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """SUN3D's depth code: the 16 bits rotated left by three."""
    return (millimetres << 3) | (millimetres >> 13)


def _exact(row: np.ndarray) -> str:
    return " ".join(f"{Decimal(float(value)):f}" for value in row)
