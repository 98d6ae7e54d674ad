"""A small project in which views are rendered: canonical scenes, predictions of known quality, scores by `evaluate`."""

import numpy as np
from PIL import Image

from fabricated import write_dataset
from plumbline.config import SuiteConfig
from plumbline.data.canonical import read_scene
from plumbline.evaluation import evaluate
from plumbline.files import read_json, write_json, write_npy
from plumbline.stored import (
    About,
    Cost,
    StackFile,
    StoredSample,
    suite_fingerprint,
    write_cost,
    write_diagnostics,
    write_samples,
)

VIEW_METHODS = ("constant", "mean_colour", "nearest_view", "warped_view", "depthsplat")
SCENES = ("hut/a", "hut/b", "hut/c")
# Standard deviation of what is wrong with a rendered view, in steps of 255; a little more from sample to sample.
NOISE = {"mean_colour": 40, "nearest_view": 25, "warped_view": 8, "depthsplat": 12}
SEES_DEPTH = ("constant", "depthsplat")


def target_suite(dataset, count, **changes):
    """Every view from `count` others."""
    return SuiteConfig(dataset=dataset, sources={"kind": "target", "count": count}, **changes)


def target_samples(scenes, count, *, views, targets=1):
    """Samples whose last `targets` views are to be rendered from the `count` before them."""
    made = []
    for scene in scenes:
        for target in range(targets, views):
            given = [view for view in range(views) if not target - targets < view <= target][:count]
            chosen = (*given, *range(target - targets + 1, target + 1))
            made.append(StoredSample(scene, chosen, tuple(f"{view:04d}" for view in chosen), context=len(given)))
    return made


def rendered_by(method, scene, view, row, *, noise=NOISE):
    """A view as `method` would have it: the truth with noise, or one colour."""
    truth = np.asarray(scene.images[view]).astype(np.float64)
    rng = np.random.default_rng([row, view, len(method)])
    if method == "mean_colour":
        truth = np.broadcast_to(truth.mean(axis=(0, 1)), truth.shape)
    return np.clip(truth + rng.normal(0, noise[method] * (1 + 0.1 * (row % 5)), truth.shape), 0, 255).astype(np.uint8)


def write_view_prediction(root, method, name, suite, samples, *, noise=NOISE):
    """Write what `method` answers for the suite: depth of the first view, rendered views, or both."""
    where = root / "predictions" / method / name
    where.mkdir(parents=True)
    scenes = {sample.scene: read_scene(root / "data/scenes" / suite.dataset / sample.scene) for sample in samples}
    size = next(iter(scenes.values())).images.shape[1:3]
    if method in SEES_DEPTH:
        stack = StackFile(where / "depth.npy", (len(samples), 1, *size))
        for row, sample in enumerate(samples):
            truth = np.asarray(scenes[sample.scene].depth[sample.views[0]])
            answer = np.where(truth > 0, truth, 3) * np.random.default_rng(row).normal(1, 0.04, size).clip(0.5)
            stack.append((np.full_like(answer, 3) if method == "constant" else answer).astype(np.float32)[None, None])
        stack.close()
    if method in noise:
        images = [
            [rendered_by(method, scenes[s.scene], v, row, noise=noise) for v in s.targets]
            for row, s in enumerate(samples)
        ]
        write_npy(where / "rendered.npy", np.array(images))
    if method in ("warped_view", "depthsplat"):
        depth = [[np.asarray(scenes[s.scene].depth[v]) * 1.05 for v in s.targets] for s in samples]
        write_npy(where / "rendered_depth.npy", np.array(depth, np.float32))
    if method == "depthsplat":
        write_diagnostics(where, {"gaussians": [40_960.0 + row for row in range(len(samples))]})
    inputs = ("constant_depth",) if method == "constant" else ("K", "cam0_T_cam", "image")
    write_samples(where, About(method, name, suite.dataset, inputs, False, suite_fingerprint(suite), "cpu"), samples)
    file = root / "predictions" / method / "cost.json"
    known = read_json(file) if file.is_file() else {"seconds": {}, "render_seconds": {}}
    rendering = {name: 0.0021} if method in noise else {}
    write_cost(
        root / "predictions" / method,
        Cost({**known["seconds"], name: 0.0345}, 56_789, 0.4, {**known["render_seconds"], **rendering}),
    )


def score_views(root, suites):
    """Evaluate all methods on `suites`."""
    for method in VIEW_METHODS:
        evaluate(
            method,
            predictions=root / "predictions" / method,
            suites={name: suite for name, suite in suites.items() if suite.asks(method)},
            scenes=root / "data/scenes",
            out=root / "scores" / method,
            common=root / "predictions/plane_sweep",
            bootstrap=100,
        )


def write_orbit(path, *, frames=4, size=(24, 32)):
    """A GIF of a bar that moves."""
    stack = [np.zeros((*size, 3), np.uint8) for _ in range(frames)]
    for place, frame in enumerate(stack):
        frame[:, 4 * place : 4 * place + 8] = (200, 120, 40)
    first, *rest = [Image.fromarray(frame) for frame in stack]
    first.save(path, save_all=True, append_images=rest, duration=80, loop=0)


def write_views(root, *, views=5, targets=1, noise=NOISE, sweep=(2, 3), scenes=SCENES):
    """Write a suite of rendered views, a `sweep` over given views, their scores and an orbit; return {suite: config}."""
    write_dataset(root / "data/scenes", "huts", scenes, views=views)
    suites = {"huts_new": target_suite("huts", 2, methods=VIEW_METHODS, predict_views=1)}
    suites |= {f"huts_new_{count}": target_suite("huts", count, methods=VIEW_METHODS, max_samples=9) for count in sweep}
    for name, suite in suites.items():
        samples = target_samples(scenes, suite.sources.count, views=views, targets=targets)
        for method in VIEW_METHODS:
            write_view_prediction(root, method, name, suite, samples, noise=noise)
    score_views(root, suites)
    write_orbit(root / "predictions/depthsplat/huts_new/orbit.gif")
    folder = root / "runs/train/depthsplat"
    folder.mkdir(parents=True)
    lines = [f"{step},{1 / step:.6g},{10 + 5 * np.log10(step):.6g}" for step in range(1, 101)]
    (folder / "curve.csv").write_text("\n".join(["step,train/loss,val/psnr", *lines]) + "\n")
    write_json(folder / "summary.json", {"steps": 100, "best_step": 90, "best": 19.8, "device": "cpu"})
    return suites
