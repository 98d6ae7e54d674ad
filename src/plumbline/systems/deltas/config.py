"""What DELTAS is made of: sizes of its three nets, how keypoints are chosen and searched, and what its loss weighs.

| preset | parameters | sizes |
|---|---|---|
| `full` | 124.6 M | the published network: its released weights fit entry by entry |
| `tiny` | 1.3 M | the same layers, narrower and fewer: trains on two CPU cores at 128x160 |

Memory beyond Python and torch themselves (0.26 GB), three views a sample, float32, forward and backward:

| preset | measured on a CPU, batch 1 | each further sample | recomputing activations |
|---|---|---|---|
| `full`, 240x320 | 2.0 GB, of which weights and gradients 1.0 | 0.65 GB | 0.35 GB |
| `tiny`, 128x160 | 0.10 GB | 0.06 GB | |

So batch 24 of `full` with Adam, as published, should take about 18 GB on a GPU in float32, 11 GB with `checkpointing`, and
about half of the activations' part in bfloat16: an estimate from the CPU's figures, not a measurement.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plumbline.systems.augment import AugmentConfig
from plumbline.systems.deltas.targets import DepthResize

Width = Annotated[int, Field(ge=1, le=4096)]
Stages = tuple[Width, Width, Width, Width]
TINY: dict[str, Any] = {
    "encoder_stem": 16,
    "encoder_widths": (16, 24, 32, 48),
    "encoder_blocks": (1, 2, 2, 1),
    "expansion": 2,
    "detector_widths": (32, 32),
    "descriptor_widths": (48, 64, 64),
    "descriptor_channels": 32,
    "descriptor_cell": 4,
    "depth_stem": 8,
    "depth_widths": (8, 12, 16, 24),
    "depth_blocks": (1, 1, 1, 1),
    "decoder_widths": (64, 48, 32, 16, 8),
    "aspp_width": 24,
    "aspp_dilations": (2, 4, 6),
    "keypoints": 512,
    "nms_radius": 4,
    "spread": True,
    "relative_depth_loss": True,
    "smooth_l1_beta": 0.05,
    "samples": 32,
    "match_gain": 16.0,
    "unit": "range",
}
PRESETS: dict[str, dict[str, Any]] = {"full": {}, "tiny": TINY}


class LossWeights(BaseModel):
    """Weight of each loss component; the defaults are those of a public trainer that cites the paper (0.7 per scale)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keypoint: float = Field(default=0.1, ge=0, description="detector against keypoint labels")
    match_2d: float = Field(default=1.0, ge=0, description="matches against true reprojections")
    match_likelihood: float = Field(default=0.0, ge=0, description="of the true reprojection; ours, not the paper's")
    point_3d: float = Field(default=2.0, ge=0, description="triangulated against true points")
    smoothness: float = Field(default=1.0, ge=0, description="edge-aware, of the dense depth")
    depth_full: float = Field(default=2.0, ge=0)
    depth_half: float = Field(default=1.4, ge=0)
    depth_quarter: float = Field(default=0.98, ge=0)
    depth_eighth: float = Field(default=0.686, ge=0)


class Config(BaseModel):
    """DELTAS' configuration. `preset` fills what PRESETS lists for it; a value given beside it wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["full", "tiny"] = "full"

    encoder_stem: Width = Field(default=64, description="channels of the image encoder's first layer")
    encoder_widths: Stages = Field(default=(64, 128, 256, 512), description="inner widths of its four stages")
    encoder_blocks: Stages = Field(default=(3, 4, 6, 3), description="bottleneck blocks of each stage")
    expansion: int = Field(default=4, ge=1, le=8, description="a block's outer width over its inner one, both encoders")
    detector_widths: tuple[Width, Width] = Field(default=(256, 128), description="hidden layers of the detector")
    descriptor_widths: tuple[Width, Width, Width] = Field(default=(128, 256, 256), description="of the descriptor head")
    descriptor_channels: Width = Field(default=128, description="length of a descriptor")
    descriptor_cell: Literal[8, 4] = Field(default=8, description="pixels from one descriptor to the next")
    depth_stem: Width = Field(default=16, description="channels of the depth encoder's first layer")
    depth_widths: Stages = Field(default=(16, 32, 64, 128), description="inner widths of its four stages")
    depth_blocks: Stages = Field(default=(3, 4, 6, 3), description="bottleneck blocks of each stage")
    decoder_widths: tuple[Width, Width, Width, Width, Width] = Field(
        default=(512, 256, 128, 64, 32), description="outputs of the up-projections, coarse to fine"
    )
    aspp_width: Width = Field(default=128, description="channels that each dilated layer adds")
    aspp_dilations: tuple[Width, ...] = Field(default=(3, 6, 12, 18, 24), min_length=1, description="pixels at 1/8")

    keypoints: int = Field(default=512, ge=2, le=65536, description="points triangulated in the anchor")
    detected_share: float = Field(
        default=0.5, ge=0, le=1, description="at most this share is detected, the rest random"
    )
    detection_threshold: float = Field(
        default=0.0005, ge=0, lt=1, description="probability below which none is detected"
    )
    nms_radius: int = Field(default=9, ge=0, le=64, description="pixels around a keypoint without another one")
    border: int = Field(default=4, ge=0, le=64, description="pixels at the image's edge without detections")

    samples: int = Field(default=100, ge=2, le=1024, description="candidates along a search segment")
    fixed_search_range: tuple[float, float] | None = Field(
        default=None, description="metres; the published code used [0.5, 10] whatever the data; null: the depth range"
    )
    match_gain: float = Field(default=1.0, gt=0, le=100, description="first weight of the correlations' norm")
    spread: bool = Field(
        default=False,
        description="spread the sparse depth over the image: it is encoded, and answers are multiples of it",
    )
    sparse_depth: bool = Field(default=True, description="false: densify an empty sparse depth image (ablation)")
    matching_confidence: bool = Field(default=True, description="false: all views weigh the same (ablation)")

    unit: Literal["metre", "range"] = Field(
        default="metre", description="of the densifying net: metres, or the geometric middle of the depth range"
    )
    first_depth: float = Field(default=2.2, gt=0, le=1000, description="what an untrained net answers, metres")
    checkpointing: bool = Field(default=False, description="recompute activations backwards: less memory, more time")

    weights: LossWeights = LossWeights()
    relative_depth_loss: bool = Field(default=False, description="depth errors count relative to the true depth")
    smooth_l1_beta: float = Field(
        default=1.0, gt=0, le=10, description="errors below it, in `unit`s, count quadratically: depths and points"
    )
    depth_resize: DepthResize = Field(
        default="valid_mean", description="how true depth is made smaller; bilinear, the authors' way, mixes in holes"
    )
    augment: AugmentConfig = AugmentConfig(degrade=0.0)

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(values.get("preset", "full"), {}), **values}

    @model_validator(mode="after")
    def _check_range(self) -> "Config":
        if self.fixed_search_range is not None and not 0 < self.fixed_search_range[0] < self.fixed_search_range[1]:
            raise ValueError(
                f"fixed_search_range {self.fixed_search_range}: expected 0 < nearest < farthest, in metres"
            )
        return self

    @property
    def detected(self) -> int:
        """The largest number of keypoints that are detected rather than random."""
        return int(self.detected_share * self.keypoints)
