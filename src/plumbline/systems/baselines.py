"""The trivial methods every other one is compared with: a depth, a pose, or a picture that takes no geometry.

Only those that render read an image.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from plumbline import geometry
from plumbline.errors import DataError
from plumbline.systems.records import Batch, Cameras, Prediction, Rendered

# Relative, and in metres: poses are float32.
_ROUNDING = 1e-5


class Constant(nn.Module):
    """The median depth of the data set's training split, everywhere."""

    inputs: ClassVar[frozenset[str]] = frozenset({"constant_depth"})

    def forward(self, batch: Batch) -> Prediction:
        """Depth in metres, (b, p, h, w). DataError when the batch has no positive constant depth for every sample."""
        if batch.constant_depth is None or not bool((batch.constant_depth > 0).all()):
            raise DataError(
                f"constant: expected a positive training-split median for every sample, got {batch.constant_depth}. "
                "Evaluate on a data set whose training split has depth."
            )
        return _planes(batch.constant_depth.to(batch.image.dtype)[:, None].expand(-1, batch.predict_views), batch)


class MedianPlane(nn.Module):
    """The median of each image's own true depth, everywhere: an oracle, and a bound for what a single plane can do."""

    inputs: ClassVar[frozenset[str]] = frozenset({"depth", "mask"})

    def forward(self, batch: Batch) -> Prediction:
        """Depth in metres, (b, p, h, w); 0 (it abstains) for a view without any measured depth. DataError without truth."""
        if batch.depth is None:
            raise DataError("median_plane: needs true depth; this batch has none. Use scenes with depth.")
        depth = batch.depth[:, : batch.predict_views]
        measured = depth > 0 if batch.mask is None else (depth > 0) & batch.mask[:, : batch.predict_views]
        return _planes(_median(depth, measured), batch)


class Identity(nn.Module):
    """Every camera is the first: no turn and no step, which is what a system says that has learnt nothing of poses."""

    inputs: ClassVar[frozenset[str]] = frozenset()

    def forward(self, batch: Batch) -> Cameras:
        """Poses of all views, (b, v, 4, 4); no K."""
        b, v = batch.image.shape[:2]
        return Cameras(cam0_T_cam=torch.eye(4, device=batch.image.device).repeat(b, v, 1, 1), K=None)


class MeanPose(nn.Module):
    """The mean pose over the pairs of the data set's training split, for every source view."""

    inputs: ClassVar[frozenset[str]] = frozenset({"constant_pose"})

    def forward(self, batch: Batch) -> Cameras:
        """Poses of all views in metres, (b, v, 4, 4), the first the identity; no K. DataError without a mean pose."""
        if batch.constant_pose is None:
            raise DataError("mean_pose: needs the mean pose of a training split; this batch has none.")
        poses = batch.constant_pose[:, None].repeat(1, batch.image.shape[1], 1, 1)
        poses[:, 0] = torch.eye(4, device=poses.device)
        return Cameras(cam0_T_cam=poses, K=None)


class MeanColour(nn.Module):
    """The mean colour of the given views, everywhere: what a picture scores that shows nothing."""

    inputs: ClassVar[frozenset[str]] = frozenset({"image", "target_K"})

    def forward(self, batch: Batch) -> Rendered:
        """Pictures of all target views. DataError without target views."""
        targets = _targets("mean_colour", batch.target_K).shape[1]
        colour = batch.image.mean(dim=(1, 3, 4))
        return Rendered(colour[:, None, :, None, None].expand(-1, targets, -1, *batch.image.shape[-2:]).contiguous())


class NearestView(nn.Module):
    """The given view whose camera is nearest to the target's, as it is; of equally near ones the least turned."""

    inputs: ClassVar[frozenset[str]] = frozenset({"image", "cam0_T_cam", "cam0_T_target"})

    def forward(self, batch: Batch) -> Rendered:
        """Pictures of all target views. DataError without poses or target views."""
        if batch.cam0_T_cam is None:
            raise DataError("nearest_view: needs poses; this batch has none. Use posed scenes.")
        target_T_cam = (
            geometry.invert(_targets("nearest_view", batch.cam0_T_target))[:, :, None] @ batch.cam0_T_cam[:, None]
        )
        chosen = _nearest(target_T_cam)
        return Rendered(batch.image[torch.arange(len(chosen), device=chosen.device)[:, None], chosen])


def _nearest(target_T_cam: Float[Tensor, "b t v 4 4"]) -> Int64[Tensor, "b t"]:
    """The nearest camera; distances that differ by no more than rounding are equal, and the smallest turn decides."""
    distance = torch.linalg.vector_norm(target_T_cam[..., :3, 3], dim=-1)
    tied = distance <= distance.amin(dim=-1, keepdim=True) * (1 + _ROUNDING) + _ROUNDING
    # The trace falls as the angle grows.
    trace = target_T_cam[..., :3, :3].diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return trace.where(tied, -torch.inf).argmax(dim=-1)


def _targets(name: str, cameras: Tensor | None) -> Tensor:
    if cameras is None:
        raise DataError(f"{name}: this batch has no target cameras to render. Use samples with target views.")
    return cameras


def _median(depth: Float[Tensor, "b p h w"], measured: Tensor) -> Float[Tensor, "b p"]:
    missing = torch.full_like(depth, torch.nan)
    return depth.where(measured, missing).flatten(2).nanmedian(dim=2).values.nan_to_num(nan=0.0)


def _planes(value: Float[Tensor, "b p"], batch: Batch) -> Prediction:
    size = batch.image.shape[-2:]
    return Prediction(depth=value[..., None, None].expand(*value.shape, *size).contiguous())
