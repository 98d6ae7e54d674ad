"""DINOv2's encoder without registers (Oquab et al. 2023): what one image alone says. Names are those of its checkpoints."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plumbline.systems.depthsplat.config import Config

# Added to the grid's size before dividing, so that rounding never loses a row: part of the trained weights' behaviour.
_OFFSET = 0.1
_EPS = 1e-6
_STD = 0.02
_MLP_RATIO = 4
# Features are handed out at this many pixels from one to the next.
STRIDE = 8


class PatchEmbed(nn.Module):
    """One token for each patch."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t c"]:
        """Tokens in row-major order."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        """What each token gathers from all of its image."""
        q, k, v = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU (exact), Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        """Each token on its own."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnt factor for each channel of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        """`x` times the factors."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(width, eps=_EPS)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        """Tokens of the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Features of four blocks, as maps at 1/8 of the image's size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.vit_width
        self.patch, self.taps, self.checkpointing = config.vit_patch, config.vit_taps, config.checkpointing
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=_EPS))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.vit_grid**2, width))
        nn.init.trunc_normal_(self.pos_embed, std=_STD)
        self.patch_embed = PatchEmbed(config.vit_patch, width)
        self.blocks = nn.ModuleList(Block(width, config.vit_heads) for _ in range(config.vit_blocks))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n c h2 w2"]]:
        """Four maps of normalised images, early to late, each after the final norm.

        Images are first resized to whole patches, rounding down.
        """
        height, width = images.shape[-2:]
        grid = (height // self.patch, width // self.patch)
        resized = _resize(images, (grid[0] * self.patch, grid[1] * self.patch))
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(resized)], dim=1)
        x = x + self.positions(grid)
        maps = []
        for index, block in enumerate(self.blocks):
            x = self._run(block, x)
            if index in self.taps:
                patches = torch.unflatten(self.norm(x)[:, 1:].transpose(1, 2), 2, grid)
                maps.append(_resize(patches, (height // STRIDE, width // STRIDE)))
        return maps

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 t c"]:
        """Learnt positions of the class token and of a `grid` (rows, columns) of patches, resized by bicubics.

        The resizing takes (size + 0.1) / learnt size as its factor, not the size itself, as in training.
        """
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if grid == (side, side):
            return self.pos_embed
        first, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        factor = ((grid[0] + _OFFSET) / side, (grid[1] + _OFFSET) / side)
        resized = F.interpolate(patches.float(), scale_factor=factor, mode="bicubic", antialias=False)
        return torch.cat([first, resized.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


def _resize(x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
