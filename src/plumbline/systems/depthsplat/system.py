"""DepthSplat as a system: depth of the context views, and Gaussians that render the scene from anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from plumbline.errors import DataError
from plumbline.rendering import cameras as framing
from plumbline.rendering.cameras import Cameras
from plumbline.rendering.gaussians import Gaussians
from plumbline.rendering.orbit import orbit, to_8_bit, write_movie
from plumbline.rendering.ply import write_gaussians
from plumbline.rendering.render import Rendering, render
from plumbline.rendering.rules import GSPLAT, OFFICIAL
from plumbline.rendering.surroundings import over_surroundings
from plumbline.systems.augment import augment
from plumbline.systems.blocks import pad_to_multiple
from plumbline.systems.depthsplat import losses, lpips, pretrained
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.encoder import Encoded, Encoder
from plumbline.systems.depthsplat.views import Views
from plumbline.systems.records import Batch, Prediction, Rendered

# Nothing nearer than this share of the nearest depth is drawn, as in the decoder that published weights were trained with.
NEAR_SHARE = 0.2
# An opacity that no picture shows: rasterisers leave it out.
FAINTEST = 1 / 255
ORBIT_FRAMES = 24
_FINAL, _INTERMEDIATE = "gaussian_", "intermediate_gaussian_"


@dataclass(frozen=True)
class _Seen:
    """What cameras really saw, to be rendered: images in [0, 1], K in pixels, poses relative to view 0.

    `mask` is true on what the images are to be compared on; None: everywhere.
    """

    image: Float[Tensor, "b t 3 h w"]
    K: Float[Tensor, "b t 3 3"]
    cam0_T_cam: Float[Tensor, "b t 4 4"]
    mask: Bool[Tensor, "b t h w"] | None = None


class System(nn.Module):
    """Depth of all context views by matching them, and one Gaussian for each of their pixels.

    Depth, poses and Gaussians are in metres and in the frame of view 0. Images of any size are filled up to a multiple of
    four times the stride by repeating the last row and column; what is beyond the image is neither predicted nor rendered.
    With `official_quirks`, pictures are also rendered as the published decoder does: with the principal point in the middle.
    """

    inputs = frozenset({"image", "K", "cam0_T_cam", "depth_range", "target_K", "cam0_T_target"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self._lpips: lpips.Lpips | None = None
        self._asked_for_lpips = False

    def forward(self, batch: Batch) -> Prediction:
        """Depth of the leading views, "b p h w", within the depth range; its confidence is the probability of the likeliest
        candidate. DataError with fewer than two views, or without poses or a depth range.

        Internals, where there are Gaussians: `gaussian_means` and so on, see `gaussians_of`; of two scales in training
        `intermediate_depth` "b v h w" and `intermediate_gaussian_means` and so on; always `depth` "b v h w" of all views and
        `probability` "b v d h2 w2" of the coarsest scale's candidates.
        """
        size, p = (batch.image.shape[-2], batch.image.shape[-1]), batch.predict_views
        encoded = self.encoder(_views(batch, self.config.multiple))
        depths = [depth[..., : size[0], : size[1]] for depth in encoded.depths]
        internals = {
            "depth": depths[-1],
            "probability": torch.unflatten(encoded.probability[0], 0, depths[-1].shape[:2]),
        }
        if len(depths) > 1:
            internals["intermediate_depth"] = depths[0]
        prefixes = (_FINAL, _INTERMEDIATE)[: len(encoded.gaussians)]
        for prefix, gaussians in zip(prefixes, reversed(encoded.gaussians), strict=True):
            internals |= _tensors(_within(gaussians, encoded.depths[-1], size), prefix)
        return Prediction(depth=depths[-1][:, :p], confidence=_confidence(encoded, size, p, batch), internals=internals)

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Every component by name, and "total", their weighted sum. The batch's target views are rendered, without any the
        views that are given.

        Terms of intermediate predictions are part of the component, with their weight. DataError when nothing is to be
        learnt: a model without Gaussians needs depth among the optional terms.
        """
        config = self.config.loss
        components: dict[str, Tensor] = {}
        weights = losses.intermediate_weights(1 + ("intermediate_depth" in prediction.internals), config.intermediate)
        for weight, prefix in zip(reversed(weights), ("", "intermediate_")[: len(weights)], strict=True):
            terms = self._context_terms(prediction.internals[f"{prefix}depth"], batch)
            if self.config.gaussians:
                gaussians = gaussians_of(prediction, intermediate=bool(prefix))
                terms |= self._image_terms(gaussians, batch, _seen(batch))
            for name, value in terms.items():
                components[name] = components.get(name, 0) + weight * value
        if "likelihood" in config.optional:
            components["likelihood"] = self._likelihood(prediction.internals["probability"], batch)
        if not components:
            raise DataError(
                "depthsplat: nothing to learn from: this model has no Gaussians to render. "
                "Set systems.depthsplat.loss.optional to [depth, depth_gradient]."
            )
        strength = config.model_dump()
        return {**components, "total": torch.stack([strength[name] * x for name, x in components.items()]).sum()}

    def render(
        self,
        gaussians: Gaussians,
        K: Float[Tensor, "b t 3 3"],
        cam0_T_cam: Float[Tensor, "b t 4 4"],
        size: tuple[int, int],
        *,
        nearest: Float[Tensor, " b"],
    ) -> Rendering:
        """What cameras of any pose see of the scene, over `config.background`. `nearest` is that of the scenes' depth ranges."""
        rules = GSPLAT
        if self.config.official_quirks:
            # Gaussians come in the standard order of harmonics whatever the encoder's.
            K, rules = framing.symmetric(K, size), replace(OFFICIAL, harmonics="standard")
        near = (NEAR_SHARE * nearest)[:, None].expand(-1, K.shape[1])
        with torch.autocast(K.device.type, enabled=False):
            cameras = Cameras(K, cam0_T_cam, near)
            seen = render(gaussians, cameras, size, backend=self.config.backend, rules=rules)
            return seen if self.config.background == "black" else over_surroundings(seen)

    def novel_views(self, prediction: Prediction, batch: Batch) -> Rendered:
        """What the batch's target cameras see, depth where they are covered by half or more.

        DataError without such cameras, or without Gaussians.
        """
        K, cam0_T_target = _present(batch.target_K), _present(batch.cam0_T_target)
        size, nearest = (batch.image.shape[-2], batch.image.shape[-1]), _range(batch)[:, 0]
        seen = self.render(gaussians_of(prediction), K, cam0_T_target, size, nearest=nearest)
        return Rendered(seen.colour.clamp(0, 1), seen.expected_depth())

    def diagnostics(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """`gaussians`: how many of each sample's can be seen at all, with an opacity above 1/255; {} without Gaussians."""
        if not self.config.gaussians:
            return {}
        return {"gaussians": (gaussians_of(prediction).opacities > FAINTEST).sum(dim=1)}

    def export(self, prediction: Prediction, batch: Batch, folder: Path) -> None:
        """Write the scene of the batch's one sample, in metres and view 0's frame, and a loop around its first target camera.

        They are `gaussians.ply` and `orbit.gif`. DataError without target cameras, or without Gaussians.
        """
        gaussians, seen = gaussians_of(prediction), self.novel_views(prediction, batch)
        depth = _present(seen.depth)[0, 0]
        distance = float(depth[depth > 0].median()) if depth.any() else float(_range(batch)[0].mean())
        around = orbit(_present(batch.cam0_T_target)[0, 0].double().cpu().numpy(), distance, ORBIT_FRAMES)
        poses = torch.from_numpy(np.stack(list(around))).to(depth)[None]
        K = _present(batch.target_K)[:, :1].expand(-1, ORBIT_FRAMES, -1, -1)
        size = (depth.shape[-2], depth.shape[-1])
        frames = self.render(gaussians, K, poses, size, nearest=_range(batch)[:, 0]).colour[0]
        write_gaussians(folder / "gaussians.ply", gaussians)
        write_movie(folder / "orbit.gif", [to_8_bit(frame) for frame in frames])

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A geometry-true variation of a training batch."""
        return augment(batch, self.config.augment, generator)

    def load_pretrained(self, path: Path) -> None:
        """Load a published checkpoint, or this project's, strictly; DataError names what does not fit."""
        pretrained.load(self, path)

    def init_from(self, path: Path) -> pretrained.InitReport:
        """Take what fits from a file of Depth-Anything-V2, DINOv2, UniMatch or DepthSplat; says what was taken."""
        return pretrained.init_from(self, path)

    def _image_terms(self, gaussians: Gaussians, batch: Batch, seen: _Seen) -> dict[str, Tensor]:
        config, size = self.config.loss, (seen.image.shape[-2], seen.image.shape[-1])
        picture = self.render(gaussians, seen.K, seen.cam0_T_cam, size, nearest=_range(batch)[:, 0]).colour
        mask = seen.mask if config.foreground else None
        terms = {"image": losses.image_error(picture, seen.image, mask, norm=config.norm)}
        if "ssim" in config.optional:
            terms["ssim"] = losses.ssim_error(picture, seen.image, mask)
        if (distance := self._distance(seen.image)) is not None:
            # Rendered colours are not held to 1; LPIPS takes them as they are, as the published training does.
            inside = (losses.only_where(image, mask).flatten(0, 1) for image in (picture, seen.image))
            terms["lpips"] = distance(*inside).mean()
        return terms

    def _context_terms(self, depth: Float[Tensor, "b v h w"], batch: Batch) -> dict[str, Tensor]:
        config, terms = self.config.loss, {}
        if "smoothness" in config.optional:
            terms["smoothness"] = losses.smoothness(depth, batch.image, batch.mask if config.foreground else None)
        functions = {"depth": losses.inverse_depth_error, "depth_gradient": losses.inverse_gradient_error}
        if wanted := [name for name in functions if name in config.optional]:
            truth, mask = _measured(batch)
            # In units of the nearest depth, an inverse depth is at most 1 whatever the scene's size.
            unit = _range(batch)[:, 0, None, None, None]
            terms |= {name: functions[name](depth / unit, truth / unit, mask) for name in wanted}
        return terms

    def _likelihood(self, probability: Float[Tensor, "b v d h2 w2"], batch: Batch) -> Tensor:
        truth, mask = _measured(batch)
        depth_range = _range(batch)[:, None].expand(-1, truth.shape[1], -1)
        return losses.likelihood_error(probability, truth, mask, depth_range, stride=self.config.stride)

    def _distance(self, like: Tensor) -> lpips.Lpips | None:
        """LPIPS if it weighs something and its files are there; they are read, or missed with a line, once."""
        if self.config.loss.lpips > 0 and not self._asked_for_lpips:
            self._asked_for_lpips = True
            self._lpips = lpips.load(self.config.lpips_trunk, self.config.lpips_heads)
        return None if self._lpips is None else self._lpips.to(like.device)


def gaussians_of(prediction: Prediction, *, intermediate: bool = False) -> Gaussians:
    """The scene's Gaussians, metres, in view 0's frame; DataError when the prediction has none."""
    prefix = _INTERMEDIATE if intermediate else _FINAL
    found = {name.removeprefix(prefix): x for name, x in prediction.internals.items() if name.startswith(prefix)}
    if not found:
        raise DataError(f"depthsplat: the prediction has no {prefix}means: the model was built without Gaussians.")
    return Gaussians(**found)


def normalised(K: Float[Tensor, "*n 3 3"], size: tuple[int, int]) -> Float[Tensor, "*n 3 3"]:
    """Intrinsics in pixels as `Views` wants them: the image's corners at 0 and 1."""
    scale = K.new_tensor([1 / size[1], 1 / size[0], 1.0])
    return framing.corner_origin(K) * scale[:, None]


def _views(batch: Batch, multiple: int) -> Views:
    if batch.cam0_T_cam is None or batch.depth_range is None:
        raise DataError(
            "depthsplat: this batch has no poses or no depth range; it matches posed views. Use such scenes."
        )
    padded = torch.unflatten(pad_to_multiple(batch.image.flatten(0, 1), multiple), 0, batch.image.shape[:2])
    near, far = (batch.depth_range[:, k, None].expand(-1, batch.image.shape[1]) for k in (0, 1))
    K = normalised(batch.K, (padded.shape[-2], padded.shape[-1]))
    return Views(padded, K, batch.cam0_T_cam, near, far)


def _seen(batch: Batch) -> _Seen:
    if batch.target_image is not None and batch.target_K is not None and batch.cam0_T_target is not None:
        return _Seen(batch.target_image, batch.target_K, batch.cam0_T_target, batch.target_mask)
    if batch.cam0_T_cam is None:
        raise DataError("depthsplat: this batch has no poses to render from. Train on posed scenes.")
    return _Seen(batch.image, batch.K, batch.cam0_T_cam, batch.mask)


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise DataError("depthsplat: this batch has no target cameras to render. Use samples with target views.")
    return tensor


def _measured(batch: Batch) -> tuple[Float[Tensor, "b v h w"], Bool[Tensor, "b v h w"]]:
    if batch.depth is None or batch.mask is None:
        raise DataError(
            "depthsplat: depth, depth_gradient and likelihood in loss.optional need true depth; this batch has none. "
            "Train on scenes with depth, or leave them out."
        )
    return batch.depth, batch.mask


def _range(batch: Batch) -> Float[Tensor, "b 2"]:
    if batch.depth_range is None:
        raise DataError("depthsplat: this batch has no depth range. Use scenes that have one.")
    return batch.depth_range


def _confidence(encoded: Encoded, size: tuple[int, int], views: int, batch: Batch) -> Float[Tensor, "b p h w"]:
    full = encoded.depths[-1].shape[-2:]
    sure = encoded.probability[-1].amax(dim=1, keepdim=True)
    wide = nn.functional.interpolate(sure, size=(full[0], full[1]), mode="nearest")[:, 0]
    return torch.unflatten(wide, 0, batch.image.shape[:2])[:, :views, : size[0], : size[1]]


def _within(gaussians: Gaussians, depth: Float[Tensor, "b v h2 w2"], size: tuple[int, int]) -> Gaussians:
    """The Gaussians of pixels within `size`, of all in maps as large as `depth`."""
    v, height, width = depth.shape[1:]
    if (height, width) == size:
        return gaussians
    kept = torch.zeros(v, height, width, dtype=torch.bool, device=depth.device)
    kept[:, : size[0], : size[1]] = True
    rows = kept.flatten().nonzero()[:, 0]
    return Gaussians(**{name: x[:, rows] for name, x in _tensors(gaussians, "").items()})


def _tensors(gaussians: Gaussians, prefix: str) -> dict[str, Tensor]:
    values: Mapping[str, Tensor | None] = {f.name: getattr(gaussians, f.name) for f in fields(gaussians)}
    return {prefix + name: value for name, value in values.items() if value is not None}
