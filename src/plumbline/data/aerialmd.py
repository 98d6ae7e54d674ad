"""Read AerialMegaDepth (Vuong et al., CVPR 2025): photographs and renderings from the air of one place, registered to each other.

Preprocessed: <scene>/<tag>.jpg, <tag>.exr (z in metres), <tag>.npz (intrinsics, cam2world) below a root that has the index
files (`plumbline.data.aerialmd_index`), and label maps seg/<scene>/<tag>.png of which 2 is sky. As published: for each scene
COLMAP's text model with images/ and depths/*.h5. Both give metres, one world frame a scene, OpenCV axes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from pydantic import BaseModel, Field

from plumbline.data.aerialmd_index import Index, read_index
from plumbline.data.canonical import resample
from plumbline.data.colmap import ColmapImage, read_h5_depth, read_model
from plumbline.data.exr import read_exr
from plumbline.data.geometry import invert
from plumbline.data.npz import read_npz
from plumbline.data.reading import located, pick, read_colour, report_lost
from plumbline.errors import DataError
from plumbline.files import read_png8
from plumbline.records import View

_SKY = 2
_MODEL = "sfm_output_localization/sfm_superpoint+superglue/localized_dense_metric"
_AUTO_MASKS = "seg"
_AUTO_MASKS_SUFFIX = "_segmentation"
# The single-pair recipe leaves maps with fewer measured pixels as they are.
_MIN_FOR_PERCENTILES = 100
_ADVICE = "Fetch the scene again, or set options.missing_files: drop."


class Options(BaseModel, frozen=True, extra="forbid"):
    """How the data set is read. The defaults are the right reading; `poses` and `pixel_centres` exist to diagnose others."""

    layout: Literal["auto", "preprocessed", "colmap"] = "auto"
    index: tuple[str, ...] = ()
    """Index files, relative to the raw folder. None named: every .npz right in it."""
    pair_rows: tuple[int, ...] | None = None
    """Only these pairs of the index (rows from 0; of each file, where there are several): [0] is the set of one pair."""
    only_scenes: tuple[str, ...] = ()
    """Only these scenes; none named: all."""
    crop: int | None = Field(default=518, ge=16)
    """Side of the square cut out of the centre of every image, depth map and mask, K moved with it; of an image that is
    smaller the largest square. 518 as in VGGT's single-pair recipe; None: whole images."""
    masks: str = "auto"
    """Folder of label maps, relative to the raw folder. auto: seg/, or the raw folder's name with _segmentation beside it,
    where there is one; none: the sky keeps what depth it has."""
    max_depth: float = Field(default=2000.0, gt=0)
    """Metres beyond which depth counts as not measured."""
    cleanup: Literal["none", "reference", "measured"] = "none"
    """Outlying depth set to 0. reference: above the 98th percentile of the whole map, zeros included, as the authors' loader;
    measured: above the 98th and below the 2nd of the measured depths, as VGGT's single-pair recipe."""
    poses: Literal["camera_to_world", "world_to_camera"] = "camera_to_world"
    """Direction of cam2world."""
    pixel_centres: Literal["half", "whole"] = "half"
    """Where the camera files put the centre of the top-left pixel: at (0.5, 0.5), as COLMAP, or at (0, 0)."""
    pairs_across_scenes: Literal["error", "drop"] = "error"
    missing_files: Literal["error", "drop"] = "error"
    """Images that lack a file: an error, or left out and counted in the log."""
    empty_depth: Literal["error", "keep"] = "error"
    """Depth maps without one measured pixel."""
    stride: int = Field(default=1, ge=1)
    """Take every n-th image of a scene."""


@dataclass(frozen=True)
class Frame:
    """The files of one image; `camera` reads its K and the pose as stored, `mask_file` None where there are no masks."""

    name: str
    image_file: Path
    depth_file: Path
    mask_file: Path | None
    camera_file: Path
    camera: Callable[[], tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "4 4"]]]

    def files(self) -> list[Path]:
        """All files that the image needs."""
        return [self.image_file, self.depth_file, self.camera_file, *([self.mask_file] if self.mask_file else [])]


def scenes(raw: Path, options: Options) -> list[str]:
    """Names of the scenes that have pairs (COLMAP layout: a model), sorted; MegaDepth's numbers of four digits."""
    with located(raw):
        if _layout(raw, options) == "preprocessed":
            found = sorted({name for index in _indices(raw, options) for name in index.scene_names()})
        else:
            found = sorted(path.parents[2].name for path in _models(raw))
    absent = sorted(set(options.only_scenes) - set(found))
    if absent:
        raise DataError(
            f"{raw}: options.only_scenes names {', '.join(absent)}, which is not there. There is: {', '.join(found)}."
        )
    if not found:
        raise DataError(f"{raw}: its index has no pairs; expected at least one. Fetch the index again.")
    return [name for name in found if name in options.only_scenes or not options.only_scenes]


