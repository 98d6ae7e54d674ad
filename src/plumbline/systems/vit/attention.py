"""Transformer blocks and rotary positions in two dimensions, as in DINOv2 and VGGT (arXiv 2503.11651, section 3.2)."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# From about 3 million multiply-adds on, forward and backward, oneDNN's product pays for what calling it costs.
FEWEST_MULTIPLY_ADDS = 4_000_000
# Weights of attention that are held at once: 32 MB in bfloat16.
MOST_WEIGHTS = 2**24


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


class Linear(nn.Linear):
    """`nn.Linear`, in oneDNN's single precision where that is the faster one (`suits_onednn`); equal to rounding."""

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c2"]:
        """x W^T + b."""
        if not suits_onednn(x, self.weight):
            return super().forward(x)
        product: Tensor = _OneDnnLinear.apply(x.flatten(0, -2), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return torch.unflatten(product, 0, x.shape[:-1])


class _OneDnnLinear(torch.autograd.Function):
    """x W^T + b of rows x "n c" and its gradients. No global setting is touched: other threads may be computing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _product(grad, weight.T) if wanted[0] else None,
            _product(grad.T, x.T) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, whatever the strides are."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether x W^T is faster in oneDNN: products in single precision on an AMD CPU, but for small ones.

    MKL, which torch takes for float32, runs at half speed there. Under autocast and in bfloat16 torch takes oneDNN itself.
    """
    usable = (
        x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    )
    return usable and x.numel() * len(weight) >= FEWEST_MULTIPLY_ADDS and _mkl_is_slow()


@functools.cache
def _mkl_is_slow() -> bool:
    cpu = Path("/proc/cpuinfo")
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return both and cpu.exists() and "AuthenticAMD" in cpu.read_text(encoding="utf-8")


class Attention(nn.Module):
    """Multi-head self-attention, optionally with normalised queries and keys (norm first, then the rotation)."""

    def __init__(self, width: int, heads: int, *, normalised: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if normalised else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if normalised else nn.Identity()
        self.proj = Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"], rotation: Rotation | None = None) -> Float[Tensor, "b n c"]:
        """What each of the `n` tokens gathers from all of them."""
        q, k, v = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        # Under autocast a norm answers in float32, and one wide operand would cost the fast kernels.
        gathered = attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(gathered.transpose(1, 2).flatten(2))


def attend(
    q: Float[Tensor, "b k n c"], k: Float[Tensor, "b k n c"], v: Float[Tensor, "b k n c"]
) -> Float[Tensor, "b k n c"]:
    """What each token gathers: the values `v`, weighted by the softmax of its products with all keys over sqrt(c)."""
    if not suits_writing_out(q):
        return F.scaled_dot_product_attention(q, k, v)
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
    return weights.to(v.dtype) @ v


def suits_writing_out(q: Float[Tensor, "b k n c"]) -> bool:
    """Whether the matrix of all weights is faster than torch's fused attention, which never holds it.

    So on a CPU in bfloat16, whose fused kernel has slow products, as long as the matrix is of a size for the caches.
    """
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q[..., 0].numel() * q.shape[-2] <= MOST_WEIGHTS


class Mlp(nn.Module):
    """Linear, GELU (exact), Linear."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, out)

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
