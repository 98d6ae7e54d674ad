"""Read chunk files: RealEstate10K (Zhou et al., SIGGRAPH 2018), ACID and DL3DV as prepared for feed-forward Gaussians.

`<root>/{train,test}/<number>.torch` hold several scenes each, `index.json` beside them says which chunk a scene is in. A scene
has a `key`, `timestamps`, encoded `images` and `cameras` (n, 18): fx, fy, cx, cy by the image's width and height, two zeros, the
3x4 world-to-camera row by row; OpenCV axes. There is no depth, and lengths are in whatever unit the poses were solved in.
"""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, Field

from plumbline.data.geometry import invert
from plumbline.data.re10k_chunks import ADVICE, Clip, Frame, decode, open_chunk, places, read_clip
from plumbline.data.reading import located, pick, report_lost
from plumbline.errors import DataError
from plumbline.files import read_json
from plumbline.records import View

_log = logging.getLogger("plumbline")

_ROTATION_TOLERANCE = 1e-3
_SHOWN = 10
_FETCH = "Fetch the file again."


class Options(BaseModel, frozen=True, extra="forbid"):
    """How chunks are read. The defaults are the right reading; `poses` and `pixel_centres` exist to diagnose others."""

    folders: tuple[str, ...] = ("train", "test")
    """Folders of chunks below the raw folder; one that is not there is passed over. A scene is named <folder>/<key>."""
    index: Literal["file", "chunks"] = "file"
    """Where the list of scenes comes from: index.json of each folder, or every chunk, opened."""
    only_scenes: tuple[str, ...] = ()
    """Only these scenes (<folder>/<key>); none named: all."""
    samples: tuple[str, ...] = ()
    """Published evaluation indices, JSON {key: null or {context, target}} of frame numbers, relative to the raw folder.
    Suites take samples from them with `sources: {kind: index, path: <the same>}`."""
    frames: Literal["all", "listed"] = "all"
    """listed: only scenes and frames that `samples` name."""
    max_fov: float | None = Field(default=100.0, gt=0, lt=180)
    """Degrees across, or up and down, beyond which a scene's cameras are taken to be wrong; None: not looked at."""
    image_shape: tuple[int, int] | None = None
    """(height, width) that images must have: [360, 640] is the usual RealEstate10K; None: any."""
    max_translation: float | None = Field(default=None, gt=0)
    """Longest translation in cameras, in their unit; published loaders of DL3DV stop at 1000. None: any."""
    broken_scenes: Literal["error", "drop"] = "error"
    """Scenes that break one of these rules: an error each, or left out with their reasons in the log."""
    undecodable: Literal["error", "drop"] = "error"
    """Frames whose image is cut or no image: an error, or left out and counted in the log."""
    poses: Literal["world_to_camera", "camera_to_world"] = "world_to_camera"
    """Direction of the stored 3x4."""
    pixel_centres: Literal["half", "whole"] = "half"
    """Where normalised intrinsics times the size put the centre of the top-left pixel: at (0.5, 0.5), or at (0, 0)."""
    stride: int = Field(default=1, ge=1)
    """Take every n-th frame."""


# --- the reader's interface ---------------------------------------------------------------------------------------


def scenes(raw: Path, options: Options) -> list[str]:
    """Names of the scenes, <folder>/<key>, sorted within each folder (<key> alone when `raw` itself holds chunks)."""
    with located(raw):
        found = list(_places(raw, options))
        absent = sorted(set(options.only_scenes) - set(found))
        if absent:
            raise DataError(
                f"{raw}: options.only_scenes names {', '.join(absent[:_SHOWN])}, which is not there. There is: "
                f"{', '.join(found[:_SHOWN])}{' …' if len(found) > _SHOWN else ''}."
            )
        chosen = [name for name in found if name in options.only_scenes or not options.only_scenes]
        if options.frames == "listed":
            chosen = _listed_scenes(raw, chosen, options)
        return _sound(raw, chosen, options) if options.broken_scenes == "drop" else chosen


def views(raw: Path, scene: str, options: Options, *, select: Sequence[int] | None = None) -> Iterator[View]:
    """The frames of a scene in order, without depth: image, K in pixels, world_T_cam; `frame` has the number of each.

    DataError for a chunk that is cut, a scene that is not where the index says or breaks a rule of `Options`, and an image that
    cannot be decoded or has another size than the first.
    """
    with located(raw):
        clip = _clip(raw, scene, options)
        _require_sound(clip, options)
        first: tuple[int, ...] | None = None
        for frame in pick(_usable(raw, clip, options), select, scene):
            view = replace(_view(frame, scene, options), frame=(frame.number, len(clip.images)))
            first = first or view.image.shape[:2]
            if view.image.shape[:2] != first:
                raise DataError(
                    f"{scene}: image {frame.number} is {view.image.shape[:2]} (height, width), the first {first}; expected one "
                    f"size. Two preparations may be mixed. {ADVICE}"
                )
            yield view


