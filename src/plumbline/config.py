"""params.yaml: one section at a time, into a frozen, typed config. A wrong key or value is an error that names the key."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from plumbline.data.sources import Source
from plumbline.errors import ConfigError

PARAMS = Path("params.yaml")
Model = TypeVar("Model", bound=BaseModel)
Size = tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]]


class _Loader(yaml.CSafeLoader):
    """YAML as DVC reads it: PyYAML follows YAML 1.1, in which 1e-4 and DVC's own 5e-05 are strings."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.?[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789"))


class Dumper(yaml.SafeDumper):
    """YAML that reads back as it was: PyYAML leaves the texts 0008 and 5e-05 bare, which `_Loader` and DVC take for numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: a list that stands in three places is written three times."""
        return True


def _as_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    node = dumper.represent_str(text)
    if _Loader("").resolve(yaml.ScalarNode, text, (True, False)) != node.tag:  # type: ignore[no-untyped-call]
        node.style = "'"
    return node


Dumper.add_representer(str, _as_text)


class Section(BaseModel):
    """Base of all configs: unknown keys are refused, values are frozen, lists become tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)


class DatasetConfig(Section):
    """A data set: where it comes from, how it is read, and what its canonical scenes look like."""

    format: Literal["dtu", "sun3d", "rgbd", "aerialmd", "re10k"] = Field(description="reader module")
    source: Source = Field(description="where the raw files come from")
    image_size: Size = Field(description="height and width of canonical images and depth, pixels")
    depth_range: tuple[float, float] = Field(description="nearest and farthest depth a method may look for, metres")
    split: Literal["mvsnet", "scannet", "folders", "seeded"] | dict[Literal["train", "val", "test"], list[str]] = Field(
        description="mvsnet, scannet: the published lists of DTU, ScanNet v2; folders: scenes named train/, val/, test/; seeded: "
        "90 % / 10 % of scenes; or lists of names"
    )
    options: dict[str, Any] = Field(default={}, description="options of the reader")
    resize: Literal["footprint", "bilinear"] = Field(
        default="footprint", description="bilinear: as DELTAS' published loader, only to repeat published numbers"
    )
    storage: Literal["raw", "jpeg", "png"] = "raw"
    quarantine: dict[str, str] = Field(default={}, description="scenes left out: name -> reason, shown in the report")

    @model_validator(mode="after")
    def _ordered(self) -> "DatasetConfig":
        if not 0 < self.depth_range[0] < self.depth_range[1]:
            raise ValueError(f"depth_range {self.depth_range}: expected 0 < nearest < farthest, in metres")
        return self


class ByPairs(Section):
    """Sources with the best scores of the data set's own pair list."""

    kind: Literal["pairs"]
    count: int = Field(ge=1)
    each: bool = Field(
        default=False, description="a sample of two for each of the sources, in place of one with all of them"
    )


class ByGap(Section):
    """Sources `gap` views before and after the reference."""

    kind: Literal["gap"]
    gap: int = Field(ge=1)


class BySequence(Section):
    """`length` frames `gap` apart around the reference, as DELTAS is evaluated: see `plumbline.data.samples`."""

    kind: Literal["sequence"]
    length: int = Field(ge=2, description="views of a sample, the reference included")
    gap: int = Field(ge=1, description="frames of the capture, those that are not read included")


class ByBaseline(Section):
    """The `count` sources nearest to `preferred` metres among those within the baseline and angle limits."""

    kind: Literal["baseline"]
    count: int = Field(ge=1)
    min_baseline: float = Field(default=0.1, gt=0, description="metres")
    max_baseline: float = Field(default=0.5, gt=0, description="metres")
    max_angle: float = Field(default=30.0, gt=0, le=180, description="degrees between the optical axes")


class ByIndex(Section):
    """The samples of a published list, with views to be rendered: `path` as in the data set's `options.samples`."""

    kind: Literal["index"]
    path: str


class ByTarget(Section):
    """Every view as one that is to be rendered from `count` others around it, which alone are given."""

    kind: Literal["target"]
    count: int = Field(default=2, ge=1, description="views that are given")
    gap: int | None = Field(
        default=None,
        ge=1,
        description="views from the rendered one to the given ones: as many before it as after it, gap, 2 gap and so on away; "
        "null: those that the data set's pair list scores best",
    )
    targets: int = Field(
        default=1, ge=1, description="views that are rendered: it, and those next to it in the film or in its pair list"
    )


class Gaps(Section):
    """Bounds of the gap between the outermost given views, at the first training step and from `warm_up` steps on.

    The defaults are RealEstate10K's; DL3DV's are (15, 20), (30, 50) and 10000.
    """

    shortest: tuple[int, int] = Field(default=(25, 45), description="frames, first and final")
    longest: tuple[int, int] = Field(default=(45, 135), description="frames, first and final")
    warm_up: int = Field(default=30_000, ge=0, description="steps until the final bounds hold")

    @model_validator(mode="after")
    def _ordered(self) -> "Gaps":
        if any(not 1 <= low <= high for low, high in zip(self.shortest, self.longest, strict=True)):
            raise ValueError(f"shortest {self.shortest}, longest {self.longest}: expected 1 <= shortest <= longest")
        return self

    def at(self, step: int) -> tuple[int, int]:
        """(shortest, longest) gap at a training step: linear in the step, cut to whole frames, constant after `warm_up`."""
        share = 1.0 if self.warm_up == 0 else min(step / self.warm_up, 1.0)
        low, high = (int(first + share * (last - first)) for first, last in (self.shortest, self.longest))
        return low, high


