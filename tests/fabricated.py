"""Small canonical scenes and predictions of known quality, for tests of what comes after prediction."""

import numpy as np

from plumbline.config import SuiteConfig
from plumbline.data.canonical import write_scene
from plumbline.records import View
from plumbline.stored import About, StackFile, StoredSample, suite_fingerprint, write_samples

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
        StoredSample(scene, (i, i - 1, i + 1), (f"{i:04d}", f"{i - 1:04d}", f"{i + 1:04d}"), 0.01)
        for scene in scenes
        for i in range(1, views - 1)
    ]


def write_prediction(
    folder, method, suite_name, suite, scenes, answer, *, inputs=("image",), oracle=False, size=SIZE, notes=None, views=VIEWS
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
