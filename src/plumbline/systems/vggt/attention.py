"""Transformer blocks and rotary positions in two dimensions, as in VGGT (arXiv 2503.11651, section 3.2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Rotation(NamedTuple):
    """Cosines and sines by which the channels of a head are turned; the two rows are those of y and x."""

    cos: Float[Tensor, "n 2 f"]
    sin: Float[Tensor, "n 2 f"]

    def repeat(self, times: int) -> "Rotation":
        """The rotations of the same tokens `times` over, one frame after another."""
        return Rotation(self.cos.repeat(times, 1, 1), self.sin.repeat(times, 1, 1))


def rotations(positions: Int[Tensor, "n 2"], channels: int, *, base: float) -> Rotation:
    """How tokens at (y, x) turn the channels of a head: frequencies base^(-j / f), j < f = channels / 4, on each axis."""
    count = channels // 4
    steps = torch.arange(count, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * base ** (-steps / count)
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Float[Tensor, "b k n c"], rotation: Rotation) -> Float[Tensor, "b k n c"]:
    """`x` with its first half turned by y and its second by x; within a half, channel j is paired with j + c / 4."""
    # float32 whatever x is: angles grow with the image, and bfloat16 would blur neighbouring positions.
    first, second = torch.unflatten(x.float(), -1, (2, 2, -1)).unbind(-2)
    cos, sin = rotation
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-2)
    return turned.flatten(-3).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, optionally with normalised queries and keys (norm first, then the rotation)."""

    def __init__(self, width: int, heads: int, *, normalised: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if normalised else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if normalised else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"], rotation: Rotation | None = None) -> Float[Tensor, "b n c"]:
        """What each of the `n` tokens gathers from all of them."""
        q, k, v = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        # Under autocast a norm answers in float32, and one wide operand would cost the fast kernels.
        gathered = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(gathered.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU (exact), Linear."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c2"]:
        """Each token on its own."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnt factor for each channel of a residual branch."""

    def __init__(self, width: int, first: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), first))

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        """`x` times the factors."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block: x + scaled attention, then x + scaled MLP."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: int = 4,
        layer_scale: float = 0.01,
        norm_eps: float = 1e-5,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, normalised=normalised)
        self.ls1 = LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_ratio * width, width)
        self.ls2 = LayerScale(width, layer_scale)

    def forward(self, x: Float[Tensor, "b n c"], rotation: Rotation | None = None) -> Float[Tensor, "b n c"]:
        """Tokens of the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        return x + self.ls2(self.mlp(self.norm2(x)))
