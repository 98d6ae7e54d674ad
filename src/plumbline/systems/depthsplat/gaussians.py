"""From features and depth of each pixel to a Gaussian in the world: the head's raw channels, and what they mean."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline import geometry
from plumbline.quaternions import multiply, to_matrices, to_quaternions
from plumbline.rendering.gaussians import Gaussians
from plumbline.rendering.harmonics import C0, to_standard
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.views import Views

OPACITY, OFFSET, SCALE, ROTATION, HARMONICS = slice(0, 1), slice(1, 3), slice(3, 6), slice(6, 10), slice(10, None)
# How much a coefficient of each degree counts at first: colour hardly depends on the direction.
_DEGREE_STRENGTH = (1.0, 0.025, 0.00625)
_EPS = 1e-8
# e3nn's axes as the decoder reads them, each its own inverse.
_FLIP = (-1.0, 1.0, -1.0)


def gaussian_regressor(config: Config) -> nn.Sequential:
    """From image (3), depth, matching probability and features to features of Gaussians."""
    width = config.gaussian_width
    return nn.Sequential(
        nn.Conv2d(5 + config.gaussian_features, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)
    )


def gaussian_head(config: Config) -> nn.Sequential:
    """From features of Gaussians, image (3), features and matching probability to raw parameters.

    The first colour is the image's, alike in all directions, and the first scale softplus(scale_shift).
    """
    out, entered = 10 + 3 * config.harmonics, config.gaussian_width + 4 + config.gaussian_features
    last = nn.Conv2d(out, out, 3, padding=1, padding_mode="replicate")
    for rows in (SCALE, HARMONICS):
        nn.init.zeros_(last.weight.data[rows])
        nn.init.zeros_(last.bias.data[rows])  # type: ignore[union-attr]
    return nn.Sequential(nn.Conv2d(entered, out, 3, padding=1, padding_mode="replicate"), nn.GELU(), last)


def adapt(raw: Float[Tensor, "b v k h w"], depth: Float[Tensor, "b v h w"], views: Views, config: Config) -> Gaussians:
    """One Gaussian a pixel, in the world, ordered by view, row and column; colours in the standard order.

    Raw channels: opacity logit, offset (2), scale (3), quaternion x y z w (4), coefficients of red, then green, then blue.
    """
    # Slices one by one would each fill a gradient of all channels.
    sizes = [part.stop - part.start for part in (OPACITY, OFFSET, SCALE, ROTATION)]
    opacity, offset, scale, rotation, colour = torch.split(raw.movedim(2, -1), [*sizes, 3 * config.harmonics], dim=-1)
    R = views.world_T_cam[:, :, None, None, :3, :3]
    scales = _scales(scale, depth, views, config)
    quaternions = rotation / (rotation.norm(dim=-1, keepdim=True) + _EPS)
    axes = R @ to_matrices(quaternions, eps=_EPS)
    harmonics = coefficients(colour, views.image)
    turn = views.world_T_cam[..., :3, :3] if config.official_quirks else true_turn(views.world_T_cam[..., :3, :3])
    turned = rotate_harmonics(harmonics.flatten(2, 3), turn[:, :, None, None])
    return Gaussians(
        means=centres(offset, depth, views).flatten(1, 3),
        covariances=((axes * scales[..., None, :].square()) @ axes.mT).flatten(1, 3),
        harmonics=to_standard(turned).flatten(1, 2),
        opacities=(opacity[..., 0] + config.opacity_shift).sigmoid().flatten(1, 3),
        scales=scales.flatten(1, 3),
        rotations=multiply(to_quaternions(views.world_T_cam[..., :3, :3])[:, :, None, None], quaternions).flatten(1, 3),
    )


def centres(
    offset: Float[Tensor, "b v h w 2"], depth: Float[Tensor, "b v h w"], views: Views
) -> Float[Tensor, "b v h w 3"]:
    """World points at `depth` (z) on the rays through the pixels' centres, moved by up to half a pixel."""
    height, width = views.size
    pixels = geometry.pixel_grid((height, width), dtype=depth.dtype, device=depth.device)
    # +0.5 to the middle of the pixel, as coordinates count from the image's corner; the offset is in (-0.5, 0.5).
    place = (pixels + offset.sigmoid()) / depth.new_tensor([width, height])
    rays = torch.cat([place, torch.ones_like(depth)[..., None]], dim=-1)
    inverse = geometry.invert_intrinsics(views.K)[:, :, None]
    return geometry.transform(views.world_T_cam, (rays @ inverse.mT) * depth[..., None])


