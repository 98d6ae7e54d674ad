"""Read SUN3D sequences (Xiao, Owens and Torralba, ICCV 2013).

`<building>/<sequence>/` holds image/, depth/, extrinsics/ and intrinsics.txt; frames are named FFFFFFF-TTTTTTTTTTTT (id
from 1, microseconds). Depth is 16-bit millimetres rotated left by 3 bits. Poses are camera-to-world, three rows of four
for the i-th image in name order. Colour and depth are registered: one K.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt16
from pydantic import BaseModel, Field

from plumbline.data.geometry import invert
from plumbline.data.reading import (
    located,
    nearest,
    pick,
    place,
    read_colour,
    read_intrinsics,
    read_numbers,
    report_lost,
    scene_folder,
)
from plumbline.errors import DataError
from plumbline.files import read_png16
from plumbline.records import View

Coding = Literal["rotated", "shifted", "raw"]

_FRAME_FILE = re.compile(r"(\d+)-(\d+)\.(?:jpg|png)")
_DEPTH_FOLDERS = ("depth", "depthTSDF")
_CODINGS: dict[Coding, str] = {
    "rotated": "depth rotated right by 3 bits",
    "shifted": "depth shifted right by 3 bits (beyond 8.191 m wraps)",
    "raw": "depth bits not rotated (raw value as mm)",
}
_ASSOCIATIONS: dict[Literal["time", "index", "id"], str] = {
    "time": "frames paired by nearest time",
    "index": "frames paired by index",
    "id": "frames paired by id",
}
# Depth files looked at to see whether two codings differ at all on a sequence.
_CODING_PROBES = 5


@dataclass(frozen=True)
class Frame:
    """One frame on disk: an image, the depth file that belongs to it and its camera-to-world transform (metres)."""

    name: str
    image: Path
    depth: Path
    world_T_cam: Float64[np.ndarray, "4 4"]


class Options(BaseModel, frozen=True, extra="forbid"):
    """How a sequence is read. The defaults are the right reading; the other values exist to diagnose misreadings."""

    depth_folder: Literal["depth", "depthTSDF"] = "depth"
    """Raw sensor depth, or the depth smoothed by a TSDF, which only some sequences have (same coding and names)."""
    depth_coding: Coding = "rotated"
    association: Literal["time", "index", "id"] = "time"
    max_time_gap_ms: float = Field(default=33.5, gt=0)
    """Largest gap between an image and its depth: one frame period. The drift between the two clocks stays below (28.9 ms at
    most where it was measured); a larger gap means that this image's own depth frame was dropped."""
    extrinsics: str = "last"
    """Name of a file under extrinsics/, or "last": the newest by name. Each version has its own world frame."""
    pose_rows: Literal[3, 4] = 3
    pose_direction: Literal["camera_to_world", "world_to_camera"] = "camera_to_world"
    pose_index: Literal["order", "id"] = "order"
    """An image's pose is that of its place in name order or, where only some images are at hand, that of its id."""
    stride: int = Field(default=1, ge=1)
    """Take every n-th image, counted before frames without depth are left out."""
    max_frames: int | None = Field(default=None, ge=1)


def scenes(raw: Path, options: Options) -> list[str]:
    """Names of all sequences under `raw`: paths of the folders that hold image/ and a depth folder (`raw` itself: its name)."""
    found = [place(raw, folder.parent) for folder in raw.rglob("image") if _is_sequence(folder.parent)]
    if not found:
        raise DataError(
            f"{raw}: no SUN3D sequence below it; expected <building>/<sequence>/ with image/, depth/, extrinsics/ and "
            'intrinsics.txt. Fetch one with "dvc repro -f download@<data set>".'
        )
    return sorted(found)


def _is_sequence(folder: Path) -> bool:
    return (folder / "image").is_dir() and any((folder / name).is_dir() for name in _DEPTH_FOLDERS)


def views(raw: Path, scene: str, options: Options, *, select: Sequence[int] | None = None) -> Iterator[View]:
    """The views of a sequence in time order: image, K, registered depth in metres (0 = not measured), world_T_cam.

    Images without a depth file within `max_time_gap_ms` are left out and counted in the log; DataError when they are
    more than half. Other errors name the file: absent, cut, another number of poses than of images, NaN, another size.
    """
    folder = scene_folder(raw, scene)
    with located(raw):
        K = read_intrinsics(folder / "intrinsics.txt")
        chosen = pick(frames(raw, scene, options), select, scene)
        for frame in chosen:
            yield _view(frame, K, options.depth_coding)


def pairs(raw: Path, scene: str, options: Options) -> dict[str, list[tuple[str, float]]] | None:
    """None: SUN3D states no pairs; samples are taken by frame gap."""
    return None