class ByClip(Section):
    """Views of a film, drawn anew for each training step: see `plumbline.data.view_sampling`. As a test, those of step 0."""

    kind: Literal["clip"]
    context: int = Field(default=2, ge=2, description="views that are given: two by their gap, more far apart")
    targets: int = Field(default=4, ge=1, description="views to be rendered, from among and between them")
    gaps: Gaps = Gaps()
    count: int = Field(default=1, ge=1, description="samples a scene gives in an epoch")
    seed: int = 0


class SuiteConfig(Section):
    """A list of samples: which scenes, which sources each reference view gets, and where its truth counts."""

    dataset: str
    split: Literal["train", "val", "test", "all"] = "test"
    sources: Annotated[
        ByPairs | ByGap | BySequence | ByBaseline | ByIndex | ByTarget | ByClip, Field(discriminator="kind")
    ]
    max_samples: int | None = Field(default=None, ge=1, description="evenly spread over all candidates")
    predict_views: int = Field(default=1, ge=1, description="leading views of a sample that methods predict")
    depth_min: float = Field(default=0.0, ge=0, description="truth below counts as not measured, metres")
    depth_max: float = Field(default=float("inf"), gt=0, description="truth above counts as not measured, metres")
    methods: tuple[str, ...] | None = Field(default=None, min_length=1, description="which methods answer; null: all")

    @property
    def is_test(self) -> bool:
        """Whether results are made of it, and not only something learnt from it."""
        return self.split in ("test", "all")

    def asks(self, method: str) -> bool:
        """Whether `method` is to answer."""
        return self.methods is None or method in self.methods


class PredictionConfig(Section):
    """How methods are run over the suites."""

    batch_size: int = Field(default=4, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"


class LpipsFiles(Section):
    """The weights that LPIPS takes, which do not come with this project."""

    trunk: str = Field(min_length=1, description="torchvision's VGG-16, vgg16-397923af.pth")
    heads: str = Field(min_length=1, description="vgg.pth of the lpips package")


class EvaluationConfig(Section):
    """How scores are made of predictions."""

    common: str = Field(
        default="plane_sweep", description="method whose covered pixels are the common region of all rows"
    )

    average: Literal["scenes", "batch_means"] = Field(
        default="scenes",
        description="scenes: mean over a scene's samples, then over scenes; batch_means: as DELTAS' test script averages",
    )
    batch_size: int = Field(default=16, ge=1, description="samples a batch for batch_means")
    bootstrap: int = Field(default=1000, ge=10, description="resamples of the scenes for the 95 % interval")
    seed: int = 0
    lpips: LpipsFiles | None = Field(
        default=None, description="weights to measure LPIPS of rendered views; null: it is left out"
    )


class ReportConfig(Section):
    """What the report shows."""

    title: str = "Plumbline report"
    systems: tuple[str, ...] = Field(
        default=("deltaz",), description="systems that are held against the baselines and whose samples are pictured"
    )


class TrackingConfig(Section):
    """Where runs are recorded; MLFLOW_TRACKING_URI overrides the default data base."""

    enabled: bool = True
    experiment: str = "plumbline"
    tensorboard: bool = False


def load_params(path: Path = PARAMS) -> dict[str, Any]:
    """The whole of params.yaml; ConfigError when it is absent or not YAML."""
    try:
        params = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a SafeLoader
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file. Run from the project's root, where params.yaml is.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(params, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(params).__name__}.")
    return params


def parse_value(text: str) -> Any:
    """One value written as in params.yaml, such as `1e-4`, `[1, 2]` or `true`."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader


def value(params: Mapping[str, Any], key: str) -> Any:
    """The value at the dotted `key`; ConfigError that suggests the nearest name when it is absent."""
    node: Any = params
    for i, part in enumerate(key.split(".")):
        if not isinstance(node, Mapping) or part not in node:
            names = [str(name) for name in node] if isinstance(node, Mapping) else []
            near = difflib.get_close_matches(part, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" There is: {', '.join(names) or 'nothing'}."
            where = ".".join(key.split(".")[:i]) or "params.yaml"
            raise ConfigError(f"params.yaml: no key {key!r}: {part!r} is not in {where}.{hint}")
        node = node[part]
    return node


def section(params: Mapping[str, Any], key: str, model: type[Model]) -> Model:
    """The section at the dotted `key` as a `model`; ConfigError naming every key that does not fit."""
    return parse(value(params, key) or {}, model, where=key)


def sections(params: Mapping[str, Any], key: str, model: type[Model]) -> dict[str, Model]:
    """Every entry of the section at `key` (datasets, suites) as a `model`, by name."""
    return {name: section(params, f"{key}.{name}", model) for name in value(params, key)}


def parse(values: Any, model: type[Model], *, where: str) -> Model:
    """`values` as a `model`; ConfigError naming each offending key below `where`, with what was expected."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_complaint(item, model, where) for item in error.errors()]
        raise ConfigError("params.yaml: " + "\n             ".join(lines)) from error


def _complaint(item: Any, model: type[BaseModel], where: str) -> str:
    key = ".".join([where, *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), list(model.model_fields), n=1)
        return f"{key}: unknown key." + (f" Did you mean {near[0]!r}?" if near else "")
    if item["type"] == "missing":
        return f"{key}: missing."
    return f"{key}: {item['msg']} (found {item['input']!r})."
