"""The objects that cross module borders, in numpy; their torch counterparts are in systems/records.py.

Frames and units everywhere: OpenCV axes (x right, y down, z forward), metres, K in pixels with the centre of the
top-left pixel at (0, 0), sizes as (height, width), `a_T_b` maps points in frame b to frame a. Depth is z; 0 = not measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from plumbline.errors import DataError


@dataclass(frozen=True)
class View:
    """One image with its camera and depth, as a reader yields it.

    Depth may live on a grid of its own: then `depth_K` holds that grid's intrinsics (the camera centre and axes are
    shared with the image). `depth_K` None means that depth and image have one size and one K. `frame` is (its number, from
    0, and the number of all frames) where the capture is a sequence that may lack frames here.
    """

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    K: Float64[np.ndarray, "3 3"]
    world_T_cam: Float64[np.ndarray, "4 4"] | None = None
    depth: Float32[np.ndarray, "hd wd"] | None = None
    depth_K: Float64[np.ndarray, "3 3"] | None = None
    mask: Bool[np.ndarray, "hd wd"] | None = None
    frame: tuple[int, int] | None = None


Pairs = tuple[tuple[tuple[int, float], ...], ...]
# (views that are given, views to be rendered) of each sample of a published list, by index.
Listed = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class EncodedImages:
    """Images kept as JPEG or PNG bytes, for data sets whose raw stacks would be too large; indexed like a stack."""

    data: UInt8[np.ndarray, " bytes"]
    offsets: Int64[np.ndarray, " v1"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        encoded = np.asarray(self.data[self.offsets[index] : self.offsets[index + 1]])
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"image {index} of an encoded scene cannot be decoded. Parse the data set again.")
        return np.ascontiguousarray(image[..., ::-1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(v, h, w, 3), as a stack would say."""
        return (len(self), *self[0].shape)


@dataclass(frozen=True)
class Scene:
    """A canonical scene: images and depth of one size; arrays are memory-mapped where they can be.

    `pairs` holds, for each view, the other views' indices with their scores, best first. `depth_range` is (nearest,
    farthest) in metres and comes from params, never from the truth. `frames` has the number of each view's frame in its
    capture, ascending, and `frame_count` that of all frames there, lost ones included; None where views simply follow
    one another. `samples` holds the data set's own lists of samples, by name.
    """

    dataset: str
    name: str
    view_names: tuple[str, ...]
    images: UInt8[np.ndarray, "v h w 3"] | EncodedImages
    K: Float64[np.ndarray, "v 3 3"]
    depth_range: tuple[float, float]
    depth: Float32[np.ndarray, "v h w"] | None = None
    world_T_cam: Float64[np.ndarray, "v 4 4"] | None = None
    mask: Bool[np.ndarray, "v h w"] | None = None
    pairs: Pairs | None = None
    source: dict[str, object] = field(default_factory=dict)
    frames: tuple[int, ...] | None = None
    frame_count: int | None = None
    samples: Mapping[str, Listed] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Views of one scene that are given together, by index; `views[0]` is the reference.

    With `context` only that many leading views are given: the others are targets, to be rendered and seen as truth alone.
    """

    scene: str
    views: tuple[int, ...]
    context: int | None = None

    @property
    def given(self) -> tuple[int, ...]:
        """The views that methods may look at, the reference first."""
        return self.views[: self.context]

    @property
    def targets(self) -> tuple[int, ...]:
        """The views to be rendered; none where all are given."""
        return () if self.context is None else self.views[self.context :]


@dataclass(frozen=True)
class SampleArrays:
    """Samples of one size, stacked: what `systems.records.to_batch` turns into a Batch."""

    image: UInt8[np.ndarray, "b v h w 3"]
    K: Float64[np.ndarray, "b v 3 3"]
    depth_range: Float64[np.ndarray, "b 2"]
    world_T_cam: Float64[np.ndarray, "b v 4 4"] | None = None
    depth: Float32[np.ndarray, "b v h w"] | None = None
    mask: Bool[np.ndarray, "b v h w"] | None = None
    initial_depth: Float32[np.ndarray, "b p h w"] | None = None
    initial_confidence: Float32[np.ndarray, "b p h w"] | None = None
    keypoint_probability: Float32[np.ndarray, "b v h w"] | None = None
    target_image: UInt8[np.ndarray, "b t h w 3"] | None = None
    target_K: Float64[np.ndarray, "b t 3 3"] | None = None
    world_T_target: Float64[np.ndarray, "b t 4 4"] | None = None
    target_mask: Bool[np.ndarray, "b t h w"] | None = None