def frames(raw: Path, scene: str, options: Options) -> list[Frame]:
    """The frames of a sequence as they are on disk, without decoding any: names, files, world_T_cam (4x4, metres)."""
    folder = scene_folder(raw, scene)
    with located(raw):
        images = _frame_files(raw, folder / "image")
        depths = _frame_files(raw, _depth_folder(folder, scene, options))
        poses, known = _poses(raw, folder, images, options)
        partner = _associate(images, depths, options)
    strided = [index for index in range(0, len(images), options.stride) if known[index]]
    kept = [index for index in strided if partner[index] >= 0]
    report_lost(
        scene, len(strided) - len(kept), len(strided), f"no depth file within {options.max_time_gap_ms:g} ms",
        "Fetch the depth files again, or set options.max_time_gap_ms.",
    )  # fmt: skip
    listed = [Frame(images[i].stem, images[i], depths[partner[i]], poses[i]) for i in kept]
    return listed[: options.max_frames]


def alternatives(raw: Path, scene: str, options: Options) -> list[tuple[str, Options]]:
    """The usual misreadings, each as (label, options), without those that read this sequence just as `options` does."""
    changes: list[tuple[str, dict[str, object]]] = []
    changes += [(_CODINGS[coding], {"depth_coding": coding}) for coding in _other_codings(raw, scene, options)]
    changes += [(_ASSOCIATIONS[way], {"association": way}) for way in _other_associations(raw, scene, options)]
    rows: Literal[3, 4] = 4 if options.pose_rows == 3 else 3
    changes.append((f"poses read {rows} rows at a time", {"pose_rows": rows}))
    other = "world_to_camera" if options.pose_direction == "camera_to_world" else "camera_to_world"
    changes.append((f"poses read as {other.replace('_', '-')}", {"pose_direction": other}))
    folder = scene_folder(raw, scene)
    with located(raw):
        used = _extrinsics_file(folder, scene, options).name
        versions = [path.name for path in _extrinsics_files(folder, scene) if path.name != used]
    changes += [(f"extrinsics {name}", {"extrinsics": name}) for name in versions]
    return [(label, options.model_copy(update=change)) for label, change in changes]


