"""The folder layouts of RGB-D captures with a pose a frame: each function lists one scene's frames, without decoding any.

Read here as each format documents it; `plumbline.data.rgbd` turns what is listed into views and applies the options
common to all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, Shaped, UInt8

from plumbline.data import sens
from plumbline.data.geometry import invert
from plumbline.data.reading import (
    nearest,
    numbered,
    pinhole,
    read_colour,
    read_intrinsics,
    read_matrix,
    read_numbers,
    read_text,
    report_lost,
    to_numbers,
)
from plumbline.errors import DataError
from plumbline.files import read_npy, read_png16

Layout = Literal["seven_scenes", "scannet", "scannet_sens", "tum", "demon"]
MissingFiles = Literal["error", "drop"]
Cameras = Literal["exported", "scene_txt"]
Direction = Literal["camera-to-world", "world-to-camera"]

# 7-Scenes names 585 / 320 / 240 for its depth. Its colour camera is another: on redkitchen the median epipolar error is
# 1.22 px at this focal length, 1.41 at the Kinect's nominal 525 and 2.57 at 585.
_SEVEN_SCENES_DEPTH = (585.0, 585.0, 320.0, 240.0)
_SEVEN_SCENES_COLOUR = (532.6, 532.6, 320.0, 240.0)
# Published with the TUM RGB-D benchmark (Sturm et al., IROS 2012) for its three Kinects.
_TUM_CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
_QUATERNION_TOLERANCE = 0.01


@dataclass(frozen=True)
class Frame:
    """One frame: its colour image and its depth in stored units are decoded on call. `depth_file` is for messages."""

    name: str
    world_T_cam: Float64[np.ndarray, "4 4"]
    colour: Callable[[], UInt8[np.ndarray, "h w 3"]]
    depth: Callable[[], Shaped[np.ndarray, "hd wd"]]
    depth_file: Path


@dataclass(frozen=True)
class Capture:
    """A scene as listed: frames in order, cameras as stated on disk (None = not stated), units of the stored depth."""

    frames: list[Frame]
    colour_K: Float64[np.ndarray, "3 3"] | None
    depth_K: Float64[np.ndarray, "3 3"] | None
    units_per_metre: float
    direction: Direction = "camera-to-world"


def detect(folder: Path) -> Layout | None:
    """The layout of a scene folder, by the files it is known by; None when the folder is no scene."""
    if not folder.is_dir():
        return None
    if ((folder / "pose").is_dir() and (folder / "color").is_dir()) or (folder / "sensor_data").is_dir():
        return "scannet"
    if all((folder / name).is_file() for name in ("rgb.txt", "depth.txt", "groundtruth.txt")):
        return "tum"
    if (folder / "cam.txt").is_file() and (folder / "poses.txt").is_file():
        return "demon"
    if folder.name != "sensor_data" and any(folder.glob("frame-*.color.*")):
        return "seven_scenes"
    return "scannet_sens" if any(folder.glob("*.sens")) else None


def seven_scenes(folder: Path, *, raw: Path, missing_files: MissingFiles) -> Capture:
    """frame-NNNNNN.{color.png|jpg,depth.png,pose.txt}: millimetres, camera-to-world; also tsdf-fusion's sample captures.

    camera-intrinsics.txt or intrinsics.K.txt (beside the frames or above them, up to `raw`) is the depth camera's K, and
    the colour camera's too except for the nominal 585 / 320 / 240 of 7-Scenes, whose colour is not registered (f = 532.6).
    """
    frames = _frame_triples(folder, folder.name, missing_files)
    depth_K = _intrinsics_above(folder, raw)
    known = depth_K is not None and np.array_equal(depth_K, pinhole(_SEVEN_SCENES_DEPTH))
    return Capture(frames, pinhole(_SEVEN_SCENES_COLOUR) if known else depth_K, depth_K, 1000.0)


def scannet(folder: Path, *, missing_files: MissingFiles, cameras: Cameras) -> Capture:
    """ScanNet as exported: {color,depth,pose}/N.{jpg,png,txt}, or sensor_data/frame-NNNNNN.*.

    intrinsic/intrinsic_{color,depth}.txt are the cameras. Colour and depth are aligned already, so extrinsic_*.txt are not
    applied; each grid has its own K. With `cameras` scene_txt the colour camera is that of <folder name>.txt and the depth
    camera is left unstated: so DELTAS' published loader reads ScanNet (Sinha et al., ECCV 2020).
    """
    if (folder / "sensor_data").is_dir():
        frames = _frame_triples(folder / "sensor_data", folder.name, missing_files)
    else:
        kinds = {
            "color": ("color", r"(\d+)\.(?:jpg|png)"),
            "depth": ("depth", r"(\d+)\.png"),
            "pose": ("pose", r"(\d+)\.txt"),
        }
        files = {kind: numbered(folder / sub, pattern) for kind, (sub, pattern) in kinds.items()}
        frames = _png_frames(files, folder.name, missing_files)
    if cameras == "scene_txt":
        return Capture(frames, _scene_txt_camera(folder), None, 1000.0)
    intrinsic = folder / "intrinsic"
    colour_K, depth_K = (read_intrinsics(intrinsic / f"intrinsic_{kind}.txt") for kind in ("color", "depth"))
    return Capture(frames, colour_K, depth_K, 1000.0)


def _scene_txt_camera(folder: Path) -> Float64[np.ndarray, "3 3"]:
    """The colour camera that ScanNet's SCENE.txt states in lines `key = value`, in pixels of the colour image."""
    path = folder / f"{folder.name}.txt"
    lines = [line.partition("=") for line in read_text(path).splitlines()]
    stated = {key.strip(): value.strip() for key, _, value in lines}
    wanted = ("fx_color", "fy_color", "mx_color", "my_color")
    absent = [key for key in wanted if key not in stated]
    if absent:
        raise DataError(
            f"{path}: no {absent[0]}; expected lines {', '.join(f'{key} = ...' for key in wanted)}. Fetch it again, or set "
            "options.cameras: exported."
        )
    return pinhole(to_numbers([stated[key] for key in wanted], path).tolist())


