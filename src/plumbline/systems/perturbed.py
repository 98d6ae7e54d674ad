"""True depth made worse on purpose: an oracle, for unit tests and ablations of what refines a depth."""

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from plumbline.errors import DataError
from plumbline.systems.records import Batch, Prediction


class Config(BaseModel):
    """How much worse. Everything 0 returns the truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise: float = Field(default=0.03, ge=0, le=1, description="standard deviation, relative to depth")
    bias: float = Field(default=0.03, ge=0, le=1, description="standard deviation of smooth error, relative to depth")
    blur: int = Field(default=2, ge=0, le=32, description="radius of the mean filter, pixels")
    holes: float = Field(default=0.1, ge=0, lt=1, description="share of the image cut out in smooth blobs")
    seed: int = Field(default=0, ge=0)


class System(nn.Module):
    """The truth, blurred, with noise and holes. It reads `depth`, which makes it an oracle wherever it is reported."""

    inputs: ClassVar[frozenset[str]] = frozenset({"depth", "mask"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Prediction:
        """Depth (metres) of the leading views; 0 where the truth is unmeasured and in the holes.

        The same truth and seed give the same prediction, whatever else is in the batch. DataError without truth.
        """
        if batch.depth is None:
            raise DataError("perturbed: needs true depth; this batch has none. Use another source of initial depth.")
        truth = batch.depth[:, : batch.predict_views]
        if batch.mask is not None:
            truth = truth * batch.mask[:, : batch.predict_views]
        maps = [_perturb(depth, self.config) for depth in truth.flatten(0, 1)]
        return Prediction(depth=torch.stack(maps).reshape(truth.shape))


@dataclass(frozen=True)
class _Noise:
    """White noise, smooth noise and the pattern that holes are cut from, standard normal, "h w"."""

    white: Tensor
    smooth: Tensor
    pattern: Tensor


def _perturb(depth: Float[Tensor, "h w"], config: Config) -> Float[Tensor, "h w"]:
    noise = _noise(depth, config.seed)
    factor = torch.exp(config.noise * noise.white + config.bias * noise.smooth)
    worse = _blur(depth, config.blur) * factor
    if config.holes == 0:
        return worse
    return worse * (noise.pattern > torch.quantile(noise.pattern.flatten(), config.holes))


def _noise(depth: Float[Tensor, "h w"], seed: int) -> _Noise:
    """Noise whose seed is made of the map itself, so that it does not depend on the batch around it."""
    content = np.ascontiguousarray(depth.detach().cpu().numpy())
    generator = torch.Generator().manual_seed(zlib.crc32(content.tobytes()) ^ seed)
    height, width = depth.shape
    coarse = torch.randn(2, 1, -(-height // 16) + 1, -(-width // 16) + 1, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[:, 0]
    white = torch.randn(height, width, generator=generator)
    return _Noise(white.to(depth), smooth[0].to(depth), smooth[1].to(depth))


def _blur(depth: Float[Tensor, "h w"], radius: int) -> Float[Tensor, "h w"]:
    """Mean over the measured pixels of a square window, where the centre is measured."""
    measured = (depth > 0).to(depth.dtype)
    stacked = torch.stack([depth * measured, measured])[None]
    total, share = F.avg_pool2d(stacked, 2 * radius + 1, stride=1, padding=radius)[0]
    return total / share.clamp(min=1e-9) * measured
