"""Read DTU as MVSNet prepared it (Jensen et al., CVPR 2014; Yao et al., ECCV 2018): the training set, or the test set.

Training: Rectified/scanN_train/rect_VVV_L_r5000.png (640x512; views from 1, lights 0..6), Depths/scanN_train/ (160x128, mm,
views from 0) or Depths_raw/scanN/ (1600x1200), Cameras/train/ (K of the 160x128 depth), Cameras/pair.txt. Test:
scanN/{images,cams,pair.txt} at full size, without depth. Cameras are world-to-camera in mm; here they become world_T_cam in m.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from pydantic import BaseModel, Field

from plumbline.data.geometry import invert
from plumbline.data.mvsnet_text import MvsnetCamera, read_camera, read_pairs
from plumbline.data.reading import located, numbered, pick, read_colour
from plumbline.errors import DataError
from plumbline.files import read_pfm, read_png8
from plumbline.records import View

_log = logging.getLogger("plumbline")

IMAGE_SIZE = (512, 640)
DEPTH_SIZE = (128, 160)
RAW_SIZE = (1200, 1600)
# The training images are the full-size ones halved and cropped around the centre; the depth maps are those divided by 4.
_CROP = (44, 80)
_DEPTH_STEP = 4
_METRES = 0.001
_TRAIN_ROOTS = (".", "dtu", "mvs_training/dtu", "dtu_training")
_TEST_ROOTS = (".", "dtu", "dtu_testing", "dtu_test")


class Options(BaseModel, frozen=True, extra="forbid"):
    """How DTU is read. The defaults are the right reading; `camera_scale`, `poses` and `image_base` exist to diagnose others."""

    layout: Literal["auto", "train", "test"] = "auto"
    depths: Literal["train", "raw", "none"] = "train"
    """Training layout: the 160x128 maps, the full-size ones (Depths_raw, brought to the 640x512 images), or no depth."""
    lights: tuple[int, ...] = Field(default=(3,), min_length=1)
    """Training layout: which of the lightings 0..6. With several, each is a scene of its own, scanN_lightL."""
    cameras: Literal["auto", "train", "full"] = "auto"
    """Camera files: Cameras/train/, or the full-size ones in Cameras/, which early archives have alone; auto: train/ if there."""
    camera_scale: float | None = Field(default=None, gt=0)
    """Factor from the K on file to that of the image. None: 4 for train/, the halving and crop for full, 1 in the test layout."""
    poses: Literal["world_to_camera", "camera_to_world"] = "world_to_camera"
    image_base: Literal[0, 1] = 1
    """Number of the first view in image names."""
    cams_folder: str = "cams"
    """Test layout: the folder with the cameras (later variants have cams_1)."""


@dataclass(frozen=True)
class _Scan:
    """Where one scene's files lie; `depths` and `pairs` None when there are none."""

    images: dict[int, Path]
    cameras: dict[int, Path]
    depths: dict[int, Path] | None
    pairs: Path
    layout: Literal["train", "test"]


def scenes(raw: Path, options: Options) -> list[str]:
    """Scene names in scan order: "scanN", or "scanN_lightL" when several lights are asked for in the training layout."""
    layout, root = _locate(raw, options)
    folders = root.glob("scan*") if layout == "test" else (root / "Rectified").glob("scan*_train")
    numbers = sorted(int(match[1]) for path in folders if (match := re.fullmatch(r"scan(\d+)(?:_train)?", path.name)))
    if layout == "test" or len(options.lights) == 1:
        return [f"scan{number}" for number in numbers]
    return [f"scan{number}_light{light}" for number in numbers for light in options.lights]


def views(raw: Path, scene: str, options: Options, *, select: Sequence[int] | None = None) -> Iterator[View]:
    """The views of a scene by number, named as in the camera files: image, K, world_T_cam (m), depth (m, 0 = not measured).

    Training depth is 160x128 with its own `depth_K` (K of the image / 4, no shift) and a mask of reliable pixels; with
    Depths_raw it has the image's 640x512. The test set has none. Errors name the file: absent, cut, another size, a K of
    another resolution.
    """
    with located(raw):
        scan = _scan(raw, scene, options)
        for number in pick(sorted(scan.images), select, scene):
            yield _view(scan, number, options)


def pairs(raw: Path, scene: str, options: Options) -> dict[str, list[tuple[str, float]]] | None:
    """View name -> (other view's name, MVSNet's score), best first. Views that are not in the scene are left out, and logged."""
    with located(raw):
        scan = _scan(raw, scene, options)
        listed = read_pairs(scan.pairs)
    absent = {number for view, others in listed.items() for number in (view, *(n for n, _ in others))} - set(
        scan.images
    )
    if absent:
        _log.warning("%s: pair.txt names %d views that are not there, first %d.", scene, len(absent), min(absent))
    return {
        _name(view): [(_name(other), score) for other, score in others if other not in absent]
        for view, others in listed.items()
        if view not in absent
    }


