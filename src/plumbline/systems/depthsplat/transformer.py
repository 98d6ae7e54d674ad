"""Attention within and across views, in shifted windows, on the coarsest features (Xu et al. 2023; Liu et al. 2021).

Module names are those of the published checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from plumbline.systems.blocks import run
from plumbline.systems.depthsplat.config import Config

# Added where a token must not look: finite, as in training.
BARRED = -100.0
_TEMPERATURE = 10000.0


class Attention(nn.Module):
    """Single-head attention and, with `ffn` hidden channels, an MLP of the token and what it gathered; both residual."""

    def __init__(self, width: int, *, ffn: int = 0) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = None
        if ffn:
            self.mlp = nn.Sequential(
                nn.Linear(2 * width, ffn, bias=False), nn.GELU(), nn.Linear(ffn, width, bias=False)
            )
            self.norm2 = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "n w l c"],
        source: Float[Tensor, "n w k c"],
        barred: Float[Tensor, "w l k"] | None,
    ) -> Float[Tensor, "n w l c"]:
        """Tokens of each window after looking at the `source` tokens of the same window; `barred` is added to scores."""
        q, k, v = self.q_proj(x), self.k_proj(source), self.v_proj(source)
        # Windows take the place of heads.
        gathered = F.scaled_dot_product_attention(q, k, v, attn_mask=barred)
        message = self.norm1(self.merge(gathered))
        if self.mlp is not None:
            message = self.norm2(self.mlp(torch.cat([x, message], dim=-1)))
        return x + message


class Layer(nn.Module):
    """Self-attention within a view, then attention to its neighbours as they entered this layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.aligned = not config.official_quirks
        self.self_attn = Attention(config.width)
        self.cross_attn_ffn = Attention(config.width, ffn=config.ffn_ratio * 2 * config.width)

    def forward(
        self,
        x: Float[Tensor, "b v w l c"],
        neighbours: Int[Tensor, "b v m"],
        barred: Float[Tensor, "w l l"] | None,
    ) -> Float[Tensor, "b v w l c"]:
        """Features by window, of the same shape."""
        own = x.flatten(0, 1)
        seen = _neighbour_tokens(x, neighbours)
        across = None if barred is None else across_views(barred, neighbours.shape[-1], aligned=self.aligned)
        return self.cross_attn_ffn(self.self_attn(own, own, barred), seen, across).view_as(x)


class Transformer(nn.Module):
    """Layers whose windows are shifted by half a window in every second one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.windows, self.checkpointing = config.windows, config.checkpointing
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, features: Float[Tensor, "b v c h w"], neighbours: Int[Tensor, "b v m"]
    ) -> Float[Tensor, "b v c h w"]:
        """Features that know of the views in `neighbours` (their indices); both sides must be multiples of the windows."""
        k, (c, h, w) = self.windows, features.shape[-3:]
        size = (h // k, w // k)
        x = features.movedim(2, -1) + sine_encoding(size, c, device=features.device).repeat(k, k, 1).to(features.dtype)
        shift = (size[0] // 2, size[1] // 2)
        barred = shift_mask(size, k, device=features.device)
        checkpointing = self.checkpointing and self.training
        for index, layer in enumerate(self.layers):
            shifted = index % 2 == 1
            if shifted:
                x = x.roll((-shift[0], -shift[1]), dims=(2, 3))
            hidden = barred.to(x.dtype) if shifted else None
            tokens = run(layer, to_windows(x, k), neighbours, hidden, checkpointing=checkpointing)
            x = from_windows(tokens, k, size)
            if shifted:
                x = x.roll(shift, dims=(2, 3))
        return x.movedim(-1, 2)


def sine_encoding(size: tuple[int, int], channels: int, *, device: torch.device | str) -> Float[Tensor, "h w c"]:
    """Where a pixel lies in a window of `size`, as sines and cosines: half of the channels for rows, then columns.

    Rows and columns count from 1 and are scaled to reach 2 pi; frequencies as in DETR (Carion et al. 2020).
    """
    half = channels // 2
    index = torch.arange(half, device=device)
    period = _TEMPERATURE ** (2 * (index // 2) / half)

    def along(count: int) -> Float[Tensor, "n d"]:
        place = 2 * math.pi * torch.arange(1, count + 1, device=device) / (count + 1e-6)
        angle = place[:, None] / period
        return torch.where(index % 2 == 0, angle.sin(), angle.cos())

    rows, columns = along(size[0])[:, None], along(size[1])[None]
    return torch.cat([rows.expand(*size, half), columns.expand(*size, half)], dim=-1)


def shift_mask(size: tuple[int, int], windows: int, *, device: torch.device | str) -> Float[Tensor, "w l l"]:
    """What is added to scores within each window of a rolled map: BARRED between pixels that were no neighbours before."""
    region = [_regions(side, windows, device=device) for side in size]
    labels = (3 * region[0][:, None] + region[1]).float()[None, None, ..., None]
    of_token = to_windows(labels, windows)[0, 0, ..., 0]
    return BARRED * (of_token[:, :, None] != of_token[:, None, :])


def across_views(barred: Float[Tensor, "w l l"], views: int, *, aligned: bool) -> Float[Tensor, "w l k"]:
    """`barred` for the tokens of several views as keys, pixel by pixel and within a pixel view by view.

    Official quirk (not `aligned`): the mask is repeated as a whole, so key j has the mask of pixel j mod l rather than of
    its own pixel, j // views. For two views the two are the same.
    """
    return barred.repeat_interleave(views, dim=-1) if aligned else barred.repeat(1, 1, views)


def to_windows(x: Float[Tensor, "b v h w c"], windows: int) -> Float[Tensor, "b v k l c"]:
    """The map cut into windows x windows equal parts, row-major, and each part into tokens, row-major."""
    b, v, h, w, c = x.shape
    cut = x.reshape(b, v, windows, h // windows, windows, w // windows, c)
    return cut.transpose(3, 4).reshape(b, v, windows**2, -1, c)


def from_windows(x: Float[Tensor, "b v k l c"], windows: int, size: tuple[int, int]) -> Float[Tensor, "b v h w c"]:
    """The inverse of `to_windows`; `size` is that of a window."""
    b, v, c = x.shape[0], x.shape[1], x.shape[-1]
    parts = x.reshape(b, v, windows, windows, *size, c).transpose(3, 4)
    return parts.reshape(b, v, windows * size[0], windows * size[1], c)


def _regions(side: int, windows: int, *, device: torch.device | str) -> Int[Tensor, " n"]:
    """Along one side of the rolled map: 0 for all windows but the last, 1 and 2 for the parts of the last one."""
    index = torch.arange(side * windows, device=device)
    return (index >= side * (windows - 1)).long() + (index >= side * windows - side // 2).long()


def _neighbour_tokens(x: Float[Tensor, "b v w l c"], neighbours: Int[Tensor, "b v m"]) -> Float[Tensor, "n w k c"]:
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    # b v m w l c: views within a pixel, see across_views.
    return x[batch, neighbours].permute(0, 1, 3, 4, 2, 5).flatten(3, 4).flatten(0, 1)
