"""The embedded data set: ray-cast scenes with exact depth, as raw DTU, SUN3D, AerialMegaDepth and RE10K folders, traps included.

The folders go through the same download, parse and check as the real ones: nothing downstream knows that they are made.
Everything follows from the seed; a scene's content depends on the seed, its name and its place in the list alone.
"""

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Literal
from zlib import crc32

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from plumbline.data.synthetic import aerial, paths, write, write_re10k
from plumbline.data.synthetic.raycast import depth_map, prepare, render
from plumbline.data.synthetic.scenes import ARRANGEMENTS, arrangement, room
from plumbline.data.synthetic.sensor import Sensor, measure, of_scene, photograph
from plumbline.data.synthetic.world import Camera, look_at

_COLOUR_PERIOD, _DEPTH_PERIOD = 33_516, 33_369
# A tenth of a second: a walk of 60 frames has the parallax of the published gaps of 25 to 135 frames of a film.
_CLIP_PERIOD = 100_000
_DTU_LIGHT = 3
# Focal lengths at full size: DTU's 1/4-size cameras, and the Kinect's at 640x480.
_DTU_FOCAL, _DTU_WIDTH = 361.54125, 160
_KINECT_FOCAL, _KINECT_WIDTH = 570.3422047415297129191458225250244140625, 640
_VERSIONS = ("20131202163427", "20140112151017")


