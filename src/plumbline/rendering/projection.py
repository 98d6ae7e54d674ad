"""3-D Gaussians as ellipses on screen: the part that all rasterisers share, differentiable in everything it reads.

Source: Zwicker et al., EWA Splatting (2002), with the local affine approximation, dilation and culling of Kerbl et al.,
3D Gaussian Splatting (2023).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plumbline.geometry import invert
from plumbline.rendering.cameras import Cameras
from plumbline.rendering.gaussians import Gaussians
from plumbline.rendering.harmonics import basis, degree_of
from plumbline.rendering.rules import ALPHA_MIN, DILATION, TILE, Rules

# Beyond the image by this part of its half-width, the affine approximation is taken at that border.
_BEYOND = 0.3
# The half-axes of ellipses are rounded up by this much, so that the cut at 1/255 alone decides at their rim.
_SLACK_PX, _SLACK = 0.01, 1.001


@dataclass(frozen=True)
class Splats:
    """What `n` Gaussians are on the screens of `v` cameras.

    centre in pixels; conic: the entries xx, xy, yy of the inverse of the ellipse's covariance; z in the camera frame;
    features: red, green, blue, z and 1, which are composited alike. Where not `drawn`, they have no meaning but are finite.
    """

    centre: Float[Tensor, "b v n 2"]
    conic: Float[Tensor, "b v n 3"]
    features: Float[Tensor, "b v n 5"]
    opacities: Float[Tensor, "b n"]
    drawn: Bool[Tensor, "b v n"]
    box: Int[Tensor, "b v n 4"]

    @property
    def z(self) -> Float[Tensor, "b v n"]:
        """Depth by which Gaussians are ordered, no path for gradients."""
        return self.features[..., 3].detach()


def project(gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], rules: Rules) -> Splats:
    """Every Gaussian in every camera of its scene.

    Drawn are those in front of `near`, with an opacity of at least 1/255, a positive definite ellipse, and a pixel that it
    can reach. `box` holds the columns and rows (left, top, right, bottom, the last two excluded) of the pixels that it reaches.
    """
    cam_T_world = invert(cameras.world_T_cam)
    points = gaussians.means[:, None] @ cam_T_world[..., :3, :3].mT + cam_T_world[..., None, :3, 3]
    near = cameras.near[..., None] if isinstance(cameras.near, Tensor) else cameras.near
    front = points[..., 2] > near
    # What is behind is moved to a harmless place, so that no infinity reaches a gradient.
    x, y, z = torch.where(front[..., None], points, points.new_tensor([0.0, 0.0, 1.0])).unbind(-1)
    rays = torch.stack([x / z, y / z], dim=-1)
    centre = rays @ cameras.K[..., :2, :2].mT + cameras.K[..., None, :2, 2]
    covariance = _on_screen(gaussians.covariances, cam_T_world, cameras.K, (rays, z), size)
    determinant = covariance[0] * covariance[2] - covariance[1] ** 2
    sound = front & (covariance[0] > 0) & (determinant > 0) & determinant.isfinite()
    inverse = 1 / torch.where(sound, determinant, 1)
    conic = torch.stack([covariance[2] * inverse, -covariance[1] * inverse, covariance[0] * inverse], dim=-1)
    conic = torch.where(sound[..., None], conic, conic.new_tensor([1.0, 0.0, 1.0]))
    colour = colours(gaussians, cameras, rules)
    features = torch.cat([colour, torch.stack([z, torch.ones_like(z)], dim=-1)], dim=-1)
    with torch.no_grad():
        box, reaches = reach(centre, covariance, gaussians.opacities, size, rules)
    return Splats(centre, conic, features, gaussians.opacities, sound & reaches, box)


def _on_screen(
    covariances: Float[Tensor, "b n 3 3"],
    cam_T_world: Float[Tensor, "b v 4 4"],
    K: Float[Tensor, "b v 3 3"],
    seen: tuple[Float[Tensor, "b v n 2"], Float[Tensor, "b v n"]],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "b v n"], ...]:
    """Entries xx, xy, yy of the ellipses' covariances (px²), dilated; `seen` are x/z, y/z and z."""
    ray, z = _held(seen[0], K, size), seen[1][..., None]
    rotation = cam_T_world[..., None, :3, :3]
    across = (rotation[..., 0, :] - ray[..., :1] * rotation[..., 2, :]) / z
    down = (rotation[..., 1, :] - ray[..., 1:] * rotation[..., 2, :]) / z
    scale = K[..., None, None]
    rows = (scale[..., 0, 0, :, :] * across + scale[..., 0, 1, :, :] * down, scale[..., 1, 1, :, :] * down)
    affine = torch.stack(rows, dim=-2)
    # All views of a Gaussian in one product with its covariance.
    product = affine.movedim(1, 2).flatten(2, 3) @ covariances
    product = product.reshape(*affine.movedim(1, 2).shape).movedim(2, 1)
    first, second = product.unbind(-2)
    mixed = ((first * rows[1]).sum(-1) + (second * rows[0]).sum(-1)) / 2
    return (first * rows[0]).sum(-1) + DILATION, mixed, (second * rows[1]).sum(-1) + DILATION


