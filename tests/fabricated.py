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
    StoredCameras,
    StoredSample,
    read_cost,
    suite_fingerprint,
    write_cameras,
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


def pose_of(view, *, degrees=10.0, step=0.5):
    """`world_T_cam` of a camera that moves along x and turns about the vertical axis, a little more from view to view."""
    angle = np.radians(degrees * view)
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[0, 3] = step * view
    return pose


def cameras_of(sample, **changes):
    """`cam0_T_cam` of the sample's views when the capture was such as `pose_of` with `changes` says."""
    world_T_cam = np.stack([pose_of(view, **changes) for view in sample.views])
    return np.linalg.inv(world_T_cam[0]) @ world_T_cam


def K_of(size=SIZE, *, focal=1.1):
    """Intrinsics of an image whose focal length is `focal` times its width."""
    return np.array([[size[1] * focal, 0, size[1] / 2 - 0.5], [0, size[1] * focal, size[0] / 2 - 0.5], [0, 0, 1.0]])


def write_dataset(folder, dataset, scenes, *, size=SIZE, views=VIEWS):
    """Write canonical scenes named `scenes` to `folder`/`dataset`."""
    for seed, name in enumerate(scenes):
        maps = truth_of(seed, size=size, views=views)
        made = [
            View(f"{i:04d}", image_of(depth, 100 * seed + i), K_of(size), world_T_cam=pose_of(i), depth=depth)
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
    cameras=None,
    metric=True,
):
    """Write `answer(truth, row)` -> depth or (depth, confidence) for every sample to `folder`/`method`/`suite_name`.

    `cameras(sample)` -> poses or (poses, K) gives the cameras of a method that predicts them; one with `answer` None predicts
    these alone.
    """
    samples = samples_of(scenes, views=views)
    where = folder / method / suite_name
    where.mkdir(parents=True)
    if cameras is not None:
        write_cameras(where, stacked_cameras(samples, cameras))
    if answer is not None:
        write_depth(where, samples, scenes, answer, size=size, views=views)
    about = About(
        method, suite_name, suite.dataset, inputs, oracle, suite_fingerprint(suite), "cpu", notes or {}, metric
    )
    write_samples(where, about, samples)
    if method == "deltaz":
        errors = [math.nan, *[1.25] * (len(samples) - 1)]
        write_diagnostics(where, {"usable_share": [0.5] * len(samples), "match_error_px": errors})
    known = read_cost(folder / method).seconds if (folder / method / "cost.json").is_file() else {}
    write_cost(folder / method, Cost({**known, suite_name: 0.0123}, 1234, 0.5))


def stacked_cameras(samples, cameras):
    """The answers of `cameras(sample)` for all samples."""
    answers = [cameras(sample) for sample in samples]
    pairs = [answer if isinstance(answer, tuple) else (answer, None) for answer in answers]
    K = None if pairs[0][1] is None else np.stack([np.tile(K, (len(poses), 1, 1)) for poses, K in pairs])
    return StoredCameras(
        np.stack([poses for poses, _ in pairs]).astype(np.float32), None if K is None else K.astype(np.float32)
    )


def write_depth(where, samples, scenes, answer, *, size, views):
    """Write the stacks of depth and, where there is one, of confidence."""
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


TOWN_METHODS = ("constant", "median_plane", "plane_sweep", "identity", "mean_pose", "vggt")


def vggt(truth, row):
    """In a unit of its own; nearly the right shape."""
    noise = np.random.default_rng(row).normal(0, 0.02 + 0.01 * (row % 4), truth.shape)
    depth = np.where(truth > 0, truth, 3) / 7 * (1 + noise).clip(0.5, 2)
    return depth, np.exp(-20 * abs(noise))


def median_plane(truth, row):
    """The median of the truth, everywhere."""
    return np.full_like(truth, np.median(truth[truth > 0]))


def write_towns(root, *, size=SIZE, views=VIEWS, scenes=("town/0017", "town/0018")):
    """Write scenes, predictions and scores of a suite in which vggt knows no scale and cameras are predicted; its config."""
    from plumbline.evaluation import evaluate

    suite = a_suite("towns", methods=TOWN_METHODS)
    write_dataset(root / "data/scenes", "towns", scenes, size=size, views=views)
    cases = {
        "constant": {"answer": constant, "inputs": ("constant_depth",)},
        "median_plane": {"answer": median_plane, "inputs": ("depth", "mask"), "oracle": True},
        "plane_sweep": {"answer": plane_sweep, "inputs": ("K", "cam0_T_cam", "image")},
        "identity": {"answer": None, "cameras": lambda s: cameras_of(s, degrees=0, step=0), "inputs": ()},
        "mean_pose": {"answer": None, "cameras": lambda s: cameras_of(s, degrees=0), "inputs": ("constant_pose",)},
        "vggt": {"answer": vggt, "cameras": lambda s: (cameras_of(s, degrees=11, step=0.1), K_of(size, focal=1.21))},
    }
    for method, case in cases.items():
        options = {"metric": method != "vggt", "size": size, "views": views} | case
        write_prediction(root / "predictions", method, "towns", suite, scenes, **options)
    for method in cases:
        evaluate(
            method,
            predictions=root / "predictions" / method,
            suites={"towns": suite},
            scenes=root / "data/scenes",
            out=root / "scores" / method,
            common=root / "predictions/plane_sweep",
            bootstrap=100,
        )
    return {"towns": suite}


def write_gate(root, system, *, passed=True, guide=False):
    """Write the record of an overfit gate: verdict, curve, pictures."""
    folder = root / "runs/overfit" / system
    folder.mkdir(parents=True)
    criteria = [
        {"name": "finite", "value": 0.0, "expected": "every loss and gradient finite", "met": True, "remark": ""},
        {"name": "loss depth_regression", "value": 0.00412, "expected": "below 0.01", "met": True, "remark": ""},
        {"name": "abs_rel", "value": 0.0123, "expected": "below 0.02", "met": passed, "remark": ""},
        {"name": "input_ratio", "value": None, "expected": "at least 10", "met": passed, "remark": "<depth>: 0, 1.5"},
    ]
    beside = [{"name": "loss_objective", "value": -0.7, "expected": "below 0.01", "met": True, "remark": "no sign."}]
    content = {
        "format": 1,
        "system": system,
        "passed": passed,
        "criteria": criteria,
        "diagnosis": [] if passed else ["Frozen: depth_head stays as it was drawn."],
        "guide": beside if guide else [],
        "observations": [],
        "conclusion": f"{system} {'fits' if passed else 'does not fit'} its sample.",
        "configuration": {"log_steps": [1, 10, 50, 100]},
    }
    write_json(folder / "verdict.json", content)
    lines = ["step,lr,train/loss,val/loss,val/depth_error,val/camera"]
    for step in range(1, 301):
        after = f"{0.8 / step:.6g},{0.5 / step:.6g},{0.3 / step:.6g}" if step in (1, 10, 50, 100, 300) else ",,"
        lines.append(f"{step},0.001,{1 / step:.6g},{after}")
    (folder / "curve.csv").write_text("\n".join(lines) + "\n")
    for step in (1, 300):
        sheet = np.concatenate([image_of(truth, step) for truth in truth_of(1, size=(120, 160))[:4]], axis=1)
        write_png(folder / f"step_{step}.png", sheet)
