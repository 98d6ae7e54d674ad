"""An analytic scene for tests of systems: what every view sees is known exactly."""

from dataclasses import replace

import torch

from plumbline.geometry import invert_intrinsics, pixel_grid
from plumbline.systems.records import Batch


def scene(b: int = 2, *, v: int = 3, p: int = 2, t: int = 0, size: tuple[int, int] = (32, 40)) -> Batch:
    """Samples that differ from each other: textured slanted planes at 2 to 3 m, rendered exactly in every view.

    With `t` that many views besides are targets: beyond the given ones, or between them (with three given, the second).
    """
    if t:
        return _with_targets(scene(b, v=v + t, p=p, size=size), v)
    h, w = size
    K = torch.tensor([[1.1 * w, 0, w / 2 - 0.5], [0, 1.1 * w, h / 2 - 0.5], [0, 0, 1]]).repeat(b, v, 1, 1)
    cam0_T_cam = torch.eye(4).repeat(b, v, 1, 1)
    cam0_T_cam[:, :, 0, 3] = 0.12 * torch.tensor([0.0, 1.0, -1.0, 2.0, 0.4])[:v]
    rays = torch.cat([pixel_grid(size), torch.ones(h, w, 1)], dim=-1) @ invert_intrinsics(K[0, 0]).T
    normal = torch.tensor([[0.2 * (-1) ** i, 0.1, 1.0] for i in range(b)])
    offset = 2.0 + torch.arange(b) - torch.einsum("bvc,bc->bv", cam0_T_cam[:, :, :3, 3], normal).T
    depth = (offset.T[..., None, None] / torch.einsum("hwc,bc->bhw", rays, normal)[:, None]).contiguous()
    points = depth[..., None] * rays + cam0_T_cam[:, :, None, None, :3, 3]
    phase = points @ torch.tensor([[9.0, 31.0, 17.0], [23.0, 5.0, 41.0], [3.0, 2.0, 1.0]])
    noise = torch.randn(b, p, h, w, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(b, v, h, w, generator=torch.Generator().manual_seed(2)) > 0.1
    moved = torch.zeros(4, 4)
    moved[0, 3] = 1.0
    keypoints = torch.rand(b, v, h, w, generator=torch.Generator().manual_seed(4)) / 80
    return Batch(
        image=(0.5 + 0.5 * torch.sin(phase)).permute(0, 1, 4, 2, 3).contiguous(),
        K=K,
        cam0_T_cam=cam0_T_cam,
        depth_range=torch.tensor([[1.0, 6.0]]).repeat(b, 1),
        depth=depth,
        mask=mask,
        initial_depth=depth[:, :p] * (1 + 0.05 * noise.clamp(-3, 3)),
        initial_confidence=torch.rand(b, p, h, w, generator=torch.Generator().manual_seed(3)),
        keypoint_probability=keypoints,
        constant_depth=2.0 + torch.arange(b),
        constant_pose=torch.eye(4) + torch.arange(b)[:, None, None] * 0.1 * moved,
        predict_views=p,
    )


def _with_targets(batch: Batch, v: int) -> Batch:
    given = ("image", "K", "cam0_T_cam", "depth", "mask", "keypoint_probability")
    return replace(
        batch,
        **{name: getattr(batch, name)[:, :v] for name in given},
        target_image=batch.image[:, v:],
        target_K=batch.K[:, v:],
        cam0_T_target=batch.cam0_T_cam[:, v:],
        target_mask=batch.mask[:, v:],
    )
