"""Batches of four samples of three views, 240x320: canonical scenes against decoding files for each item.

Images stay 8-bit in both: the conversion to float comes after and is the same work either way.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import allocator
from plumbline.data.canonical import read_scene, write_scene
from plumbline.data.samples import gather
from plumbline.feed import SampleFeed
from plumbline.files import write_jpg, write_png16
from plumbline.records import Sample, SampleArrays, View
from timing import Bench, Contender, random_indices

SIZE, CAPTURED, VIEWS, BATCH = (240, 320), (480, 640), 24, 4
K = np.array([[285.0, 0, 160], [0, 285, 120], [0, 0, 1]])


@dataclass
class DecodeEach(Dataset):
    """The usual data set: each item opens, decodes and resizes its own files."""

    folder: Path
    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, depths = zip(*(load_view(self.folder, view) for view in self.samples[index].views), strict=True)
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(depths))


def load_view(folder: Path, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and depth in metres of one captured view, at the training size."""
    image = cv2.resize(iio.imread(folder / f"{view}.jpg"), SIZE[::-1], interpolation=cv2.INTER_AREA)
    depth = cv2.resize(iio.imread(folder / f"{view}.png"), SIZE[::-1], interpolation=cv2.INTER_NEAREST)
    return image, depth.astype(np.float32) / 1000.0


def benches(folder: Path) -> list[Bench]:
    """A room-like capture: smooth pictures and depth with some noise, so that the decoders do usual work."""
    capture(folder)
    views = [View(f"{i:04d}", *as_view(folder, i)) for i in range(VIEWS)]
    write_scene(folder / "scene", dataset="sun3d", name="room", views=views, depth_range=(0.5, 10.0))
    scenes = {"room": read_scene(folder / "scene")}
    samples = [Sample("room", (i, (i + 1) % VIEWS, (i + 2) % VIEWS)) for i in range(VIEWS)]
    turns = [random_indices(VIEWS, seed=seed) for seed in range(4)]
    feed = SampleFeed(scenes, samples)
    peer_data = DecodeEach(folder, samples)

    def peer(indices: list[int]) -> list[torch.Tensor]:
        return next(iter(DataLoader(peer_data, batch_size=BATCH, sampler=indices, num_workers=0)))

    def ours(indices: list[int]) -> SampleArrays:
        return gather(scenes, [samples[i] for i in indices])

    def check() -> None:
        image, depth = peer([3, 1, 2, 0])
        arrays = ours([3, 1, 2, 0])
        np.testing.assert_array_equal(arrays.image, image.numpy())
        np.testing.assert_array_equal(arrays.depth, depth.numpy())

    stored = [ours([0, 1, 2, 3]), ours([4, 5, 6, 7])]

    def copy() -> tuple[np.ndarray, ...]:
        arrays = stored[next(turns[2]) % 2]
        return arrays.image.copy(), arrays.depth.copy()

    draw = [lambda turn=turn: [next(turn) for _ in range(BATCH)] for turn in (turns[0], turns[1], turns[3])]
    return [
        Bench(
            "batch_feed_4x3x240x320",
            Contender("DataLoader that decodes JPEG and PNG16 per item", lambda: peer(draw[0]()), allocator.plain),
            Contender("data.samples.gather", lambda: ours(draw[1]()), allocator.kept),
            target=40.0,
            check=check,
            limit=Contender("copy of the batch", copy, allocator.kept),
            variants=(
                Contender("ours with the conversion to float on top", lambda: feed.load(draw[2]()), allocator.kept),
            ),
        )
    ]


def as_view(folder: Path, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The fields of a View after its name."""
    image, depth = load_view(folder, index)
    return image, K, np.eye(4), depth


def capture(folder: Path) -> None:
    """Write the raw pictures (JPEG) and depth maps (16-bit PNG, mm)."""
    generator = np.random.default_rng(0)
    for index in range(VIEWS):
        coarse = generator.uniform(0, 255, (24, 32, 3)).astype(np.float32)
        smooth = cv2.resize(coarse, CAPTURED[::-1], interpolation=cv2.INTER_CUBIC)
        noisy = smooth + generator.normal(0, 6, smooth.shape)
        write_jpg(folder / f"{index}.jpg", np.clip(noisy, 0, 255).astype(np.uint8))
        surface = cv2.resize(generator.uniform(1000, 4000, (6, 8)).astype(np.float32), CAPTURED[::-1])
        write_png16(folder / f"{index}.png", (surface + generator.normal(0, 4, surface.shape)).astype(np.uint16))
