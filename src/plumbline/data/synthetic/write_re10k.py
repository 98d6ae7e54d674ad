"""Writes renderings as chunk files (RealEstate10K, ACID, DL3DV): <folder>/<number>.torch, index.json, an evaluation index."""

import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from plumbline.data.geometry import invert
from plumbline.files import atomic_path, write_json

EVALUATION_INDEX = "evaluation_index.json"
_TARGETS = 3


def camera_row(
    K: Float64[np.ndarray, "3 3"], world_T_cam: Float64[np.ndarray, "4 4"], size: tuple[int, int]
) -> Float32[np.ndarray, "18"]:
    """fx, fy, cx, cy by width and height (pixel centres at halves), two zeros, the 3x4 world-to-camera row by row."""
    height, width = size
    intrinsics = [K[0, 0] / width, K[1, 1] / height, (K[0, 2] + 0.5) / width, (K[1, 2] + 0.5) / height]
    return np.array([*intrinsics, 0, 0, *invert(world_T_cam)[:3].ravel()], np.float32)


def part(
    root: Path,
    scene: str,
    times: Int64[np.ndarray, " n"],
    cameras: Float32[np.ndarray, "n 18"],
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    *,
    quality: int,
) -> None:
    """One scene, to be packed into a chunk when all are there; images become JPEG."""
    encoded = [cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for image in images]
    path = _part(root, scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        ends = np.cumsum([len(one) for one in encoded])
        np.savez(temporary, times=times, cameras=cameras, bytes=np.concatenate(encoded).reshape(-1), ends=ends)


def pack(root: Path, scenes: Sequence[str], *, chunk: int) -> None:
    """Turn the parts of `scenes` (<folder>/<key>) into chunks of `chunk` scenes each with an index.json in every folder."""
    for folder in sorted({name.partition("/")[0] for name in scenes}):
        own = [name for name in scenes if name.partition("/")[0] == folder]
        index: dict[str, str] = {}
        for number, start in enumerate(range(0, len(own), chunk)):
            names = own[start : start + chunk]
            write_chunk(root / folder / f"{number:06d}.torch", [_record(root, name) for name in names])
            index |= {name.partition("/")[2]: f"{number:06d}.torch" for name in names}
        write_json(root / folder / "index.json", index)
    for name in scenes:
        _part(root, name).unlink()
    _part(root, scenes[0]).parent.rmdir()


def write_chunk(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write scenes (key, url, timestamps, cameras, images as arrays of bytes) as a list of dicts of tensors; same bytes again."""
    # Only chunks need torch: no other layout may pay for its import.
    torch = importlib.import_module("torch")
    tensors = [
        {
            **record,
            "timestamps": torch.from_numpy(record["timestamps"]),
            "cameras": torch.from_numpy(record["cameras"]),
            "images": [torch.from_numpy(image) for image in record["images"]],
        }
        for record in records
    ]
    # A path's name would become part of the file.
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def evaluation_index(root: Path, scenes: Sequence[str], *, views: int) -> None:
    """evaluation_index.json: two context frames a third of the scene apart, three between; null for the last of several."""
    gap = max(views // 3, 1)
    left = (views - gap) // 2
    between = [left + round(gap * share) for share in np.linspace(0.25, 0.75, _TARGETS)]
    entry = {"context": [left, left + gap], "target": between}
    keys = [name.partition("/")[2] for name in scenes if name.startswith("test/")]
    write_json(root / EVALUATION_INDEX, {key: None if key == keys[-1] and len(keys) > 1 else entry for key in keys})


def _part(root: Path, scene: str) -> Path:
    return root / "parts" / f"{scene.replace('/', '-')}.npz"


def _record(root: Path, scene: str) -> dict[str, Any]:
    with np.load(_part(root, scene)) as stored:
        images = np.split(stored["bytes"], stored["ends"][:-1])
        # Copies: a view of the joined bytes would be saved with all of them.
        return {
            "key": scene.partition("/")[2],
            "url": f"made:{scene}",
            "timestamps": stored["times"],
            "cameras": stored["cameras"],
            "images": [image.copy() for image in images],
        }
