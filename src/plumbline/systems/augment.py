"""Variations of a training batch that stay true to its geometry: flips, crops, light, and worse initial depths.

Random numbers come from the caller's generator (on the CPU), so that a resumed training sees the same variations.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from plumbline.geometry import sample
from plumbline.systems.records import Batch

LARGEST_NOISE = 0.4
_IMAGES = ("image", "target_image")
_MAPS = (*_IMAGES, "depth", "mask", "target_mask", "initial_depth", "initial_confidence", "keypoint_probability")


class AugmentConfig(BaseModel):
    """How much a training batch is varied. Probabilities are per sample; 0 switches a variation off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a mirrored scene")
    zoom: float = Field(default=0.5, ge=0, le=2, description="largest zoom is 1 + this")
    brightness: float = Field(default=0.2, ge=0, le=1, description="largest change, in units of the image range")
    contrast: float = Field(default=0.4, ge=0, le=0.9, description="largest relative change")
    gamma: float = Field(default=0.4, ge=0, le=2, description="largest absolute log of the exponent")
    colour: float = Field(default=0.3, ge=0, le=1, description="largest share of mixed channels")
    shared_light: bool = Field(default=True, description="false: each view of a sample has a light of its own")
    image_noise: float = Field(
        default=0.03, ge=0, le=0.5, description="largest standard deviation, in units of the range"
    )
    degrade: float = Field(default=0.5, ge=0, le=1, description="probability of a worse initial depth")


def augment(batch: Batch, config: AugmentConfig, generator: torch.Generator) -> Batch:
    """A varied batch of the same shapes: mirrored, cropped and enlarged, with other light and a worse initial depth.

    One mirror and crop is shared by all views of a sample, those to be rendered included, and one light unless
    `config.shared_light` is off; only the initial depth is degraded, never the truth.
    """
    b = batch.image.shape[0]
    batch = mirror(batch, _uniform(generator, b) < config.flip)
    if config.zoom > 0:
        size = (batch.image.shape[-2], batch.image.shape[-1])
        batch = enlarge(batch, *_random_window(b, config.zoom, generator, size))
    batch = _relit(batch, config, generator)
    if batch.initial_depth is None or config.degrade == 0:
        return batch
    depth, confidence = degrade(batch.initial_depth, batch.initial_confidence, config.degrade, generator)
    return replace(batch, initial_depth=depth, initial_confidence=confidence)


def mirror(batch: Batch, which: Bool[Tensor, " b"]) -> Batch:
    """The scenes `which` seen in a mirror: images and depths left to right, with K and poses changed to match.

    Points change the sign of x in every camera's frame, so a pose T becomes S T S with S = diag(-1, 1, 1, 1), which is
    again a rotation and a translation.
    """
    width = batch.image.shape[-1]

    def of_K(K: Float[Tensor, "b v 3 3"]) -> Tensor:
        mirrored = K.clone()
        mirrored[..., 0, 1] = 0 - K[..., 0, 1]
        mirrored[..., 0, 2] = width - 1 - K[..., 0, 2]
        return torch.where(_like(which, mirrored), mirrored, K)

    def of_pose(T: Float[Tensor, "b v 4 4"]) -> Tensor:
        sign = T.new_tensor([-1.0, 1.0, 1.0, 1.0])
        return torch.where(_like(which, T), sign[:, None] * T * sign, T)

    cameras = {**_changed(batch, ("K", "target_K"), of_K), **_changed(batch, ("cam0_T_cam", "cam0_T_target"), of_pose)}
    return _with_maps(batch, lambda x: torch.where(_like(which, x), x.flip(-1), x), **cameras)