def alternatives(raw: Path, scene: str, options: Options) -> list[tuple[str, Options]]:
    """The usual misreadings of DTU, each as (label, options), other than `options` itself."""
    with located(raw):
        layout, root = _locate(raw, options)
        kinds = {} if layout == "test" else {kind: bool(_camera_files(root, kind)) for kind in ("train", "full")}
    changes: list[tuple[str, dict[str, object]]] = []
    if layout == "test":
        changes.append(("K of a quarter-size image used for the full-size one", {"camera_scale": 0.25}))
    if kinds.get("train"):
        changes.append(("K of the 160x128 depth used for the 640x512 image", {"cameras": "train", "camera_scale": 1.0}))
        changes.append(
            ("K of the 640x512 image used for the 160x128 depth", {"cameras": "train", "camera_scale": 16.0})
        )
    if kinds.get("full"):
        changes.append(("K of the full-size image used as it is", {"cameras": "full", "camera_scale": 1.0}))
        changes.append(("K of the full-size image halved, the crop left out", {"cameras": "full", "camera_scale": 0.5}))
    if options.camera_scale is not None:
        changes.append(("K as documented", {"cameras": "auto", "camera_scale": None}))
    changes.append(("poses read as camera-to-world", {"poses": "camera_to_world"}))
    changes.append(("poses read as world-to-camera", {"poses": "world_to_camera"}))
    if layout == "train":
        changes += [(f"image names counted from {base}", {"image_base": base}) for base in (0, 1)]
    others = [(label, options.model_copy(update=change)) for label, change in changes]
    return [(label, other) for label, other in others if other != options]


def _name(number: int) -> str:
    return f"{number:08d}"


# --- where the files are ------------------------------------------------------------------------------------------


def _locate(raw: Path, options: Options) -> tuple[Literal["train", "test"], Path]:
    """The layout and the folder that holds it: `raw` or the folder its archive unpacks to."""
    if options.layout != "test":
        for root in (raw / name for name in _TRAIN_ROOTS):
            if any((root / "Rectified").glob("scan*_train")):
                return "train", root
    if options.layout != "train":
        for root in (raw / name for name in _TEST_ROOTS):
            if any(root.glob("scan*/images")):
                return "test", root
    raise DataError(
        f"{raw}: no DTU ({options.layout} layout) in it; expected Rectified/scanN_train/ with Depths/ and Cameras/ (training) or "
        'scanN/ with images/ and cams/ (test). Fetch it with "dvc repro -f download@<data set>".'
    )


def _scan(raw: Path, scene: str, options: Options) -> _Scan:
    layout, root = _locate(raw, options)
    match = re.fullmatch(r"scan(\d+)(?:_light(\d))?", scene)
    if match is None:
        raise DataError(f"{scene}: not a DTU scene name; expected scanN or scanN_lightL.")
    if layout == "test":
        return _test_scan(root / f"scan{match[1]}", options)
    light = options.lights[0] if match[2] is None else int(match[2])
    return _train_scan(root, int(match[1]), light, options)


def _test_scan(folder: Path, options: Options) -> _Scan:
    images = numbered(folder / "images", r"(\d+)\.(?:jpg|png)")
    if not images:
        raise DataError(f"{folder}/images: no image; expected 00000000.jpg and so on. Fetch the scan again.")
    cameras = {number: folder / options.cams_folder / f"{_name(number)}_cam.txt" for number in images}
    return _Scan(images, cameras, None, folder / "pair.txt", "test")


def _train_scan(root: Path, number: int, light: int, options: Options) -> _Scan:
    folder = root / "Rectified" / f"scan{number}_train"
    images = numbered(folder, rf"rect_(\d+)_{light}_r5000\.png", base=options.image_base)
    if not images:
        raise DataError(
            f"{folder}: no image of light {light}; expected rect_001_{light}_r5000.png and so on. Fetch the scan again."
        )
    depths = _train_depths(root, number, options)
    if depths is not None:
        images = _match_depths(folder, light, images, depths, options)
    kind = _camera_kind(root, options)
    found = _camera_files(root, kind)
    cameras = {view: found.get(view, _camera_folder(root, kind) / f"{_name(view)}_cam.txt") for view in images}
    return _Scan(images, cameras, depths, _camera_folder(root, "full") / "pair.txt", "train")


def _train_depths(root: Path, number: int, options: Options) -> dict[int, Path] | None:
    if options.depths == "none":
        return None
    folders = {"train": root / "Depths" / f"scan{number}_train", "raw": root / "Depths_raw" / f"scan{number}"}
    depths = numbered(folders[options.depths], r"depth_map_(\d+)\.pfm")
    if depths:
        return depths
    usable = [kind for kind, folder in folders.items() if folder.is_dir() and kind != options.depths]
    raise DataError(
        f"{folders[options.depths]}: no depth_map_0000.pfm and so on. Fetch the depth maps, or set options.depths: "
        f"{' or '.join([*usable, 'none'])}."
    )


def _match_depths(
    folder: Path, light: int, images: Mapping[int, Path], depths: Mapping[int, Path], options: Options
) -> dict[int, Path]:
    """The images that have a depth map; under the documented numbering a difference is an error (49 of each belong together)."""
    alone = sorted(set(images) ^ set(depths))
    if alone and options.image_base == 1:
        kind, other = ("depth map", "image") if alone[0] in images else ("image", "depth map")
        raise DataError(
            f"{folder}: {len(images)} images of light {light} for {len(depths)} depth maps; view {alone[0]} has no {kind}, "
            f"only the {other} (image names count from 001, depth names from 0000). Fetch the scan again."
        )
    return {number: path for number, path in images.items() if number in depths}


