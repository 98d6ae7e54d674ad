"""gsplat's CUDA rasteriser behind our interface, through its documented `gsplat.rasterization` (1.5)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from plumbline.geometry import invert
from plumbline.rendering.cameras import Cameras, corner_origin
from plumbline.rendering.gaussians import Gaussians
from plumbline.rendering.projection import colours
from plumbline.rendering.rules import DILATION, Rules


def composite(
    gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], rules: Rules
) -> Float[Tensor, "b v 5 h w"]:
    """Red, green, blue, z and alpha of every view. Of `rules` only the order of the harmonics can be followed."""
    import gsplat

    seen = colours(gaussians, cameras, rules)
    scenes = [_scene(gsplat.rasterization, gaussians, cameras, seen, size, scene) for scene in range(len(seen))]
    return torch.stack(scenes).permute(0, 1, 4, 2, 3)


def _scene(
    rasterization: Any, gaussians: Gaussians, cameras: Cameras, seen: Tensor, size: tuple[int, int], scene: int
) -> Float[Tensor, "v h w 5"]:
    views, near = seen.shape[1], cameras.near
    # One near plane a call: views that have their own are called one by one.
    groups = [slice(0, views)] if not isinstance(near, Tensor) else [slice(v, v + 1) for v in range(views)]
    pictures = []
    for group in groups:
        colour_and_z, alpha, _ = rasterization(
            means=gaussians.means[scene],
            quats=None,
            scales=None,
            opacities=gaussians.opacities[scene],
            colors=seen[scene, group],
            viewmats=invert(cameras.world_T_cam[scene, group]),
            Ks=corner_origin(cameras.K[scene, group]),
            width=size[1],
            height=size[0],
            near_plane=float(near[scene, group.start]) if isinstance(near, Tensor) else near,
            eps2d=DILATION,
            packed=False,
            render_mode="RGB+D",
            covars=gaussians.covariances[scene],
        )
        pictures.append(torch.cat([colour_and_z, alpha], dim=-1))
    return torch.cat(pictures)
