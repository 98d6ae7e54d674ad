"""Novel views without learning: another method's depth carries the given pictures to where they are asked for.

Depth-image-based rendering (Fehn 2004): the depth of each given view is warped forward into the target camera, its picture is
looked up through the warped depth, the views are merged by depth, and holes are filled from their surroundings.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from plumbline import geometry
from plumbline.errors import DataError
from plumbline.rendering.surroundings import fill
from plumbline.systems.records import Batch, Rendered

# Share of a point's weight that a pixel must have received to count as seen: less is the fringe of a neighbour.
_SEEN = 0.25
# How much a surer view counts for: a wrong depth that is half as sure as a right one then leaves a 17th of itself.
_SHARPNESS = 4


class Config(BaseModel):
    """Whose depth is warped, and which of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial: str = Field(default="plane_sweep", min_length=1, description="method whose depth is warped")
    sure: float = Field(default=0.6, ge=0, le=1, description="confidence below which a depth is not warped")
    tolerance: float = Field(default=0.02, gt=0, lt=1, description="depths this near, relative, are one surface")


class System(nn.Module):
    """What target cameras see of the given views that have an initial depth. It predicts neither depth nor cameras.

    Where views disagree the surer one counts, or the one with the nearer surface if the initial depth has no confidence.
    Pixels whose initial depth is 0 (abstained), or unsure, take no part.
    """

    inputs: ClassVar[frozenset[str]] = frozenset(
        {"image", "K", "cam0_T_cam", "initial_depth", "initial_confidence", "target_K", "cam0_T_target"}
    )

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, batch: Batch) -> Rendered:
        """Pictures of the target cameras, and z in metres, 0 where no given view shows a point.

        DataError without poses, initial depth or target cameras.
        """
        check_inputs(batch)
        views = [self._target(batch, index) for index in range(_present(batch.target_K).shape[1])]
        image, depth = (torch.stack(parts, dim=1) for parts in zip(*views, strict=True))
        return Rendered(image, depth)

    def _target(self, batch: Batch, index: int) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b h w"]]:
        depth, sure = _present(batch.initial_depth), batch.initial_confidence
        p = depth.shape[1]
        if sure is None:
            picture = batch.image[:, :p]
        else:
            picture, depth = (
                torch.cat([batch.image[:, :p], sure[:, :, None]], dim=2),
                depth * (sure >= self.config.sure),
            )
        cam_T_target = geometry.invert(_present(batch.cam0_T_cam)[:, :p]) @ _present(batch.cam0_T_target)[:, [index]]
        K = _present(batch.target_K)[:, [index]].expand(-1, p, -1, -1)
        each = (x.flatten(0, 1) for x in (picture, depth, batch.K[:, :p], K, cam_T_target))
        seen, z = (torch.unflatten(x, 0, (-1, p)) for x in seen_through_depth(*each, tolerance=self.config.tolerance))
        weight = (z > 0) / torch.linalg.vector_norm(cam_T_target[..., :3, 3], dim=-1).clamp(min=1e-6)[..., None, None]
        weight = weight * (not_behind(z, self.config.tolerance) if sure is None else seen[:, :, 3] ** _SHARPNESS)
        image, z = merge(seen[:, :, :3], z, weight)
        return fill(image, z > 0).clamp(0, 1), z


def seen_through_depth(
    image: Float[Tensor, "n c h w"],
    depth: Float[Tensor, "n h w"],
    K: Float[Tensor, "n 3 3"],
    target_K: Float[Tensor, "n 3 3"],
    cam_T_target: Float[Tensor, "n 4 4"],
    *,
    tolerance: float,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n h w"]]:
    """A picture as another camera sees it, and z there; both are 0 where the picture shows no point."""
    target_T_cam = geometry.invert(cam_T_target)
    uv, z = geometry.project(geometry.transform(target_T_cam, geometry.backproject(depth, K)), target_K)
    z = splat(uv, z * (depth > 0), tolerance=tolerance)
    seen, inside = geometry.warp(image, z, target_K, K, cam_T_target)
    return seen * inside[:, None], z * inside


def splat(uv: Float[Tensor, "n h w 2"], z: Float[Tensor, "n h w"], *, tolerance: float) -> Float[Tensor, "n h w"]:
    """The depth of each pixel from points at pixels `uv`, `z` deep (none where z <= 0); 0 where there is no point.

    A point reaches the four pixels around it with bilinear weights; of those that reach a pixel, the nearest and what lies
    within `tolerance` of it are averaged.
    """
    size = (z.shape[-2], z.shape[-1])
    pixel, share = _corners(uv, z, size)
    deep = z.flatten(1).repeat(1, 4)
    nearest = z.new_full((len(z), size[0] * size[1] + 1), torch.inf).scatter_reduce(1, pixel, deep, "amin")
    share = share * (deep <= nearest.gather(1, pixel) * (1 + tolerance))
    weight, total = (torch.zeros_like(nearest).scatter_add(1, pixel, x) for x in (share, share * deep))
    mean = torch.where(weight >= _SEEN, total / weight.clamp(min=_SEEN), 0.0)
    return mean[:, :-1].reshape(z.shape)


def _corners(
    uv: Float[Tensor, "n h w 2"], z: Float[Tensor, "n h w"], size: tuple[int, int]
) -> tuple[Tensor, Float[Tensor, "n k"]]:
    """Flat index and bilinear weight of the four pixels around each point; one past the last for what is not in the image."""
    # Far outside, pixels are no longer whole numbers of an index type.
    uv = uv.clamp(-2, max(size) + 2)
    base = uv.floor()
    part = uv - base
    pixels, shares = [], []
    for du in (0, 1):
        for dv in (0, 1):
            u, v = base[..., 0] + du, base[..., 1] + dv
            share = (part[..., 0] if du else 1 - part[..., 0]) * (part[..., 1] if dv else 1 - part[..., 1])
            inside = (u >= 0) & (u < size[1]) & (v >= 0) & (v < size[0]) & (z > 0) & (share > 0)
            pixels.append(torch.where(inside, v * size[1] + u, size[0] * size[1]).long().flatten(1))
            shares.append((share * inside).flatten(1))
    return torch.cat(pixels, dim=1), torch.cat(shares, dim=1)


def not_behind(z: Float[Tensor, "n p h w"], tolerance: float) -> Bool[Tensor, "n p h w"]:
    """Which views show the nearest surface of a pixel, or one within `tolerance` of it."""
    nearest = torch.where(z > 0, z, torch.inf).amin(dim=1, keepdim=True)
    return (z > 0) & (z <= nearest * (1 + tolerance))


def merge(
    image: Float[Tensor, "n p 3 h w"], z: Float[Tensor, "n p h w"], weight: Float[Tensor, "n p h w"]
) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n h w"]]:
    """The weighted mean of pictures of one camera, and of their z; 0 where no weight is."""
    share = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return (image * share[:, :, None]).sum(dim=1), (z * share).sum(dim=1)


def check_inputs(batch: Batch) -> None:
    """DataError when `batch` lacks what a view is warped with."""
    if batch.target_K is None or batch.cam0_T_target is None:
        raise DataError("warped_view: this batch has no target cameras to render. Use samples with target views.")
    if batch.cam0_T_cam is None or batch.initial_depth is None:
        raise DataError(
            "warped_view: needs poses, and an initial depth for every sample; this batch lacks one of them."
        )


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise DataError("warped_view: the batch lacks poses, depth or target cameras.")
    return tensor
