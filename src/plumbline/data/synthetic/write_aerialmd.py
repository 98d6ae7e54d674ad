"""Writes renderings as preprocessed AerialMegaDepth: names, numbers and encodings as the published tools leave them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from plumbline.data.exr import read_exr, write_exr
from plumbline.data.synthetic.world import Camera
from plumbline.files import atomic_path, read_png8, write_jpg, write_png

_RECORD = [("scene_id", np.int64), ("im1_id", np.int64), ("im2_id", np.int64), ("score", np.float64)]
_SEGMENTATION = "seg"
_SKY = 2


def view(
    root: Path,
    scene: str,
    tag: str,
    image: UInt8[np.ndarray, "h w 3"],
    depth: Float32[np.ndarray, "h w"],
    camera: Camera,
    *,
    quality: int,
) -> None:
    """<scene>/<tag>.jpg, .exr (metres) and .npz: intrinsics with pixel centres at (0.5, 0.5), cam2world."""
    folder = root / scene
    write_jpg(folder / f"{tag}.jpg", image, quality=quality)
    write_exr(folder / f"{tag}.exr", depth)
    K = camera.K.copy()
    K[:2, 2] += 0.5
    with atomic_path(folder / f"{tag}.npz") as temporary:
        np.savez(temporary, intrinsics=K, cam2world=camera.world_T_cam)


def labels(root: Path, scene: str, tag: str, values: UInt8[np.ndarray, "h w"]) -> None:
    """seg/<scene>/<tag>.png: the label map in three equal channels."""
    write_png(root / _SEGMENTATION / scene / f"{tag}.png", np.repeat(values[..., None], 3, axis=2))


def tags(root: Path, scene: str) -> list[str]:
    """Tags of the images written: photographs by name, then the flight's frames."""
    found = [path.name.removesuffix(".npz") for path in (root / scene).glob("*.npz")]
    return sorted(found, key=lambda tag: (tag.endswith(".jpeg"), tag))


def read_back(root: Path, scene: str, tag: str) -> tuple[Float32[np.ndarray, "h w"], Camera]:
    """True depth (0 in the sky) and camera of a view that was written."""
    depth = read_exr(root / scene / f"{tag}.exr")
    sky = read_png8(root / _SEGMENTATION / scene / f"{tag}.png") == _SKY
    with np.load(root / scene / f"{tag}.npz") as stored:
        K, world_T_cam = stored["intrinsics"], stored["cam2world"]
    K[:2, 2] -= 0.5
    return np.where(sky, np.float32(0), depth), Camera(K, world_T_cam, (depth.shape[0], depth.shape[1]))


def index(path: Path, scenes: Mapping[str, tuple[list[str], list[tuple[int, int, float]]]], *, records: bool) -> None:
    """An index of scenes -> (tags, pairs as places in tags with a score): as records, or as rows of objects.

    Image numbers have a hole before each scene, as where the published tools leave an image out.
    """
    images: list[str | None] = []
    places: list[str] = []
    rows: list[tuple[int, int, int, float]] = []
    for number, (scene, (names, found)) in enumerate(scenes.items()):
        base = len(images) + 1
        images += [None, *names]
        places += [scene] * (1 + len(names))
        rows += [(number, base + i, base + j, score) for i, j, score in found]
    pairs = np.array(rows, _RECORD) if records else np.array(rows, object).reshape(-1, len(_RECORD))
    with atomic_path(path) as temporary:
        # The published index has columns of objects, which only a pickle can hold; our reader must be able to cope with them.
        np.savez(
            temporary,
            allow_pickle=True,
            scenes=np.array(list(scenes)),
            images=np.array(images, object),
            images_scene_name=np.array(places, object),
            pairs=pairs,
        )