def coefficients(raw: Float[Tensor, "b v h w k"], image: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v h w 3 d"]:
    """Spherical harmonics in the camera's frame and e3nn's order: the image's colour plus damped raw coefficients."""
    spread = torch.unflatten(raw, -1, (3, -1))
    degrees = round(spread.shape[-1] ** 0.5)
    damping = [_DEGREE_STRENGTH[degree] for degree in range(degrees) for _ in range(2 * degree + 1)]
    flat = (image.movedim(2, -1) - 0.5) / C0
    return spread * raw.new_tensor(damping) + F.pad(flat[..., None], (0, spread.shape[-1] - 1))


def rotate_harmonics(
    harmonics: Float[Tensor, "b v n 3 d"], R: Float[Tensor, "b v 1 1 3 3"]
) -> Float[Tensor, "b v n 3 d"]:
    """Coefficients in e3nn's order, of the function turned by `R` as e3nn's basis takes it (d up to 9).

    Degree 1 turns as a vector; degree 2 as symmetric matrices without trace, E -> R E R^T, in an orthogonal basis. In the
    frame of the decoder's basis this is the rotation F R F, with F = diag(-1, 1, -1): see `true_turn`.
    """
    parts = [harmonics[..., :1]]
    if harmonics.shape[-1] > 1:
        parts.append((R @ harmonics[..., 1:4, None])[..., 0])
    if harmonics.shape[-1] > 4:
        E = _quadratic_forms(harmonics)
        turned = R[..., None, :, :] @ E @ R[..., None, :, :].mT
        D = torch.einsum("...iab,...jab->...ij", E.expand_as(turned), turned) / 1.5
        parts.append((D @ harmonics[..., 4:9, None])[..., 0])
    return torch.cat(parts, dim=-1)


def true_turn(R: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """What `rotate_harmonics` must be given for colours to turn by `R` in the decoder.

    Official quirk: R itself is given, which turns lobes the wrong way about the x and the z axis.
    """
    flip = R.new_tensor(_FLIP)
    return flip[:, None] * R * flip


def _scales(
    raw: Float[Tensor, "b v h w 3"], depth: Float[Tensor, "b v h w"], views: Views, config: Config
) -> Float[Tensor, "b v h w 3"]:
    """Standard deviations in the world's unit. Official: whatever the depth; else multiples of a pixel's width there."""
    scales = F.softplus(raw + config.scale_shift).clamp(*config.scale_range)
    if config.scale_unit == "world":
        return scales
    footprint = 1 / (views.K[..., 0, 0] * views.size[1])
    return scales * (depth * footprint[..., None, None])[..., None]


def _quadratic_forms(like: Tensor) -> Float[Tensor, "5 3 3"]:
    """Symmetric matrices without trace, xᵀ E x proportional to e3nn's functions of degree 2: xz, xy, 2yy-xx-zz, yz, zz-xx."""
    h, half, o = 3**0.5 / 2, 0.5, 0.0
    return like.new_tensor(
        [
            [[o, o, h], [o, o, o], [h, o, o]],
            [[o, h, o], [h, o, o], [o, o, o]],
            [[-half, o, o], [o, 1.0, o], [o, o, -half]],
            [[o, o, o], [o, o, h], [o, h, o]],
            [[-h, o, o], [o, o, o], [o, o, h]],
        ]
    )
