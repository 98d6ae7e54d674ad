"""Read RGB-D captures with a pose a frame: 7-Scenes, tsdf-fusion samples, ScanNet, TUM RGB-D, DeMoN's packed views.

The layouts themselves are listed in `plumbline.data.rgbd_layouts`; here are the options, the common rules (units, invalid
depth, lost poses) and the reader's interface.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from pydantic import BaseModel, Field

from plumbline.data import rgbd_layouts as layouts
from plumbline.data.geometry import invert
from plumbline.data.reading import located, pick, pinhole, place, read_text, report_lost, scene_folder
from plumbline.data.rgbd_layouts import Cameras, Capture, Frame, Layout, MissingFiles
from plumbline.errors import DataError
from plumbline.records import View

Intrinsics = tuple[float, float, float, float]

_LOOKED_FOR = (
    "frame-NNNNNN.{color,depth,pose}.* (7-Scenes); color/, depth/, pose/ or sensor_data/ (ScanNet export); one .sens file; "
    "rgb.txt, depth.txt and groundtruth.txt (TUM); cam.txt and poses.txt (DeMoN)"
)


class Options(BaseModel, frozen=True, extra="forbid"):
    """How captures are read. The defaults are the right reading of each layout; diagnosis uses the others."""

    layout: Literal["auto", "seven_scenes", "scannet", "scannet_sens", "tum", "demon"] = "auto"
    depth_scale: float | None = Field(default=None, gt=0)
    """Stored depth units per metre; None: what the layout says (1000, TUM 5000, DeMoN 1)."""
    colour_focal: float | None = Field(default=None, gt=0)
    """Focal length of the colour camera in pixels, where it is not the depth's. None: as stated, or 532.6 for 7-Scenes."""
    colour_intrinsics: Intrinsics | None = None
    """(fx, fy, cx, cy) of the colour image, for captures that do not state them."""
    depth_intrinsics: Intrinsics | None = None
    """(fx, fy, cx, cy) of the depth map, for captures that do not state them."""
    poses: Literal["documented", "inverted"] = "documented"
    cameras: Cameras = "exported"
    """ScanNet: the two cameras exported with the frames, or SCENE.txt's colour camera alone, scaled to the depth map's size."""
    depth_camera: Literal["own", "colour"] = "own"
    colour_camera: Literal["own", "depth"] = "own"
    lost_poses: Literal["drop", "error"] = "drop"
    """Frames whose pose is NaN or infinite (tracking was lost there): left out and counted in the log, or an error."""
    missing_files: MissingFiles = "error"
    """Frames with a file missing: an error, or left out and counted in the log."""
    max_time_gap_ms: float = Field(default=20.0, gt=0)
    """TUM lists: largest gap between an image and its depth or pose; 20 ms is the benchmark's own limit."""
    association: Literal["time", "index"] = "time"
    quaternion: Literal["qw_last", "qw_first"] = "qw_last"
    stride: int = Field(default=1, ge=1)
    """Take every n-th frame, counted before frames with a lost pose are left out."""
    max_frames: int | None = Field(default=None, ge=1)
    scene_list: str | None = None
    """A text file below the raw folder with a scene folder's name a line: only these are captures of the data set."""


def scenes(raw: Path, options: Options) -> list[str]:
    """Names of all captures under `raw`: their folders' paths below it (or its own name when `raw` is one)."""
    found = []
    for parent, folders, _ in os.walk(raw):
        layout = layouts.detect(Path(parent))
        if layout is not None:
            folders.clear()
            if options.layout in ("auto", layout):
                found.append(place(raw, Path(parent)))
        folders.sort()
    if not found:
        wanted = f"no capture of layout {options.layout} below it"
        raise DataError(f"{raw}: {wanted}. Looked for {_LOOKED_FOR}. Check the path and options.layout.")
    return sorted(found if options.scene_list is None else _listed(found, raw / options.scene_list))


def _listed(found: Sequence[str], path: Path) -> list[str]:
    listed = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    absent = sorted(set(listed) - {name.rpartition("/")[2] for name in found})
    if absent:
        raise DataError(
            f"{path}: names {len(absent)} scenes that are not there, first {absent[0]}; expected folder names of captures "
            f"below {path.parent}. Fetch them, or take them out of the list."
        )
    return [name for name in found if name.rpartition("/")[2] in listed]