def _other_codings(raw: Path, scene: str, options: Options) -> list[Coding]:
    folder = scene_folder(raw, scene)
    with located(raw):
        files = _frame_files(raw, _depth_folder(folder, scene, options))
        stored = [read_png16(path) for path in files[:: max(len(files) // _CODING_PROBES, 1)][:_CODING_PROBES]]
    others: list[Coding] = [coding for coding in _CODINGS if coding != options.depth_coding]
    return [c for c in others if any((decode(v, c) != decode(v, options.depth_coding)).any() for v in stored)]


def _other_associations(raw: Path, scene: str, options: Options) -> list[Literal["time", "index", "id"]]:
    folder = scene_folder(raw, scene)
    with located(raw):
        images = _frame_files(raw, folder / "image")
        depths = _frame_files(raw, _depth_folder(folder, scene, options))
    present = _associate(images, depths, options)
    return [
        way
        for way in _ASSOCIATIONS
        if not np.array_equal(_associate(images, depths, options.model_copy(update={"association": way})), present)
    ]


def decode(stored: UInt16[np.ndarray, "h w"], coding: Coding) -> Float32[np.ndarray, "h w"]:
    """Depth in metres of a file's 16-bit values, 0 = not measured. "rotated" is right: d = (v >> 3) | (v << 13) mm."""
    if coding == "rotated":
        millimetres = (stored >> 3) | (stored << 13)
    elif coding == "shifted":
        millimetres = stored >> 3
    else:
        millimetres = stored
    return millimetres.astype(np.float32) / np.float32(1000)


def _view(frame: Frame, K: Float64[np.ndarray, "3 3"], coding: Coding) -> View:
    image = read_colour(frame.image)
    depth = decode(read_png16(frame.depth), coding)
    if depth.shape != image.shape[:2]:
        raise DataError(
            f"{frame.depth}: {depth.shape[1]}x{depth.shape[0]} depth for a {image.shape[1]}x{image.shape[0]} image; SUN3D's "
            "are registered, pixel for pixel. This file is of another preparation: fetch SUN3D's own."
        )
    return View(name=frame.name, image=image, K=K, world_T_cam=frame.world_T_cam, depth=depth)


def _frame_files(raw: Path, folder: Path) -> list[Path]:
    # Mirrors leave listing pages (index.html, index.html@C=D;O=A) among the frames.
    files = sorted(path for path in folder.iterdir() if _FRAME_FILE.fullmatch(path.name)) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"{place(raw, folder)}: no frame in it; expected files named like 0000001-000000033516.jpg or .png. "
            'Fetch the sequence again with "dvc repro -f download@<data set>".'
        )
    return files


def _depth_folder(folder: Path, scene: str, options: Options) -> Path:
    chosen = folder / options.depth_folder
    others = [name for name in _DEPTH_FOLDERS if (folder / name).is_dir()]
    if not chosen.is_dir() and others:
        raise DataError(
            f"{scene}: there is no {options.depth_folder}/, only {others[0]}/. Set options.depth_folder: {others[0]}."
        )
    return chosen


def _ids_and_times(files: Sequence[Path]) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    stems = [path.stem.split("-") for path in files]
    return np.array([int(i) for i, _ in stems], np.int64), np.array([int(t) for _, t in stems], np.float64)


def _associate(images: Sequence[Path], depths: Sequence[Path], options: Options) -> Int64[np.ndarray, " n"]:
    """For each image the index of its depth file, -1 = none."""
    image_ids, image_times = _ids_and_times(images)
    depth_ids, depth_times = _ids_and_times(depths)
    if options.association == "index":
        index = np.arange(len(images), dtype=np.int64)
        return np.where(index < len(depths), index, -1)
    if options.association == "id":
        place_of = {int(frame_id): index for index, frame_id in enumerate(depth_ids)}
        return np.array([place_of.get(int(frame_id), -1) for frame_id in image_ids], np.int64)
    index, gap_us = nearest(image_times, depth_times)
    return np.where(gap_us <= options.max_time_gap_ms * 1000, index, -1)


def _extrinsics_files(folder: Path, scene: str) -> list[Path]:
    files = sorted((folder / "extrinsics").glob("*.txt"))
    if not files:
        raise DataError(
            f"{scene}: no poses: extrinsics/ has no .txt file; expected extrinsics/YYYYMMDDhhmmss.txt with three rows of four an "
            "image. Fetch the sequence again, or leave it out: without poses it gives no multi-view truth."
        )
    return files


def _extrinsics_file(folder: Path, scene: str, options: Options) -> Path:
    files = _extrinsics_files(folder, scene)
    if options.extrinsics == "last":
        return files[-1]
    for path in files:
        if path.name == options.extrinsics:
            return path
    names = ", ".join(path.name for path in files)
    raise DataError(
        f'{scene}: no extrinsics/{options.extrinsics}. There are {names}: name one in options.extrinsics, or "last".'
    )


def _poses(
    raw: Path, folder: Path, images: Sequence[Path], options: Options
) -> tuple[Float64[np.ndarray, "n 4 4"], Bool[np.ndarray, " n"]]:
    """world_T_cam of each image, and whether the file has one for it (only a misreading in fours leaves images without)."""
    path = _extrinsics_file(folder, place(raw, folder), options)
    rows = _pose_rows(path)
    if options.pose_rows == 4:
        blocks = rows[: len(rows) // 4 * 4].reshape(-1, 4, 4)[:, :3]
        index = np.arange(len(images))
    else:
        blocks = rows.reshape(-1, 3, 4)
        index = _pose_places(path, len(blocks), images, options)
    known = index < len(blocks)
    world_T_cam = np.tile(np.eye(4), (len(images), 1, 1))
    world_T_cam[known, :3] = blocks[index[known]]
    return (world_T_cam if options.pose_direction == "camera_to_world" else invert(world_T_cam)), known


def _pose_rows(path: Path) -> Float64[np.ndarray, "r 4"]:
    values = read_numbers(path)
    if values.size == 0 or values.size % 12:
        raise DataError(
            f"{path}: {values.size} numbers do not make whole poses of three rows of four. "
            'The file may be cut: download it again with "dvc repro -f download@<data set>".'
        )
    broken = np.flatnonzero(~np.isfinite(values.reshape(-1, 12)).all(axis=1))
    if broken.size:
        raise DataError(
            f"{path}: pose {broken[0] + 1} holds NaN or infinity ({broken.size} such poses); expected finite numbers. "
            "Fetch the file again, or name another version in options.extrinsics."
        )
    return values.reshape(-1, 4)


def _pose_places(path: Path, count: int, images: Sequence[Path], options: Options) -> Int64[np.ndarray, " n"]:
    if options.pose_index == "id":
        places = _ids_and_times(images)[0] - 1
        if places.min() < 0 or places.max() >= count:
            raise DataError(
                f"{path}: {count} poses, but image ids run from {places.min() + 1} to {places.max() + 1}; expected a pose for "
                "each id from 1. Fetch the poses again, or set options.pose_index: order."
            )
        return places
    if count != len(images):
        raise DataError(
            f"{path}: {count} poses for {len(images)} images. The file may be cut: download it again with "
            '"dvc repro -f download@<data set>". If image/ holds only some of the images on purpose, set options.pose_index: id.'
        )
    return np.arange(count, dtype=np.int64)
