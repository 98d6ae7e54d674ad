"""Multi-view geometry in torch: back-projection, rigid motion, projection, inverse warp, each differentiable and batched.

Conventions: OpenCV axes, depth is z, K upper triangular in pixels with the centre of the top-left pixel at (0, 0), sizes
(height, width), `a_T_b` maps points in frame b to frame a. Leading dimensions of all arguments broadcast. The numpy twins
are in `plumbline.data.geometry`. Source: Hartley and Zisserman, Multiple View Geometry, ch. 6 and 13.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

MIN_Z = 1e-6
# Pixels beyond the outermost centres that still count as inside: more than the rounding of a warp onto itself.
SLACK = 1e-3


def pixel_grid(
    size: tuple[int, int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Float[Tensor, "h w 2"]:
    """Pixel coordinates (u, v) of every pixel of an image of `size` (height, width)."""
    v = torch.arange(size[0], dtype=dtype, device=device)
    u = torch.arange(size[1], dtype=dtype, device=device)
    return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)


def invert_intrinsics(K: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """`K^-1` of upper-triangular intrinsics with a last row (0, 0, 1), in closed form."""
    fx, skew, cx = K[..., 0, 0], K[..., 0, 1], K[..., 0, 2]
    fy, cy = K[..., 1, 1], K[..., 1, 2]
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = (1 / fx, -skew / (fx * fy), (skew * cy - cx * fy) / (fx * fy), zero, 1 / fy, -cy / fy, zero, zero, one)
    return torch.stack(rows, dim=-1).reshape(K.shape)


def invert(a_T_b: Float[Tensor, "*n 4 4"]) -> Float[Tensor, "*n 4 4"]:
    """`b_T_a` of rigid transforms `a_T_b`: exact for rotations, no general matrix inverse."""
    rotation = a_T_b[..., :3, :3].mT
    translation = -rotation @ a_T_b[..., :3, 3:]
    return torch.cat([torch.cat([rotation, translation], dim=-1), a_T_b[..., 3:, :]], dim=-2)


def backproject(depth: Float[Tensor, "*#n h w"], K: Float[Tensor, "*#n 3 3"]) -> Float[Tensor, "*#n h w 3"]:
    """Points in the camera frame of a depth map (z), in its unit; a depth of 0 gives the origin."""
    height, width = depth.shape[-2:]
    u = torch.arange(width, dtype=depth.dtype, device=depth.device)
    v = torch.arange(height, dtype=depth.dtype, device=depth.device)[:, None]
    inverse = invert_intrinsics(K)[..., None, None]
    x = inverse[..., 0, 0, :, :] * u + (inverse[..., 0, 1, :, :] * v + inverse[..., 0, 2, :, :])
    y = inverse[..., 1, 1, :, :] * v + inverse[..., 1, 2, :, :]
    return torch.stack([x * depth, y * depth, depth], dim=-1)


def transform(a_T_b: Float[Tensor, "*#n 4 4"], points_b: Float[Tensor, "*#n h w 3"]) -> Float[Tensor, "*#n h w 3"]:
    """Points given in frame b, in frame a, on their image grid."""
    rotation, translation = a_T_b[..., None, :3, :3], a_T_b[..., None, None, :3, 3]
    return points_b @ rotation.mT + translation


def project(
    points: Float[Tensor, "*#n h w 3"], K: Float[Tensor, "*#n 3 3"]
) -> tuple[Float[Tensor, "*#n h w 2"], Float[Tensor, "*#n h w"]]:
    """Pixels (u, v) and z of points in the camera frame.

    Where z <= 0 the pixel has no meaning; it is then finite (z is held at 1e-6), so that gradients stay finite: mask by z.
    """
    z = points[..., 2]
    safe = z.clamp(min=MIN_Z)
    x, y = points[..., 0] / safe, points[..., 1] / safe
    K = K[..., None, None]
    u = K[..., 0, 0, :, :] * x + K[..., 0, 1, :, :] * y + K[..., 0, 2, :, :]
    v = K[..., 1, 1, :, :] * y + K[..., 1, 2, :, :]
    return torch.stack([u, v], dim=-1), z


def sample(image: Float[Tensor, "n c hs ws"], uv: Float[Tensor, "n h w 2"]) -> Float[Tensor, "n c h w"]:
    """`image` at pixels `uv`, bilinear, 0 outside; differentiable in both."""
    size = torch.tensor([image.shape[-1], image.shape[-2]], dtype=uv.dtype, device=uv.device)
    return F.grid_sample(image, (2 * uv + 1) / size - 1, align_corners=False)


def compose(
    K_ref: Float[Tensor, "*#n 3 3"], K_src: Float[Tensor, "*#n 3 3"], src_T_ref: Float[Tensor, "*#n 4 4"]
) -> Float[Tensor, "*#n 3 4"]:
    """The plane-sweep matrix `P = K_src [R K_ref^-1 | t]`.

    A reference pixel (u, v) at depth d lies at `z (u_src, v_src, 1) = d P[:, :3] (u, v, 1) + P[:, 3]` in the source: one
    3x4 instead of back-projection, motion and projection, affine in d (or, divided by d, in inverse depth).
    """
    motion = K_src @ src_T_ref[..., :3, :]
    return torch.cat([motion[..., :3] @ invert_intrinsics(K_ref), motion[..., 3:]], dim=-1)


def normalise(P: Float[Tensor, "*n 3 4"], size: tuple[int, int]) -> Float[Tensor, "*n 3 4"]:
    """`P` with its pixels mapped to the [-1, 1] coordinates that `grid_sample(align_corners=False)` reads in `size`."""
    height, width = size
    last = P[..., 2, :]
    x = P[..., 0, :] * (2 / width) + last * (1 / width - 1)
    y = P[..., 1, :] * (2 / height) + last * (1 / height - 1)
    return torch.stack([x, y, last], dim=-2)


def rays(P: Float[Tensor, "*n 3 4"], size: tuple[int, int]) -> tuple[Float[Tensor, "*n h w"], ...]:
    """The three components of `P[:, :3] (u, v, 1)` on the pixels of `size`: a row vector plus a column vector each."""
    u = torch.arange(size[1], dtype=P.dtype, device=P.device)
    v = torch.arange(size[0], dtype=P.dtype, device=P.device)
    across = P[..., 0, None] * u
    down = P[..., 1, None] * v + P[..., 2, None]
    return tuple(across[..., i, None, :] + down[..., i, :, None] for i in range(3))


def warp_grid(
    depth: Float[Tensor, "n h w"], P: Float[Tensor, "n 3 4"]
) -> tuple[Float[Tensor, "n h w 2"], Float[Tensor, "n h w"]]:
    """Source coordinates and z of each reference pixel at its depth, through `P` of `compose` (or `normalise`).

    Where z <= 0 the coordinates are finite and have no meaning.
    """
    size = (depth.shape[-2], depth.shape[-1])
    x, y, z = (torch.addcmul(P[..., i, 3, None, None], ray, depth) for i, ray in enumerate(rays(P, size)))
    scale = z.clamp(min=MIN_Z).reciprocal()
    # Two planes seen as pairs: cheaper to write than pairs, and grid_sample reads them as well.
    return torch.stack([x * scale, y * scale], dim=-3).movedim(-3, -1), z


def warp(
    source_image: Float[Tensor, "n c hs ws"],
    depth: Float[Tensor, "n h w"],
    K_ref: Float[Tensor, "n 3 3"],
    K_src: Float[Tensor, "n 3 3"],
    src_T_ref: Float[Tensor, "n 4 4"],
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, "n h w"]]:
    """The source image seen from the reference through the reference's depth, and where that view is defined.

    Valid: depth > 0, in front of the source camera, and between the centres of the source's outermost pixels (to within
    0.001 pixel). Elsewhere the image fades to 0. Differentiable in image, depth and cameras. Equal to `warp_by_steps`,
    with all matrices folded.
    """
    size = (source_image.shape[-2], source_image.shape[-1])
    grid, z = warp_grid(depth, normalise(compose(K_ref, K_src, src_T_ref), size))
    warped = F.grid_sample(source_image, grid, align_corners=False)
    reach = 1 - 2 * SLACK
    inside = (grid[..., 0].abs() <= 1 - reach / size[1]) & (grid[..., 1].abs() <= 1 - reach / size[0])
    return warped, inside & (z > MIN_Z) & (depth > 0)


def warp_by_steps(
    source_image: Float[Tensor, "n c hs ws"],
    depth: Float[Tensor, "n h w"],
    K_ref: Float[Tensor, "n 3 3"],
    K_src: Float[Tensor, "n 3 3"],
    src_T_ref: Float[Tensor, "n 4 4"],
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, "n h w"]]:
    """The readable reference of `warp`: back-project, transform, project, sample."""
    points_src = transform(src_T_ref, backproject(depth, K_ref))
    uv, z = project(points_src, K_src)
    limit = uv.new_tensor([source_image.shape[-1] - 1, source_image.shape[-2] - 1])
    inside = ((uv >= -SLACK) & (uv <= limit + SLACK)).all(dim=-1)
    return sample(source_image, uv), inside & (z > MIN_Z) & (depth > 0)
