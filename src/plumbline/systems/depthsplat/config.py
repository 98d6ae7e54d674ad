"""What DepthSplat is made of: sizes of its nets, how depth is swept, and which habits of the released weights it keeps.

| preset | parameters | sizes |
|---|---|---|
| `small` | 38.3 M | ViT-S, one scale: the published small model for 256x256; with `stride: 8` (38.4 M) that for 448x768 |
| `base` | 120.7 M | ViT-B, two scales: the published base model for 256x256; with `stride: 8` (120.9 M) those for larger images |
| `large` | 354.3 M | ViT-L, two scales: the published large model for 256x256 |
| `tiny` | 0.9 M | far narrower, a ViT of four blocks on 8x8 patches, costs that vote: learns on a CPU core in minutes |

`gaussians: false` leaves out what makes Gaussians of depth: the released depth-only models are `small` and `base` with
`stride: 8` and without Gaussians. Height and width of images must be multiples of four times the stride.

What `official_quirks` keeps, since released weights were trained with it, and what is done instead without:

| where | official | geometrically right |
|---|---|---|
| `transformer.across_views` | of three views or more, a shifted window's mask meets other pixels' keys | its own pixels' |
| `cost_volume.cost_volume` | neighbours are projected into with the reference's K, points behind them too | own K; they are not |
| `views.Views.feature_K` | half an image pixel between corner and centre is left in | taken off |
| `predictor.upsample` | swept depth is enlarged corner on corner, and drifts right and down | stays where it was swept |
| `gaussians.true_turn` | colours turn the wrong way about the camera's x and z axes | turn with the camera |
| `system.System.render` | principal point taken to be in the middle; official compositing | honoured; gsplat's rules |
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plumbline.systems.augment import AugmentConfig

Width = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]
Block = Annotated[int, Field(ge=0, le=255)]
Four = tuple[Width, Width, Width, Width]
Name = Literal["small", "base", "large", "tiny"]
Term = Literal["ssim", "depth", "depth_gradient", "likelihood", "smoothness"]

BASE: dict[str, Any] = {
    "scales": 2,
    "vit_width": 768,
    "vit_heads": 12,
    "dpt_widths": (96, 192, 384, 768),
    "depth_features": 48,
    "gaussian_features": 96,
}
LARGE: dict[str, Any] = {
    "scales": 2,
    "vit_width": 1024,
    "vit_blocks": 24,
    "vit_heads": 16,
    "vit_taps": (4, 11, 17, 23),
    "dpt_widths": (128, 256, 512, 1024),
    "depth_features": 64,
    "gaussian_features": 128,
}
TINY: dict[str, Any] = {
    "official_quirks": False,
    "candidates": 32,
    "cost_shortcut": True,
    "backbone_widths": (16, 24, 32),
    "layers": 2,
    "ffn_ratio": 2,
    "vit_width": 48,
    "vit_blocks": 4,
    "vit_heads": 3,
    "vit_taps": (0, 1, 2, 3),
    "vit_patch": 8,
    "vit_grid": 10,
    "dpt_widths": (16, 24, 32, 48),
    "depth_features": 16,
    "gaussian_features": 16,
    "regressor_width": 32,
    "attention_head": 16,
    "gaussian_width": 24,
    "scale_unit": "pixel",
    "scale_shift": -2.8,
    "scale_range": (0.05, 16.0),
    "opacity_shift": -0.3,
    "background": "surroundings",
}
PRESETS: dict[str, dict[str, Any]] = {"small": {}, "base": BASE, "large": LARGE, "tiny": TINY}


class LossConfig(BaseModel):
    """What the training loss weighs: the published image terms, and ours, which are off unless `optional` names them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: float = Field(default=1.0, ge=0, description="weight of the difference to what was seen")
    norm: Literal["mse", "l1"] = "mse"
    lpips: float = Field(
        default=0.05, ge=0, description="weight of LPIPS; without lpips_trunk and lpips_heads it is left out"
    )
    optional: tuple[Term, ...] = Field(default=(), description="further terms")
    ssim: float = Field(default=0.2, ge=0)
    depth: float = Field(default=0.1, ge=0, description="L1 of inverse depth, times the nearest depth of the range")
    depth_gradient: float = Field(default=0.1, ge=0, description="of its steps between neighbours, in the same unit")
    likelihood: float = Field(default=0.1, ge=0, description="of the true depth among the coarsest scale's candidates")
    smoothness: float = Field(default=0.01, ge=0, description="edge-aware, of inverse depth")
    intermediate: float = Field(default=0.9, gt=0, le=1, description="a prediction weighs this times the next one")
    foreground: bool = Field(default=False, description="only pixels inside the batch's mask count, in every term")


