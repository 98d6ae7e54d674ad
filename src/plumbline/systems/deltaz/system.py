"""DeltaZ as a system: refined depth = initial depth + Δz, with the initial depth another method's prediction."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from plumbline.errors import DataError
from plumbline.systems.augment import AugmentConfig, augment
from plumbline.systems.blocks import load_weights
from plumbline.systems.deltaz import losses
from plumbline.systems.deltaz.inputs import (
    INPUT_NAMES,
    InitialDepth,
    InputName,
    channels,
    network_input,
    prepare,
    spread_log,
)
from plumbline.systems.deltaz.network import DeltaZUNet
from plumbline.systems.records import Batch, Prediction

# A few scans teach a small network their colours and places instead of what is wrong with a depth: `tiny` sees neither.
DEPTH_ALONE = ("initial_depth", "sparse_depth", "sparse_distance", "initial_confidence", "validity")
PRESETS: dict[str, dict[str, Any]] = {
    "published": {"base_channels": 32, "depth": 4, "patch": 1, "target": False, "doubt": False, "inputs": INPUT_NAMES},
    "tiny": {"base_channels": 16, "depth": 3, "patch": 4, "target": True, "doubt": True, "inputs": DEPTH_ALONE},
}
LARGEST_LOG_CORRECTION = 2.0


class LossWeights(BaseModel):
    """Weight of each loss component; the defaults are the seed's, and the blueprint's additions weigh nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: float = Field(default=1.0, ge=0)
    delta_z: float = Field(default=0.5, ge=0)
    point_3d: float = Field(default=1.0, ge=0)
    multiview_consistency: float = Field(default=0.5, ge=0)
    smoothness: float = Field(default=0.1, ge=0)
    correction_magnitude: float = Field(default=0.01, ge=0)
    confidence: float = Field(default=0.1, ge=0)
    direct_supervision: float = Field(default=0.0, ge=0)
    surface_smoothness: float = Field(default=0.0, ge=0)
    relative_magnitude: float = Field(default=0.0, ge=0)
    relative_depth: float = Field(default=0.0, ge=0)