def enlarge(batch: Batch, zoom: Float[Tensor, " b"], left: Float[Tensor, " b"], top: Float[Tensor, " b"]) -> Batch:
    """Crops at (`left`, `top`) pixels, enlarged `zoom` >= 1 times to the old size, with K changed to match.

    Images are sampled bilinearly, depths, masks, confidences and keypoint probabilities at the nearest pixel. A keypoint
    probability is shared by the zoom² pixels that one becomes, so that its sum over a surface stays. Pixel centres follow
    the half-pixel convention: u' = (u + 0.5 - left) zoom - 0.5.
    """
    h, w = batch.image.shape[-2:]
    zoom, left, top = (x.to(batch.image.device) for x in (zoom, left, top))
    u = (torch.arange(w, device=zoom.device) + 0.5) / zoom[:, None] + left[:, None] - 0.5
    v = (torch.arange(h, device=zoom.device) + 0.5) / zoom[:, None] + top[:, None] - 0.5
    u, v = u.clamp(0, w - 1), v.clamp(0, h - 1)

    def of_K(K: Float[Tensor, "b v 3 3"]) -> Tensor:
        K = K.clone()
        K[..., :2, :2] *= zoom[:, None, None, None]
        K[..., 0, 2] = (K[..., 0, 2] + 0.5 - left[:, None]) * zoom[:, None] - 0.5
        K[..., 1, 2] = (K[..., 1, 2] + 0.5 - top[:, None]) * zoom[:, None] - 0.5
        return K

    columns, rows = u.round().long(), v.round().long()
    varied = _with_maps(batch, lambda x: _nearest(x, columns, rows), **_changed(batch, ("K", "target_K"), of_K))
    if varied.keypoint_probability is not None:
        varied = replace(varied, keypoint_probability=varied.keypoint_probability / zoom[:, None, None, None] ** 2)
    return replace(varied, **_changed(batch, _IMAGES, lambda x: _bilinear(x, u, v)))


def vary_light(
    image: Float[Tensor, "b v 3 h w"], config: AugmentConfig, generator: torch.Generator
) -> Float[Tensor, "b v 3 h w"]:
    """Images in [0, 1] under other light, the same for all views of a sample or not; noise is each pixel's own."""
    if not config.shared_light:
        alone = config.model_copy(update={"shared_light": True})
        return vary_light(image.flatten(0, 1)[:, None], alone, generator).reshape(image.shape)
    b = image.shape[0]
    mixed = torch.einsum("bij,bvjhw->bvihw", _channel_mix(b, config.colour, generator).to(image.device), image)
    gamma = torch.exp(config.gamma * _signed(generator, b))
    contrast = 1 + config.contrast * _signed(generator, b)
    offset = config.brightness * _signed(generator, b)
    lit = mixed.clamp(1e-4, 1) ** _like(gamma, image)
    mean = lit.mean(dim=(1, 2, 3, 4), keepdim=True)
    lit = (lit - mean) * _like(contrast, image) + mean + _like(offset, image)
    noise = _like(config.image_noise * _uniform(generator, b), image) * _normal(generator, image)
    return (lit + noise).clamp(0, 1)