def scannet_sens(folder: Path, *, cameras: Cameras) -> Capture:
    """A folder with one ScanNet .sens file; `cameras` as in `scannet`."""
    files = sorted(folder.glob("*.sens"))
    if len(files) != 1:
        raise DataError(
            f"{folder}: {len(files)} .sens files; expected one a folder. Give each scene a folder of its own."
        )
    index = sens.read_index(files[0])
    frames = [
        Frame(
            f"{i:06d}",
            frame.world_T_cam,
            partial(sens.read_colour, index, i),
            partial(sens.read_depth, index, i),
            files[0],
        )
        for i, frame in enumerate(index.frames)
    ]
    if cameras == "scene_txt":
        return Capture(frames, _scene_txt_camera(folder), None, index.depth_shift)
    return Capture(frames, index.colour_K, index.depth_K, index.depth_shift)


def tum(
    folder: Path,
    *,
    missing_files: MissingFiles,
    max_time_gap_ms: float,
    association: Literal["time", "index"],
    quaternion: Literal["qw_last", "qw_first"],
) -> Capture:
    """TUM RGB-D: rgb.txt and depth.txt list times and files, groundtruth.txt camera-to-world poses `t tx ty tz qx qy qz qw`.

    Each image takes the nearest depth and the nearest pose in time; images without either within `max_time_gap_ms` are left out.
    Depth is in 1/5000 m and registered to colour. K is known by the folder's name (freiburg1, 2, 3); the first two have lens
    distortion, which is not undone.
    """
    colours, depths = (_tum_files(folder, f"{kind}.txt", missing_files) for kind in ("rgb", "depth"))
    pose_times, world_T_cams = _tum_poses(folder / "groundtruth.txt", quaternion)
    times = np.array([time for time, _ in colours])
    depth_index, depth_gap = _tum_partners(times, np.array([time for time, _ in depths]), association)
    pose_index, pose_gap = nearest(times, pose_times)
    near = np.maximum(depth_gap, pose_gap) <= max_time_gap_ms / 1000
    report_lost(
        folder.name, int((~near).sum()), len(times), f"no depth or no pose within {max_time_gap_ms:g} ms",
        "Fetch the sequence again, or set options.max_time_gap_ms.",
    )  # fmt: skip
    frames = [
        _png_frame(colours[i][1].stem, colours[i][1], depths[depth_index[i]][1], world_T_cams[pose_index[i]])
        for i in np.flatnonzero(near)
    ]
    stated = next((pinhole(camera) for name, camera in _TUM_CAMERAS.items() if name in folder.as_posix()), None)
    return Capture(frames, stated, stated, 5000.0)


