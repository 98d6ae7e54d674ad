"""One sample of a parsed data set as a data set of its own: data/pair/<system>, what a system is overfitted on.

Below `sample/` lie one canonical scene, with the views of the sample alone in the sample's order (the reference first), and
`sample.json`, which says what each view is for and where it comes from. `other/` holds, in the same form, a sample that shows
something else, of another scene where there is one: a system that looks at its input must not answer the same there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float16, Float32
from pydantic import Field, PositiveInt, model_validator

from plumbline.config import ByClip, ByIndex, ByTarget, DatasetConfig, SuiteConfig
from plumbline.data.canonical import fit, read_scene, validity, views_of, write_scene
from plumbline.data.samples import build, open_split
from plumbline.errors import ConfigError, DataError
from plumbline.files import atomic_folder, read_json, read_npy, write_json
from plumbline.records import Sample, Scene

FORMAT_VERSION = 1
Role = Literal["context", "target"]
_FILE = "sample.json"
_SAMPLE, _OTHER = "sample", "other"
_STACKS = ("images", "K", "depth", "world_T_cam", "mask")


class PairConfig(SuiteConfig):
    """Which sample of which data set a system is overfitted on, and what its views are for."""

    split: Literal["train", "val", "test", "all"] = "train"
    sample: int = Field(default=0, ge=0, description="which of the samples that the rule gives, from 0")
    context: int | None = Field(
        default=None,
        ge=1,
        description="leading views of the sample that the system is given, the reference first; null: as the rule has it",
    )
    target: int | None = Field(
        default=None,
        ge=0,
        description="views after those that it is to render, without seeing them; null: as the rule has it, else none",
    )
    image_size: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="height and width that the views are brought to, their K and depth with them; null: as they are",
    )
    other: int | None = Field(
        default=None,
        ge=0,
        description="sample that shows something else; null: of another scene, or sharing fewest views",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> "PairConfig":
        rule = self.sources
        if self.context is None and not isinstance(rule, ByTarget | ByClip | ByIndex):
            raise ValueError("context: say how many views the system is given; this rule does not")
        by_rule = rule.count if isinstance(rule, ByTarget) else rule.context if isinstance(rule, ByClip) else None
        given = self.context or by_rule
        if given is not None and self.predict_views > given:
            raise ValueError(f"predict_views {self.predict_views}: the system is given {given} views")
        if self.other == self.sample:
            raise ValueError(f"other {self.other}: that is the sample itself")
        return self


@dataclass(frozen=True)
class Pair:
    """A sample that stands alone: `scene` has its views and no others, in its order; `roles` has an entry for each of them.

    Views with the role target are those that `sample` has to be rendered, and does not give. `origin` is what sample.json
    says: the numbers that the views have in the whole scene, and the rule they were found by.
    """

    scene: Scene
    sample: Sample
    roles: tuple[Role, ...]
    predict_views: int
    origin: Mapping[str, Any]

    def only(self, role: Role) -> Sample:
        """The sample with the views of one role, in order."""
        views = tuple(view for view, own in zip(self.sample.views, self.roles, strict=True) if own == role)
        return Sample(self.sample.scene, views)


@dataclass(frozen=True)
class ViewFacts:
    """A view's size (height, width), how many of its pixels have true depth, and the range of that in metres."""

    name: str
    size: tuple[int, int]
    measured: int
    nearest: float | None
    farthest: float | None

    @property
    def pixels(self) -> int:
        """All pixels."""
        return self.size[0] * self.size[1]

    @property
    def share(self) -> float:
        """The share of pixels with true depth."""
        return self.measured / self.pixels

    def __str__(self) -> str:
        counted = f"{self.measured}/{self.pixels} valid ({self.share:.1%})"
        return counted if self.nearest is None else f"{counted}, depth [{self.nearest:.2f}, {self.farthest:.2f}] m"