def views(raw: Path, scene: str, options: Options, *, select: Sequence[int] | None = None) -> Iterator[View]:
    """The views of a capture in order: image, K, depth in metres on its own grid (0 = not measured) with depth_K, world_T_cam.

    `depth_K` is None where image and depth share size and K. Frames without a finite pose are left out (`lost_poses`) but
    counted in `frame`; DataError when all or more than half are, for missing files, cut files and depth maps that change
    size.
    """
    with located(raw):
        capture = _capture(raw, scene, options)
        colour_K, depth_K = _cameras(capture, scene, options)
        units_per_metre = options.depth_scale or capture.units_per_metre
        size: tuple[int, ...] | None = None
        for number, frame in pick(_usable(capture.frames, scene, options), select, scene):
            view = _view(frame, colour_K, depth_K, units_per_metre, options)
            size = _same_size(frame, view, size)
            yield replace(view, frame=(number, len(capture.frames)))


def pairs(raw: Path, scene: str, options: Options) -> dict[str, list[tuple[str, float]]] | None:
    """None: none of these layouts states pairs; samples are taken by frame gap."""
    return None


def frames(raw: Path, scene: str, options: Options) -> list[Frame]:
    """The frames that `views` decodes, as they are listed on disk: names, files, world_T_cam (4x4, metres)."""
    with located(raw):
        return [frame for _, frame in _usable(_capture(raw, scene, options).frames, scene, options)]


def alternatives(raw: Path, scene: str, options: Options) -> list[tuple[str, Options]]:
    """The usual misreadings, each as (label, options), without those that read this capture just as `options` does."""
    with located(raw):
        capture = _capture(raw, scene, options)
        own = options.model_copy(update={"depth_camera": "own", "colour_camera": "own"})
        colour_K, depth_K = _cameras(capture, scene, own)
    changes = [_other_direction(capture, options), *_other_units(capture, options)]
    if not np.array_equal(colour_K, depth_K):
        changes += _other_cameras(options)
    if _layout(raw, scene, options) == "tum":
        changes += _other_tum_readings(raw, scene, capture, options)
    return [(label, options.model_copy(update=change)) for label, change in changes]


def _other_direction(capture: Capture, options: Options) -> tuple[str, dict[str, object]]:
    inverse = "world-to-camera" if capture.direction == "camera-to-world" else "camera-to-world"
    if options.poses == "documented":
        return f"poses read as {inverse}", {"poses": "inverted"}
    return f"poses read as {capture.direction}", {"poses": "documented"}


def _other_units(capture: Capture, options: Options) -> list[tuple[str, dict[str, object]]]:
    present = options.depth_scale or capture.units_per_metre
    usual = (1000.0, 5000.0) if capture.units_per_metre > 1 else ()
    return [(f"depth read in units of 1/{units:g} m", {"depth_scale": units}) for units in usual if units != present]


def _other_cameras(options: Options) -> list[tuple[str, dict[str, object]]]:
    depth = "colour" if options.depth_camera == "own" else "own"
    colour = "depth" if options.colour_camera == "own" else "own"
    words = {"own": "its own", "colour": "the colour camera's", "depth": "the depth camera's"}
    return [
        (f"depth read with {words[depth]} intrinsics", {"depth_camera": depth}),
        (f"colour read with {words[colour]} intrinsics", {"colour_camera": colour}),
    ]


def _other_tum_readings(
    raw: Path, scene: str, capture: Capture, options: Options
) -> list[tuple[str, dict[str, object]]]:
    way = "index" if options.association == "time" else "time"
    changed = _capture(raw, scene, options.model_copy(update={"association": way}))
    pairing = [(frame.name, frame.depth_file) for frame in capture.frames]
    order = "qw_first" if options.quaternion == "qw_last" else "qw_last"
    result: list[tuple[str, dict[str, object]]] = [
        (f"quaternions read with {order.replace('_', ' ')}", {"quaternion": order})
    ]
    if pairing != [(frame.name, frame.depth_file) for frame in changed.frames]:
        result.append((f"frames paired by {way}", {"association": way}))
    return result


def _layout(raw: Path, scene: str, options: Options) -> Layout:
    if options.layout != "auto":
        return options.layout
    layout = layouts.detect(scene_folder(raw, scene))
    if layout is None:
        raise DataError(f"{scene}: no known layout. Looked for {_LOOKED_FOR}. Check the path.")
    return layout


def _capture(raw: Path, scene: str, options: Options) -> Capture:
    folder, layout, missing = scene_folder(raw, scene), _layout(raw, scene, options), options.missing_files
    if layout == "seven_scenes":
        return layouts.seven_scenes(folder, raw=raw, missing_files=missing)
    if layout == "scannet":
        return layouts.scannet(folder, missing_files=missing, cameras=options.cameras)
    if layout == "scannet_sens":
        return layouts.scannet_sens(folder, cameras=options.cameras)
    if layout == "demon":
        return layouts.demon(folder, missing_files=missing)
    return layouts.tum(
        folder,
        missing_files=missing,
        max_time_gap_ms=options.max_time_gap_ms,
        association=options.association,
        quaternion=options.quaternion,
    )


