"""What the encoder looks at, and which views it matches with which."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """Images in [0, 1] with their cameras and depth ranges.

    K is normalised: its first row is divided by the image's width, its second by the height, and the image's corners are
    at 0 and 1, so a centred principal point is (0.5, 0.5). The world's frame and unit are the caller's; near and far are
    depths in that unit.
    """

    image: Float[Tensor, "b v 3 h w"]
    K: Float[Tensor, "b v 3 3"]
    world_T_cam: Float[Tensor, "b v 4 4"]
    near: Float[Tensor, "b v"]
    far: Float[Tensor, "b v"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and views."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def inverse_range(self) -> tuple[Float[Tensor, "b v 1 1 1"], Float[Tensor, "b v 1 1 1"]]:
        """The smallest and the largest inverse depth."""
        return 1 / self.far[..., None, None, None], 1 / self.near[..., None, None, None]

    def feature_K(self, stride: int, *, quirk: bool) -> Float[Tensor, "b v 3 3"]:
        """Intrinsics in pixels of features that lie `stride` image pixels apart, the first on the first pixel's centre.

        Official quirk: the half pixel between an image's corner and its first centre is not taken off.
        """
        height, width = self.size
        scale = self.K.new_tensor([width / stride, height / stride, 1.0])
        K = self.K * scale[:, None]
        if not quirk:
            K = K - K.new_tensor([[0, 0, 0.5 / stride], [0, 0, 0.5 / stride], [0, 0, 0]])
        return K


def matched_views(world_T_cam: Float[Tensor, "b v 4 4"], limit: int) -> Int[Tensor, "b v m"]:
    """For each view the others, in order, if there are no more than `limit`; else the `limit` nearest, nearest first.

    Near is by the distance of camera centres.
    """
    b, v = world_T_cam.shape[:2]
    if v - 1 <= limit:
        others = [[j for j in range(v) if j != i] for i in range(v)]
        return torch.tensor(others, device=world_T_cam.device).expand(b, v, v - 1)
    centres = world_T_cam[..., :3, 3]
    distance = (centres[:, :, None] - centres[:, None]).norm(dim=-1)
    # A view is its own nearest even where another one stands in the same place.
    distance = distance - torch.eye(v, device=distance.device)
    return distance.argsort(dim=-1, stable=True)[..., 1 : limit + 1]