def view_facts(name: str, depth: Float32[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"] | None = None) -> ViewFacts:
    """The facts of a view with this true depth (metres, 0 = not measured) and mask of what is usable of it."""
    values = depth[validity(depth, mask)]
    nearest, farthest = (float(values.min()), float(values.max())) if values.size else (None, None)
    return ViewFacts(name, (depth.shape[0], depth.shape[1]), int(values.size), nearest, farthest)


def facts(pair: Pair) -> list[ViewFacts]:
    """The facts of the sample's views, in its order; nothing is measured in a scene without depth."""
    scene, nothing = pair.scene, np.zeros(pair.scene.images.shape[1:3], np.float32)
    return [
        view_facts(
            scene.view_names[view],
            nothing if scene.depth is None else np.asarray(scene.depth[view]),
            None if scene.mask is None else np.asarray(scene.mask[view]),
        )
        for view in pair.sample.views
    ]


def extract_pair(config: PairConfig, *, datasets: Mapping[str, DatasetConfig], scenes: Path, out: Path) -> Pair:
    """Write the sample that `config` chooses of the data sets below `scenes` (data/scenes) to `out`, and read it back.

    `out` is replaced as a whole, and only when what was written reads back as it was. Errors: no such data set or sample, fewer
    views than asked for, and what `read_pair` finds.
    """
    if config.dataset not in datasets:
        raise ConfigError(f"pair: no data set {config.dataset!r}. There is: {', '.join(datasets)}.")
    opened = open_split(scenes / config.dataset, datasets[config.dataset], config.split)
    sample, other = choose(config, opened)
    with atomic_folder(out) as temporary:
        write_sample(temporary / _SAMPLE, sample, opened[sample.scene], config)
        if other is not None:
            write_sample(temporary / _OTHER, other, opened[other.scene], config)
    return read_pair(out)


def choose(config: PairConfig, scenes: Mapping[str, Scene]) -> tuple[Sample, Sample | None]:
    """The sample that `config` asks for and another one, each with the views that it asks for, in their roles.

    Without `config.other` that is the first one of another scene, else the one that shares the fewest views and is farthest
    in the list; None where every other sample has the same views. ConfigError when there is no such sample, or when a view
    that is to be rendered is given as well.
    """
    found = build(config, scenes)
    where = f"{config.dataset} ({config.split})"
    for number in (config.sample, config.other):
        if number is not None and number >= len(found):
            raise ConfigError(f"pair: sample {number} of {where} was asked for; there are {len(found)}, from 0.")
    cut = [_cut(sample, config, where) for sample in found]
    for number in (config.sample, config.other):
        if number is not None and _repeats(cut[number]):
            raise ConfigError(
                f"pair: sample {number} of {where} gives views {cut[number].given} and has {cut[number].targets} rendered: one "
                "stands there twice, and what is given need not be found out. Choose another sample."
            )
    return cut[config.sample], _unlike(cut, config.sample) if config.other is None else cut[config.other]


def _cut(sample: Sample, config: PairConfig, where: str) -> Sample:
    """The views of `sample` that `config` asks for; where its rule says which are targets the two must agree."""
    if sample.context is None:
        given, rendered = config.context or len(sample.views), config.target or 0
        if len(sample.views) < given + rendered:
            raise ConfigError(
                f"pair: {given} context and {rendered} target views were asked for, but the samples of {where} have "
                f"{len(sample.views)} views. Ask for fewer, or for more sources."
            )
        return Sample(sample.scene, sample.views[: given + rendered], given if rendered else None)
    for name, asked, has in (
        ("context", config.context, len(sample.given)),
        ("target", config.target, len(sample.targets)),
    ):
        if asked is not None and asked != has:
            raise ConfigError(
                f"pair: {asked} {name} views were asked for, but the rule gives the samples of {where} {has}. Say so in "
                f"sources, and leave {name} out."
            )
    return sample


def _repeats(sample: Sample) -> bool:
    """Whether a view stands there twice, as in clips it may."""
    return len({*sample.views}) < len(sample.views)


def _unlike(samples: Sequence[Sample], number: int) -> Sample | None:
    chosen = samples[number]

    def likeness(k: int) -> tuple[bool, int, int]:
        apart = samples[k].scene != chosen.scene
        return not apart, 0 if apart else len({*samples[k].views} & {*chosen.views}), k if apart else -abs(k - number)

    best = min((k for k, own in enumerate(samples) if not _repeats(own)), key=likeness)
    return None if likeness(best)[1] == len(chosen.views) else samples[best]


def write_sample(out: Path, sample: Sample, scene: Scene, config: PairConfig) -> None:
    """Write `sample` of `scene` to the folder `out`, which is replaced; it appears only when it reads back as it was.

    Views come to `config.image_size` as every resizing does (see `plumbline.data.canonical.fit`).
    """
    small = _picked(scene, sample.views)
    if config.image_size is not None:
        small = _resized(small, config.image_size)
    with atomic_folder(out) as temporary:
        write_scene(
            temporary / sample.scene,
            dataset=scene.dataset,
            name=scene.name,
            views=views_of(small),
            depth_range=scene.depth_range,
            pairs=_named_pairs(small),
            source=scene.source,
        )
        write_json(temporary / _FILE, _description(sample, scene, config))
        _require_same(small, read_sample(temporary).scene, out)


def _picked(scene: Scene, views: Sequence[int]) -> Scene:
    """`scene` with these views alone, in this order; images decoded, so that a second encoding cannot change them."""
    place = {view: number for number, view in enumerate(views)}

    def rows(stack: Any) -> Any:
        return None if stack is None else np.stack([stack[view] for view in views])

    pairs = None
    if scene.pairs is not None:
        kept = ([(place[k], score) for k, score in scene.pairs[view] if k in place] for view in views)
        pairs = tuple(tuple(row) for row in kept)
    stacks = {name: rows(getattr(scene, name)) for name in _STACKS}
    names = tuple(scene.view_names[view] for view in views)
    # Frame numbers ascend in a scene, which a sample need not do; sample.json keeps the views' numbers.
    return replace(scene, view_names=names, pairs=pairs, frames=None, frame_count=None, **stacks)


def _resized(scene: Scene, size: tuple[int, int]) -> Scene:
    """`scene` with all views at `size`: one factor, cropped around the centre, K and depth with the image."""
    views = [fit(view, size) for view in views_of(scene)]
    parts = {"images": "image", "K": "K", "depth": "depth", "mask": "mask"}
    stacks: dict[str, Any] = {
        name: None if getattr(scene, name) is None else np.stack([getattr(view, part) for view in views])
        for name, part in parts.items()
    }
    return replace(scene, **stacks)


def _named_pairs(scene: Scene) -> dict[str, list[tuple[str, float]]] | None:
    if scene.pairs is None:
        return None
    names = scene.view_names
    return {name: [(names[k], score) for k, score in row] for name, row in zip(names, scene.pairs, strict=True)}


def _description(sample: Sample, scene: Scene, config: PairConfig) -> dict[str, Any]:
    roles = ["context"] * len(sample.given) + ["target"] * len(sample.targets)
    views = [
        {"name": scene.view_names[view], "number": view, "role": role}
        for view, role in zip(sample.views, roles, strict=True)
    ]
    return {
        "format_version": FORMAT_VERSION,
        "dataset": config.dataset,
        "scene": sample.scene,
        "views": views,
        "predict_views": config.predict_views,
        "rule": config.model_dump(mode="json", exclude_defaults=True),
    }


def read_pair(folder: Path) -> Pair:
    """The sample in `folder` (data/pair/<system>), arrays memory-mapped; DataError when a file is missing or broken."""
    return read_sample(folder / _SAMPLE)


def read_other(folder: Path) -> Pair | None:
    """The sample in `folder` (data/pair/<system>) that shows something else; None where the data set has none."""
    return read_sample(folder / _OTHER) if (folder / _OTHER).is_dir() else None


def read_sample(folder: Path) -> Pair:
    """One sample's folder; DataError when a file is missing, broken or of another extraction."""
    advice = f"Extract it again: dvc repro extract_pair@{folder.parent.name}"
    described = read_json(folder / _FILE)
    try:
        version, name, predict_views = (described[key] for key in ("format_version", "scene", "predict_views"))
        roles: dict[str, Role] = {view["name"]: view["role"] for view in described["views"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / _FILE}: describes no sample ({error!r}). {advice}") from error
    if version != FORMAT_VERSION:
        raise DataError(f"{folder / _FILE}: format {version}, expected {FORMAT_VERSION}. {advice}")
    scene = read_scene(folder / name)
    if tuple(roles) != scene.view_names:
        raise DataError(f"{folder}: {_FILE} and the scene name different views. {advice}")
    given = sum(role == "context" for role in roles.values())
    sample = Sample(name, tuple(range(len(roles))), None if given == len(roles) else given)
    return Pair(scene, sample, tuple(roles.values()), int(predict_views), described)


def read_labels(folder: Path, pair: Pair) -> Float16[np.ndarray, "v h w"]:
    """The keypoint labels of the sample's views, in its order, of those of its whole data set in `folder`.

    `folder` is data/pseudo_labels/<dataset>. DataError when the scene has none there, or they are of other views or another size.
    """
    path, size = folder / f"{pair.scene.name}.npy", pair.scene.images.shape[1:3]
    numbers = [view["number"] for view in pair.origin["views"]]
    advice = f"Make them with: dvc repro pseudo_labels@{folder.name}"
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; expected the keypoint labels of the sample's scene. {advice} "
            "(pseudo_labels.splits in params.yaml says which splits get them)."
        )
    stored = read_npy(path, memory_map=True)
    if stored.dtype != np.float16 or stored.shape[1:] != size or len(stored) <= max(numbers):
        raise DataError(
            f"{path}: keypoint labels are {stored.dtype} {stored.shape}; expected float16 (more than {max(numbers)}, "
            f"{size[0]}, {size[1]}). {advice}"
        )
    return np.ascontiguousarray(stored[numbers])


def _require_same(written: Scene, found: Scene, out: Path) -> None:
    """DataError unless what was read back is what was written."""
    for name in _STACKS:
        first, second = getattr(written, name), getattr(found, name)
        if (first is None) != (second is None) or (first is not None and not np.array_equal(first, second)):
            raise DataError(
                f"{out}: {name} reads back as something else than was written. Is the disk full or failing?"
            )
    for name in ("view_names", "depth_range", "pairs"):
        if getattr(written, name) != getattr(found, name):
            raise DataError(f"{out}: {name} is {getattr(found, name)}, but {getattr(written, name)} was written.")
