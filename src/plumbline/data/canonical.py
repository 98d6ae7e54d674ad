"""Canonical scenes: validation, the one resampling function, and the format on disk (`data/scenes/<dataset>/<scene>/`).

A folder holds `scene.json` (format version, view names, pair scores, lists of samples, depth range), `images.npy` u8
(v, h, w, 3) or, stored encoded, `images.bin` with `image_offsets.npy`; `depth.npy` f32 (v, h, w) in metres, `K.npy` f64
(v, 3, 3), `world_T_cam.npy` f64 (v, 4, 4) and `mask.npy` where there is one. Depth and poses may be absent.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped, UInt8

from plumbline.errors import DataError
from plumbline.files import atomic_folder, read_json, read_npy, write_json
from plumbline.records import EncodedImages, Listed, Pairs, Scene, View

FORMAT_VERSION = 1
ImageStorage = Literal["raw", "jpeg", "png"]
Resize = Literal["footprint", "bilinear"]
_CODECS = {"jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]), "png": (".png", [cv2.IMWRITE_PNG_COMPRESSION, 3])}
_ROTATION_TOLERANCE = 1e-3


# --- validation ---------------------------------------------------------------------------------------------------


def validate_view(view: View, where: str) -> None:
    """Raise DataError, naming `where`, for the first thing in `view` that cannot be true; each defect has its own words."""
    height, width = view.image.shape[:2]
    _validate_K(view.K, (height, width), f"{where}: K of the image")
    if view.world_T_cam is not None:
        _validate_rigid(view.world_T_cam, where)
    if view.depth is None:
        return
    if view.depth_K is None and view.depth.shape != (height, width):
        got = f"depth is {view.depth.shape[0]}x{view.depth.shape[1]}, the image {height}x{width}"
        raise DataError(f"{where}: {got}, and no intrinsics for the depth grid are given. Are both from one capture?")
    if view.depth_K is not None:
        _validate_K(view.depth_K, view.depth.shape, f"{where}: K of the depth")
    if not np.isfinite(view.depth).all():
        raise DataError(f"{where}: depth holds NaN or infinity; unmeasured pixels are 0. The reader or file is broken.")
    if (view.depth < 0).any():
        raise DataError(f"{where}: negative depth ({view.depth.min():.3g} m); expected z >= 0, with 0 for unmeasured.")
    if view.mask is not None and view.mask.shape != view.depth.shape:
        raise DataError(f"{where}: mask is {view.mask.shape}, depth {view.depth.shape}; expected one size.")


def _validate_K(K: Float64[np.ndarray, "3 3"], size: tuple[int, ...], what: str) -> None:
    height, width = size
    if not np.isfinite(K).all() or abs(K[2] - [0, 0, 1]).max() > 1e-9 or abs(K[1, 0]) > 1e-6 * abs(K[0, 0]):
        raise DataError(f"{what} is not an upper triangular camera matrix: {K.tolist()}. Check the intrinsics file.")
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    fits = 0 < cx < width and 0 < cy < height and 0.1 * width < fx < 20 * width and 0.5 < fx / fy < 2
    if not fits:
        raise DataError(
            f"{what} cannot fit a {height}x{width} image: fx {fx:.1f}, fy {fy:.1f}, cx {cx:.1f}, cy {cy:.1f}. "
            "It probably belongs to another resolution: scale it with its image."
        )


def _validate_rigid(world_T_cam: Float64[np.ndarray, "4 4"], where: str) -> None:
    if not np.isfinite(world_T_cam).all():
        raise DataError(
            f"{where}: the camera pose holds NaN or infinity (tracking was lost there). Leave the frame out."
        )
    R = world_T_cam[:3, :3]
    deviation = float(abs(R @ R.T - np.eye(3)).max())
    if deviation > _ROTATION_TOLERANCE or abs(world_T_cam[3] - [0, 0, 0, 1]).max() > 1e-9:
        raise DataError(
            f"{where}: the camera pose is not a rotation with a translation (R Rᵀ is off by {deviation:.2g}). "
            "Rows may be read with the wrong stride, or the file mixes formats."
        )
    if np.linalg.det(R) < 0:
        raise DataError(
            f"{where}: the camera pose is left-handed (determinant -1); expected x right, y down, z forward."
        )


# --- one function for size and K ----------------------------------------------------------------------------------


def resample(view: View, K: Float64[np.ndarray, "3 3"], size: tuple[int, int], *, resize: Resize = "footprint") -> View:
    """`view` as the pinhole camera (`K`, `size`) of the same position and axes sees it: every resize and crop is this.

    The image is averaged over each target pixel's footprint (exactly so for whole ratios), depth and mask take the
    nearest source pixel, so that no hole and no edge is mixed into a depth; outside the source they are 0. With pixel
    centres at whole numbers, scaling by s maps u to (u + 0.5) s - 0.5. `resize` bilinear interpolates image and depth at
    each target pixel's centre instead, as OpenCV's INTER_LINEAR does (borders go on outwards): fine texture aliases, and
    holes, being 0, leave a fringe of depths that are too small.
    """
    if abs(view.K[0, 1]) > 1e-9 or abs(K[0, 1]) > 1e-9:
        raise DataError(
            f"{view.name}: K has a skew of {view.K[0, 1]:.3g}; resampling expects none. Undistort it first."
        )
    bilinear = resize == "bilinear"
    image = _bilinear_image(view.image, view.K, K, size) if bilinear else _average(view.image, view.K, K, size)
    if view.depth is None:
        return replace(view, image=image, K=K)
    depth_K = view.K if view.depth_K is None else view.depth_K
    depth = (_bilinear if bilinear else _nearest)(view.depth, depth_K, K, size)
    mask = None if view.mask is None else _nearest(view.mask, depth_K, K, size)
    return replace(view, image=image, K=K, depth=depth, depth_K=None, mask=mask)


def fit(view: View, size: tuple[int, int], *, resize: Resize = "footprint") -> View:
    """`view` at `size` (height, width): scaled by one factor and cropped around the centre, K included.

    When the depth grid already has that size it is the target (DTU's 640x512 images come to its 160x128 depth). `resize`
    bilinear is the published loader of DELTAS (Sinha et al., ECCV 2020): nothing is cropped, each axis has its own factor.
    """
    if resize == "footprint" and view.depth_K is not None and view.depth is not None and view.depth.shape == size:
        return resample(view, view.depth_K, size)
    height, width = view.image.shape[:2]
    sx, sy = size[1] / width, size[0] / height
    if resize == "footprint":
        sx = sy = max(sx, sy)
    K = view.K.copy()
    K[:2] *= [[sx], [sy]]
    K[0, 2] = (view.K[0, 2] + 0.5) * sx - 0.5 - (width * sx - size[1]) / 2
    K[1, 2] = (view.K[1, 2] + 0.5) * sy - 0.5 - (height * sy - size[0]) / 2
    return resample(view, K, size, resize=resize)


def _source_axis(K_source: np.ndarray, K_target: np.ndarray, axis: int) -> tuple[float, float]:
    """Source coordinate of the target's left (upper) image edge, and source pixels per target pixel, along one axis."""
    step = K_source[axis, axis] / K_target[axis, axis]
    edge = (-0.5 - K_target[axis, 2]) * step + K_source[axis, 2]
    return float(edge), float(step)


def _average(
    image: UInt8[np.ndarray, "h w 3"], K_source: np.ndarray, K_target: np.ndarray, size: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    (x_edge, x_step), (y_edge, y_step) = (_source_axis(K_source, K_target, axis) for axis in (0, 1))
    # A little slack, so that a ratio of 4 that comes out as 4 + 1e-15 still takes 4 samples a pixel.
    nx, ny = (max(1, int(np.ceil(step - 1e-6))) for step in (x_step, y_step))
    to_source = np.array([
        [x_step / nx, 0, x_edge + 0.5 * x_step / nx],
        [0, y_step / ny, y_edge + 0.5 * y_step / ny],
    ])  # fmt: skip
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    fine = cv2.warpAffine(image, to_source, (size[1] * nx, size[0] * ny), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(fine, size[::-1], interpolation=cv2.INTER_AREA))


def _bilinear_image(
    image: UInt8[np.ndarray, "h w 3"], K_source: np.ndarray, K_target: np.ndarray, size: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    return np.rint(_bilinear(image, K_source, K_target, size)).astype(np.uint8)


def _bilinear(
    values: Shaped[np.ndarray, "h w *c"], K_source: np.ndarray, K_target: np.ndarray, size: tuple[int, int]
) -> Float32[np.ndarray, "h2 w2 *c"]:
    """`values` interpolated at the centres of the target's pixels, rows first; beyond the outermost centres they go on."""
    for axis in (0, 1):
        edge, step = _source_axis(K_source, K_target, 1 - axis)
        last = values.shape[axis] - 1
        at = np.clip(edge + (np.arange(size[axis]) + 0.5) * step, 0, last)
        low = np.minimum(at.astype(np.int64), max(last - 1, 0))
        share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        first, second = (np.take(values, index, axis).astype(np.float32) for index in (low, np.minimum(low + 1, last)))
        values = first + share * (second - first)
    return values


def _nearest(
    values: Shaped[np.ndarray, "h w"], K_source: np.ndarray, K_target: np.ndarray, size: tuple[int, int]
) -> Shaped[np.ndarray, "h2 w2"]:
    rows, cols = (_nearest_index(K_source, K_target, axis, size[1 - axis]) for axis in (1, 0))
    inside = ((rows >= 0) & (rows < values.shape[0]))[:, None] & ((cols >= 0) & (cols < values.shape[1]))[None, :]
    picked = values[np.clip(rows, 0, values.shape[0] - 1)[:, None], np.clip(cols, 0, values.shape[1] - 1)[None, :]]
    return np.where(inside, picked, values.dtype.type(0))


def _nearest_index(K_source: np.ndarray, K_target: np.ndarray, axis: int, length: int) -> np.ndarray:
    edge, step = _source_axis(K_source, K_target, axis)
    # Halves go down by a hair's breadth, so that rounding noise in K cannot choose between two neighbours.
    return np.ceil(edge + (np.arange(length) + 0.5) * step - 0.5 - 1e-6).astype(np.int64)


# --- on disk ------------------------------------------------------------------------------------------------------


def write_scene(
    folder: Path,
    *,
    dataset: str,
    name: str,
    views: Iterable[View],
    depth_range: tuple[float, float],
    pairs: Mapping[str, Sequence[tuple[str, float]]] | None = None,
    storage: ImageStorage = "raw",
    source: Mapping[str, Any] | None = None,
    samples: Mapping[str, Sequence[tuple[Sequence[str], Sequence[str]]]] | None = None,
) -> int:
    """Write a canonical scene, view by view, and return the number of views.

    Every view is validated; all have one size, image and depth alike, and all have a pose or none has. Views without
    depth in a scene that has some get an unmeasured map. `samples` has lists of (context, target) view names. Nothing is
    left under `folder` when anything fails.
    """
    with atomic_folder(folder) as temporary:
        with _SceneWriter(temporary, where=f"{dataset}/{name}", storage=storage) as writer:
            for view in views:
                writer.add(view)
        writer.finish()
        description = {
            "format_version": FORMAT_VERSION,
            "dataset": dataset,
            "name": name,
            "units": "metres, OpenCV axes, pixel centres at whole numbers",
            "depth_range": list(depth_range),
            "image_storage": storage,
            "views": writer.names,
            "pairs": _indexed_pairs(pairs, writer.names),
            "source": dict(source or {}),
        } | writer.numbering()
        if samples:
            description["samples"] = _indexed_samples(samples, writer.names)
        write_json(temporary / "scene.json", description)
    return len(writer.names)


class _SceneWriter:
    """Streams views into stacks: memory stays that of one view, whatever the length of the scene."""

    def __init__(self, folder: Path, *, where: str, storage: ImageStorage) -> None:
        self.folder, self.where, self.storage = folder, where, storage
        self.names: list[str] = []
        self._frames: list[tuple[int, int] | None] = []
        self._K: list[np.ndarray] = []
        self._world_T_cam: list[np.ndarray | None] = []
        self._size: tuple[int, int] | None = None
        self._measured = 0
        self._has_depth = self._has_mask = False
        self._offsets = [0]

    def __enter__(self) -> "_SceneWriter":
        image_file = "images.npy" if self.storage == "raw" else "images.bin"
        self._images = _StackFile(self.folder / image_file, np.dtype(np.uint8), headless=self.storage != "raw")
        self._depth = _StackFile(self.folder / "depth.npy", np.dtype(np.float32))
        self._mask = _StackFile(self.folder / "mask.npy", np.dtype(np.bool_))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stack in (self._images, self._depth, self._mask):
            stack.close()

    def add(self, view: View) -> None:
        where = f"{self.where} view {view.name}"
        validate_view(view, where)
        size = view.image.shape[:2]
        self._size = self._size or size
        depth = np.zeros(size, np.float32) if view.depth is None else view.depth
        if size != self._size or depth.shape != size:
            raise DataError(f"{where}: image {size}, depth {depth.shape}; expected {self._size} as in the first view.")
        if view.name in self.names:
            raise DataError(f"{where}: the name occurs twice. View names must differ within a scene.")
        self.names.append(view.name)
        self._frames.append(view.frame)
        self._K.append(view.K)
        self._world_T_cam.append(view.world_T_cam)
        self._has_depth |= view.depth is not None
        self._has_mask |= view.mask is not None
        self._measured += int(np.count_nonzero(depth))
        self._depth.append(depth)
        self._mask.append(np.ones(size, np.bool_) if view.mask is None else view.mask)
        self._append_image(view.image)

    def _append_image(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        if self.storage == "raw":
            self._images.append(image)
            return
        kind, options = _CODECS[self.storage]
        encoded = cv2.imencode(kind, image[..., ::-1], options)[1].reshape(-1)
        self._images.append(encoded)
        self._offsets.append(self._offsets[-1] + encoded.size)

    def numbering(self) -> dict[str, Any]:
        """What scene.json says of frame numbers: nothing where the reader gave none."""
        known = [frame for frame in self._frames if frame is not None]
        if len(known) < len(self._frames):
            return {}
        return {"frames": [number for number, _ in known], "frame_count": known[0][1]}

    def finish(self) -> None:
        if not self.names:
            raise DataError(
                f"{self.where}: no views. Is the folder empty, or does every frame lack a pose or an image?"
            )
        if self._has_depth and self._measured == 0:
            raise DataError(
                f"{self.where}: not one depth pixel of {len(self.names)} views is measured. Is it the right folder?"
            )
        posed = [T for T in self._world_T_cam if T is not None]
        if posed and len(posed) != len(self.names):
            raise DataError(
                f"{self.where}: {len(posed)} of {len(self.names)} views have a camera pose; expected all or none."
            )
        np.save(self.folder / "K.npy", np.stack(self._K).astype(np.float64))
        if posed:
            np.save(self.folder / "world_T_cam.npy", np.stack(posed).astype(np.float64))
        if not self._has_depth:
            (self.folder / "depth.npy").unlink()
        if not self._has_mask:
            (self.folder / "mask.npy").unlink()
        if self.storage != "raw":
            np.save(self.folder / "image_offsets.npy", np.asarray(self._offsets, np.int64))


class _StackFile:
    """A .npy stack written item by item; its header, of fixed length, is set when the number of items is known."""

    _HEADER_BYTES = 128

    def __init__(self, path: Path, dtype: np.dtype[Any], *, headless: bool = False) -> None:
        self._stream, self._dtype, self._headless = path.open("wb"), dtype, headless
        self._count, self._shape = 0, (0, 0)
        if not headless:
            self._stream.write(b"\0" * self._HEADER_BYTES)

    def append(self, item: Shaped[np.ndarray, "..."]) -> None:
        self._stream.write(np.ascontiguousarray(item, self._dtype).data)
        self._count, self._shape = self._count + 1, item.shape

    def close(self) -> None:
        if not self._headless:
            self._stream.seek(0)
            text = f"{{'descr': {np.lib.format.dtype_to_descr(self._dtype)!r}, 'fortran_order': False, "
            text += f"'shape': {(self._count, *self._shape)!r}, }}"
            body = text.ljust(self._HEADER_BYTES - 11).encode() + b"\n"
            self._stream.write(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()


def _indexed_pairs(pairs: Mapping[str, Sequence[tuple[str, float]]] | None, names: list[str]) -> list[Any] | None:
    if pairs is None:
        return None
    index = {name: i for i, name in enumerate(names)}
    return [[[index[other], score] for other, score in pairs.get(name, ()) if other in index] for name in names]


def _indexed_samples(
    samples: Mapping[str, Sequence[tuple[Sequence[str], Sequence[str]]]], names: list[str]
) -> dict[str, list[list[list[int]]]]:
    index = {name: i for i, name in enumerate(names)}
    return {key: [[[index[name] for name in role] for role in row] for row in rows] for key, rows in samples.items()}


def list_scenes(folder: Path) -> list[str]:
    """Names of the canonical scenes below `folder`, sorted; DataError when there is none."""
    names = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("scene.json"))
    if not names:
        raise DataError(f"{folder}: no canonical scenes. Write them with: dvc repro parse@{folder.name}")
    return names


def read_scene(folder: Path) -> Scene:
    """The canonical scene in `folder`, arrays memory-mapped; DataError when it is of another format version or broken."""
    description = read_json(folder / "scene.json")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"{folder}: scene format {version}, expected {FORMAT_VERSION}. Parse the data set again.")
    pairs = description["pairs"]
    return Scene(
        dataset=description["dataset"],
        name=description["name"],
        view_names=tuple(description["views"]),
        images=_read_images(folder, description["image_storage"]),
        K=read_npy(folder / "K.npy"),
        depth_range=(float(description["depth_range"][0]), float(description["depth_range"][1])),
        depth=_optional(folder / "depth.npy"),
        world_T_cam=_optional(folder / "world_T_cam.npy", memory_map=False),
        mask=_optional(folder / "mask.npy"),
        pairs=None if pairs is None else _pair_tuples(pairs),
        source=description["source"],
        frames=tuple(description["frames"]) if "frames" in description else None,
        frame_count=description.get("frame_count"),
        samples={key: _sample_tuples(rows) for key, rows in description.get("samples", {}).items()},
    )


def _pair_tuples(pairs: list[list[list[int | float]]]) -> Pairs:
    return tuple(tuple((int(other), float(score)) for other, score in row) for row in pairs)


def _sample_tuples(rows: list[list[list[int]]]) -> Listed:
    return tuple((tuple(context), tuple(target)) for context, target in rows)


def _optional(path: Path, *, memory_map: bool = True) -> np.ndarray | None:
    return read_npy(path, memory_map=memory_map) if path.exists() else None


def _read_images(folder: Path, storage: str) -> "np.ndarray | EncodedImages":
    if storage == "raw":
        return read_npy(folder / "images.npy", memory_map=True)
    offsets = read_npy(folder / "image_offsets.npy")
    return EncodedImages(np.memmap(folder / "images.bin", np.uint8, mode="r"), offsets)


def views_of(scene: Scene) -> Iterator[View]:
    """The views of a canonical scene, one after the other, as arrays in memory."""
    for i, name in enumerate(scene.view_names):
        yield View(
            name=name,
            image=np.array(scene.images[i]),
            K=scene.K[i],
            world_T_cam=None if scene.world_T_cam is None else scene.world_T_cam[i],
            depth=None if scene.depth is None else np.array(scene.depth[i]),
            mask=None if scene.mask is None else np.array(scene.mask[i]),
            frame=None if scene.frames is None or scene.frame_count is None else (scene.frames[i], scene.frame_count),
        )


def validity(
    depth: Float32[np.ndarray, "*n h w"], mask: Bool[np.ndarray, "*n h w"] | None
) -> Bool[np.ndarray, "*n h w"]:
    """Where the truth can be compared with: measured, and usable where the data set has a mask."""
    return depth > 0 if mask is None else (depth > 0) & mask
