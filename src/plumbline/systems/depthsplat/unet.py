"""The network that turns matching costs and features into features of depth: a U-Net whose coarsest level sees all views.

Layout and module names are those of the published checkpoints (a diffusion U-Net without time steps).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.blocks import NORM_GROUPS, run


class ResBlock(nn.Module):
    """Two normalised convolutions around a skip; it starts as the skip alone."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, in_channels), nn.SiLU(), nn.Conv2d(in_channels, channels, 3, padding=1)
        )
        # Published indices have room for dropout between activation and convolution.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, channels),
            nn.SiLU(),
            nn.Identity(),
            zeroed(nn.Conv2d(channels, channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        """Features of the same size."""
        return self.skip_connection(x) + self.out_layers(self.in_layers(x))


class ViewAttention(nn.Module):
    """Attention among the pixels of all views of a scene, residual; it starts as the identity."""

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.heads = channels // head
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "n c h w"], views: int) -> Float[Tensor, "n c h w"]:
        """Features of the same shape; n counts the views of a scene first, then scenes. Each view is normalised alone."""
        n, c, h, w = x.shape
        tokens = _of_scenes(x, views)
        # Of each head first its queries, then its keys and values.
        mixed = torch.unflatten(self.qkv(_of_scenes(self.norm(x), views)), 1, (self.heads, 3, -1)).transpose(-1, -2)
        q, k, v = mixed.unbind(2)
        gathered = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
        tokens = tokens + self.proj_out(gathered)
        return torch.unflatten(tokens, 2, (views, h * w)).transpose(1, 2).reshape(n, c, h, w)


class Halve(nn.Module):
    """Every second row and column, by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Half the size."""
        return self.op(x)


class Double(nn.Module):
    """Each pixel repeated to 2x2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Twice the size."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Steps(nn.ModuleList):
    """Layers one after the other; those that look across views are told how many there are."""

    def forward(self, x: Float[Tensor, "n c h w"], views: int) -> Float[Tensor, "n c2 h2 w2"]:
        """What the last layer gives."""
        for layer in self:
            x = layer(x, views) if isinstance(layer, ViewAttention | UNet) else layer(x)
        return x


class UNet(nn.Module):
    """Constant width, one block a level on the way down and two on the way up; sides must be multiples of 2^(levels - 1)."""

    def __init__(self, channels: int, *, levels: int, head: int) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList([Steps([nn.Conv2d(channels, channels, 3, padding=1)])])
        for level in range(levels):
            coarsest = level == levels - 1
            self.input_blocks.append(Steps([ResBlock(channels, channels), *_attention(channels, head, coarsest)]))
            if not coarsest:
                self.input_blocks.append(Steps([Halve(channels)]))
        self.middle_block = Steps([ResBlock(channels, channels), nn.Identity(), ResBlock(channels, channels)])
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(levels)):
            for last in (False, True):
                steps = [ResBlock(2 * channels, channels), *_attention(channels, head, level == levels - 1)]
                self.output_blocks.append(Steps([*steps, *([Double(channels)] if last and level > 0 else [])]))
        self.out = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, channels), nn.SiLU(), zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        )

    def forward(self, x: Float[Tensor, "n c h w"], views: int) -> Float[Tensor, "n c h w"]:
        """Features of the same shape."""
        kept = []
        for block in self.input_blocks:
            x = block(x, views)
            kept.append(x)
        x = self.middle_block(x, views)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], dim=1), views)
        return self.out(x)


class Regressor(Steps):
    """From costs and features of one scale to features of depth, around a U-Net."""

    def __init__(self, in_channels: int, channels: int, *, levels: int, head: int, checkpointing: bool) -> None:
        super().__init__(
            [
                nn.Conv2d(in_channels, channels, 3, padding=1),
                nn.GroupNorm(NORM_GROUPS, channels),
                nn.GELU(),
                UNet(channels, levels=levels, head=head),
                nn.Conv2d(channels, channels, 3, padding=1),
            ]
        )
        self.checkpointing = checkpointing

    def forward(self, x: Float[Tensor, "n c h w"], views: int) -> Float[Tensor, "n c2 h w"]:
        """Features of the same size; `views` a scene."""
        return run(super().forward, x, views, checkpointing=self.checkpointing and self.training)


def zeroed(layer: nn.Conv1d | nn.Conv2d) -> nn.Module:
    """`layer` with weights and biases of 0, so that the branch it ends adds nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _attention(channels: int, head: int, wanted: bool) -> list[nn.Module]:
    return [ViewAttention(channels, head)] if wanted else []


def _of_scenes(x: Float[Tensor, "n c h w"], views: int) -> Float[Tensor, "b c t"]:
    """The pixels of all views of a scene in a row."""
    return torch.unflatten(x, 0, (-1, views)).transpose(1, 2).flatten(2)
