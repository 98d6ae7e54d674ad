"""What misreading SUN3D does to metrics: the faults of one loader, planted in generated sequences and measured.

    python tests/data/post_mortem.py

measures some rooms and rewrites the tables of docs/post-mortem.md (five minutes on one core); the test measures one
short sequence. Parsing refuses some of the faults, so scenes are made here without the validation that parsing ends with, as
a loader without one would.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from plumbline.data import sun3d, synthetic
from plumbline.data.canonical import fit, validate_view
from plumbline.data.checks import CheckConfig, SceneCheck, check_scene
from plumbline.data.checks.raw import raw_data, rereader
from plumbline.data.geometry import invert, pixel_grid
from plumbline.data.samples import gather
from plumbline.errors import DataError
from plumbline.files import atomic_path
from plumbline.metrics import measure
from plumbline.records import Sample, Scene
from plumbline.systems.deltas.matching import search_segments
from plumbline.systems.plane_sweep import Config as SweepConfig
from plumbline.systems.plane_sweep import System as PlaneSweep
from plumbline.systems.records import to_batch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "post-mortem.md"
BEGIN = "<!-- measured: written by tests/data/post_mortem.py -->\n"
END = "<!-- end of what was measured -->"
GAPS = (1, 5, 10, 20)
# Blocks of four rows that are a multiple of three apart start at the same row of their frames.
THREES = (3, 6, 9)
CAP = (0.5, 10.0)

Scenes = Mapping[str, Scene]
References = Mapping[str, Sequence[str]]
DepthByGap = Mapping[int, Float32[np.ndarray, "n h w"]]


RIGHT = sun3d.Options()


@dataclass(frozen=True)
class Reading:
    """How a sequence is read: the reader's options, and whether its intrinsics.txt has fy in the place of cy."""

    options: sun3d.Options = RIGHT
    cy_is_fy: bool = False

    @property
    def cameras(self) -> tuple[int, bool]:
        """All of it that a method which never sees the truth can notice: its depth is computed once for each."""
        return self.options.pose_rows, self.cy_is_fy


READINGS = {
    "read right": Reading(),
    "depth bits not rotated": Reading(sun3d.Options(depth_coding="raw")),
    "poses four rows at a time": Reading(sun3d.Options(pose_rows=4)),
    "cy = fy": Reading(cy_is_fy=True),
    "depth paired by index": Reading(sun3d.Options(association="index")),
    "all four": Reading(sun3d.Options(depth_coding="raw", pose_rows=4, association="index"), cy_is_fy=True),
}


@dataclass(frozen=True)
class Extent:
    """What is measured: rooms, their frames, sizes (height, width), references a room, planes of the sweep."""

    rooms: tuple[str, ...]
    views: int
    raw: tuple[int, int]
    canonical: tuple[int, int]
    references: int
    planes: int


SHORT = Extent(("bedroom",), 60, (72, 96), (72, 96), 2, 24)
FULL = Extent(
    ("kitchen", "office", "hall", "bedroom", "studio", "store", "attic", "cellar"), 80, (240, 320), (120, 160), 6, 64
)


@dataclass(frozen=True)
class Row:
    """Of one reading: errors by gap, the share of truth inside the cap, the share of pixels with a usable search segment
    by gap, what parsing says of the first room ("" when it takes it), and what check_data says of each room.
    """

    abs_rel: Mapping[int, float]
    delta1: Mapping[int, float]
    inside: float
    usable: Mapping[int, float]
    parsing: str
    checked: Sequence[SceneCheck]


def measured(folder: Path, extent: Extent) -> dict[str, Row]:
    """A row for each reading; raw folders are written below `folder`."""
    raws = write_raw(folder, extent)
    scenes = {label: read(raws[reading.cy_is_fy], reading, extent.canonical) for label, reading in READINGS.items()}
    references = shared_references(list(scenes.values()), extent.references)
    depth: dict[tuple[int, bool], DepthByGap] = {}
    rows = {}
    for label, reading in READINGS.items():
        if reading.cameras not in depth:
            depth[reading.cameras] = swept(scenes[label], references, planes=extent.planes)
        rows[label] = row(raws[reading.cy_is_fy], reading, scenes[label], references, depth[reading.cameras])
    return rows


