"""Classical multi-view stereo: a plane sweep with semi-global aggregation. No training, no learnt weights.

Collins 1996 (sweep), Hirschmueller 2008 (aggregation).
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, field_validator
from torch import Tensor, nn

from plumbline import geometry
from plumbline.errors import DataError
from plumbline.systems.plane_sweep import aggregate, costs
from plumbline.systems.records import Batch, Prediction


class Config(BaseModel, frozen=True, extra="forbid"):
    """Parameters of the sweep; the defaults hold for all data sets."""

    planes: int = Field(64, ge=4, le=1024, description="planes of constant depth, even in inverse depth")
    cost: costs.Cost = Field("ncc", description="window comparison: ncc or census")
    window: int = Field(5, ge=3, le=31, description="side of the comparison window, pixels, odd")
    contrast_floor: float = Field(0.008, gt=0, le=1, description="grey-level spread below which a window says nothing")
    aggregation: costs.Aggregation = Field("mean", description="over the sources that see a point: mean or best_half")
    paths: Literal[4, 8] = Field(8, description="directions of semi-global aggregation")
    small_penalty: float = Field(0.15, ge=0, description="cost of a step by one plane")
    large_penalty: float = Field(3.0, ge=0, description="cost of a jump where the image is uniform")
    edge_sharpness: float = Field(10.0, ge=0, description="decay of that cost per unit of colour difference")
    temperature: float = Field(0.2, gt=0, description="aggregated cost that changes a plane's probability by e")
    estimate: Literal["median", "minimum"] = Field("median", description="median of the posterior, or cheapest plane")
    tolerance: float = Field(0.05, gt=0, lt=1, description="confidence: probability of a relative error below this")

    @field_validator("window")
    @classmethod
    def _odd(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError(f"window must be odd, so that it has a centre; got {window}")
        return window


class System(nn.Module):
    """Depth of the first `predict_views` views, each swept against all other views of its sample.

    Dense: every pixel has a depth within the depth range; confidence in [0, 1] says where it is a guess.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"image", "K", "cam0_T_cam", "depth_range"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, batch: Batch) -> Prediction:
        """Depth and confidence, (b, p, h, w). DataError when there are no poses, no range or no second view."""
        check_inputs(batch)
        views = [self._view(batch, index) for index in range(batch.predict_views)]
        depth, confidence = (torch.stack(maps, dim=1) for maps in zip(*views, strict=True))
        return Prediction(depth=depth, confidence=confidence)

    def _view(self, batch: Batch, index: int) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
        config, planes = self.config, costs.inverse_depth_planes(_present(batch.depth_range), self.config.planes)
        cost = sweep_view(batch, index, planes, config)
        cost = aggregate.semi_global(
            cost,
            batch.image[:, index],
            paths=config.paths,
            small_penalty=config.small_penalty,
            large_penalty=config.large_penalty,
            edge_sharpness=config.edge_sharpness,
        )
        probability = aggregate.posterior(cost, config.temperature)
        if config.estimate == "median":
            depth = aggregate.median_depth(probability, planes)
        else:
            depth = aggregate.least_cost_depth(cost, planes)
        return depth, aggregate.mass_near(probability, planes, depth, config.tolerance)


def sweep_view(batch: Batch, index: int, planes: Float[Tensor, "b d"], config: Config) -> Float[Tensor, "b d h w"]:
    """Cost volume of view `index` against all other views of its sample."""
    others = [i for i in range(batch.image.shape[1]) if i != index]
    cam0_T_cam = _present(batch.cam0_T_cam)
    src_T_ref = geometry.invert(cam0_T_cam[:, others]) @ cam0_T_cam[:, index, None]
    grey = costs.luminance(batch.image)
    return costs.sweep(
        grey[:, index],
        grey[:, others],
        geometry.compose(batch.K[:, index, None], batch.K[:, others], src_T_ref),
        planes,
        cost=config.cost,
        radius=config.window // 2,
        contrast_floor=config.contrast_floor,
        aggregation=config.aggregation,
    )


def check_inputs(batch: Batch) -> None:
    """DataError when `batch` lacks what a sweep needs."""
    views = batch.image.shape[1]
    if batch.cam0_T_cam is None or batch.depth_range is None:
        raise DataError("plane_sweep: needs poses and a depth range for every sample; use scenes that have both.")
    if views < 2:
        raise DataError("plane_sweep: needs at least two views a sample, got 1. Give the suite one or more sources.")
    if batch.predict_views > views:
        raise DataError(f"plane_sweep: predict_views is {batch.predict_views}, but samples have {views} views.")


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise DataError("plane_sweep: the batch has no poses or no depth range.")
    return tensor