class Config(BaseModel):
    """What to make. `size` is (height, width) of the images; DTU's depth maps have a quarter of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Literal["dtu", "sun3d", "aerialmd", "re10k"]
    scenes: tuple[str, ...] = Field(
        min_length=1,
        description="scan names (scan1, ...), building/sequence names, four digits, or train/key and test/key",
    )
    views: int = Field(ge=2, description="cameras of a scan, colour frames of a sequence, or pictures of a town")
    image_size: tuple[int, int] = Field(description="(height, width) of the images in pixels; multiples of 4")
    seed: int = Field(0, ge=0)
    depth_range: tuple[float, float] = Field(
        (0.425, 0.935), description="DTU: depth outside this is not measured, metres"
    )
    jpeg_quality: int = Field(92, ge=1, le=100)
    chunk: int = Field(4, ge=1, description="RE10K: scenes a chunk")
    sensor: Sensor = Sensor.model_validate({})

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if len(set(self.scenes)) != len(self.scenes):
            raise ValueError("scenes: a name stands twice; each scene needs its own name")
        if any(side < 16 or side % 4 for side in self.image_size):
            raise ValueError(f"image_size: {self.image_size}; both sides must be multiples of 4 and at least 16")
        if self.layout == "re10k" and not all(re.fullmatch(r"(train|test)/\w+", name) for name in self.scenes):
            raise ValueError(f"scenes: {', '.join(self.scenes)}; expected train/<key> and test/<key>")
        return self


def generate(config: Config, out: Path, *, workers: int = 2, progress: Callable[[str], None] | None = None) -> None:
    """Write the data set into `out`; same config, same bytes. `progress` is called with each finished scene's name.

    Scenes are made by `workers` processes (1: in this one). `out` is written in place: the caller renames it when done.
    """
    out.mkdir(parents=True, exist_ok=True)
    if config.layout == "dtu":
        _write_rig(config, out)
    _make_all(config, out, workers, progress or _ignore)
    if config.layout == "aerialmd":
        aerial.write_index(out, config.scenes)
    if config.layout == "re10k":
        write_re10k.pack(out, config.scenes, chunk=config.chunk)
        write_re10k.evaluation_index(out, config.scenes, views=config.views)


def _make_all(config: Config, out: Path, workers: int, done: Callable[[str], None]) -> None:
    if workers <= 1:
        for index in range(len(config.scenes)):
            done(_make(config, index, out))
        return
    with ProcessPoolExecutor(min(workers, len(config.scenes)), mp_context=get_context("spawn")) as pool:
        for job in as_completed([pool.submit(_make, config, index, out) for index in range(len(config.scenes))]):
            done(job.result())


def _ignore(name: str) -> None:
    pass


def _make(config: Config, index: int, out: Path) -> str:
    cv2.setNumThreads(1)
    name = config.scenes[index]
    rng = np.random.default_rng([config.seed, crc32(name.encode())])
    if config.layout == "dtu":
        _make_scan(config, index, out, rng)
    elif config.layout == "aerialmd":
        _make_town(config, index, out, rng)
    elif config.layout == "re10k":
        _make_clip(config, index, out, rng)
    else:
        _make_sequence(config, index, out, rng)
    return name


def _depth_K(config: Config) -> np.ndarray:
    height, width = config.image_size[0] // 4, config.image_size[1] // 4
    focal = _DTU_FOCAL * width / _DTU_WIDTH
    # Off the centre and with unequal focal lengths, as the real ones: a reader that swaps or centres them must fail.
    return np.array([[focal, 0, width * 0.518], [0, focal * 0.9968, height * 0.5186], [0, 0, 1]])


def _image_K(config: Config) -> np.ndarray:
    return np.diag([4.0, 4.0, 1.0]) @ _depth_K(config)


def _write_rig(config: Config, out: Path) -> None:
    cameras = paths.rig(config.views)
    points = np.random.default_rng(config.seed).uniform([-0.12, -0.15, -0.12], [0.12, 0.02, 0.15], (2500, 3))
    write.dtu_cameras(out, _depth_K(config), config.image_size, cameras, config.depth_range[0] * 1000)
    write.dtu_pairs(out, paths.pair_scores(cameras, points))


def _make_scan(config: Config, index: int, out: Path, rng: np.random.Generator) -> None:
    kinds, sensor = tuple(ARRANGEMENTS), of_scene(config.sensor, rng)
    stage = prepare(arrangement(kinds[index % len(kinds)], rng))
    for view, world_T_cam in enumerate(paths.rig(config.views)):
        light, depth = render(stage, Camera(_image_K(config), world_T_cam, config.image_size))
        nearest, farthest = config.depth_range
        # Image pixel (4u, 4v) and depth pixel (u, v) are one ray: the intrinsics differ by the factor 4 exactly.
        coarse = depth[::4, ::4]
        truth = np.where((coarse >= nearest) & (coarse <= farthest), coarse * 1000, 0).astype(np.float32)
        write.dtu_view(out, config.scenes[index], view, _DTU_LIGHT, photograph(light, sensor, rng), truth)


def _make_town(config: Config, index: int, out: Path, rng: np.random.Generator) -> None:
    aerial.make_scene(
        out,
        config.scenes[index],
        index,
        views=config.views,
        size=config.image_size,
        sensor=config.sensor,
        quality=config.jpeg_quality,
        rng=rng,
    )


def _make_sequence(config: Config, index: int, out: Path, rng: np.random.Generator) -> None:
    root = out / config.scenes[index]
    world, size = room(rng)
    sensor = of_scene(config.sensor, rng)
    stage, path = prepare(world), paths.walk(rng, size)
    focal = _KINECT_FOCAL * config.image_size[1] / _KINECT_WIDTH
    K = np.array([[focal, 0, config.image_size[1] / 2], [0, focal, config.image_size[0] / 2], [0, 0, 1]])
    write.sun3d_intrinsics(root, K)
    for folder in ("image", "depth"):
        (root / folder).mkdir(exist_ok=True)
    start, depth_frames = _clock(config, index, rng)
    colour = [start + number * _COLOUR_PERIOD for number in range(config.views)]
    places = np.stack([path(time / 1e6) for time in colour])
    for number, (time, place) in enumerate(zip(colour, places), start=1):
        light, _ = render(stage, Camera(K, place, config.image_size))
        write.sun3d_image(root, number, time, photograph(light, sensor, rng), quality=config.jpeg_quality)
    for number, time in depth_frames:
        depth = depth_map(stage, Camera(K, path(time / 1e6), config.image_size))
        write.sun3d_depth(root, number, time, measure(depth, focal, sensor, rng))
    _write_versions(root, index, places, rng)


def _make_clip(config: Config, index: int, out: Path, rng: np.random.Generator) -> None:
    world, size = room(rng)
    sensor = of_scene(config.sensor, rng)
    stage, path = prepare(world), paths.walk(rng, size)
    K = _clip_K(config.image_size, rng)
    times = int(rng.integers(0, 10**8)) + _CLIP_PERIOD * np.arange(config.views, dtype=np.int64)
    places = [path(float(time - times[0]) / 1e6) for time in times]
    lights = (render(stage, Camera(K, place, config.image_size))[0] for place in places)
    images = [photograph(light, sensor, rng) for light in lights]
    cameras = np.stack([write_re10k.camera_row(K, place, config.image_size) for place in places])
    write_re10k.part(out, config.scenes[index], times, cameras, images, quality=config.jpeg_quality)


def _clip_K(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = size
    focal = width * float(rng.uniform(0.55, 0.9))
    # As in DTU's rig: a reader that swaps or centres must fail.
    return np.array([[focal, 0, width * 0.507 - 0.5], [0, focal * 0.9971, height * 0.492 - 0.5], [0, 0, 1]])


def _clock(config: Config, index: int, rng: np.random.Generator) -> tuple[int, list[tuple[int, int]]]:
    """The colour stream's first microsecond, and (number, microsecond) of each depth frame.

    On every second sequence the depth stream starts nine frames before colour and loses frames, so that neither equal
    numbers nor equal places in the listing belong together; on the others the two differ by milliseconds.
    """
    if index % 2 == 0:
        return 0, [(k + 1, int(rng.integers(0, 2500)) + k * _COLOUR_PERIOD) for k in range(config.views)]
    start = 9 * _DEPTH_PERIOD + 4_000
    count = (start + config.views * _COLOUR_PERIOD) // _DEPTH_PERIOD + 1
    lost = set(rng.choice(np.arange(2, count - 2), max(1, count // 30), replace=False).tolist())
    return start, [(k + 1, k * _DEPTH_PERIOD) for k in range(count) if k not in lost]


def _write_versions(root: Path, index: int, places: np.ndarray, rng: np.random.Generator) -> None:
    """The poses, last by name; on every second sequence also an older, drifting version in a world frame of its own."""
    write.sun3d_poses(root, _VERSIONS[-1], places)
    if index % 2 == 0:
        return
    drift = np.cumsum(rng.normal(0, 0.004, (len(places), 3)), axis=0)
    other_T_world = look_at(rng.uniform(-2, 2, 3), rng.uniform(-1, 1, 3))
    older = other_T_world @ places
    older[:, :3, 3] += drift
    write.sun3d_poses(root, _VERSIONS[0], older)
