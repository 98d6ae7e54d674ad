"""Depth of every view from matched features, a ViT's, and cost volumes. Module names are those of the checkpoints."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from plumbline.systems.depthsplat.backbone import Backbone
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.cost_volume import cost_volume, even_candidates, refined_candidates
from plumbline.systems.depthsplat.dino import VisionTransformer
from plumbline.systems.depthsplat.dpt import DenseHead, Features
from plumbline.systems.depthsplat.transformer import Transformer
from plumbline.systems.depthsplat.unet import Regressor, zeroed
from plumbline.systems.depthsplat.views import Views, matched_views
from plumbline.systems.vit.dense import enlarge
from plumbline.systems.vit.tokens import normalised

_COARSE_LEVELS = 3
# Of guided upsampling: the least a value weighs along a row or column, and what a squared difference of colours costs it.
_LEAST, _COLOUR = 0.01, 5.0


class Swept(NamedTuple):
    """What a scale's cost volume says of n images: probabilities of candidates, and the expected inverse depth."""

    probability: Float[Tensor, "n d h w"]
    inverse_depth: Float[Tensor, "n 1 h w"]


class Depths(NamedTuple):
    """Depth of all views, scale by scale and at full resolution, and the features it was made of."""

    depth: Float[Tensor, "b v h w"]
    swept: list[Swept]
    features: Features


