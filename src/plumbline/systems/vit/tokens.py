"""From images to the tokens of a ViT, and back: normalisation, patches, and learnt positions on grids of any size."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

# ImageNet's mean and standard deviation of red, green and blue, as all DINOv2 weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Of learnt positions and of the weights of linear layers, at first.
FIRST_STD = 0.02


class PatchEmbed(nn.Module):
    """One token for each patch: a convolution whose kernel is as large as its stride."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t c"]:
        """Tokens in row-major order."""
        return self.proj(images).flatten(2).transpose(1, 2)


def normalised(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Images in [0, 1] with ImageNet's mean and deviation taken out."""
    return (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(STD)[:, None, None]


def learnt_positions(
    learnt: Float[Tensor, "1 t c"],
    grid: tuple[int, int],
    resize: Callable[[Float[Tensor, "1 c k k"]], Float[Tensor, "1 c h w"]],
) -> Float[Tensor, "1 t2 c"]:
    """Positions of a class token and of a `grid` (rows, columns) of patches, from those `learnt` on a square grid.

    `resize` brings the patches' to the grid, in float32; on the square itself they are left as they are.
    """
    side = round((learnt.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return learnt
    first, patches = learnt[:, :1], learnt[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = resize(patches.float())
    return torch.cat([first, resized.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)


def draw_linear_layers(network: nn.Module) -> None:
    """Give all linear layers of `network` small normal weights, and biases of 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=FIRST_STD)
            nn.init.zeros_(module.bias)