def _cameras(
    capture: Capture, scene: str, options: Options
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "3 3"]]:
    """K of the colour image and of the depth map: as the options say, else as stated; where one is unknown it is the other."""
    colour = capture.colour_K if options.colour_intrinsics is None else pinhole(options.colour_intrinsics)
    depth = capture.depth_K if options.depth_intrinsics is None else pinhole(options.depth_intrinsics)
    known = colour if colour is not None else depth
    if known is None:
        raise DataError(
            f"{scene}: no intrinsics; expected camera-intrinsics.txt or intrinsics.K.txt with 3 rows of 3. Add the file, or set "
            "options.depth_intrinsics and options.colour_intrinsics to [fx, fy, cx, cy] (7-Scenes: 585, 585, 320, 240 and "
            "532.6, 532.6, 320, 240)."
        )
    colour, depth = (known if colour is None else colour).copy(), known if depth is None else depth
    if options.colour_focal is not None:
        colour[0, 0] = colour[1, 1] = options.colour_focal
    return (depth if options.colour_camera == "depth" else colour), (
        colour if options.depth_camera == "colour" else depth
    )


def _usable(frames: Sequence[Frame], scene: str, options: Options) -> list[tuple[int, Frame]]:
    """The frames that are read, each with its number among all of the capture."""
    numbers = range(0, len(frames), options.stride)
    strided = [frames[number] for number in numbers]
    kept = [(n, frame) for n, frame in zip(numbers, strided, strict=True) if np.isfinite(frame.world_T_cam).all()]
    if len(kept) < len(strided) and options.lost_poses == "error":
        first = next(frame.name for frame in strided if not np.isfinite(frame.world_T_cam).all())
        raise DataError(
            f"{scene}: {len(strided) - len(kept)} of {len(strided)} poses hold NaN or infinity, first that of {first}; "
            "tracking was lost there. Set options.lost_poses: drop to leave these frames out."
        )
    report_lost(
        scene, len(strided) - len(kept), len(strided), "a pose of NaN or infinity (tracking was lost)",
        "Leave this scene out of the data set's split, or fetch its poses again.",
    )  # fmt: skip
    return kept[: options.max_frames]


def _view(
    frame: Frame,
    colour_K: Float64[np.ndarray, "3 3"],
    depth_K: Float64[np.ndarray, "3 3"],
    units_per_metre: float,
    options: Options,
) -> View:
    image, depth = frame.colour(), _metres(frame.depth(), units_per_metre)
    if options.cameras == "scene_txt":
        depth_K = _stretched(colour_K, image.shape[:2], depth.shape)
    shared = np.array_equal(colour_K, depth_K) and depth.shape == image.shape[:2]
    world_T_cam = frame.world_T_cam if options.poses == "documented" else invert(frame.world_T_cam)
    return View(frame.name, image, colour_K, world_T_cam, depth, None if shared else depth_K)


def _stretched(K: Float64[np.ndarray, "3 3"], size: tuple[int, ...], to: tuple[int, ...]) -> Float64[np.ndarray, "3 3"]:
    """K of an image of `size` (height, width) stretched to the size `to`."""
    sy, sx = to[0] / size[0], to[1] / size[1]
    return np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]]) @ K


def _metres(stored: Shaped[np.ndarray, "h w"], units_per_metre: float) -> Float32[np.ndarray, "h w"]:
    """Depth in metres, 0 where it was not measured: stored 0, the 16-bit maximum, NaN and infinity."""
    if stored.dtype == np.uint16:
        stored = np.where(stored == np.iinfo(np.uint16).max, np.uint16(0), stored)
    depth = stored.astype(np.float32) / np.float32(units_per_metre)
    return np.where(np.isfinite(depth), depth, np.float32(0))


def _same_size(frame: Frame, view: View, size: tuple[int, ...] | None) -> tuple[int, ...]:
    """The size of the depth map, which must be that of the maps before it (`size`, None at first)."""
    got: tuple[int, ...] = view.depth.shape if view.depth is not None else ()
    if size is not None and got != size:
        raise DataError(
            f"{frame.depth_file}: depth of size {got}, but {size} (height, width) in the frames before. "
            "Files of two captures may be mixed: fetch the scene again."
        )
    return got