def _camera_folder(root: Path, kind: str) -> Path:
    cameras = root / "Cameras" if (root / "Cameras").is_dir() else root / "Cameras_1"
    return cameras / "train" if kind == "train" else cameras


def _camera_files(root: Path, kind: str) -> dict[int, Path]:
    return numbered(_camera_folder(root, kind), r"(\d+)_cam\.txt")


def _camera_kind(root: Path, options: Options) -> Literal["train", "full"]:
    if options.cameras != "auto":
        return options.cameras
    if _camera_files(root, "train"):
        return "train"
    if _camera_files(root, "full"):
        return "full"
    raise DataError(
        f"{root}: no camera files; expected Cameras/train/00000000_cam.txt and so on. Fetch the Cameras folder again."
    )


# --- one view -----------------------------------------------------------------------------------------------------


def _view(scan: _Scan, number: int, options: Options) -> View:
    path = scan.cameras[number]
    camera = read_camera(path)
    image = read_colour(scan.images[number])
    if options.camera_scale is None and scan.layout == "train" and image.shape[:2] != IMAGE_SIZE:
        raise DataError(
            f"{scan.images[number]}: {_size(image)}, expected 640x512. This is another preparation of DTU, with another K: "
            "fetch MVSNet's training images."
        )
    K = _image_K(camera, path, scan.layout, options)
    if options.camera_scale is None:
        _check_centre(K, image, path, options)
    T = _metric(camera)
    world_T_cam = invert(T) if options.poses == "world_to_camera" else T
    if scan.depths is None:
        return View(_name(number), image, K, world_T_cam)
    depth, mask = _depth(scan.depths[number], options)
    depth_K = None if options.depths == "raw" else np.diag([1 / _DEPTH_STEP, 1 / _DEPTH_STEP, 1]) @ K
    return View(_name(number), image, K, world_T_cam, depth, depth_K, mask)


def _image_K(
    camera: MvsnetCamera, path: Path, layout: Literal["train", "test"], options: Options
) -> Float64[np.ndarray, "3 3"]:
    """K of the image from that of its camera file: exactly 4 times for train/, whose pixels are every fourth of the image's."""
    from_train = layout == "train" and path.parent.name == "train"
    scale = options.camera_scale or (1.0 if layout == "test" else _DEPTH_STEP if from_train else 0.5)
    K = np.diag([scale, scale, 1.0]) @ camera.K
    if options.camera_scale is None and layout == "train" and not from_train:
        K[0, 2] -= _CROP[1]
        K[1, 2] -= _CROP[0]
    return K


def _check_centre(
    K: Float64[np.ndarray, "3 3"], image: UInt8[np.ndarray, "h w 3"], path: Path, options: Options
) -> None:
    """DTU's principal point lies near the image's centre; elsewhere the file is of another resolution than the image."""
    height, width = image.shape[:2]
    if 0.25 * width < K[0, 2] < 0.75 * width and 0.25 * height < K[1, 2] < 0.75 * height:
        return
    raise DataError(
        f"{path}: its K gives the {width}x{height} image a principal point of ({K[0, 2]:.0f}, {K[1, 2]:.0f}), so it is of "
        "another resolution. Expected: that of 160x128 depth in Cameras/train, full size in Cameras/ and in the test set. "
        f"Fetch the cameras of this preparation, or set options.cameras (now {options.cameras})."
    )


def _metric(camera: MvsnetCamera) -> Float64[np.ndarray, "4 4"]:
    cam_T_world = camera.cam_T_world.copy()
    cam_T_world[:3, 3] *= _METRES
    return cam_T_world


def _depth(path: Path, options: Options) -> tuple[Float32[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Depth in metres and the mask of reliable pixels, on the 160x128 grid, or on the image's for Depths_raw."""
    depth = read_pfm(path)
    visible = path.with_name(path.name.replace("depth_map", "depth_visual")).with_suffix(".png")
    mask = read_png8(visible) > 0
    expected = RAW_SIZE if options.depths == "raw" else DEPTH_SIZE
    for array, file in ((depth, path), (mask, visible)):
        if array.shape != expected:
            other = "train" if options.depths == "raw" else "raw"
            raise DataError(
                f"{file}: {_size(array)}, expected {expected[1]}x{expected[0]}. For maps of the other size set "
                f"options.depths: {other}."
            )
    if options.depths == "raw":
        depth, mask = _to_image_grid(depth), _to_image_grid(mask)
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32) * np.float32(_METRES), mask


def _to_image_grid(full_size: np.ndarray) -> np.ndarray:
    """Full-size values on the 640x512 image: every second pixel (nearest, so that no depth is mixed), then the crop."""
    top, left = _CROP
    return full_size[::2, ::2][top : top + IMAGE_SIZE[0], left : left + IMAGE_SIZE[1]]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