def demon(folder: Path, *, missing_files: MissingFiles) -> Capture:
    """DeMoN's views as DPSNet packs them: NNNN.jpg, NNNN.npy (metres), cam.txt (K), poses.txt (a world-to-camera 3x4 row a view).

    Row i belongs to the i-th view in name order, not to the view numbered i.
    """
    files = {"image": numbered(folder, r"(\d+)\.(?:jpg|png)"), "depth": numbered(folder, r"(\d+)\.npy")}
    numbers = sorted(set().union(*files.values()))
    rows = read_numbers(folder / "poses.txt")
    if rows.size != 12 * len(numbers):
        raise DataError(
            f"{folder / 'poses.txt'}: {rows.size} numbers for {len(numbers)} views; expected 12 a view, in name order. "
            "A file may be missing or cut: fetch the folder again."
        )
    world_T_cam = invert(_homogeneous(rows.reshape(-1, 3, 4)))
    complete = _complete(files, folder.name, missing_files)
    frames = [
        Frame(files["image"][n].stem, world_T_cam[numbers.index(n)], partial(read_colour, files["image"][n]),
              partial(read_npy, files["depth"][n]), files["depth"][n])
        for n in complete
    ]  # fmt: skip
    K = read_intrinsics(folder / "cam.txt")
    return Capture(frames, K, K, 1.0, "world-to-camera")


def _png_frame(name: str, colour: Path, depth: Path, world_T_cam: Float64[np.ndarray, "4 4"]) -> Frame:
    return Frame(name, world_T_cam, partial(read_colour, colour), partial(read_png16, depth), depth)


def _frame_triples(folder: Path, scene: str, missing_files: MissingFiles) -> list[Frame]:
    patterns = {
        "color": r"frame-(\d+)\.color\.(?:jpg|png)",
        "depth": r"frame-(\d+)\.depth\.png",
        "pose": r"frame-(\d+)\.pose\.txt",
    }
    return _png_frames({kind: numbered(folder, pattern) for kind, pattern in patterns.items()}, scene, missing_files)


def _png_frames(files: Mapping[str, Mapping[int, Path]], scene: str, missing_files: MissingFiles) -> list[Frame]:
    numbers = _complete(files, scene, missing_files)
    poses = [read_matrix(files["pose"][n], (4, 4)) for n in numbers]
    names = [files["color"][n].name.split(".")[0] for n in numbers]
    return [
        _png_frame(name, files["color"][n], files["depth"][n], T)
        for name, n, T in zip(names, numbers, poses, strict=True)
    ]


def _complete(files: Mapping[str, Mapping[int, Path]], scene: str, missing_files: MissingFiles) -> list[int]:
    """Numbers of the frames that have a file of each kind, ascending."""
    every = sorted(set().union(*files.values()))
    absent = [(number, kind) for number in every for kind in files if number not in files[kind]]
    lost = len({number for number, _ in absent})
    if absent and (missing_files == "error" or lost == len(every)):
        number, kind = absent[0]
        raise DataError(
            f"{scene}: frame {number} has no {kind} file; {lost} of {len(every)} frames are incomplete. The copy may be "
            "unfinished: fetch it again, or set options.missing_files: drop."
        )
    if not every:
        raise DataError(f"{scene}: no frames; expected numbered {', '.join(files)} files. Fetch the scene again.")
    report_lost(scene, lost, len(every), "a file missing", "Fetch the scene again.")
    return [number for number in every if all(number in of_kind for of_kind in files.values())]