class Config(BaseModel):
    """DepthSplat's configuration. `preset` fills what PRESETS lists for it; a value given beside it wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Name = "small"
    official_quirks: bool = Field(
        default=True,
        description="keep what the released weights were trained with, though geometry says otherwise: see the table above",
    )

    stride: Literal[4, 8] = Field(default=4, description="pixels from one of the coarsest features to the next")
    scales: Literal[1, 2] = Field(default=1, description="cost volumes, each twice as fine as the one before")
    candidates: int = Field(default=128, ge=8, le=1024, multiple_of=4, description="depths tried at the coarsest scale")
    cost_shortcut: bool = Field(
        default=False,
        description="ours: how well a candidate agrees is added to its logit, and all else starts at 0, so that depth comes of "
        "matching from the first step on; no published model has it",
    )
    window: int | None = Field(
        default=None,
        ge=0,
        description="ours: the expected depth is that of the likeliest candidate and so many on either side of it, so that "
        "between two surfaces it is one of them; null: of all candidates, as published",
    )
    enlarging: Literal["residual", "guided"] = Field(
        default="residual",
        description="of swept depth to the image's size: residual is bilinear with a correction, as published; guided (ours) "
        "weighs the nine swept depths around each pixel, at first by place and colour, so that edges stay edges",
    )
    backbone_widths: tuple[Width, Width, Width] = Field(default=(64, 96, 128), description="of the CNN's three stages")
    layers: int = Field(default=6, ge=1, le=64, description="of the multi-view transformer")
    ffn_ratio: int = Field(default=4, ge=1, le=16, description="its MLP's hidden width over its input's")
    windows: Literal[1, 2, 4] = Field(default=2, description="attention windows along each side")
    matched_views: int = Field(default=2, ge=1, le=64, description="nearest other views that a view is matched with")

    vit_width: Width = 384
    vit_blocks: int = Field(default=12, ge=1, le=256)
    vit_heads: int = Field(default=6, ge=1, le=256)
    vit_taps: tuple[Block, Block, Block, Block] = Field(default=(2, 5, 8, 11), description="blocks that are read")
    vit_patch: int = Field(default=14, ge=2, le=64, description="side of a patch, pixels")
    vit_grid: int = Field(default=37, ge=1, le=256, description="patches along a side that have learnt positions")

    dpt_widths: Four = Field(default=(48, 96, 192, 384), description="fine to coarse")
    depth_features: Width = Field(default=32, description="width of the fusion that refines depth")
    gaussian_features: Width = Field(default=64, description="width of the fusion that feeds the Gaussians")
    regressor_width: Width = Field(
        default=128, description="of the U-Net at the coarsest scale; half of it at the next"
    )
    attention_head: Width = Field(default=32, description="channels of a head in the U-Net")

    gaussians: bool = Field(default=True, description="false: depth alone, as the released depth models")
    gaussian_width: Width = 64
    sh_degree: Literal[0, 1, 2] = Field(default=2, description="of the Gaussians' colours")
    scale_unit: Literal["world", "pixel"] = Field(
        default="world", description="of the Gaussians' standard deviations; pixel: times depth over focal length"
    )
    scale_shift: float = Field(default=-4.0, ge=-20, le=20, description="a scale is softplus(raw + this)")
    scale_range: tuple[float, float] = Field(default=(1e-10, 3.0), description="smallest and largest, in `scale_unit`s")

    opacity_shift: float = Field(default=0.0, ge=-20, le=20, description="an opacity is sigmoid(raw + this)")

    background: Literal["black", "surroundings"] = Field(
        default="black",
        description="what shows where Gaussians leave a gap; surroundings (ours): the picture's own colours beside it, so "
        "that small faint Gaussians, which blur least and hide nothing, need not cover every pixel",
    )

    block_elements: int = Field(
        default=2**27, ge=2**16, description="warped features held at once by the cost volume; changes no value"
    )
    checkpointing: bool = Field(default=False, description="recompute activations backwards: less memory, more time")

    backend: Literal["auto", "dense", "torch", "compiled", "gsplat"] = Field(
        default="auto", description="rasteriser; see plumbline.rendering.render"
    )
    loss: LossConfig = LossConfig()
    lpips_trunk: Path | None = Field(default=None, description="file of VGG-16's weights")
    lpips_heads: Path | None = Field(default=None, description="file of LPIPS' heads for VGG-16")
    # Colours must agree between views and with what is to be rendered: as published, only mirrors.
    augment: AugmentConfig = AugmentConfig(
        zoom=0.0, brightness=0.0, contrast=0.0, gamma=0.0, colour=0.0, image_noise=0.0, degrade=0.0
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(values.get("preset", "small"), {}), **values}

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.vit_width % self.vit_heads:
            raise ValueError(f"vit_heads: {self.vit_heads} heads cannot share {self.vit_width} channels")
        for scale in range(self.scales):
            if self.regressor_width // 2**scale % max(8, self.attention_head):
                raise ValueError(
                    f"regressor_width {self.regressor_width}: at scale {scale} it is "
                    f"{self.regressor_width // 2**scale}, which is no multiple of 8 and of attention_head {self.attention_head}"
                )
        if list(self.vit_taps) != sorted(set(self.vit_taps)) or self.vit_taps[-1] != self.vit_blocks - 1:
            raise ValueError(
                f"vit_taps {list(self.vit_taps)}: expected ascending indices, the last one {self.vit_blocks - 1}"
            )
        if not 0 < self.scale_range[0] < self.scale_range[1]:
            raise ValueError(f"scale_range {self.scale_range}: expected 0 < smallest < largest")
        return self

    @property
    def width(self) -> int:
        """Channels of the matched features at the coarsest scale."""
        return self.backbone_widths[-1]

    @property
    def upsampling(self) -> int:
        """Pixels from one of the finest swept depths to the next."""
        return self.stride // 2 ** (self.scales - 1)

    @property
    def enlarged_by(self) -> int:
        """Channels of the head that brings swept depth to the image's size."""
        return 1 if self.enlarging == "residual" else 9

    @property
    def multiple(self) -> int:
        """What height and width of an image must be multiples of."""
        return 4 * self.stride

    @property
    def harmonics(self) -> int:
        """Spherical-harmonics coefficients a colour has."""
        return int((self.sh_degree + 1) ** 2)

    def swept(self, scale: int) -> int:
        """Candidates of a scale."""
        return int(self.candidates // 4**scale)
