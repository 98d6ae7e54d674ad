"""Predict once, evaluate files: every method's depth, cameras or novel views for every sample of its suites.

They are written to `predictions/<method>`, as `plumbline.stored` has it.
"""

import difflib
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8

from plumbline import systems
from plumbline.config import ByClip, DatasetConfig, SuiteConfig
from plumbline.data.geometry import rotation_angle
from plumbline.data.samples import build, open_labels, open_split
from plumbline.errors import ConfigError, DataError
from plumbline.feed import SampleFeed, true_scales
from plumbline.files import atomic_folder, read_npy, read_pfm, read_png16
from plumbline.progress import memory_gb, progress
from plumbline.records import Sample, Scene
from plumbline.stored import (
    About,
    Cost,
    Predictions,
    StackFile,
    StoredCameras,
    StoredSample,
    read_for,
    shown_sample,
    suite_fingerprint,
    write_cameras,
    write_cost,
    write_diagnostics,
    write_samples,
)
from plumbline.systems.records import Batch, Cameras, Prediction, Rendered

# A median over about this many pixels is exact to far below any metric's digits.
_MEDIAN_PIXELS = 4_000_000
_PNG_PER_METRE = 1000.0
# How far the rows of a float32 rotation may be from unit length and right angles.
_ROTATION_SLACK = 1e-3


@runtime_checkable
class Method(Protocol):
    """What predict asks of a system; every `plumbline.systems` module's System has it."""

    inputs: ClassVar[frozenset[str]]

    def __call__(self, batch: Batch) -> Prediction | Cameras | Rendered:
        """Depth of the leading `batch.predict_views` views, with or without cameras of all views; or these cameras, or what
        the target cameras see, alone."""

    def eval(self) -> object:
        """Switch to inference."""


@runtime_checkable
class Diagnosed(Protocol):
    """A system that can tell how well its parts work on samples whose truth is known."""

    def diagnostics(self, prediction: Prediction, batch: Batch) -> Mapping[str, torch.Tensor]:
        """A value for each sample ("b"), by name; NaN where there is nothing to measure."""


@runtime_checkable
class Renders(Protocol):
    """A system that can render the target views of a batch from what it has predicted."""

    def novel_views(self, prediction: Prediction, batch: Batch) -> Rendered:
        """What the batch's target cameras see."""


@runtime_checkable
class Exports(Protocol):
    """A system whose prediction can be shown by more than maps, such as a scene for viewers."""

    def export(self, prediction: Prediction, batch: Batch, folder: Path) -> None:
        """Write files about the one sample of `batch` to `folder`: the same bytes whenever it is asked."""


@dataclass(frozen=True)
class Suite:
    """A named suite with its scenes opened and its samples drawn."""

    name: str
    config: SuiteConfig
    scenes: Mapping[str, Scene]
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Constant:
    """The depth in metres that the `constant` baseline answers for a data set, and where it comes from, in words."""

    depth: float
    source: str


@dataclass(frozen=True)
class MeanPose:
    """The pose of a source view that `mean_pose` answers in a suite (`cam0_T_cam`, metres), and what it is the mean of."""

    cam0_T_cam: Float64[np.ndarray, "4 4"]
    source: str


@dataclass(frozen=True)
class _Answer:
    depth: Float32[np.ndarray, "b p h w"] | None
    confidence: Float32[np.ndarray, "b p h w"] | None
    seconds: float
    cameras: StoredCameras | None = None
    metric: bool = True
    diagnostics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    rendered: Float32[np.ndarray, "b t 3 h w"] | None = None
    rendered_depth: Float32[np.ndarray, "b t h w"] | None = None
    render_seconds: float | None = None


@dataclass
class _Written:
    """What was written of a suite so far, and what is to be written when all of it is known."""

    stacks: Mapping[str, StackFile] = field(default_factory=dict)
    cameras: list[StoredCameras] = field(default_factory=list)
    diagnostics: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    render_seconds: list[float] = field(default_factory=list)
    metric: bool = True