def _intrinsics_above(folder: Path, raw: Path) -> Float64[np.ndarray, "3 3"] | None:
    for level in (folder, *folder.parents):
        for name in ("camera-intrinsics.txt", "intrinsics.K.txt"):
            if (level / name).is_file():
                return read_intrinsics(level / name)
        if level == raw:
            break
    return None


def _homogeneous(rows: Float64[np.ndarray, "n 3 4"]) -> Float64[np.ndarray, "n 4 4"]:
    return np.concatenate([rows, np.tile([[[0.0, 0.0, 0.0, 1.0]]], (len(rows), 1, 1))], axis=1)


def _tum_rows(path: Path, columns: int) -> list[list[str]]:
    lines = [line.split() for line in read_text(path).splitlines()]
    rows = [line for line in lines if line and not line[0].startswith("#")]
    wrong = [line for line in rows if len(line) != columns]
    if wrong or not rows:
        got = f"line {' '.join(wrong[0])!r}" if wrong else "no line"
        raise DataError(
            f"{path}: {got}; expected lines of {columns} values. The file may be cut: fetch the sequence again."
        )
    return rows


def _tum_files(folder: Path, name: str, missing_files: MissingFiles) -> list[tuple[float, Path]]:
    rows = _tum_rows(folder / name, 2)
    times = to_numbers([time for time, _ in rows], folder / name)
    entries = [(float(time), folder / file) for time, (_, file) in zip(times, rows, strict=True)]
    present = [entry for entry in entries if entry[1].is_file()]
    absent = [file for _, file in entries if not file.is_file()]
    if absent and (missing_files == "error" or not present):
        raise DataError(
            f"{folder / name}: {len(absent)} of the {len(entries)} files it names are absent, first "
            f"{absent[0].relative_to(folder)}. Fetch the sequence again; for a subset kept on purpose set "
            "options.missing_files: drop."
        )
    return present


def _tum_partners(
    times: Float64[np.ndarray, " n"], others: Float64[np.ndarray, " m"], association: Literal["time", "index"]
) -> tuple[np.ndarray, np.ndarray]:
    if association == "time":
        return nearest(times, others)
    index = np.arange(len(times))
    return np.minimum(index, len(others) - 1), np.where(index < len(others), 0.0, np.inf)


def _tum_poses(
    path: Path, quaternion: Literal["qw_last", "qw_first"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n 4 4"]]:
    rows = np.stack([to_numbers(row, path) for row in _tum_rows(path, 8)])
    order = [4, 5, 6, 7] if quaternion == "qw_last" else [5, 6, 7, 4]
    xyzw = rows[:, order]
    norms = np.linalg.norm(xyzw, axis=1)
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1) | (abs(norms - 1) > _QUATERNION_TOLERANCE))
    if broken.size:
        values = " ".join(f"{value:g}" for value in rows[broken[0]])
        raise DataError(
            f"{path}: {values!r} is no pose; expected t tx ty tz and a unit quaternion qx qy qz qw. Fetch it again."
        )
    world_T_cam = np.tile(np.eye(4), (len(rows), 1, 1))
    world_T_cam[:, :3, :3] = _rotations(xyzw / norms[:, None])
    world_T_cam[:, :3, 3] = rows[:, 1:4]
    return rows[:, 0], world_T_cam


def _rotations(xyzw: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 3 3"]:
    """Rotation matrices of unit quaternions, scalar part last."""
    x, y, z, w = xyzw.T
    rows: Sequence[Sequence[np.ndarray]] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
