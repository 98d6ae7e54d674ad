"""What a check is told and what it finds."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["ok", "wrong", "cannot tell"]


class CheckConfig(BaseModel):
    """The `checks` section of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    min_baseline: float = Field(default=0.05, gt=0, description="metres between two cameras from which they are a pair")
    min_angle: float = Field(default=2.0, gt=0, le=90, description="degrees that do instead of the baseline")
    max_angle: float = Field(default=30.0, gt=0, le=180, description="degrees beyond which views share too little")
    anchors: int = Field(default=8, ge=1, description="views a scene from which pairs start")
    reread_pairs: int = Field(
        default=4, ge=1, description="pairs read again from raw files with the reader's alternatives"
    )
    samples: int = Field(default=800, ge=100, description="pixels a pair and direction")
    min_overlap: float = Field(default=0.1, gt=0, lt=1, description="share of measured pixels both views must see")
    tolerance: float = Field(default=0.05, gt=0, lt=1, description="relative depth error of an inlier")
    remark_error: float = Field(default=0.03, gt=0, description="median relative error from which a remark is made")
    max_error: float = Field(default=0.1, gt=0, description="median relative error above which a scene is wrong")
    ratio: float = Field(default=2.0, gt=1, description="how many times better another reading must be to be believed")
    null_ratio: float = Field(
        default=1.5, gt=1, description="how much worse unmoved cameras must be, or nothing is shown"
    )
    min_photometric: float = Field(
        default=0.1, ge=0, lt=1, description="texture correlation below which images do not follow"
    )
    sheet_views: int = Field(default=6, ge=2, le=12, description="views on a contact sheet")
    max_points: int = Field(default=60_000, ge=1000, description="points of the fused cloud (PLY)")


class Found(BaseModel):
    """A measured reading. Errors and ratios are fractions; `error` and `photometric` are null when nothing overlaps.

    `reference` is the error as read on the same pairs, where those are fewer (readings from raw files that show no gain on
    a few pairs are measured on no more); `note` says why a reading could not be measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    error: float | None
    inliers: float = 0.0
    overlap: float = 0.0
    photometric: float | None = None
    pairs: int = 0
    reference: float | None = None
    note: str | None = None


class DepthSummary(BaseModel):
    """Measured depth in metres over the views looked at: percentiles, coverage and the share inside the data set's range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nearest: float
    median: float
    farthest: float
    coverage: float
    in_range: float


class SceneCheck(BaseModel):
    """The verdict on a scene with all that it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    scene: str
    views: int
    verdict: Verdict
    diagnosis: str
    remarks: tuple[str, ...] = ()
    as_read: Found | None = None
    others: tuple[Found, ...] = ()
    nulls: tuple[Found, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    baseline: float | None = Field(default=None, description="median over the pairs, metres")
    angle: float | None = Field(default=None, description="median over the pairs, degrees")
    depth: DepthSummary | None = None


class DatasetCheck(BaseModel):
    """The checks of all scenes of a data set, in order of their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    scenes: tuple[SceneCheck, ...]

    @property
    def wrong(self) -> tuple[SceneCheck, ...]:
        """The scenes whose geometry is not true as read."""
        return tuple(scene for scene in self.scenes if scene.verdict == "wrong")