def degrade(
    depth: Float[Tensor, "b p h w"],
    confidence: Float[Tensor, "b p h w"] | None,
    probability: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "b p h w"], Float[Tensor, "b p h w"] | None]:
    """A worse initial depth in a share of the samples, as stereo gets worse: unsure in places, and wrong where unsure.

    Confidence falls in smooth regions. Depth gets relative noise of several sizes that grows as confidence falls, and is
    drawn towards the camera there, as a sweep's median is. Some blocks take the depth and confidence of another place,
    some abstain (0, confidence 0). Without a confidence the noise is as where it is one half.
    """
    b, _, h, w = depth.shape
    chosen = _like(_uniform(generator, b) < probability, depth)
    sure = torch.full_like(depth, 0.5) if confidence is None else _less_sure(confidence, generator)
    noise = sum(_smooth(generator, depth, cell) for cell in (2, 6, 20)) / 3**0.5
    strength = _like(LARGEST_NOISE * _uniform(generator, b), depth) * (1.05 - sure)
    pull = _like(_uniform(generator, b), depth)
    worse = depth * torch.exp(strength * (noise - pull))
    swap, holes = (_blocks(generator, depth, share=share) for share in (0.03, 0.03))
    shift = (h // 3 + 1, w // 3 + 1)
    worse = torch.where(swap, worse.roll(shift, dims=(-2, -1)), worse).masked_fill(holes, 0.0)
    sure = torch.where(swap, sure.roll(shift, dims=(-2, -1)), sure).masked_fill(holes, 0.0)
    return torch.where(chosen, worse, depth), None if confidence is None else torch.where(chosen, sure, confidence)


def _less_sure(confidence: Float[Tensor, "b p h w"], generator: torch.Generator) -> Float[Tensor, "b p h w"]:
    """Confidence lowered over the whole map by a power, and in smooth regions by a factor."""
    b = confidence.shape[0]
    power = _like(1 + 2 * _uniform(generator, b), confidence)
    region = torch.sigmoid(2 * _smooth(generator, confidence, 24))
    return confidence**power * (1 - _like(_uniform(generator, b), confidence) * region)


def _smooth(generator: torch.Generator, like: Float[Tensor, "b p h w"], cell: int) -> Float[Tensor, "b p h w"]:
    """Standard normal noise on a grid of `cell` pixels, interpolated bilinearly."""
    coarse = _normal(generator, like[..., ::cell, ::cell])
    return F.interpolate(coarse, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _blocks(generator: torch.Generator, like: Float[Tensor, "b p h w"], *, share: float) -> Bool[Tensor, "b p h w"]:
    h, w = like.shape[-2:]
    smooth = _smooth(generator, like, 16)
    count = max(1, round(share * h * w))
    threshold = smooth.flatten(2).topk(count, dim=2).values[..., -1]
    return smooth > threshold[..., None, None]


def _random_window(b: int, zoom: float, generator: torch.Generator, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Zooms in [1, 1 + zoom], half of them 1, and the left and top of windows that lie inside the image."""
    factor = 1 + zoom * (2 * _uniform(generator, b) - 1).clamp(min=0)
    height, width = size
    left = _uniform(generator, b) * width * (1 - 1 / factor)
    top = _uniform(generator, b) * height * (1 - 1 / factor)
    return factor, left, top


def _relit(batch: Batch, config: AugmentConfig, generator: torch.Generator) -> Batch:
    if batch.target_image is None:
        return replace(batch, image=vary_light(batch.image, config, generator))
    views = batch.image.shape[1]
    lit = vary_light(torch.cat([batch.image, batch.target_image], dim=1), config, generator)
    return replace(batch, image=lit[:, :views], target_image=lit[:, views:])


def _with_maps(batch: Batch, function: Callable[[Tensor], Tensor], **changes: Any) -> Batch:
    return replace(batch, **changes, **_changed(batch, _MAPS, function))


def _changed(batch: Batch, names: tuple[str, ...], function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """What `function` makes of those of the batch's tensors that are there."""
    values = {name: getattr(batch, name) for name in names}
    return {name: function(value) for name, value in values.items() if value is not None}


def _nearest(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """`x` ("b v ... h w") at the integer rows `v` ("b h") and columns `u` ("b w") of each sample."""
    return torch.stack([x[i][..., v[i], :][..., u[i]] for i in range(x.shape[0])])


def _bilinear(image: Float[Tensor, "b v 3 h w"], u: Float[Tensor, "b w"], v: Float[Tensor, "b h"]) -> Tensor:
    b, views, _, h, w = image.shape
    uv = torch.stack([u[:, None, :].expand(b, h, w), v[:, :, None].expand(b, h, w)], dim=-1)
    return sample(image.flatten(1, 2), uv).reshape(b, views, 3, h, w)


def _channel_mix(b: int, share: float, generator: torch.Generator) -> Float[Tensor, "b 3 3"]:
    """Matrices whose rows sum to 1: the identity and a random mixture of channels, `share` of it at most."""
    mixture = torch.rand(b, 3, 3, generator=generator)
    weight = share * torch.rand(b, 1, 1, generator=generator)
    return (1 - weight) * torch.eye(3) + weight * mixture / mixture.sum(-1, keepdim=True)


def _uniform(generator: torch.Generator, b: int) -> Float[Tensor, " b"]:
    return torch.rand(b, generator=generator)


def _signed(generator: torch.Generator, b: int) -> Float[Tensor, " b"]:
    return 2 * torch.rand(b, generator=generator) - 1


def _normal(generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device)


def _like(per_sample: Tensor, x: Tensor) -> Tensor:
    """One value a sample, on `x`'s device, shaped to broadcast against `x`."""
    return per_sample.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
