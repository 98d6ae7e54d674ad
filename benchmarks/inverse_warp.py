"""Inverse warp of two source views into four references, 512x640: the project's against Backproject + Project3D."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import allocator
from plumbline.geometry import compose, normalise, warp, warp_grid
from timing import Bench, Contender

COUNT, SIZE = 8, (512, 640)


class BackprojectDepth(nn.Module):
    """Depth to homogeneous points by K^-1 times a stored grid, as it is usually written."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        xx, yy = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
        pix_coords = torch.stack((xx, yy), axis=0).float()
        pix_coords = torch.cat([pix_coords, torch.ones_like(pix_coords[:1])], 0)
        self.register_buffer("pix_coords_13N", pix_coords.flatten(1).unsqueeze(0))
        self.register_buffer("ones_11N", torch.ones(1, 1, height * width))

    def forward(self, depth_b1hw: Tensor, invK_b44: Tensor) -> Tensor:
        cam_points_b3N = torch.matmul(invK_b44[:, :3, :3], self.pix_coords_13N)
        cam_points_b3N = depth_b1hw.flatten(start_dim=2) * cam_points_b3N
        return torch.cat([cam_points_b3N, self.ones_11N.expand(len(depth_b1hw), -1, -1)], 1)


class Project3D(nn.Module):
    """Homogeneous points to pixels and depth by P = K T, as it is usually written."""

    def forward(self, points_b4N: Tensor, K_b44: Tensor, cam_T_world_b44: Tensor) -> Tensor:
        P_b44 = K_b44 @ cam_T_world_b44
        cam_points_b3N = P_b44[:, :3] @ points_b4N
        mask = cam_points_b3N[:, 2:].abs() > 1e-8
        depth_b1N = torch.where(mask, cam_points_b3N[:, 2:], torch.full_like(cam_points_b3N[:, 2:], 1e-8))
        return torch.cat([cam_points_b3N[:, :2] / depth_b1N, cam_points_b3N[:, 2:]], dim=1)


def benches(_: Path) -> list[Bench]:
    """Forward, and forward with the backward pass to the depth."""
    torch.manual_seed(0)
    image = torch.rand(COUNT, 3, *SIZE)
    depth = (2 + torch.rand(COUNT, *SIZE)).requires_grad_()
    K = torch.tensor([[560.0, 0, 320], [0, 560, 256], [0, 0, 1]]).expand(COUNT, 3, 3).contiguous()
    src_T_ref = torch.eye(4).repeat(COUNT, 1, 1)
    src_T_ref[:, :3, 3] = torch.tensor([0.1, -0.02, 0.03])
    backproject, project, K_44 = BackprojectDepth(*SIZE), Project3D(), torch.eye(4).repeat(COUNT, 1, 1)
    K_44[:, :3, :3] = K
    inverse_K = torch.inverse(K_44)

    def peer() -> Tensor:
        points = backproject(depth[:, None], inverse_K)
        pixels = project(points, K_44, src_T_ref)[:, :2].reshape(COUNT, 2, *SIZE)
        pixels = pixels.permute(0, 2, 3, 1)
        grid = 2 * (pixels + 0.5) / torch.tensor([SIZE[1], SIZE[0]]) - 1
        return F.grid_sample(image, grid, padding_mode="zeros", mode="bilinear", align_corners=False)

    def ours() -> Tensor:
        return warp(image, depth, K, K, src_T_ref)[0]

    with torch.no_grad():
        grid, _z = warp_grid(depth, normalise(compose(K, K, src_T_ref), SIZE))
    grid.requires_grad_()

    def limit() -> Tensor:
        return F.grid_sample(image, grid, align_corners=False)

    def forward(function: object) -> object:
        with torch.no_grad():
            return function()

    def backward(function: object, leaf: Tensor) -> Tensor:
        leaf.grad = None
        function().sum().backward()
        return leaf.grad

    def check() -> None:
        torch.testing.assert_close(forward(ours), forward(peer), atol=2e-3, rtol=0)
        mine, other = backward(ours, depth).clone(), backward(peer, depth)
        assert (mine - other).abs().mean() <= 1e-3 * other.abs().mean()

    peer_name = "Backproject + Project3D + grid_sample"
    names = (peer_name, "geometry.warp", "grid_sample alone", f"{peer_name}, freed memory kept")
    ahead = (allocator.plain, allocator.kept, allocator.kept, allocator.kept)
    runs = [(peer, depth), (ours, depth), (limit, grid), (peer, depth)]
    ways = {
        "forward": [lambda f=f: forward(f) for f, _ in runs],
        "forward_backward": [lambda f=f, leaf=leaf: backward(f, leaf) for f, leaf in runs],
    }
    found = []
    for way, calls in ways.items():
        turns = [Contender(name, call, before) for name, call, before in zip(names, calls, ahead, strict=True)]
        found.append(
            Bench(
                f"inverse_warp_{way}", turns[0], turns[1], target=1.5, check=check, limit=turns[2], variants=(turns[3],)
            )
        )
    return found