def pairs(raw: Path, scene: str, options: Options) -> dict[str, list[tuple[str, float]]] | None:
    """None: chunks state no pairs; samples are taken by gap, by baseline or from an evaluation index."""
    return None


def samples(raw: Path, scene: str, options: Options) -> dict[str, list[tuple[list[str], list[str]]]]:
    """For each of `options.samples` the scene's samples as (context, target) view names; none where the index has null.

    DataError when an index is broken or names a frame that the scene has not, or that is not read.
    """
    if not options.samples:
        return {}
    with located(raw):
        clip = _clip(raw, scene, options)
        read = {frame.number for frame in _usable(raw, clip, options)}
        found: dict[str, list[tuple[list[str], list[str]]]] = {}
        for path in options.samples:
            entry = _entry(_evaluation(raw, path), scene)
            found[path] = [] if entry is None else [_named(clip, entry, read, f"{path}: {scene}")]
        return found


def frames(raw: Path, scene: str, options: Options) -> list[Frame]:
    """The frames that `views` decodes, still encoded."""
    with located(raw):
        return _usable(raw, _clip(raw, scene, options), options)


def alternatives(raw: Path, scene: str, options: Options) -> list[tuple[str, Options]]:
    """The usual misreading, as (label, options): the poses the other way round."""
    other = "camera_to_world" if options.poses == "world_to_camera" else "world_to_camera"
    return [(f"poses read as {other.replace('_', '-')}", options.model_copy(update={"poses": other}))]


# --- where scenes are ---------------------------------------------------------------------------------------------