def write_raw(folder: Path, extent: Extent) -> dict[bool, Path]:
    """Raw folders of all rooms, with the true intrinsics.txt and with fy written where cy belongs."""
    raws = {False: folder / "true", True: folder / "cy_is_fy"}
    for room in extent.rooms:
        # In the second place of a list the depth stream starts nine frames before colour and loses frames.
        scenes = ("apartment/unused", f"apartment/{room}")
        config = synthetic.Config(layout="sun3d", scenes=scenes, views=extent.views, image_size=extent.raw)
        _plant_intrinsics(raws[False] / synthetic._make(config, 1, raws[False]), raws[True] / scenes[1])
    return raws


def _plant_intrinsics(true: Path, planted: Path) -> None:
    planted.mkdir(parents=True)
    for name in ("image", "depth", "extrinsics"):
        (planted / name).symlink_to(true / name)
    K = np.loadtxt(true / "intrinsics.txt")
    K[1, 2] = K[1, 1]
    np.savetxt(planted / "intrinsics.txt", K)


def read(raw: Path, reading: Reading, size: tuple[int, int]) -> dict[str, Scene]:
    """Every sequence as read, whatever a validator would say of it."""
    return {name: _scene(raw, name, reading, size) for name in sun3d.scenes(raw, reading.options)}


def _scene(raw: Path, name: str, reading: Reading, size: tuple[int, int]) -> Scene:
    views = [fit(view, size) for view in sun3d.views(raw, name, reading.options)]
    return Scene(
        dataset="sun3d",
        name=name,
        view_names=tuple(view.name for view in views),
        images=np.stack([view.image for view in views]),
        K=np.stack([view.K for view in views]),
        depth_range=CAP,
        depth=np.stack([view.depth for view in views]),
        world_T_cam=np.stack([view.world_T_cam for view in views]),
    )


def shared_references(readings: Sequence[Scenes], count: int) -> dict[str, list[str]]:
    """Names of views that have sources at every gap in every reading, evenly spread: all numbers are of the same views."""
    margin = max(GAPS)
    found = {}
    for name in readings[0]:
        inner = [scenes[name].view_names[margin:-margin] for scenes in readings]
        shared = [view for view in inner[0] if all(view in names for names in inner)]
        places = np.linspace(0, len(shared) - 1, min(count, len(shared)))
        found[name] = [shared[i] for i in places.round().astype(int)]
    return found


def samples(scenes: Scenes, references: References, gap: int) -> list[Sample]:
    """A sample for each reference: with the views `gap` before and after it."""
    places = [(name, scenes[name].view_names.index(view)) for name, views in references.items() for view in views]
    return [Sample(name, (i, i - gap, i + gap)) for name, i in places]


def swept(scenes: Scenes, references: References, *, planes: int) -> DepthByGap:
    """The plane sweep's depth of the references by gap, metres."""
    system = PlaneSweep(SweepConfig(planes=planes))
    depth = {}
    for gap in GAPS:
        answers = [system(to_batch(gather(scenes, [sample]))) for sample in samples(scenes, references, gap)]
        depth[gap] = torch.cat([answer.depth[:, 0] for answer in answers]).numpy()
    return depth