def views(raw: Path, scene: str, options: Options, *, select: Sequence[int] | None = None) -> Iterator[View]:
    """The images of a scene's pairs in the index's order, named by their tags: image, K, world_T_cam and depth in metres.

    Depth is on the image's own grid; sky, what lies beyond `max_depth` and what is not finite is 0. DataError for a file that is
    missing or cut, a depth map or mask of another size than its image, a broken camera, and a map without depth.
    """
    with located(raw):
        for frame in pick(_present(raw, scene, options), select, scene):
            yield _view(frame, options)


def pairs(raw: Path, scene: str, options: Options) -> dict[str, list[tuple[str, float]]] | None:
    """Tag -> (other tag, score) with the highest score first, either way round; None in the COLMAP layout without an index.

    The score is the data set's own: it grows with the difference between the two viewpoints, and is no overlap.
    """
    with located(raw):
        if not _index_files(raw, options):
            return None
        listed: dict[str, dict[str, float]] = {}
        for index in _indices(raw, options):
            for first, second, score in index.pairs_of(scene):
                listed.setdefault(first, {})[second] = score
                listed.setdefault(second, {})[first] = score
    return {tag: sorted(others.items(), key=lambda item: -item[1]) for tag, others in listed.items()}


def frames(raw: Path, scene: str, options: Options) -> list[Frame]:
    """The images that `views` decodes, by their files."""
    with located(raw):
        return _present(raw, scene, options)


def alternatives(raw: Path, scene: str, options: Options) -> list[tuple[str, Options]]:
    """The usual misreadings, each as (label, options), other than `options` itself."""
    other = "world_to_camera" if options.poses == "camera_to_world" else "camera_to_world"
    return [(f"poses read as {other.replace('_', '-')}", options.model_copy(update={"poses": other}))]


# --- where the files are ------------------------------------------------------------------------------------------


def _layout(raw: Path, options: Options) -> Literal["preprocessed", "colmap"]:
    if options.layout != "auto":
        return options.layout
    if next(_models(raw), None) is not None:
        return "colmap"
    if _index_files(raw, options):
        return "preprocessed"
    raise DataError(
        f"{raw}: no AerialMegaDepth in it; expected an index such as train.npz beside folders of scenes with .jpg, .exr and .npz "
        f"files, or <scene>/{_MODEL}. Check the path and options.index."
    )


def _index_files(raw: Path, options: Options) -> list[Path]:
    return [raw / name for name in options.index] or sorted(raw.glob("*.npz"))


def _indices(raw: Path, options: Options) -> list[Index]:
    files = _index_files(raw, options)
    if not files:
        raise DataError(
            f"{raw}: no index; expected train.npz or another .npz right in it. Fetch it, or name it in options.index."
        )
    return [read_index(path, rows=options.pair_rows, across=options.pairs_across_scenes) for path in files]


def _models(raw: Path) -> Iterator[Path]:
    for root in (raw, raw / "data"):
        yield from root.glob(f"*/{_MODEL}")


def _present(raw: Path, scene: str, options: Options) -> list[Frame]:
    """The scene's images, without those that lack a file where these are dropped."""
    listed = _frames(raw, scene, options)[:: options.stride]
    missing = {frame.name: path for frame in listed for path in reversed(frame.files()) if not path.is_file()}
    if missing and options.missing_files == "error":
        name, path = next(iter(missing.items()))
        raise DataError(_missing(scene, name, path, len(missing), len(listed)))
    report_lost(scene, len(missing), len(listed), "a file missing", _ADVICE)
    return [frame for frame in listed if frame.name not in missing]


def _missing(scene: str, name: str, path: Path, count: int, total: int) -> str:
    what = {
        ".npz": "camera file", ".exr": "depth map", ".h5": "depth map", ".png": "label map (options.masks: none reads without)",
        ".txt": "model",
    }.get(path.suffix, "image")  # fmt: skip
    more = f"; {count} of {total} images lack a file" if count > 1 else ""
    return f"{scene}: the index pairs image {name}, but its {what} is not there: {path}{more}. {_ADVICE}"


def _frames(raw: Path, scene: str, options: Options) -> list[Frame]:
    masks = _masks(raw, options)
    if _layout(raw, options) == "colmap":
        return _colmap_frames(raw, scene, masks)
    tags = dict.fromkeys(tag for index in _indices(raw, options) for tag in index.tags_of(scene))
    if not tags:
        raise DataError(f"{scene}: no such scene in the index. There is: {', '.join(scenes(raw, options))}.")
    return [_frame(raw / scene, tag, masks and masks / scene / f"{tag}.png", options) for tag in tags]


def _masks(raw: Path, options: Options) -> Path | None:
    if options.masks == "none":
        return None
    if options.masks == "auto":
        usual = (raw / _AUTO_MASKS, raw.with_name(raw.name + _AUTO_MASKS_SUFFIX))
        return next((folder for folder in usual if folder.is_dir()), None)
    if not (raw / options.masks).is_dir():
        raise DataError(
            f"{raw / options.masks}: no such folder; options.masks names it. Use auto, none or a folder of label maps."
        )
    return raw / options.masks


