"""DINOv2's encoder without registers (Oquab et al. 2023): what one image alone says. Names are those of its checkpoints."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.blocks import run
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.vit.attention import Block
from plumbline.systems.vit.dense import enlarge
from plumbline.systems.vit.tokens import FIRST_STD, PatchEmbed, draw_linear_layers, learnt_positions

# Added to the grid's size before dividing, so that rounding never loses a row: part of the trained weights' behaviour.
_OFFSET = 0.1
_EPS = 1e-6
# Features are handed out at this many pixels from one to the next.
STRIDE = 8


class VisionTransformer(nn.Module):
    """Features of four blocks, as maps at 1/8 of the image's size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.vit_width
        self.patch, self.taps, self.checkpointing = config.vit_patch, config.vit_taps, config.checkpointing
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=_EPS))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.vit_grid**2, width))
        nn.init.trunc_normal_(self.pos_embed, std=FIRST_STD)
        self.patch_embed = PatchEmbed(config.vit_patch, width)
        self.blocks = nn.ModuleList(
            Block(width, config.vit_heads, layer_scale=1.0, norm_eps=_EPS) for _ in range(config.vit_blocks)
        )
        self.norm = nn.LayerNorm(width, eps=_EPS)
        draw_linear_layers(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n c h2 w2"]]:
        """Four maps of normalised images, early to late, each after the final norm.

        Images are first resized to whole patches, rounding down.
        """
        height, width = images.shape[-2:]
        grid = (height // self.patch, width // self.patch)
        resized = enlarge(images, (grid[0] * self.patch, grid[1] * self.patch))
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(resized)], dim=1)
        x = x + self.positions(grid)
        maps = []
        for index, block in enumerate(self.blocks):
            x = run(block, x, checkpointing=self.checkpointing and self.training)
            if index in self.taps:
                patches = torch.unflatten(self.norm(x)[:, 1:].transpose(1, 2), 2, grid)
                maps.append(enlarge(patches, (height // STRIDE, width // STRIDE)))
        return maps

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 t c"]:
        """Learnt positions of the class token and of a `grid` (rows, columns) of patches, resized by bicubics.

        The resizing takes (size + 0.1) / learnt size as its factor, not the size itself, as in training.
        """

        def resize(patches: Float[Tensor, "1 c k k"]) -> Float[Tensor, "1 c h w"]:
            factor = ((grid[0] + _OFFSET) / patches.shape[2], (grid[1] + _OFFSET) / patches.shape[2])
            return F.interpolate(patches, scale_factor=factor, mode="bicubic", antialias=False)

        return learnt_positions(self.pos_embed, grid, resize)