def row(raw: Path, reading: Reading, scenes: Scenes, references: References, depth: DepthByGap) -> Row:
    """What one reading does: metrics of `depth` against the truth as read, and the geometry of its samples."""
    by_gap = {gap: samples(scenes, references, gap) for gap in (*GAPS, *THREES)}
    truth = np.stack([scenes[sample.scene].depth[sample.views[0]] for sample in by_gap[1]])
    measures = {gap: measure(depth[gap], truth, depth_min=CAP[0], depth_max=CAP[1]) for gap in GAPS}
    return Row(
        abs_rel={gap: _mean([of_view.values.get("abs_rel") for of_view in rows]) for gap, rows in measures.items()},
        delta1={gap: _mean([of_view.values.get("delta1") for of_view in rows]) for gap, rows in measures.items()},
        inside=sum(of_view.valid for of_view in measures[1]) / np.count_nonzero(truth),
        usable={gap: _mean([usable_share(scenes[s.scene], s) for s in chosen]) for gap, chosen in by_gap.items()},
        parsing=refusal(raw, next(iter(scenes)), reading),
        checked=[checked(raw, scene, reading) for scene in scenes.values()],
    )


def _mean(values: Sequence[float | None]) -> float:
    """The mean of those that are there: a view whose truth lies outside the cap throughout has no error."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def usable_share(scene: Scene, sample: Sample, *, step: int = 4) -> float:
    """The share of the reference's pixels (every `step`-th) for which DELTAS has something to search in at least one source.

    Where no source has a usable segment nothing is triangulated, and a pixel's depth can only be a guess from one image.
    """
    reference, *sources = sample.views
    size = scene.images.shape[1:3]
    pixels = pixel_grid(size)[::step, ::step].reshape(1, -1, 2)
    source_T_reference = invert(scene.world_T_cam[sources]) @ scene.world_T_cam[reference]
    arrays = (pixels, scene.K[None, list(sample.views)], source_T_reference[None], np.array([CAP]))
    segments = search_segments(*(torch.from_numpy(array).float() for array in arrays), size)
    return segments.usable.any(dim=1).float().mean().item()


def refusal(raw: Path, name: str, reading: Reading) -> str:
    """What parsing says of the first view of a sequence that it refuses; "" when it takes all."""
    try:
        for view in sun3d.views(raw, name, reading.options):
            validate_view(view, view.name)
    except DataError as error:
        return str(error)
    return ""


def checked(raw: Path, scene: Scene, reading: Reading) -> SceneCheck:
    """What check_data says of a scene, its raw files at hand."""
    source = raw_data("sun3d", raw, reading.options.model_dump(), size=scene.images.shape[1:3])
    return check_scene(scene, CheckConfig(), reread=rereader(source, scene.name))


def tables(rows: Mapping[str, Row]) -> str:
    """The tables of the page."""
    parts = [_errors(rows), _segments(rows), _said(rows)]
    return "\n".join("\n".join(lines) + "\n" for lines in parts)


def _errors(rows: Mapping[str, Row]) -> list[str]:
    head = ["read", *(f"abs_rel at gap {gap}" for gap in GAPS), "delta1 at gap 10", "truth inside the cap"]
    body = [
        [label, *(f"{r.abs_rel[gap]:.4f}" for gap in GAPS), f"{r.delta1[10]:.1%}", f"{r.inside:.1%}"]
        for label, r in rows.items()
    ]
    return _markdown(head, body)


def _segments(rows: Mapping[str, Row]) -> list[str]:
    gaps = (*GAPS, *THREES)
    head = ["usable search segments", *(f"at gap {gap}" for gap in gaps)]
    return _markdown(head, [[label, *(f"{r.usable[gap]:.1%}" for gap in gaps)] for label, r in rows.items()])


def _said(rows: Mapping[str, Row]) -> list[str]:
    body = [[label, r.parsing or "takes it", _verdicts(r.checked), _example(r.checked[0])] for label, r in rows.items()]
    return _markdown(["read", "parsing", "check_data", "of the first room"], body)


def _verdicts(checks: Sequence[SceneCheck]) -> str:
    return ", ".join(f"{verdict}: {count}" for verdict, count in Counter(c.verdict for c in checks).items())


def _example(check: SceneCheck) -> str:
    return check.diagnosis.removeprefix(f"{check.dataset}/{check.scene}: ")


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def update_page(page: Path, content: str) -> None:
    """Replace what stands between the page's two markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}{content}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        update_page(PAGE, tables(measured(Path(scratch), FULL)))
