"""What VGGT is made of: sizes of its aggregator and heads, what is frozen, and what its loss weighs.

| preset | parameters | sizes |
|---|---|---|
| `full` | 1.19 G | the published 1B network without its track head: released weights fit entry by entry |
| `tiny` | 2.9 M | a convolution embeds 8x8 patches, six narrow rounds: trains on two CPU cores at 112x112 |
| `reference` | 1.5 M | the published layers at a size for tests against reference vectors, images of 56x56 |
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plumbline.systems.augment import AugmentConfig

Width = Annotated[int, Field(ge=4, le=8192, multiple_of=4)]
Layer = Annotated[int, Field(ge=0, le=255)]
TINY: dict[str, Any] = {
    "image_size": 128,
    "patch": 8,
    "width": 96,
    "embedder": "conv",
    "rounds": 6,
    "heads": 4,
    "layer_scale": 0.1,
    "camera_blocks": 2,
    "camera_heads": 4,
    "point": False,
    "dpt_features": 48,
    "dpt_widths": (32, 48, 64, 64),
    "dpt_layers": (0, 2, 4, 5),
}
REFERENCE: dict[str, Any] = {
    "image_size": 56,
    "width": 64,
    "embedder_blocks": 2,
    "embedder_heads": 4,
    "rounds": 4,
    "heads": 4,
    "camera_blocks": 2,
    "camera_heads": 4,
    "dpt_features": 32,
    "dpt_widths": (16, 32, 64, 64),
    "dpt_layers": (0, 1, 2, 3),
}
PRESETS: dict[str, dict[str, Any]] = {"full": {}, "tiny": TINY, "reference": REFERENCE}


class LossConfig(BaseModel):
    """The training loss; the defaults are those of the released training configuration, whose point loss is off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    camera: float = Field(default=5.0, ge=0, description="weight of the camera loss")
    translation: float = Field(default=1.0, ge=0, description="within the camera loss")
    rotation: float = Field(default=1.0, ge=0, description="within the camera loss")
    focal: float = Field(default=0.5, ge=0, description="within the camera loss, of the fields of view")
    camera_norm: Literal["l1", "l2"] = "l1"
    stage_decay: float = Field(default=0.6, gt=0, le=1, description="an iteration weighs this times the next one")
    depth: float = Field(default=1.0, ge=0, description="weight of all terms of the depth loss")
    point: float = Field(default=0.0, ge=0, description="weight of all terms of the point loss")
    certainty: float = Field(default=0.2, ge=0, description="alpha: what a confident pixel gains, alpha ln c")
    quantile: float = Field(default=0.98, ge=0, le=1, description="larger errors are left out; 0 keeps them all")
    depth_gradient: Literal["none", "plain", "confident"] = "plain"
    point_gradient: Literal["none", "plain", "confident", "normal"] = "normal"


class Config(BaseModel):
    """VGGT's configuration. `preset` fills what PRESETS lists for it; a value given beside it wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["full", "tiny", "reference"] = "full"

    image_size: int = Field(default=518, ge=4, le=8192, description="pixels; where no position has to be interpolated")
    patch: int = Field(default=14, ge=2, le=64, description="side of a patch, pixels")
    width: Width = Field(default=1024, description="channels of a token")
    mlp_ratio: int = Field(default=4, ge=1, le=16, description="hidden over outer width of every block's MLP")
    embedder: Literal["vit", "conv"] = Field(default="vit", description="what makes tokens of patches")
    embedder_blocks: int = Field(default=24, ge=1, le=256)
    embedder_heads: int = Field(default=16, ge=1, le=256)
    registers: int = Field(default=4, ge=0, le=64, description="extra tokens a frame, and an image of the embedder")
    rounds: int = Field(default=24, ge=1, le=256, description="of a frame block and a global block each")
    heads: int = Field(default=16, ge=1, le=256)
    rope_base: float = Field(default=100.0, gt=1)
    layer_scale: float = Field(default=0.01, gt=0, le=1, description="first strength of a branch, but in the embedder")

    camera: bool = Field(default=True, description="false: no camera head")
    camera_blocks: int = Field(default=4, ge=1, le=64)
    camera_heads: int = Field(default=16, ge=1, le=256)
    camera_iterations: int = Field(default=4, ge=1, le=32)
    first_fov: float = Field(
        default=0.3, ge=0, le=1, description="radians an untrained head adds to the fields of view an iteration"
    )
    point: bool = Field(default=True, description="false: no point head")
    dpt_features: int = Field(default=256, ge=8, le=4096, multiple_of=8)
    dpt_widths: tuple[Width, Width, Width, Width] = Field(default=(256, 512, 1024, 1024), description="fine to coarse")
    dpt_layers: tuple[Layer, Layer, Layer, Layer] = Field(default=(4, 11, 17, 23), description="rounds that are read")
    dpt_chunk: int = Field(default=8, ge=1, le=4096, description="frames a dense head sees at once; changes no value")

    metric_from: Literal["nothing", "poses"] = Field(
        default="nothing", description="poses: bring predictions to metres by the given distances between cameras"
    )
    bf16: bool = Field(
        default=True,
        description="predict on a GPU with the aggregator in bfloat16; training has a precision of its own",
    )
    checkpointing: bool = Field(default=False, description="recompute activations backwards: less memory, more time")
    frozen: tuple[str, ...] | None = Field(
        default=None,
        description="patterns of module names that are not trained; null: none, but *aggregator* in a training that starts "
        "from given weights (train.vggt.init_from); []: none, then as well",
    )
    loss: LossConfig = LossConfig()
    # A crop off the centre moves the principal point, which an encoding by fields of view cannot say: no zoom.
    augment: AugmentConfig = AugmentConfig(degrade=0.0, zoom=0.0)

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(values.get("preset", "full"), {}), **values}

    @model_validator(mode="after")
    def _check(self) -> "Config":
        for name, width, heads in (
            ("heads", self.width, self.heads),
            ("embedder_heads", self.width, self.embedder_heads if self.embedder == "vit" else 1),
            ("camera_heads", 2 * self.width, self.camera_heads),
        ):
            if width % heads:
                raise ValueError(f"{name}: {heads} heads cannot share {width} channels; expected a divisor")
        if self.width // self.heads % 4:
            raise ValueError(f"heads: {self.width // self.heads} channels a head; expected a multiple of 4")
        if max(self.dpt_layers) >= self.rounds:
            raise ValueError(f"dpt_layers {list(self.dpt_layers)}: expected indices below rounds = {self.rounds}")
        if self.loss.point > 0 and not self.point:
            raise ValueError("loss.point is above 0 without a point head: set point to true, or loss.point to 0")
        return self

    @property
    def kept_rounds(self) -> tuple[int, ...]:
        """The rounds whose tokens a head reads, ascending; the last one is always among them."""
        return tuple(sorted({*self.dpt_layers, self.rounds - 1}))
