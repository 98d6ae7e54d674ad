"""Small canonical scenes and predictions of known quality, for tests of what comes after prediction."""

import math

import numpy as np

from plumbline.config import SuiteConfig
from plumbline.data.canonical import write_scene
from plumbline.files import write_json, write_png
from plumbline.records import View
from plumbline.stored import (
    About,
    Cost,
    StackFile,
    StoredSample,
    read_cost,
    suite_fingerprint,
    write_cost,
    write_diagnostics,
    write_samples,
)

SIZE = (24, 32)
VIEWS = 5


def truth_of(scene_seed, *, size=SIZE, views=VIEWS):
    """A tilted wall with a box before it, a little nearer from view to view; a strip is not measured."""
    height, width = size
    u, v = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    maps = []
    for view in range(views):
        depth = 3 + 0.3 * scene_seed + 0.4 * u + 0.2 * v - 0.05 * view
        depth = np.where((abs(u - 0.1 * scene_seed) < 0.3) & (abs(v) < 0.4), depth - 1, depth)
        depth[: height // 8] = 0
        maps.append(depth.astype(np.float32))
    return maps


def image_of(depth, seed):
    """A picture in which near is bright, with some texture."""
    noise = np.random.default_rng(seed).normal(0, 12, (*depth.shape, 3))
    grey = 255 * np.exp(-0.35 * depth)[..., None] * np.array([1.0, 0.9, 0.75])
    return np.clip(grey + noise, 0, 255).astype(np.uint8)


def write_dataset(folder, dataset, scenes, *, size=SIZE, views=VIEWS):
    """Write canonical scenes named `scenes` to `folder`/`dataset`."""
    K = np.array([[size[1] * 1.1, 0, size[1] / 2 - 0.5], [0, size[1] * 1.1, size[0] / 2 - 0.5], [0, 0, 1.0]])
    for seed, name in enumerate(scenes):
        maps = truth_of(seed, size=size, views=views)
        made = [
            View(f"{i:04d}", image_of(depth, 100 * seed + i), K, world_T_cam=np.eye(4), depth=depth)
            for i, depth in enumerate(maps)
        ]
        write_scene(folder / dataset / name, dataset=dataset, name=name, views=made, depth_range=(0.5, 8.0))


def a_suite(dataset, **changes):
    """A suite of gap 1."""
    return SuiteConfig(dataset=dataset, sources={"kind": "gap", "gap": 1}, **changes)


def samples_of(scenes, *, views=VIEWS):
    """Every inner view with its two neighbours."""
    return [
        StoredSample(scene, (i, i - 1, i + 1), (f"{i:04d}", f"{i - 1:04d}", f"{i + 1:04d}"))
        for scene in scenes
        for i in range(1, views - 1)
    ]


def write_prediction(
    folder,
    method,
    suite_name,
    suite,
    scenes,
    answer,
    *,
    inputs=("image",),
    oracle=False,
    size=SIZE,
    notes=None,
    views=VIEWS,
):
    """Write `answer(truth, row)` -> depth or (depth, confidence) for every sample to `folder`/`method`/`suite_name`."""
    samples = samples_of(scenes, views=views)
    where = folder / method / suite_name
    where.mkdir(parents=True)
    depth_file, confidence_file = StackFile(where / "depth.npy", (len(samples), 1, *size)), None
    for row, sample in enumerate(samples):
        truth = truth_of(list(scenes).index(sample.scene), size=size, views=views)[sample.views[0]]
        answered = answer(truth, row)
        depth, confidence = answered if isinstance(answered, tuple) else (answered, None)
        depth_file.append(depth.astype(np.float32)[None, None])
        if confidence is not None:
            confidence_file = confidence_file or StackFile(where / "confidence.npy", (len(samples), 1, *size))
            confidence_file.append(confidence.astype(np.float32)[None, None])
    for stack in filter(None, (depth_file, confidence_file)):
        stack.close()
    about = About(method, suite_name, suite.dataset, inputs, oracle, suite_fingerprint(suite), "cpu", notes or {})
    write_samples(where, about, samples)
    if method == "deltaz":
        errors = [math.nan, *[1.25] * (len(samples) - 1)]
        write_diagnostics(where, {"usable_share": [0.5] * len(samples), "match_error_px": errors})
    known = read_cost(folder / method).seconds if (folder / method / "cost.json").is_file() else {}
    write_cost(folder / method, Cost({**known, suite_name: 0.0123}, 1234, 0.5))


METHODS = ("constant", "plane_sweep", "deltaz", "perturbed")
ROOM_SCENES = ("flat/kitchen", "flat/hall", "flat/store")


def constant(truth, row):
    """3 m everywhere."""
    return np.full_like(truth, 3)


def plane_sweep(truth, row):
    """A tenth off, wilder in some samples, silent on the right edge; with a confidence that knows a little."""
    rng = np.random.default_rng(row)
    noise = rng.normal(0, 0.04 + 0.02 * (row % 4), truth.shape)
    depth = np.where(truth > 0, truth, 3) * (1 + noise).clip(0.5, 2)
    depth[:, -truth.shape[1] // 8 :] = 0
    return depth, np.exp(-10 * abs(noise + rng.normal(0, 0.05, truth.shape)))


def deltaz(truth, row):
    """Half as far off as the plane sweep, and dense."""
    noise = np.random.default_rng(row).normal(0, 0.02 + 0.01 * (row % 4), truth.shape)
    return np.where(truth > 0, truth, 3) * (1 + noise).clip(0.5, 2)


def perturbed(truth, row):
    """The truth with little noise."""
    return np.where(truth > 0, truth, 3) * np.random.default_rng(row).normal(1, 0.005, truth.shape).clip(0.9)


def write_project(root, *, size=SIZE, views=VIEWS, suites=("rooms_gap1",), scenes=ROOM_SCENES):
    """Write scenes, predictions, scores, checks and a training curve below `root`; return {suite: its config}."""
    from plumbline.evaluation import evaluate

    configs = {name: a_suite("rooms", depth_min=0.5, depth_max=10.0) for name in suites}
    write_dataset(root / "data/scenes", "rooms", scenes, size=size, views=views)
    answers = {"constant": constant, "plane_sweep": plane_sweep, "deltaz": deltaz, "perturbed": perturbed}
    inputs = {"constant": ("constant_depth",), "perturbed": ("depth", "image"), "deltaz": ("image", "initial_depth")}
    for method, answer in answers.items():
        for name, config in configs.items():
            write_prediction(
                root / "predictions",
                method,
                name,
                config,
                scenes,
                answer,
                inputs=inputs.get(method, ("K", "cam0_T_cam", "image")),
                oracle=method == "perturbed",
                size=size,
                views=views,
                notes={"initial depth": "plane_sweep"} if method == "deltaz" else {},
            )
    for method in answers:
        evaluate(
            method,
            predictions=root / "predictions" / method,
            suites=configs,
            scenes=root / "data/scenes",
            out=root / "scores" / method,
            common=root / "predictions/plane_sweep",
            bootstrap=100,
        )
    write_checks(root, scenes)
    write_training(root)
    return configs


def write_checks(root, scenes, *, verdict="ok"):
    """Write a data check in which the first scene has `verdict`."""
    found = {"label": "as read", "error": 0.0123, "inliers": 0.97, "overlap": 0.61, "photometric": 0.84, "pairs": 12}
    checked = {
        name: {
            "verdict": verdict if place == 0 else "ok",
            "diagnosis": "1.2 % median error",
            "remarks": ["poses or depth are rough"] if place == 1 else [],
            "as_read": found,
        }
        for place, name in enumerate(scenes)
    }
    counts = {word: sum(c["verdict"] == word for c in checked.values()) for word in ("ok", "wrong", "cannot tell")}
    folder = root / "data/checks/rooms"
    write_json(folder / "checks.json", {"dataset": "rooms", "verdicts": counts, "scenes": checked})
    for seed, name in enumerate(scenes):
        sheet = np.concatenate([image_of(truth, seed) for truth in truth_of(seed, size=(120, 160))[:4]], axis=1)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(folder / f"{name}.png", sheet)


def write_training(root):
    """Write the curve and the facts of a training run."""
    folder = root / "runs/train/deltaz"
    folder.mkdir(parents=True)
    lines = ["step,lr,seconds,train/loss,val/loss,val/abs_rel"]
    for step in range(10, 401, 10):
        loss = 0.3 * np.exp(-step / 120) + 0.02
        checked = f"{1.1 * loss:.6g},{0.2 * loss:.6g}" if step % 50 == 0 else ","
        lines.append(f"{step},0.0001,{step / 10},{loss:.6g},{checked}")
    (folder / "curve.csv").write_text("\n".join(lines) + "\n")
    facts = {"steps": 400, "best_step": 350, "best": 0.00512, "seconds": 40.25, "device": "cpu", "parameters": 487_905}
    write_json(folder / "summary.json", facts)