def _sound(raw: Path, names: Sequence[str], options: Options) -> list[str]:
    """The scenes that break no rule; the others are logged with their reasons, and an error when they are most."""
    found = _places(raw, options)
    reasons: dict[str, str] = {}
    # Chunk by chunk: each is opened once. A chunk that is cut is no scene's fault.
    for name in sorted(names, key=lambda name: (found[name][0], name)):
        open_chunk(found[name][0])
        try:
            _require_sound(read_clip(name, found), options)
        except DataError as error:
            reasons[name] = str(error)
    lines = [f"  {reason}" for _, reason in sorted(reasons.items())]
    text = "\n".join([*lines[:_SHOWN], *([f"  … and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])])
    if 2 * len(reasons) > len(names):
        raise DataError(f"{raw}: {len(reasons)} of {len(names)} scenes are broken; expected few:\n{text}")
    if reasons:
        _log.warning("%s: %d of %d scenes left out:\n%s", raw.name, len(reasons), len(names), text)
    return [name for name in names if name not in reasons]


def _places(raw: Path, options: Options) -> dict[str, tuple[Path, str]]:
    return places(raw, options.folders, indexed=options.index == "file")


def _clip(raw: Path, scene: str, options: Options) -> Clip:
    return read_clip(scene, _places(raw, options))


# --- one scene ----------------------------------------------------------------------------------------------------


def _require_sound(clip: Clip, options: Options) -> None:
    """DataError when the scene's cameras or the size of its first image break a rule."""
    broken = _broken_numbers(clip) or _broken_poses(clip, options) or _too_wide(clip, options)
    if broken is None and options.image_shape is not None:
        got = decode(clip.images[0], f"{clip.scene}: image 0").shape[:2]
        if got != options.image_shape:
            broken = f"images are {got} (height, width); options.image_shape expects {options.image_shape}"
    if broken is not None:
        raise DataError(f"{clip.scene}: {broken}. {ADVICE}")


def _broken_numbers(clip: Clip) -> str | None:
    finite = np.isfinite(clip.cameras).all(axis=1)
    if not finite.all():
        return f"camera {int(np.argmin(finite))} holds NaN or infinity; {int((~finite).sum())} of {len(finite)} do"
    if (clip.cameras[:, :2] <= 0).any():
        return f"a focal length is {clip.cameras[:, :2].min():.3g}; expected more than 0"
    if clip.cameras[:, 4:6].any():
        row = clip.cameras[int(np.argmax(clip.cameras[:, 4:6].any(axis=1)))]
        return f"the fifth and sixth number of a camera are {row[4]:.3g}, {row[5]:.3g}; expected 0 (distortion undone)"
    return None


def _broken_poses(clip: Clip, options: Options) -> str | None:
    transforms = clip.cameras[:, 6:].reshape(-1, 3, 4)
    R, far = transforms[:, :, :3], abs(transforms[:, :, 3]).max()
    deviation = abs(R @ np.swapaxes(R, 1, 2) - np.eye(3)).max(axis=(1, 2))
    wrong = (deviation > _ROTATION_TOLERANCE) | (np.linalg.det(R) < 0)
    if wrong.any():
        which = int(np.argmax(wrong))
        return (
            f"camera {which} has no rotation (R Rᵀ is off by {deviation[which]:.2g}, determinant {np.linalg.det(R[which]):.3g}); "
            f"{int(wrong.sum())} of {len(wrong)} are so"
        )
    if options.max_translation is not None and far > options.max_translation:
        return f"a camera's translation is {far:.4g}; options.max_translation allows {options.max_translation:g}"
    return None


def _too_wide(clip: Clip, options: Options) -> str | None:
    """The angle between the rays through opposite borders, in degrees, of the widest camera when it is beyond the rule."""
    focal, centre = clip.cameras[:, :2], clip.cameras[:, 2:4]
    widest = float(np.degrees(np.arctan2(centre, focal) + np.arctan2(1 - centre, focal)).max())
    if options.max_fov is None or widest <= options.max_fov:
        return None
    return f"a camera sees {widest:.1f} degrees; options.max_fov allows {options.max_fov:g}"


def _usable(raw: Path, clip: Clip, options: Options) -> list[Frame]:
    """The frames that are read."""
    numbers = list(range(0, len(clip.images), options.stride))
    if options.frames == "listed":
        wanted = {n for path in options.samples for n in _numbers(_entry(_evaluation(raw, path), clip.scene))}
        numbers = [number for number in numbers if number in wanted]
    found = [clip.frame(number) for number in numbers]
    if options.undecodable == "error":
        return found
    kept = [frame for frame in found if _can_decode(frame, clip.scene)]
    report_lost(clip.scene, len(found) - len(kept), len(found), "an image that cannot be decoded", ADVICE)
    return kept


def _can_decode(frame: Frame, scene: str) -> bool:
    try:
        decode(frame.encoded, f"{scene}: image {frame.number}")
    except DataError:
        # The caller counts and logs it.
        return False
    return True


def _view(frame: Frame, scene: str, options: Options) -> View:
    image = decode(frame.encoded, f"{scene}: image {frame.number}")
    cam_T_world = frame.transform if options.poses == "world_to_camera" else invert(frame.transform)
    return View(frame.name, image, in_pixels(frame.intrinsics, image.shape[:2], options), invert(cam_T_world))


def in_pixels(
    intrinsics: Float64[np.ndarray, "4"], size: tuple[int, ...], options: Options
) -> Float64[np.ndarray, "3 3"]:
    """K of an image of `size` (height, width) from fx, fy, cx, cy by its width and height.

    There, a pixel's centre is at ((column + 0.5) / width, (row + 0.5) / height), so that half a pixel goes off both centres.
    """
    height, width = size
    fx, fy, cx, cy = intrinsics
    half = 0.5 if options.pixel_centres == "half" else 0.0
    return np.array([[fx * width, 0, cx * width - half], [0, fy * height, cy * height - half], [0, 0, 1]], np.float64)


# --- evaluation indices -------------------------------------------------------------------------------------------


def _evaluation(raw: Path, name: str) -> Mapping[str, Any]:
    path = raw / name
    if not path.is_file():
        raise DataError(f"{path}: no such file; options.samples names it. Put the evaluation index there.")
    return _read_evaluation(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_evaluation(path: Path, modified: int) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(entry is None or _is_entry(entry) for entry in content.values()):
        raise DataError(
            f"{path}: no evaluation index; expected JSON {{key: null or {{context: [frame, …], target: [frame, …]}}}}. {_FETCH}"
        )
    return content


def _is_entry(entry: Any) -> bool:
    lists = [entry.get(name) for name in ("context", "target")] if isinstance(entry, dict) else [None]
    return all(isinstance(row, list) and row and all(type(n) is int and n >= 0 for n in row) for row in lists)


def _entry(index: Mapping[str, Any], scene: str) -> Mapping[str, list[int]] | None:
    """A scene's entry, under its name or its key alone; None where it has none."""
    entry: Mapping[str, list[int]] | None = index.get(scene) or index.get(scene.partition("/")[2])
    return entry


def _numbers(entry: Mapping[str, list[int]] | None) -> list[int]:
    return [] if entry is None else [*entry["context"], *entry["target"]]


def _listed_scenes(raw: Path, names: Sequence[str], options: Options) -> list[str]:
    found = [name for name in names if any(_entry(_evaluation(raw, path), name) for path in options.samples)]
    if not found:
        listed = ", ".join(options.samples) or "options.samples, which names no file"
        raise DataError(
            f"{raw}: none of its {len(names)} scenes is in {listed}; options.frames: listed reads these alone. Is it the "
            "index of another data set?"
        )
    if len(found) < len(names):
        _log.warning(
            "%s: %d of %d scenes left out: no index lists them.", raw.name, len(names) - len(found), len(names)
        )
    return found


def _named(clip: Clip, entry: Mapping[str, list[int]], read: set[int], where: str) -> tuple[list[str], list[str]]:
    for number in _numbers(entry):
        if number >= len(clip.images):
            raise DataError(
                f"{where}: frame {number} is listed, but the scene has {len(clip.images)} frames. Is it the index of another "
                "preparation of the data set?"
            )
        if number not in read:
            raise DataError(
                f"{where}: frame {number} is listed, but is not read. Set options.stride: 1; an image that cannot be decoded "
                "needs its chunk again."
            )
    context, target = ([clip.name(number) for number in entry[role]] for role in ("context", "target"))
    return context, target