def _held(
    rays: Float[Tensor, "b v n 2"], K: Float[Tensor, "b v 3 3"], size: tuple[int, int]
) -> Float[Tensor, "b v n 2"]:
    """x/z and y/z, held within what the image sees and a margin."""
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], dim=-1)
    extent = K.new_tensor([size[1], size[0]])
    margin = _BEYOND * extent / (2 * focal)
    corner = K[..., :2, 2] + 0.5
    low, high = -corner / focal - margin, (extent - corner) / focal + margin
    return torch.minimum(torch.maximum(rays, low[..., None, :]), high[..., None, :])


def colours(gaussians: Gaussians, cameras: Cameras, rules: Rules) -> Float[Tensor, "b v n 3"]:
    """The colour that each camera sees of each Gaussian: at least 0, and without gradient where held there."""
    offsets = gaussians.means[:, None] - cameras.world_T_cam[..., None, :3, 3]
    # A Gaussian in the camera's centre has no direction; it is not drawn.
    length = (offsets * offsets).sum(-1, keepdim=True).clamp(min=torch.finfo(offsets.dtype).tiny).sqrt()
    values = basis(offsets / length, degree_of(gaussians.harmonics.shape[-1]), rules.harmonics)
    return ((gaussians.harmonics @ values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + 0.5).relu()


def reach(
    centre: Float[Tensor, "b v n 2"],
    covariance: tuple[Float[Tensor, "b v n"], ...],
    opacities: Float[Tensor, "b n"],
    size: tuple[int, int],
    rules: Rules,
) -> tuple[Int[Tensor, "b v n 4"], Bool[Tensor, "b v n"]]:
    """Pixels that a splat can reach, as box and as whether there are any."""
    squared = 2 * (opacities.clamp(min=ALPHA_MIN) / ALPHA_MIN).log()[:, None]
    variance = torch.stack([covariance[0], covariance[2]], dim=-1).clamp(min=DILATION)
    half = (squared[..., None] * variance).sqrt() * _SLACK + _SLACK_PX
    limit = centre.new_tensor([size[1], size[0]])
    low, high = (centre - half).ceil(), (centre + half).floor() + 1
    if rules.extent == "tiles":
        first, last = _tiles(centre, covariance)
        low, high = torch.maximum(low, first), torch.minimum(high, last)
    box = torch.cat([low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)], dim=-1).nan_to_num(0).int()
    some = (box[..., 2:] > box[..., :2]).all(dim=-1)
    return box, some & (opacities >= ALPHA_MIN)[:, None]


def _tiles(
    centre: Float[Tensor, "b v n 2"], covariance: tuple[Float[Tensor, "b v n"], ...]
) -> tuple[Float[Tensor, "b v n 2"], Float[Tensor, "b v n 2"]]:
    """First pixel and end of the whole tiles that meet the square of three standard deviations (of the longer axis)."""
    middle = (covariance[0] + covariance[2]) / 2
    determinant = covariance[0] * covariance[2] - covariance[1] ** 2
    longest = middle + (middle**2 - determinant).clamp(min=0.1).sqrt()
    radius = (3 * longest.clamp(min=0).sqrt()).ceil()[..., None]
    first = ((centre - radius) / TILE).trunc() * TILE
    return first, ((centre + radius + TILE - 1) / TILE).trunc() * TILE