def open_suite(name: str, config: SuiteConfig, *, datasets: Mapping[str, DatasetConfig], scenes: Path) -> Suite:
    """The suite with the scenes of its split, below `scenes` (data/scenes), opened, and its samples."""
    if config.dataset not in datasets:
        raise ConfigError(f"suites.{name}.dataset: no data set {config.dataset!r}. There is: {', '.join(datasets)}.")
    opened = open_split(scenes / config.dataset, datasets[config.dataset], config.split)
    return Suite(name, config, opened, build(config, opened))


def load_method(name: str, params: Mapping[str, Any], *, weights: Path | None, device: str) -> tuple[Any, torch.device]:
    """The method `name` in inference mode on its device ("auto": a GPU where there is one), with that device.

    `weights` is runs/train/<system>; None for a method that is not trained.
    """
    chosen = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    system = systems.build(name, params)
    if weights is not None:
        system.load_pretrained(weights / "model.pt")
    return system.to(chosen).eval(), chosen


def check_methods(suites: Mapping[str, SuiteConfig], methods: Collection[str]) -> None:
    """ConfigError when a suite asks a method that is not among `methods`, the keys of params.yaml's `systems`."""
    for name, suite in suites.items():
        unknown = [method for method in suite.methods or () if method not in methods]
        if unknown:
            near = difflib.get_close_matches(unknown[0], methods, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There is: {', '.join(methods)}."
            raise ConfigError(f"suites.{name}.methods: no method {unknown[0]!r} in systems. {hint}")


def refined_suites(
    method: str,
    suites: Mapping[str, SuiteConfig],
    systems: Mapping[str, Mapping[str, Any] | None],
    train: Mapping[str, Mapping[str, Any]],
) -> set[str]:
    """The suites in which `method` is wanted by those whose `initial` it is: what they learn from and are tested on."""
    refining = [name for name, own in systems.items() if (own or {}).get("initial") == method]
    learnt = {suite for name in refining if name in train for suite in train[name]["train_suites"]}
    judged = {train[name]["val_suite"] for name in refining if name in train}
    asked = {name for name, suite in suites.items() if suite.is_test and any(map(suite.asks, refining))}
    return learnt | judged | asked


def asked_suites(
    method: str, suites: Mapping[str, SuiteConfig], learnt: Collection[str] = ()
) -> dict[str, SuiteConfig]:
    """The test suites that ask `method`, and those named in `learnt`; ConfigError when there is none."""
    chosen = {name: suite for name, suite in suites.items() if (suite.is_test and suite.asks(method)) or name in learnt}
    if not chosen:
        raise ConfigError(
            f"systems.{method}: no suite asks this method. Add it to suites.<name>.methods, or take it out of systems."
        )
    return chosen


def training_means(
    system: Method, suites: Sequence[Suite], datasets: Mapping[str, DatasetConfig], folder: Path
) -> dict[str, Any]:
    """`constants` and `poses` for `predict`, from the training splits below `folder` (data/scenes)."""
    return {
        "constants": training_constants(system, suites, datasets, folder),
        "poses": training_poses(system, suites, datasets, folder),
    }


def training_constants(
    system: Method, suites: Sequence[Suite], datasets: Mapping[str, DatasetConfig], folder: Path
) -> dict[str, Constant] | None:
    """What `constant` answers for each data set of `suites`, from its training split below `folder` (data/scenes).

    None for a method that does not ask.
    """
    if "constant_depth" not in system.inputs:
        return None
    configs = {suite.config.dataset: datasets[suite.config.dataset] for suite in suites}
    return {
        name: constant_depth(open_split(folder / name, config, "train"), config.depth_range)
        for name, config in configs.items()
    }


def training_poses(
    system: Method, suites: Sequence[Suite], datasets: Mapping[str, DatasetConfig], folder: Path
) -> dict[str, MeanPose] | None:
    """What `mean_pose` answers in each of `suites`: the mean over the training split's pairs by the suite's own rule.

    None for a method that does not ask. DataError for a data set whose training split has no pairs or no poses.
    """
    if "constant_pose" not in system.inputs:
        return None
    found = {}
    for suite in suites:
        name, rule = suite.config.dataset, suite.config.model_copy(update={"split": "train", "max_samples": None})
        scenes = open_split(folder / name, datasets[name], "train")
        poses = source_poses(scenes, build(rule, scenes))
        found[suite.name] = MeanPose(mean_pose(poses), f"mean of {len(poses)} pairs of {len(scenes)} training scenes")
    return found


def source_poses(scenes: Mapping[str, Scene], samples: Sequence[Sample]) -> Float64[np.ndarray, "n 4 4"]:
    """`cam0_T_cam` of every source view of every sample, metres; DataError naming a scene without poses."""
    poses = []
    for sample in samples:
        world_T_cam = scenes[sample.scene].world_T_cam
        if world_T_cam is None:
            raise DataError(f"{sample.scene} has no poses, so there is no mean pose. Leave mean_pose out of the suite.")
        views = world_T_cam[list(sample.given)]
        poses.append(np.linalg.inv(views[0]) @ views[1:])
    return np.concatenate(poses)


def mean_pose(poses: Float64[np.ndarray, "n 4 4"]) -> Float64[np.ndarray, "4 4"]:
    """The chordal mean of the rotations, with a step of the mean length in the mean direction (unit vectors averaged).

    The chordal mean is the rotation nearest to the mean of the matrices (Hartley et al. 2013, "Rotation Averaging", 5.3).
    Directions that cancel out, and cameras that all stand in one place, leave a step of 0.
    """
    U, _, Vt = np.linalg.svd(poses[:, :3, :3].mean(axis=0))
    lengths = np.linalg.norm(poses[:, :3, 3], axis=1)
    direction = (poses[:, :3, 3] / np.maximum(lengths, 1e-12)[:, None]).mean(axis=0)
    size = float(np.linalg.norm(direction))
    mean = np.eye(4)
    mean[:3, :3] = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
    mean[:3, 3] = lengths.mean() * direction / size if size > 1e-9 else 0.0
    return mean


def training_feed(suite: Suite, initial: Path | None, labels: Path | None = None) -> SampleFeed:
    """The samples of `suite` as training reads them, with the depth that the method in `initial` predicted for them.

    `labels` (data/pseudo_labels) is given for a system that learns from keypoint labels.
    """
    start = None
    if initial is not None:
        start = read_for(initial / suite.name, list(suite.samples), suite_fingerprint(suite.config))
    feed = _feed(suite, start, None, None)
    if start is not None and not start.about.metric:
        feed = replace(feed, initial_scale=true_scales(suite.scenes, suite.samples, start.maps))
    if isinstance(suite.config.sources, ByClip):
        feed = replace(feed, clip=suite.config.sources)
    if labels is None:
        return feed
    named = {sample.scene for sample in suite.samples}
    scenes = {name: scene for name, scene in suite.scenes.items() if name in named}
    return replace(feed, keypoint_probability=open_labels(labels / suite.config.dataset, scenes))


def constant_depth(training: Mapping[str, Scene], depth_range: tuple[float, float]) -> Constant:
    """The median truth of the training scenes; the geometric mean of the depth range where these hold no truth.

    The median is taken over an even choice of at most about four million pixels (every k-th of each view).
    """
    pixels = sum(scene.depth.size for scene in training.values() if scene.depth is not None)
    step = max(1, pixels // _MEDIAN_PIXELS)
    chosen = [_measured(scene, step) for scene in training.values()]
    values = np.concatenate(chosen) if chosen else np.empty(0, np.float32)
    if len(values):
        return Constant(float(np.median(values)), f"median truth of the {len(training)} training scenes")
    return Constant(math.sqrt(depth_range[0] * depth_range[1]), "geometric mean of the depth range (no training split)")


def predict(
    system: Method,
    *,
    method: str,
    suites: Sequence[Suite],
    out: Path,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    initial: Path | None = None,
    constants: Mapping[str, Constant] | None = None,
    poses: Mapping[str, MeanPose] | None = None,
) -> dict[str, float]:
    """Write `out` (predictions/<method>) whole, one folder a suite; returns the median seconds a sample of each.

    Nothing is left when anything fails or is stopped.

    The system, already on `device`, sees what its `inputs` name and nothing else. `initial` is the folder of the method
    whose depth it refines (for inputs with initial_depth), `constants` holds a Constant for each data set (for inputs with
    constant_depth), `poses` a MeanPose for each suite (constant_pose). A method is an oracle when it, or the method it refines,
    reads the truth; it does not know the scale when it says so of any sample (`internals["scale_known"]`). A system that
    Renders is asked for the target views of samples that have any; one that Exports writes its files for the middle sample
    of the first suite with such samples. Raises DataError
    naming the sample for a prediction that is NaN, infinite, negative or of another shape, or a camera that is none,
    ConfigError when something it reads is missing.
    """
    system.eval()
    workers = (os.cpu_count() or 1) if torch.device(device).type == "cpu" else 1
    seconds: dict[str, float] = {}
    rendering: dict[str, float] = {}
    exported = next((suite.name for suite in suites if suite.samples[0].targets), None)
    with atomic_folder(out) as temporary:
        for suite in suites:
            start = _initial(system, method, suite, initial)
            constant = _constant(system, method, suite, constants)
            oracle = "depth" in system.inputs or (start is not None and start.about.oracle)
            notes = {} if start is None else {"initial depth": start.about.method}
            pose = _pose(system, method, suite, poses)
            notes |= {} if constant is None else {"constant": f"{constant.depth:.4g} m: {constant.source}"}
            notes |= {} if pose is None else {"mean pose": _pose_note(pose)}
            about = _about(
                method, suite, sorted(system.inputs), oracle=oracle, device=_device_name(device), notes=notes
            )
            # What refines a depth of unknown scale does not know it either.
            about = replace(about, metric=start is None or start.about.metric)
            feed = _feed(suite, start, constant, pose)
            answer = _system_answer(system, method, feed, torch.device(device))
            folder = temporary / suite.name
            written = _write_suite(folder, about, suite, answer, batch_size=batch_size, workers=workers)
            seconds[suite.name] = float(np.median(written.seconds))
            if written.render_seconds:
                rendering[suite.name] = float(np.median(written.render_seconds))
            if suite.name == exported and isinstance(system, Exports):
                _export(system, feed, torch.device(device), folder)
        write_cost(temporary, Cost(seconds, _parameters(system), memory_gb(), rendering))
    return seconds


def predict_files(folder: Path, *, suites: Sequence[Suite], out: Path, method: str = "file") -> dict[str, float]:
    """Write `out` from the depth maps of any estimator: `<folder>/<dataset>/<scene>/<view name>.npy`, `.pfm` or `.png`.

    Maps have the size of the canonical images; `.npy` and `.pfm` are metres, `.png` 16-bit millimetres; 0 = no depth. Raises
    DataError for a map that is missing, of another size, or not finite and >= 0.
    """
    seconds: dict[str, float] = {}
    with atomic_folder(out) as temporary:
        for suite in suites:
            about = _about(
                method, suite, ["file"], oracle=False, device="file", notes={"source": "depth maps from files"}
            )
            root = folder / suite.config.dataset
            answer = _file_answer(root, suite)
            written = _write_suite(temporary / suite.name, about, suite, answer, batch_size=1)
            seconds[suite.name] = float(np.median(written.seconds))
        write_cost(temporary, Cost(seconds))
    return seconds


def _parameters(system: Method) -> int:
    return sum(weight.numel() for weight in system.parameters()) if isinstance(system, torch.nn.Module) else 0


def _measured(scene: Scene, step: int) -> Float32[np.ndarray, " n"]:
    if scene.depth is None:
        return np.empty(0, np.float32)
    depth = scene.depth.reshape(-1)[::step]
    usable = depth > 0 if scene.mask is None else (depth > 0) & scene.mask.reshape(-1)[::step]
    return depth[usable]


def _initial(system: Method, method: str, suite: Suite, folder: Path | None) -> Predictions | None:
    if "initial_depth" not in system.inputs:
        return None
    if folder is None:
        raise ConfigError(
            f"{method} refines an initial depth and none was given; name the method it starts from in params.yaml "
            "(plane_sweep, file, or another trained system) and predict that first."
        )
    return read_for(folder / suite.name, list(suite.samples), suite_fingerprint(suite.config))


def _constant(system: Method, method: str, suite: Suite, constants: Mapping[str, Constant] | None) -> Constant | None:
    if "constant_depth" not in system.inputs:
        return None
    if constants is None or suite.config.dataset not in constants:
        raise ConfigError(f"{method} reads a constant depth and there is none for data set {suite.config.dataset!r}.")
    return constants[suite.config.dataset]


def _pose(system: Method, method: str, suite: Suite, poses: Mapping[str, MeanPose] | None) -> MeanPose | None:
    if "constant_pose" not in system.inputs:
        return None
    if poses is None or suite.name not in poses:
        raise ConfigError(f"{method} reads a mean pose and there is none for suite {suite.name!r}.")
    return poses[suite.name]


def _pose_note(pose: MeanPose) -> str:
    angle = math.degrees(float(rotation_angle(pose.cam0_T_cam[None, :3, :3])[0]))
    return f"{angle:.3g} degrees, {np.linalg.norm(pose.cam0_T_cam[:3, 3]):.4g} m: {pose.source}"


def _about(method: str, suite: Suite, inputs: list[str], *, oracle: bool, device: str, notes: dict[str, str]) -> About:
    fingerprint = suite_fingerprint(suite.config)
    return About(method, suite.name, suite.config.dataset, tuple(inputs), oracle, fingerprint, device, notes)


def _device_name(device: torch.device | str) -> str:
    chosen = torch.device(device)
    return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type


def _feed(suite: Suite, start: Predictions | None, constant: Constant | None, pose: MeanPose | None) -> SampleFeed:
    return SampleFeed(
        suite.scenes,
        suite.samples,
        initial_depth=None if start is None else start.maps,
        initial_confidence=None if start is None else start.confidence,
        constant_depth=None if constant is None else constant.depth,
        constant_pose=None if pose is None else pose.cam0_T_cam,
        predict_views=suite.config.predict_views,
    )


def _system_answer(
    system: Method, method: str, feed: SampleFeed, device: torch.device
) -> Callable[[Sequence[int]], _Answer]:
    def answer(indices: Sequence[int]) -> _Answer:
        batch = feed.load(indices).to(device)
        if "depth" in system.inputs and batch.depth is None:
            raise DataError(
                f"{method} is an oracle and reads the truth, which {feed.samples[indices[0]].scene} has not."
            )
        seen, began = batch.select(system.inputs), _now(device)
        with torch.inference_mode():
            said = system(seen)
        seconds = (_now(device) - began) / len(indices)
        if isinstance(said, Cameras):
            return _Answer(None, None, seconds, _cameras(said))
        if isinstance(said, Rendered):
            return _Answer(None, None, seconds, **_pictures(said, seconds * len(indices)))
        return _Answer(
            _array(said.depth),
            None if said.confidence is None else _array(said.confidence),
            seconds,
            None if said.cameras is None else _cameras(said.cameras),
            metric=_knows_scale(said),
            diagnostics=_diagnostics(system, said, batch),
            **_render(system, said, seen, device),
        )

    return answer


def _render(system: Method, prediction: Prediction, batch: Batch, device: torch.device) -> dict[str, Any]:
    """What the target cameras see, for an _Answer; nothing where there are none, or the system does not render."""
    if batch.target_K is None or not isinstance(system, Renders):
        return {}
    began = _now(device)
    with torch.inference_mode():
        rendered = system.novel_views(prediction, batch)
    return _pictures(rendered, _now(device) - began)


def _pictures(rendered: Rendered, seconds: float) -> dict[str, Any]:
    depth = None if rendered.depth is None else _array(rendered.depth)
    each = seconds / max(1, math.prod(rendered.image.shape[:2]))
    return {"rendered": _array(rendered.image), "rendered_depth": depth, "render_seconds": each}


def _export(system: Method, feed: SampleFeed, device: torch.device, folder: Path) -> None:
    batch = feed.load([shown_sample(len(feed.samples))]).to(device).select(system.inputs)
    with _one_thread(), torch.inference_mode():
        said = system(batch)
        if isinstance(system, Exports) and isinstance(said, Prediction):
            system.export(said, batch, folder)


def _array(tensor: torch.Tensor) -> Float32[np.ndarray, "..."]:
    return np.asarray(tensor.float().cpu().numpy())


def _cameras(cameras: Cameras) -> StoredCameras:
    return StoredCameras(_array(cameras.cam0_T_cam), None if cameras.K is None else _array(cameras.K))


def _knows_scale(prediction: Prediction) -> bool:
    known = prediction.internals.get("scale_known")
    return known is None or bool(known.all())


def _diagnostics(system: Method, prediction: Prediction, batch: Batch) -> dict[str, list[float]]:
    """What a system with a method `diagnostics` says of its parts: it may see the truth, for the answer is given."""
    if not isinstance(system, Diagnosed):
        return {}
    values = system.diagnostics(prediction, batch)
    return {name: value.double().cpu().tolist() for name, value in values.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _file_answer(root: Path, suite: Suite) -> Callable[[Sequence[int]], _Answer]:
    def answer(indices: Sequence[int]) -> _Answer:
        began = time.perf_counter()
        samples = [suite.samples[index] for index in indices]
        maps = [[_read_map(root, suite, sample, view) for view in _predicted(suite, sample)] for sample in samples]
        return _Answer(np.stack([np.stack(row) for row in maps]), None, (time.perf_counter() - began) / len(indices))

    return answer


def _predicted(suite: Suite, sample: Sample) -> tuple[int, ...]:
    return sample.given[: suite.config.predict_views]


def _read_map(root: Path, suite: Suite, sample: Sample, view: int) -> Float32[np.ndarray, "h w"]:
    scene = suite.scenes[sample.scene]
    stem = root / sample.scene / scene.view_names[view]
    readers: dict[str, Callable[[Path], np.ndarray]] = {
        ".npy": read_npy,
        ".pfm": read_pfm,
        ".png": lambda path: read_png16(path) / np.float32(_PNG_PER_METRE),
    }
    for suffix, read in readers.items():
        path = stem.parent / f"{stem.name}{suffix}"
        if path.is_file():
            depth = np.asarray(read(path), np.float32)
            _check_size(path, depth, scene.images.shape[1:3])
            return depth
    raise DataError(
        f"{stem}.npy, .pfm or .png: no such file; expected the depth map of this view. Write 0 where there is none."
    )


def _check_size(path: Path, depth: np.ndarray, size: tuple[int, ...]) -> None:
    if depth.shape != size:
        raise DataError(f"{path}: depth is {depth.shape}; expected {tuple(size)}, the size of the canonical images.")


def _write_suite(
    folder: Path,
    about: About,
    suite: Suite,
    answer: Callable[[Sequence[int]], _Answer],
    *,
    batch_size: int,
    workers: int = 1,
) -> _Written:
    folder.mkdir(parents=True)
    count = len(suite.samples)
    stored = [_stored(suite, sample) for sample in suite.samples]
    written = _Written()
    with ExitStack() as closing, progress(f"predict {about.method} {suite.name}", total=count) as show:
        chunks = [range(first, min(first + batch_size, count)) for first in range(0, count, batch_size)]
        for indices, got in zip(chunks, _answers(answer, chunks, workers), strict=True):
            _refuse_bad(got, suite, [f"{about.method} {suite.name} {stored[i].label}" for i in indices])
            if not written.seconds:
                written.stacks = _open_stacks(folder, got, count, closing)
            _append(written, got, about, len(indices))
            show(indices[-1] + 1, {"s/sample": got.seconds})
    write_samples(folder, replace(about, metric=about.metric and written.metric), stored)
    if written.cameras:
        write_cameras(folder, _joined(written.cameras))
    if written.diagnostics:
        write_diagnostics(folder, written.diagnostics)
    return written


def _answers(answer: Callable[[Sequence[int]], _Answer], chunks: Sequence[range], workers: int) -> Iterator[_Answer]:
    """The answers to `chunks`, in order. On a CPU each of `workers` threads computes a whole batch on one core.

    Many small operations do not share out over cores; batches do. And a sum then does not depend on the number of cores.
    """
    if workers == 1:
        yield from map(answer, chunks)
        return
    pool = ThreadPoolExecutor(workers)
    with _one_thread():
        try:
            yield from pool.map(answer, chunks)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _stored(suite: Suite, sample: Sample) -> StoredSample:
    names = suite.scenes[sample.scene].view_names
    context = sample.context if sample.targets else None
    return StoredSample(sample.scene, sample.views, tuple(names[view] for view in sample.views), context)


def _open_stacks(folder: Path, got: _Answer, count: int, closing: ExitStack) -> dict[str, StackFile]:
    stacks = {
        name: StackFile(folder / f"{name}.npy", (count, *maps.shape[1:]), dtype=maps.dtype.str)
        for name, maps in _maps(got).items()
    }
    for stack in stacks.values():
        closing.callback(stack.close)
    return stacks


def _maps(got: _Answer) -> dict[str, np.ndarray]:
    """What of an answer goes into stacks, by their names, as they hold it."""
    pictures = None if got.rendered is None else _in_8_bit(got.rendered)
    maps = {
        "depth": got.depth,
        "confidence": got.confidence,
        "rendered": pictures,
        "rendered_depth": got.rendered_depth,
    }
    return {name: values for name, values in maps.items() if values is not None}


def _in_8_bit(pictures: Float32[np.ndarray, "b t 3 h w"]) -> UInt8[np.ndarray, "b t h w 3"]:
    return np.ascontiguousarray(np.rint(255 * pictures).astype(np.uint8).transpose(0, 1, 3, 4, 2))


def _append(written: _Written, got: _Answer, about: About, count: int) -> None:
    """Add the answer to `count` samples; DataError when it has other parts than those before it."""
    maps = _maps(got)
    before = _parts(written.stacks, written.cameras[0] if written.cameras else None)
    odd = sorted(before ^ _parts(maps, got.cameras)) if written.seconds else []
    if odd:
        raise DataError(
            f"{about.method} {about.suite}: gives {', '.join(odd)} for some batches only; expected all or none."
        )
    for name, values in maps.items():
        written.stacks[name].append(values)
    if got.cameras is not None:
        written.cameras.append(got.cameras)
    for name, measured in got.diagnostics.items():
        written.diagnostics.setdefault(name, []).extend(measured)
    written.seconds += [got.seconds] * count
    written.render_seconds += [] if got.render_seconds is None else [got.render_seconds] * count
    written.metric &= got.metric


def _parts(maps: Mapping[str, object], cameras: StoredCameras | None) -> set[str]:
    """Names of what an answer consists of."""
    poses = set() if cameras is None else {"cameras"} | (set() if cameras.K is None else {"K"})
    return {*maps, *poses}


def _joined(cameras: Sequence[StoredCameras]) -> StoredCameras:
    K = [part.K for part in cameras if part.K is not None]
    return StoredCameras(np.concatenate([part.cam0_T_cam for part in cameras]), np.concatenate(K) if K else None)


def _refuse_bad(got: _Answer, suite: Suite, labels: Sequence[str]) -> None:
    size = suite.scenes[suite.samples[0].scene].images.shape[1:3]
    predicted, targets = (len(labels), suite.config.predict_views), (len(labels), len(suite.samples[0].targets))
    metres = "metres, 0 where the method abstains"
    if got.cameras is not None:
        _refuse_bad_cameras(got.cameras, len(suite.samples[0].given), labels)
    _refuse_bad_maps("depth", got.depth, (*predicted, *size), labels, top=math.inf, unit=metres)
    _refuse_bad_maps("confidence", got.confidence, (*predicted, *size), labels)
    _refuse_bad_maps("rendered image", got.rendered, (*targets, 3, *size), labels)
    _refuse_bad_maps("rendered depth", got.rendered_depth, (*targets, *size), labels, top=math.inf, unit=metres)


def _refuse_bad_maps(
    name: str,
    maps: Float32[np.ndarray, "..."] | None,
    expected: tuple[int, ...],
    labels: Sequence[str],
    *,
    top: float = 1.0,
    unit: str = "0 to 1",
) -> None:
    """DataError naming the first sample with values that are not finite or not within 0 and `top`; None passes."""
    if maps is None:
        return
    if maps.shape != expected:
        axes = "samples, views, height, width" if len(expected) == 4 else "samples, targets, 3, height, width"
        raise DataError(f"{labels[0]}: {name} has shape {maps.shape}; expected {expected} ({axes}).")
    bad = ~(np.isfinite(maps) & (maps >= 0) & (maps <= top)).reshape(len(labels), -1).all(axis=1)
    if bad.any():
        worst = maps[int(np.argmax(bad))]
        raise DataError(
            f"{labels[int(np.argmax(bad))]}: {name} has values between {worst.min()} and {worst.max()}; expected finite "
            f"values, {unit}. Nothing was written."
        )


def _refuse_bad_cameras(cameras: StoredCameras, views: int, labels: Sequence[str]) -> None:
    """DataError naming the first sample with a pose that is no rigid motion from the first view, or a K without focal lengths."""
    poses = cameras.cam0_T_cam.astype(np.float64)
    for name, array, side in (("cam0_T_cam", poses, 4), ("K", cameras.K, 3)):
        expected = (len(labels), views, side, side)
        if array is not None and array.shape != expected:
            raise DataError(
                f"{labels[0]}: {name} has shape {array.shape}; expected {expected}, a camera for every view."
            )
    R, size = poses[..., :3, :3], 1 + np.abs(poses[..., :3, 3]).max(axis=(1, 2))
    faults = {
        "is not finite": ~np.isfinite(poses).all(axis=(1, 2, 3)),
        "does not start with the identity": np.abs(poses[:, 0] - np.eye(4)).max(axis=(1, 2)) > _ROTATION_SLACK * size,
        "has a matrix that is no rotation": ~_is_rotation(R).all(axis=1),
    }
    if cameras.K is not None:
        focal = cameras.K[..., [0, 1], [0, 1]]
        faults["comes with a K that is not finite or has a focal length that is not positive"] = ~(
            np.isfinite(cameras.K).all(axis=(1, 2, 3)) & (focal > 0).all(axis=(1, 2))
        )
    for fault, bad in faults.items():
        if bad.any():
            raise DataError(
                f"{labels[int(np.argmax(bad))]}: cam0_T_cam {fault}; expected poses of all views in the first one's frame. "
                "Nothing was written."
            )


def _is_rotation(R: Float64[np.ndarray, "*n 3 3"]) -> np.ndarray:
    square = np.abs(R @ np.swapaxes(R, -1, -2) - np.eye(3)).max(axis=(-1, -2)) < _ROTATION_SLACK
    return square & (np.linalg.det(R) > 0)