class FinerStage(nn.ModuleList):
    """Features at twice the size, with half the channels."""

    def __init__(self, channels: int) -> None:
        half = channels // 2
        super().__init__(
            [nn.ConvTranspose2d(channels, half, 2, stride=2), nn.GELU(), nn.Conv2d(half, half, 3, padding=1)]
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """The finer map."""
        for layer in self:
            x = layer(x)
        return x


class FeaturePyramid(nn.Module):
    """The map itself, and for two scales also a finer one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Identity(), FinerStage(channels)])

    def forward(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """Coarse, then fine."""
        return [stage(x) for stage in self.stages]


class DepthPredictor(nn.Module):
    """Depth of each of a scene's views."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.transformer = Transformer(config)
        self.pretrained = VisionTransformer(config)
        self.mv_pyramid = FeaturePyramid(config.width) if config.scales > 1 else None
        self.mono_pyramid = FeaturePyramid(config.vit_width) if config.scales > 1 else None
        self.regressor, self.regressor_residual, self.depth_head = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for scale in range(config.scales):
            self._add_scale(scale)
        self.upsampler = DenseHead(config, depth=True)

    def forward(self, views: Views) -> Depths:
        """Depth (z, in the world's unit, within near and far) of all views, each matched with its nearest others."""
        b, v = views.shape
        images = normalised(views.image.flatten(0, 1))
        neighbours = matched_views(views.world_T_cam, self.config.matched_views)
        cnn = self.backbone(images)
        matched = self.transformer(torch.unflatten(cnn.coarse, 0, (b, v)), neighbours).flatten(0, 1)
        mono = self.pretrained(images)
        features = Features(cnn, [matched] if self.mv_pyramid is None else self.mv_pyramid(matched), mono)
        swept = self._sweep(features, views, neighbours)
        smallest, largest = (x.flatten(0, 1) for x in views.inverse_range)
        inverse = torch.clamp(self._enlarged(swept[-1].inverse_depth, features, images), smallest, largest)
        return Depths(torch.unflatten(1 / inverse[:, 0], 0, (b, v)), swept, features)

    def _enlarged(
        self, swept: Float[Tensor, "n 1 h2 w2"], features: Features, images: Float[Tensor, "n 3 h w"]
    ) -> Float[Tensor, "n 1 h w"]:
        learnt, factor = self.upsampler(features, swept), self.config.upsampling
        if self.config.enlarging == "guided":
            return guided_upsample(swept, factor, images, learnt)
        return upsample(swept, factor, quirk=self.config.official_quirks) + learnt

    def _sweep(self, features: Features, views: Views, neighbours: Int[Tensor, "b v m"]) -> list[Swept]:
        smallest, largest = views.inverse_range
        mono = self._mono(features)
        swept: list[Swept] = []
        for scale in range(self.config.scales):
            if scale == 0:
                candidates = even_candidates(smallest, largest, self.config.candidates)
            else:
                before = upsample(swept[-1].inverse_depth, 2, quirk=self.config.official_quirks)
                candidates = refined_candidates(
                    torch.unflatten(before, 0, views.shape),
                    smallest,
                    largest,
                    coarse=self.config.candidates,
                    count=self.config.swept(scale),
                )
            cost = self._cost(features.matched[scale], candidates, views, neighbours, scale)
            cnn = features.cnn.coarse if scale == 0 else features.cnn.middle
            z = torch.cat([cost, cnn, features.matched[scale], mono[scale]], dim=1)
            found = self.regressor[scale](z, views.shape[1]) + self.regressor_residual[scale](z)
            logits = self.depth_head[scale](found)
            probability = (logits + cost if self.config.cost_shortcut else logits).softmax(dim=1)
            expected = (self._near_the_likeliest(probability) * candidates.flatten(0, 1)).sum(dim=1, keepdim=True)
            swept.append(Swept(probability, expected))
        return swept

    def _near_the_likeliest(self, probability: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
        """Probabilities given that the truth lies within the window around the likeliest candidate."""
        if self.config.window is None:
            return probability
        index = torch.arange(probability.shape[1], device=probability.device)[:, None, None]
        inside = (index - probability.argmax(dim=1, keepdim=True)).abs() <= self.config.window
        kept = probability * inside
        return kept / kept.sum(dim=1, keepdim=True)

    def _cost(
        self,
        matched: Float[Tensor, "n c h w"],
        candidates: Float[Tensor, "b v d h2 w2"],
        views: Views,
        neighbours: Int[Tensor, "b v m"],
        scale: int,
    ) -> Float[Tensor, "n d h w"]:
        config = self.config
        volume = cost_volume(
            torch.unflatten(matched, 0, views.shape),
            candidates,
            views.feature_K(config.stride // 2**scale, quirk=config.official_quirks),
            views.world_T_cam,
            neighbours,
            quirk=config.official_quirks,
            block_elements=config.block_elements,
            checkpointing=config.checkpointing and self.training,
        )
        return volume.flatten(0, 1)

    def _mono(self, features: Features) -> list[Float[Tensor, "n _ _ _"]]:
        """The ViT's last map, as large as the matched features of each scale."""
        coarse = features.matched[0]
        last = enlarge(features.mono[-1], (coarse.shape[-2], coarse.shape[-1]))
        return [last] if self.mono_pyramid is None else self.mono_pyramid(last)

    def _add_scale(self, scale: int) -> None:
        config = self.config
        width, candidates = config.regressor_width // 2**scale, config.swept(scale)
        cnn = config.backbone_widths[2 - scale]
        entered = candidates + cnn + (config.width + config.vit_width) // 2**scale
        self.regressor.append(
            Regressor(
                entered,
                width,
                levels=_COARSE_LEVELS + scale,
                head=config.attention_head,
                checkpointing=config.checkpointing,
            )
        )
        self.regressor_residual.append(nn.Conv2d(entered, width, 1))
        last = nn.Conv2d(2 * width, candidates, 3, padding=1, padding_mode="replicate")
        self.depth_head.append(
            nn.Sequential(
                nn.Conv2d(width, 2 * width, 3, padding=1, padding_mode="replicate"),
                nn.GELU(),
                zeroed(last) if config.cost_shortcut else last,
            )
        )


def upsample(x: Float[Tensor, "n c h w"], factor: int, *, quirk: bool) -> Float[Tensor, "n c h2 w2"]:
    """`x` at `factor` times the size, bilinear.

    Values lie on every `factor`-th pixel, from the first one on, since that is where strided convolutions look; beyond the
    last one it is repeated. Official quirk: the corners are put on corners, so values drift to the right and down.
    """
    height, width = x.shape[-2:]
    if quirk:
        return enlarge(x, (factor * height, factor * width))
    padded = F.pad(x, (0, 1, 0, 1), mode="replicate")
    return enlarge(padded, (factor * height + 1, factor * width + 1))[..., :-1, :-1]


def guided_upsample(
    x: Float[Tensor, "n 1 h2 w2"], factor: int, guide: Float[Tensor, "n c h w"], logits: Float[Tensor, "n 9 h w"]
) -> Float[Tensor, "n 1 h w"]:
    """`x` at `factor` times the size: of each pixel a mean of the 3x3 values around it, row by row as in `logits`.

    Values lie as `upsample` has them. The weights' logarithms are `logits`, plus that of a bilinear weight, minus what the
    guide's colours differ from the pixel's: without logits this is joint bilateral upsampling (Kopf et al., SIGGRAPH 2007).
    Weights that sum to 1 and are learnt pixel by pixel are RAFT's (Teed & Deng, ECCV 2020).
    """
    values, colours = (_around(part, factor) for part in (x, guide[..., ::factor, ::factor]))
    unlike = (colours - guide[:, :, None]).square().sum(dim=1)
    weights = (logits + _bilinear(factor, logits).log() - _COLOUR * unlike).softmax(dim=1)
    return (weights * values[:, 0]).sum(dim=1, keepdim=True)


def _around(x: Float[Tensor, "n c h2 w2"], factor: int) -> Float[Tensor, "n c 9 h w"]:
    """The 3x3 values around the one nearest to each pixel, repeated beyond the border."""
    (height, width), half = x.shape[-2:], factor // 2
    found = F.unfold(F.pad(x, (1, 2, 1, 2), mode="replicate"), 3)
    found = found.reshape(*x.shape[:2], 9, height + 1, width + 1)
    found = found.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return found[..., half : half + factor * height, half : half + factor * width]


def _bilinear(factor: int, like: Float[Tensor, "n 9 h w"]) -> Float[Tensor, "9 h w"]:
    """What each of the 3x3 values weighs in bilinear upsampling, but never so little that colour could not choose it."""
    along, half = [], factor // 2
    for size in like.shape[-2:]:
        part = ((torch.arange(size, dtype=like.dtype, device=like.device) + half) % factor - half) / factor
        along.append(torch.stack([-part, 1 - part.abs(), part]).clamp(min=_LEAST))
    down, right = along
    return (down[:, None, :, None] * right[None, :, None, :]).reshape(9, *like.shape[-2:])