def _frame(folder: Path, tag: str, mask: Path | None, options: Options) -> Frame:
    image, depth, camera = (folder / f"{tag}{kind}" for kind in (".jpg", ".exr", ".npz"))
    return Frame(tag, image, depth, mask, camera, partial(_read_camera, camera, options))


def _colmap_frames(raw: Path, scene: str, masks: Path | None) -> list[Frame]:
    folder = next((path for path in _models(raw) if path.parents[2].name == scene), None)
    if folder is None:
        raise DataError(
            f"{scene}: no such scene; expected {scene}/{_MODEL}. List the scenes and use one of those names."
        )
    sparse = folder / "sparse-txt"
    return [
        Frame(
            name, folder / "images" / name, _h5(folder / "depths", name), masks and masks / scene / f"{name}.png",
            sparse / "images.txt", partial(_modelled, image),
        )
        for name, image in read_model(sparse).items()
    ]  # fmt: skip


def _h5(folder: Path, name: str) -> Path:
    """The depth file of an image: its name with the last ending replaced; of 1_o.jpg.jpg some copies have 1_o.h5."""
    last = folder / f"{Path(name).stem}.h5"
    first = folder / f"{name.split('.')[0]}.h5"
    return first if first.is_file() and not last.is_file() else last


# --- one view -----------------------------------------------------------------------------------------------------


def _read_camera(path: Path, options: Options) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "4 4"]]:
    arrays = read_npz(path)
    for key, shape in (("intrinsics", (3, 3)), ("cam2world", (4, 4))):
        if key not in arrays or arrays[key].shape != shape or arrays[key].dtype.kind not in "fiu":
            got = (
                f"{arrays[key].dtype} {arrays[key].shape}"
                if key in arrays
                else f"only {', '.join(arrays) or 'nothing'}"
            )
            raise DataError(f"{path}: expected {key} of shape {shape}, found {got}. Fetch the file again.")
        if not np.isfinite(arrays[key]).all():
            raise DataError(
                f"{path}: {key} holds NaN or infinity; expected a camera. Fetch the file again, or take the image out."
            )
    K = arrays["intrinsics"].astype(np.float64)
    if options.pixel_centres == "half":
        K[:2, 2] -= 0.5
    return K, arrays["cam2world"].astype(np.float64)


def _modelled(image: ColmapImage) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "4 4"]]:
    return image.K, image.world_T_cam


def _view(frame: Frame, options: Options) -> View:
    image = read_colour(frame.image_file)
    depth = read_h5_depth(frame.depth_file) if frame.depth_file.suffix == ".h5" else read_exr(frame.depth_file)
    _same_size(frame.depth_file, depth.shape, image)
    depth = np.where(np.isfinite(depth) & (depth > 0) & (depth <= options.max_depth), depth, np.float32(0))
    if frame.mask_file is not None:
        labels = read_png8(frame.mask_file)
        _same_size(frame.mask_file, labels.shape, image)
        depth[labels == _SKY] = 0
    K, world_T_cam = frame.camera()
    if options.poses == "world_to_camera":
        world_T_cam = invert(world_T_cam)
    view = View(frame.name, image, K, world_T_cam, depth)
    view = view if options.crop is None else _cropped(view, options.crop)
    return _cleaned(view, frame.depth_file, options)


def _same_size(path: Path, size: tuple[int, ...], image: UInt8[np.ndarray, "h w 3"]) -> None:
    if size != image.shape[:2]:
        raise DataError(
            f"{path}: {size[1]}x{size[0]} (width x height), but its image is {image.shape[1]}x{image.shape[0]}; expected one "
            "size. Files of two preparations may be mixed: fetch the scene again."
        )


def _cropped(view: View, crop: int) -> View:
    """The square about the image's centre: pixels as they are, K moved with them."""
    height, width = view.image.shape[:2]
    side = min(crop, height, width)
    K = view.K.copy()
    K[0, 2] -= width // 2 - side // 2
    K[1, 2] -= height // 2 - side // 2
    return resample(view, K, (side, side))


def _cleaned(view: View, path: Path, options: Options) -> View:
    if view.depth is None:
        return view
    depth = clean(view.depth, options.cleanup)
    if not depth.any() and options.empty_depth == "error":
        raise DataError(
            f"{path}: not one pixel of depth is left within {options.max_depth:g} m, outside the sky and in the crop; expected "
            "some. Take the image out of the index, or set options.empty_depth: keep."
        )
    return replace(view, depth=depth)


def clean(
    depth: Float32[np.ndarray, "h w"], rule: Literal["none", "reference", "measured"]
) -> Float32[np.ndarray, "h w"]:
    """`depth` (metres, 0 = not measured) with outliers set to 0 by one of the rules of `Options.cleanup`."""
    measured = depth[depth > 0]
    if rule == "reference":
        return np.where(depth > np.percentile(depth, 98), np.float32(0), depth)
    if rule == "none" or measured.size <= _MIN_FOR_PERCENTILES:
        return depth
    low, high = np.percentile(measured, (2, 98))
    return np.where((depth < low) | (depth > high), np.float32(0), depth)
