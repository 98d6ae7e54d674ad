"""Reading views of a scene in random order: the canonical scene against one .npy file a view."""

from pathlib import Path

import numpy as np

from plumbline.data.canonical import read_scene, write_scene
from plumbline.records import View
from timing import Bench, Contender, random_indices

VIEWS, SIZE = 49, (512, 640)


def benches(folder: Path) -> list[Bench]:
    """Image and depth of one view out of 49, at DTU's training size."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (VIEWS, *SIZE, 3), dtype=np.uint8)
    depths = generator.uniform(0.4, 0.9, (VIEWS, *SIZE)).astype(np.float32)
    K = np.array([[700.0, 0, 320], [0, 700, 256], [0, 0, 1]])
    views = [View(f"{i:04d}", images[i], K, np.eye(4), depths[i]) for i in range(VIEWS)]
    write_scene(folder / "scene", dataset="dtu", name="scan1", views=views, depth_range=(0.4, 1.0))
    for i in range(VIEWS):
        np.save(folder / f"{i}_image.npy", images[i])
        np.save(folder / f"{i}_depth.npy", depths[i])
    scene = read_scene(folder / "scene")
    turns = [random_indices(VIEWS, seed=seed) for seed in range(3)]

    def ours(i: int) -> tuple[np.ndarray, ...]:
        return np.array(scene.images[i]), np.array(scene.depth[i])

    def peer(i: int) -> tuple[np.ndarray, ...]:
        return np.load(folder / f"{i}_image.npy"), np.load(folder / f"{i}_depth.npy")

    def check() -> None:
        for i in (0, 7, VIEWS - 1):
            for mine, other in zip(ours(i), peer(i), strict=True):
                np.testing.assert_array_equal(mine, other)

    return [
        Bench(
            "view_read_512x640",
            Contender("one np.load a view", lambda: peer(next(turns[0]))),
            Contender("a canonical scene, memory-mapped", lambda: ours(next(turns[1]))),
            target=2.0,
            check=check,
            limit=Contender("copy from memory", lambda: (i := next(turns[2]), images[i].copy(), depths[i].copy())),
        )
    ]
