"""What systems read and return, in torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from plumbline.records import SampleArrays

# Made from the images for a loss to learn from: a system names those it wants in `labels`, and never among its `inputs`.
LABELS = frozenset({"keypoint_probability"})


@dataclass(frozen=True)
class Batch:
    """Samples of one size on one device. Poses are relative to view 0, depth is z in metres (truth: 0 = not measured).

    `predict_views` leading views are to be predicted. `initial_depth` holds another method's depth for the first p views.
    `constant_depth` is the median depth of the data set's training split, `constant_pose` the mean pose of a source view
    (`cam0_T_cam`) over the pairs of that split. `keypoint_probability` is a label, for losses alone (see LABELS): the
    probability that a pixel is a keypoint, at most 1 in the sum over an 8x8 cell as stored. Where samples have views to be
    rendered, `target_K` and `cam0_T_target` are their cameras, and `target_image` with `target_mask` is what was seen there.
    """

    image: Float[Tensor, "b v 3 h w"]
    K: Float[Tensor, "b v 3 3"]
    cam0_T_cam: Float[Tensor, "b v 4 4"] | None
    depth_range: Float[Tensor, "b 2"] | None
    depth: Float[Tensor, "b v h w"] | None = None
    mask: Bool[Tensor, "b v h w"] | None = None
    initial_depth: Float[Tensor, "b p h w"] | None = None
    initial_confidence: Float[Tensor, "b p h w"] | None = None
    keypoint_probability: Float[Tensor, "b v h w"] | None = None
    constant_depth: Float[Tensor, " b"] | None = None
    constant_pose: Float[Tensor, "b 4 4"] | None = None
    target_image: Float[Tensor, "b t 3 h w"] | None = None
    target_K: Float[Tensor, "b t 3 3"] | None = None
    cam0_T_target: Float[Tensor, "b t 4 4"] | None = None
    target_mask: Bool[Tensor, "b t h w"] | None = None
    predict_views: int = 1

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, rows: slice) -> "Batch":
        """The samples `rows` of this batch."""
        return self._map(lambda tensor: tensor[rows])

    def select(self, inputs: frozenset[str]) -> "Batch":
        """This batch with everything that `inputs` does not name removed, so that a system cannot look at it.

        The image stays (its size is that of the prediction), but is blank when it is not among the inputs; so is K.
        """
        unknown = inputs - {f.name for f in fields(self)}
        if unknown:
            raise ValueError(f"unknown inputs {sorted(unknown)}; a Batch has {sorted(f.name for f in fields(self))}")
        hidden: dict[str, Any] = {f.name: None for f in fields(self) if f.name not in inputs | {"predict_views"}}
        for name in ("image", "K"):
            if name in hidden:
                hidden[name] = torch.zeros_like(getattr(self, name))
        return replace(self, **hidden)

    def _map(self, function: Any) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(value) for name, value in tensors.items() if torch.is_tensor(value)})


@dataclass(frozen=True)
class Cameras:
    """Predicted cameras of all views, as a Batch has the given ones; metres where the prediction's depth is in metres.

    K is None where only poses are predicted. A system that predicts no depth returns this in place of a Prediction.
    """

    cam0_T_cam: Float[Tensor, "b v 4 4"]
    K: Float[Tensor, "b v 3 3"] | None


@dataclass(frozen=True)
class Rendered:
    """What the target cameras of a batch see: colours in [0, 1], and z in metres (0 = nothing there) where it is known.

    A method that only renders, and predicts neither depth nor cameras, returns this in place of a Prediction.
    """

    image: Float[Tensor, "b t 3 h w"]
    depth: Float[Tensor, "b t h w"] | None = None


@dataclass(frozen=True)
class Prediction:
    """Depth of the first p views (metres; 0 = the system abstains) and, optionally, how sure it is (in [0, 1])."""

    depth: Float[Tensor, "b p h w"]
    confidence: Float[Tensor, "b p h w"] | None = None
    cameras: Cameras | None = None
    internals: Mapping[str, Tensor] = field(default_factory=dict)


def to_batch(arrays: SampleArrays, *, device: torch.device | str = "cpu", predict_views: int = 1) -> Batch:
    """A Batch of stacked samples: images scaled to [0, 1], poses relative to view 0, mask = measured and usable.

    Poses are inverted in float64 on the CPU, so that a world frame far from the origin costs no precision.
    """
    depth = None if arrays.depth is None else torch.from_numpy(np.ascontiguousarray(arrays.depth))
    mask = None if depth is None else depth > 0
    if mask is not None and arrays.mask is not None:
        mask = mask & torch.from_numpy(np.ascontiguousarray(arrays.mask))
    batch = Batch(
        image=_in_unit_range(arrays.image),
        K=torch.from_numpy(arrays.K).float(),
        cam0_T_cam=None if arrays.world_T_cam is None else _relative(arrays.world_T_cam, arrays.world_T_cam),
        depth_range=torch.from_numpy(arrays.depth_range).float(),
        depth=depth,
        mask=mask,
        initial_depth=_tensor(arrays.initial_depth),
        initial_confidence=_tensor(arrays.initial_confidence),
        keypoint_probability=_tensor(arrays.keypoint_probability),
        target_image=None if arrays.target_image is None else _in_unit_range(arrays.target_image),
        target_K=None if arrays.target_K is None else torch.from_numpy(arrays.target_K).float(),
        cam0_T_target=_relative_target(arrays),
        target_mask=_tensor(arrays.target_mask),
        predict_views=predict_views,
    )
    return batch.to(device)


def _in_unit_range(image: UInt8[np.ndarray, "b v h w 3"]) -> Float[Tensor, "b v 3 h w"]:
    b, v, h, w, _ = image.shape
    flat = torch.from_numpy(np.ascontiguousarray(image)).reshape(b * v, h, w, 3).permute(0, 3, 1, 2)
    return flat.to(torch.float32).mul_(1 / 255).reshape(b, v, 3, h, w)


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))


def _relative(world_T_cam: np.ndarray, world_T_other: np.ndarray) -> Tensor:
    """Poses in the frame of the first camera of `world_T_cam`."""
    return torch.from_numpy(np.linalg.inv(world_T_cam[:, :1]) @ world_T_other).float()


def _relative_target(arrays: SampleArrays) -> Tensor | None:
    if arrays.world_T_cam is None or arrays.world_T_target is None:
        return None
    return _relative(arrays.world_T_cam, arrays.world_T_target)
