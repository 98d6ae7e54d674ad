"""`plumbline extract-pair`: one pair of AerialMegaDepth as a data set, with params for it, read back before it appears."""

import glob
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float32

from plumbline.config import DatasetConfig, Dumper, SuiteConfig, load_params, parse, section, sections
from plumbline.data import aerialmd
from plumbline.data.aerialmd_pair import (
    INDICES,
    MASKS,
    IndexedPair,
    find_index,
    find_pair,
    mask_folder,
    pair_files,
    require_free,
    write_about,
    write_pair_dataset,
)
from plumbline.data.manifest import list_files
from plumbline.data.pair import PairConfig, ViewFacts, view_facts
from plumbline.data.parse import Job, reader, write_one
from plumbline.data.progress import human_bytes
from plumbline.data.reading import read_colour
from plumbline.data.samples import build, open_split
from plumbline.errors import ConfigError, DataError
from plumbline.feed import SampleFeed
from plumbline.files import atomic_folder
from plumbline.runs import expanded, merged
from plumbline.systems.records import Batch
from plumbline.systems.vggt.loader import target_size

PARAMS = "params.yaml"
_DATASET, _SUITE, _SYSTEM = "aerialmd", "pair", "vggt"
# Methods that need no training, one of depth each and one of cameras. A mean pose of one pair would be its pose.
_COMPARED = ("constant", "plane_sweep", "identity")
# Patches tile what the recipe cuts, and the smallest that leave no more than so many along a side are taken: fewer tokens
# lose detail that the gate asks for, and more cost minutes a hundred steps on two cores.
_PATCHES, _MOST_PATCHES = (7, 14, 28), 20
# VGGT's single-pair recipe: squares of 518 pixels, of which batches of height over width 0.92 are cut: 476x518.
_CROP, _ASPECT, _PATCH = 518, 0.92, 14
_SPARKS = "▁▂▃▄▅▆▇█"
_BINS = 32


@dataclass(frozen=True)
class Request:
    """What to extract: pair `row` of an index (a path, or a name in `root`) into the folder `out`.

    `masks` is the folder of label maps (None: the usual places). `size` (height, width) is that of the canonical images (None:
    the recipe's), `depth_range` in metres is what methods may look for; both go into the params file that `params` asks for.
    """

    root: Path
    index: Path
    out: Path
    row: int = 0
    masks: Path | None = None
    size: tuple[int, int] | None = None
    depth_range: tuple[float, float] = (1.0, 1000.0)
    params: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class ReadBack:
    """What the reader and the loader made of the new folder: samples, shapes of a batch, facts and depths of each image."""

    length: int
    images: tuple[int, ...]
    depths: tuple[int, ...]
    views: tuple[ViewFacts, ...]
    measured: tuple[Float32[np.ndarray, " _"], ...]

    def outside(self, depth_range: tuple[float, float]) -> float:
        """The share of measured depths (metres) outside a range."""
        values = np.concatenate(self.measured)
        return float(np.mean((values < depth_range[0]) | (values > depth_range[1])))


@dataclass(frozen=True)
class Extraction:
    """A finished extraction. `stored` has the sizes (height, width) of the two images as they lie in the folder."""

    pair: IndexedPair
    out: Path
    files: int
    size: int
    stored: tuple[tuple[int, int], ...]
    config: DatasetConfig
    found: ReadBack
    params: Path | None


def extract(request: Request, *, project: Path = Path()) -> Extraction:
    """Write the data set of one pair to `request.out`, whole or not at all, and return what reading it back gave.

    `project` is the folder of the params.yaml that a params file is for. Errors, before anything is written: an output that is
    taken, no such index, pair or file, a pair across scenes. What cannot be read back leaves nothing either.
    """
    out, root = request.out.resolve(), request.root.resolve()
    require_free(out, overwrite=request.overwrite)
    base = load_params(project / "params.yaml") if request.params else None
    pair = find_pair(find_index(request.index, root), request.row)
    masks = mask_folder(root, request.masks)
    files = pair_files(pair, root, masks)
    stored = tuple(_size(files[f"{pair.scene}/{tag}.jpg"]) for tag in pair.tags)
    values = dataset_values(pair, request, stored, path=out, masks=masks is not None)
    config = parse(values, DatasetConfig, where=f"datasets.{_DATASET}")
    with atomic_folder(out) as temporary:
        write_pair_dataset(temporary, pair, files)
        if base is not None:
            (temporary / PARAMS).write_text(params_text(pair, values, base, out), encoding="utf-8")
            config = check_params(merged(base, expanded(load_params(temporary / PARAMS))))
        found = read_back(temporary, pair, config)
        write_about(temporary, pair)
    names = list_files(out)
    size = sum((out / name).stat().st_size for name in names)
    params = out / PARAMS if request.params else None
    return Extraction(pair, out, len(names), size, stored, config, found, params)