class Config(BaseModel):
    """DeltaZ's configuration. `preset` fills what PRESETS lists for it; a value given beside it wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["published", "tiny"] = "published"
    initial: str = Field(default="plane_sweep", min_length=1, description="method whose predictions are refined")
    inputs: tuple[InputName, ...] = INPUT_NAMES
    base_channels: int = Field(default=32, ge=8, le=256, multiple_of=8, description="channels of the finest level")
    depth: int = Field(default=4, ge=1, le=6, description="levels of the U-Net")
    patch: int = Field(default=1, ge=1, le=8, description="side of the pixel patches the finest level works on")
    target: bool = Field(default=False, description="correct by a learnt share of the way to a learnt depth")
    doubt: bool = Field(default=False, description="correct in proportion to the doubt in the initial depth")
    confidence: bool = Field(default=True, description="predict a confidence as well")
    occlusion_threshold: float = Field(default=losses.OCCLUSION_THRESHOLD, gt=0, le=1, description="relative to depth")
    weights: LossWeights = LossWeights()
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(values.get("preset", "published"), {}), **values}

    @model_validator(mode="after")
    def _check_inputs(self) -> "Config":
        if "initial_depth" not in self.inputs or len(set(self.inputs)) != len(self.inputs):
            raise ValueError(f"inputs: expected distinct names with initial_depth among them, got {list(self.inputs)}")
        return self


class System(nn.Module):
    """Refines `batch.initial_depth`, never derived from the truth of the view it refines.

    The network works free of scale: it sees log(depth / scale), the scale being the median of view 0's valid initial
    depth, and returns the correction's logarithm r, so that Δz = z0 (exp(r) - 1) is undone to metres by the scale and
    a refined depth is always positive. With `target` r is a learnt share of the way from log z0 to a learnt log depth,
    which starts as log z0 spread from sure pixels over unsure ones: z0's errors need not be copied through the network to
    be taken away, and an untrained network is an edge-preserving filter. With `doubt` r is held back where the initial
    depth is sure. Losses are in the same unit, metres / scale. Where the initial depth abstains, z0 is filled from its
    surroundings.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"image", "K", "depth_range", "initial_depth", "initial_confidence"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.network = DeltaZUNet(
            channels(config.inputs),
            base_channels=config.base_channels,
            depth=config.depth,
            out_confidence=config.confidence,
            out_target=config.target,
            patch=config.patch,
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, batch: Batch) -> Prediction:
        """Depth (metres) of the leading views: `batch.predict_views` of them, or as many as have an initial depth.

        Internals, in metres / scale: `delta` Δz and `initial` z0, "b p h w"; `scale` (metres) "b".
        """
        initial_depth = _initial_depth(batch)
        b, p, h, w = initial_depth.shape
        confidence = None if batch.initial_confidence is None else batch.initial_confidence[:, :p]
        initial = prepare(initial_depth, confidence, batch.depth_range)
        correction, sure = self._refine(batch, initial)
        scale = initial.scale.reshape(b, p)[:, 0]
        base = initial.filled.reshape(b, p, h, w)
        delta = base * torch.expm1(correction.to(base.dtype).reshape(b, p, h, w))
        return Prediction(
            depth=(base + delta) * scale[:, None, None, None],
            confidence=None if sure is None else sure.reshape(b, p, h, w),
            internals={"delta": delta, "initial": base, "scale": scale},
        )

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Every component by name, and "total", their weighted sum. DataError when the batch has no truth."""
        if batch.depth is None or batch.mask is None:
            raise DataError("deltaz: the loss needs true depth; this batch has none. Train on scenes with depth.")
        components = self._components(prediction, batch, batch.depth, batch.mask)
        weights = self.config.weights.model_dump()
        total = torch.stack([weights[name] * value for name, value in components.items() if weights[name] > 0]).sum()
        return {**components, "total": total}

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A geometry-true variation of a training batch, its initial depth degraded as other methods' may be.

        Only the views that have an initial depth are kept: nothing here looks at the others.
        """
        return augment(_leading(batch, _all_initial(batch).shape[1]), self.config.augment, generator)

    def load_pretrained(self, path: Path) -> None:
        """Load this project's checkpoint or a plain state dict, strictly; DataError names what does not fit."""
        load_weights(self, path)

    def _refine(self, batch: Batch, initial: InitialDepth) -> tuple[Tensor, Tensor | None]:
        p = len(initial.scale) // len(batch.image)
        image, K = batch.image[:, :p].flatten(0, 1), batch.K[:, :p].flatten(0, 1)
        x = network_input(self.config.inputs, image, K, initial)
        answer = self.network(x)
        correction = answer.correction
        if answer.target is not None:
            correction = (1 + correction) * (spread_log(initial, image) + answer.target - initial.filled.log())
        if self.config.doubt:
            correction = correction * initial.doubt
        return correction.clamp(-LARGEST_LOG_CORRECTION, LARGEST_LOG_CORRECTION), answer.confidence

    def _components(self, prediction: Prediction, batch: Batch, depth: Tensor, mask: Tensor) -> dict[str, Tensor]:
        p = prediction.depth.shape[1]
        scale = prediction.internals["scale"][:, None, None, None]
        delta, initial = prediction.internals["delta"], prediction.internals["initial"]
        refined, truth, known = initial + delta, depth[:, :p] / scale, mask[:, :p]
        components = {
            "depth": losses.depth_error(refined, truth, known),
            "delta_z": losses.improvement(refined, initial, truth, known),
            "point_3d": losses.point_error(refined, truth, known, batch.K[:, :p]),
            "multiview_consistency": self._consistency(prediction, batch),
            "smoothness": losses.smoothness(delta, batch.image[:, :p]),
            "correction_magnitude": losses.correction_magnitude(delta),
            "direct_supervision": losses.direct_supervision(delta, initial, truth, known),
            "surface_smoothness": losses.surface_smoothness(refined),
            "relative_magnitude": losses.relative_magnitude(delta, initial),
            "relative_depth": losses.relative_error(refined, truth, known),
        }
        if prediction.confidence is not None:
            components["confidence"] = losses.confidence_error(prediction.confidence, refined, truth, known)
        return components

    def _consistency(self, prediction: Prediction, batch: Batch) -> Tensor:
        p = prediction.depth.shape[1]
        others = _all_initial(batch)[:, p:]
        depths = torch.cat([prediction.depth, others], dim=1)
        if batch.cam0_T_cam is None:
            raise DataError("deltaz: multiview_consistency needs poses; this batch has none. Train on posed scenes.")
        views = depths.shape[1]
        return losses.multiview_consistency(
            depths,
            batch.K[:, :views],
            batch.cam0_T_cam[:, :views],
            prediction.internals["scale"],
            refined_views=p,
            occlusion_threshold=self.config.occlusion_threshold,
        )


def _leading(batch: Batch, views: int) -> Batch:
    """The first `views` views of every sample."""
    per_view = ("image", "K", "cam0_T_cam", "depth", "mask")
    values: dict[str, Any] = {name: getattr(batch, name) for name in per_view}
    return replace(batch, **{name: value[:, :views] for name, value in values.items() if value is not None})


def _all_initial(batch: Batch) -> Float[Tensor, "b p h w"]:
    if batch.initial_depth is None:
        raise DataError(
            "deltaz: the batch has no initial depth. Set systems.deltaz.initial to a method whose predictions exist, "
            "for instance plane_sweep, and run it first."
        )
    return batch.initial_depth


def _initial_depth(batch: Batch) -> Float[Tensor, "b p h w"]:
    return _all_initial(batch)[:, : batch.predict_views]