def _size(path: Path) -> tuple[int, int]:
    height, width = read_colour(path).shape[:2]
    return height, width


# --- configuration ------------------------------------------------------------------------------------------------


def dataset_values(
    pair: IndexedPair, request: Request, stored: Sequence[tuple[int, int]], *, path: Path, masks: bool
) -> dict[str, Any]:
    """The entry of `datasets` for the pair in the folder `path`: cropped and cleaned as VGGT's single-pair recipe does."""
    side = min(_CROP, *(length for size in stored for length in size))
    size = request.size or target_size(_ASPECT, width=side // _PATCH * _PATCH, patch=_PATCH)
    if max(size) > side:
        raise ConfigError(
            f"--size {size[0]} {size[1]}: the images are cut to squares of {side} pixels, and enlarging would invent some. "
            f"Give at most {side} {side}."
        )
    near, far = request.depth_range
    if not 0 < near < far:
        raise ConfigError(f"--depth-range {near:g} {far:g}: expected the nearest and the farthest depth, in metres.")
    return {
        "format": "aerialmd",
        # The params file lies there too: edited, it must not count as other data. Another pair in the same folder must, and
        # DVC knows a folder by these values alone.
        "source": {"kind": "folder", "path": str(path), "patterns": ["*.npz", *_patterns(pair)]},
        "image_size": list(size),
        "depth_range": list(request.depth_range),
        # Train, validation and test are the same pair: their losses and metrics are to be equal.
        "split": {part: [pair.scene] for part in ("train", "val", "test")},
        "options": {
            "index": [INDICES[0]],
            "crop": _CROP,
            "cleanup": "measured",
            "masks": MASKS if masks else "none",
        },
        "storage": "raw",
        "quarantine": {},
    }


def _patterns(pair: IndexedPair) -> list[str]:
    """Globs of the files of both images, label maps included."""
    stems = [glob.escape(f"{pair.scene}/{tag}") for tag in pair.tags]
    return [f"{folder}{stem}.*" for folder in ("", f"{MASKS}/") for stem in stems]


def suite_values(split: str) -> dict[str, Any]:
    """The suite of the one sample: the pair's first image is the reference, its second the source."""
    return {"dataset": _DATASET, "split": split, "sources": {"kind": "pairs", "count": 1}, "max_samples": 1}


def params_text(pair: IndexedPair, dataset: Mapping[str, Any], base: Mapping[str, Any], out: Path) -> str:
    """A params file that runs the graph of `base` (params.yaml) on the pair alone: VGGT's gate, training and scores."""
    values: dict[str, Any] = {
        "graph": {"datasets": [_DATASET]},
        "datasets!": {_DATASET: dict(dataset)},
        "suites!": {
            f"{_SUITE}_train": suite_values("train"),
            f"{_SUITE}_val": suite_values("val"),
            _SUITE: suite_values("test"),
        },
        **_methods(base, dataset["image_size"]),
        "report": {"title": f"One pair: {pair.scene}, {pair.tags[0]} and {pair.tags[1]}", "systems": [_SYSTEM]},
    }
    lines = [
        f"# Pair {pair.row} of {pair.index.name}, scene {pair.scene}: {pair.tags[0]} and {pair.tags[1]}.",
        "# From the project's root, the graph on it:",
        f"#   {run_command(out / PARAMS)}",
        '# What is not here is as in params.yaml; a key with "!" replaces its whole section, null takes it out.',
    ]
    text = yaml.dump(values, Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    return "\n".join([*lines, "", text])


def _methods(base: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
    """Sections of all that predicts: VGGT and what it is compared with; all other systems go."""
    others = {name: dict.fromkeys(set(base.get(name) or {}) - {_SYSTEM}) for name in ("train", "pair", "overfit")}
    # Small products are as fast on one core.
    threads = {"threads": None} if _fitting_patch(size) == _PATCHES[-1] else {}
    found: dict[str, Any] = {
        "systems": {
            **dict.fromkeys(sorted(set(base["systems"]) - {_SYSTEM, *_COMPARED})),
            _SYSTEM: _system(base["systems"].get(_SYSTEM) or {}, size),
        },
        "train": {**_sorted(others["train"]), _SYSTEM: {**_training(), **threads}},
    }
    if "pair" in base:
        found["pair"] = {**_sorted(others["pair"]), f"{_SYSTEM}!": _sample()}
    if "overfit" in base:
        found["overfit"] = {**_sorted(others["overfit"]), **({_SYSTEM: threads} if threads else {})}
    return found


def _sorted(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


def _sample() -> dict[str, Any]:
    rule = {"dataset": _DATASET, "split": "train", "sources": {"kind": "pairs", "count": 1}}
    return {**rule, "context": 2, "predict_views": 2}


def _system(own: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
    """The system without augmentation; the tiny one with patches that tile the image and leave few enough tokens."""
    still = dict.fromkeys(("flip", "zoom", "brightness", "contrast", "gamma", "colour", "image_noise", "degrade"), 0.0)
    if own.get("preset") != "tiny":
        return {"augment": still}
    return {"patch": _fitting_patch(size), "augment": still}


def _fitting_patch(size: Sequence[int]) -> int:
    return next((patch for patch in _PATCHES if max(size) <= _MOST_PATCHES * patch), _PATCHES[-1])


def _training() -> dict[str, Any]:
    """A short training on the pair itself: what its losses end at is to be seen in validation as well."""
    suites = {"train_suites": [f"{_SUITE}_train"], "val_suite": f"{_SUITE}_val"}
    steps = {"steps": 150, "schedule!": {"kind": "cosine", "warm_up": 8}, "val_every": 50, "checkpoint_every": 50}
    return {**suites, **steps, "sampling": "uniform", "batch_size": 1, "accumulate": 1}


def run_command(params: Path) -> str:
    """What to type to run the graph with a params file."""
    return f"plumbline run --params {params} --name single_pair"


def check_params(params: Mapping[str, Any]) -> DatasetConfig:
    """The pair's data set as the project itself reads these params; ConfigError naming what it does not take."""
    import torch

    from plumbline import systems
    from plumbline.overfit import OverfitConfig
    from plumbline.training import TrainConfig

    for name, config in sections(params, "datasets", DatasetConfig).items():
        reader(config, name)
    sections(params, "suites", SuiteConfig)
    sections(params, "train", TrainConfig)
    for key, model in (("pair", PairConfig), ("overfit", OverfitConfig)):
        if key in params:
            sections(params, key, model)
    for name, own in params["systems"].items():
        with torch.device("meta"):
            systems.build(name, own or {})
    return section(params, f"datasets.{_DATASET}", DatasetConfig)


# --- reading back -------------------------------------------------------------------------------------------------


def read_back(raw: Path, pair: IndexedPair, config: DatasetConfig) -> ReadBack:
    """The folder `raw` through parser, samples and loader, as a training would meet it.

    DataError when that fails, when an index names another pair, and when a sample is not the two images in order.
    """
    expected = {pair.tags[0]: [(pair.tags[1], pair.score)], pair.tags[1]: [(pair.tags[0], pair.score)]}
    for name in INDICES:
        listed = aerialmd.pairs(raw, pair.scene, aerialmd.Options(index=(name,)))
        if listed != expected:
            raise DataError(f"{name}: reads back as {listed}, but {expected} was written.")
    suite = parse(suite_values("train"), SuiteConfig, where=f"suites.{_SUITE}")
    with tempfile.TemporaryDirectory(prefix="plumbline-pair-") as scratch:
        write_one(Job(_DATASET, pair.scene, config, raw, Path(scratch) / pair.scene))
        scenes = open_split(Path(scratch), config, suite.split)
        samples = build(suite, scenes)
        names = tuple(scenes[pair.scene].view_names[view] for view in samples[0].views)
        if names != pair.tags:
            raise DataError(f"{pair.scene}: the sample is {' and '.join(names)}; expected {' and '.join(pair.tags)}.")
        return _read(SampleFeed(scenes, samples).load([0]), names, len(samples))


def _read(batch: Batch, names: Sequence[str], length: int) -> ReadBack:
    if batch.depth is None or batch.mask is None:
        raise DataError("the pair has no depth; expected a map for each image.")
    depth, mask = batch.depth.numpy(), batch.mask.numpy()
    return ReadBack(
        length=length,
        images=tuple(batch.image.shape),
        depths=tuple(batch.depth.shape),
        views=tuple(view_facts(name, depth[0, i], mask[0, i]) for i, name in enumerate(names)),
        measured=tuple(depth[0, i][mask[0, i]] for i in range(len(names))),
    )


# --- what a person sees -------------------------------------------------------------------------------------------


def extract_command(request: Request) -> None:
    """Extract the pair and print what was written and what reading it back gave."""
    from rich.console import Console

    done = extract(request)
    # A log has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    pair = done.pair
    console.print(
        f"[bold]Pair {pair.row} of {pair.index.name}[/]: scene {pair.scene}, score {pair.score:.4g}\n", soft_wrap=True
    )
    console.print(_table(done))
    console.print()
    for line in report_lines(done):
        console.print(line, soft_wrap=True)


def _table(done: Extraction) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    low = min((facts.nearest or np.inf) for facts in done.found.views)
    high = max((facts.farthest or 0.0) for facts in done.found.views)
    table.add_column("image", no_wrap=True)
    for name in ("stored", "valid"):
        table.add_column(name, justify="right")
    table.add_column("depth in metres", justify="right")
    table.add_column(f"near {low:.3g} to far {high:.3g} m (log)", no_wrap=True)
    for facts, stored, values in zip(done.found.views, done.stored, done.found.measured, strict=True):
        span = "none" if facts.nearest is None else f"{facts.nearest:.2f} to {facts.farthest:.2f}"
        shape = f"[cyan]{sparkline(values, (low, high))}[/]"
        table.add_row(escape(facts.name), f"{stored[0]}x{stored[1]}", f"{facts.share:.1%}", span, shape)
    return table


def sparkline(values: Float32[np.ndarray, " n"], span: tuple[float, float]) -> str:
    """How often depths occur between nearest and farthest (metres, logarithmic), as a line of blocks; blank where none is."""
    low, high = np.log(span[0]), np.log(max(span[1], span[0] * 1.001))
    # Rounding must not push the extremes out of the outermost bins.
    counts = np.histogram(np.clip(np.log(values), low, high), bins=_BINS, range=(low, high))[0]
    heights = np.ceil(counts / max(counts.max(), 1) * len(_SPARKS)).astype(int)
    return "".join(_SPARKS[height - 1] if height else " " for height in heights)


def report_lines(done: Extraction) -> list[str]:
    """What reading back gave, as the single-pair recipe prints it, and how to go on; with rich's markup."""
    from rich.markup import escape

    found, tick = done.found, "[green]✓[/]"
    settings = (
        f"crop {_CROP}, clean-up measured; --create-config writes it" if done.params is None else str(done.params)
    )
    lines = [
        f"{tick} configuration loaded  {escape(settings)}",
        f"{tick} data set built        length {found.length}, {done.config.image_size[0]}x{done.config.image_size[1]} pixels",
        f"{tick} loader built          a batch of {found.images[0]}",
        f"    seq_name  {escape(f'aerial_megadepth_{done.pair.scene}_0')}",
        escape(f"    images    {list(found.images)}"),
        escape(f"    depths    {list(found.depths)}"),
        *(escape(f"    image {number}   {facts}") for number, facts in enumerate(found.views)),
        "",
        f"{done.files} files, {human_bytes(done.size)}: {escape(str(done.out))}",
        *_remarks(done),
        f"Is it read right?  plumbline check aerialmd {escape(str(done.out))} -o cleanup=measured",
    ]
    return [*lines, *([] if done.params is None else [f"The graph on it:   {escape(run_command(done.params))}"])]


def _remarks(done: Extraction) -> list[str]:
    low, high = done.config.depth_range
    remarks = []
    if done.config.options.get("masks") == "none":
        remarks.append("[yellow]No label maps: the sky keeps what depth it has. --source-seg-root names them.[/]")
    if (outside := done.found.outside(done.config.depth_range)) > 0:
        remarks.append(
            f"[yellow]{outside:.1%} of the depth lies outside {low:g} to {high:g} m: give a wider --depth-range.[/]"
        )
    return remarks
