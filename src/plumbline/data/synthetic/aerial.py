"""Towns photographed from the ground and from the air, written as preprocessed AerialMegaDepth folders.

Half of a scene's views are photographs by people on the square, of several shapes and focal lengths; the others are frames of
one flight around it. Depth is exact; in the sky, where real maps have false matches, it holds false values, which the label
maps tell from the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from plumbline.data.geometry import backproject, invert, project, transform
from plumbline.data.synthetic import write_aerialmd as write
from plumbline.data.synthetic.raycast import Stage, depth_map, prepare, render
from plumbline.data.synthetic.sensor import Sensor, of_scene, photograph
from plumbline.data.synthetic.towns import LANDMARKS, town
from plumbline.data.synthetic.world import Camera, look_at

# Labels of ADE20K that a map holds; only that of the sky has a use.
BUILDING, SKY, ROAD = 1, 2, 6
_TRIES = 12
_CLEAR = 4.0
# Pairs of which neither image shows less of the other than this.
_MIN_COVISIBLE = 0.1
_SAMPLES = 1500


@dataclass(frozen=True)
class Shot:
    """A camera and the tag of its picture."""

    tag: str
    camera: Camera


def make_scene(
    out: Path, name: str, index: int, *, views: int, size: tuple[int, int], sensor: Sensor, quality: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Write the pictures, depth, cameras and label maps of a scene; `size` (height, width) is that of the flight's frames."""
    kinds = tuple(LANDMARKS)
    stage = prepare(town(kinds[index % len(kinds)], rng))
    own, towards = of_scene(sensor, rng), float(rng.uniform(0, 360))
    shots = _ground_shots(rng, views // 2, size, stage, towards)
    for shot in [*shots, *_flight(rng, views - views // 2, size, name, towards)]:
        light, depth = render(stage, shot.camera)
        labels = label_map(depth, shot.camera)
        stored = _with_false_sky(depth, labels, rng)
        write.view(out, name, shot.tag, photograph(light, own, rng), stored, shot.camera, quality=quality)
        write.labels(out, name, shot.tag, labels)


def label_map(depth: Float32[np.ndarray, "h w"], camera: Camera) -> UInt8[np.ndarray, "h w"]:
    """Sky where there is no depth, road up to 0.3 m above the ground, building above."""
    height = -transform(camera.world_T_cam, backproject(depth, camera.K))[..., 1]
    return np.where(depth == 0, SKY, np.where(height < 0.3, ROAD, BUILDING)).astype(np.uint8)


def _with_false_sky(
    depth: Float32[np.ndarray, "h w"], labels: UInt8[np.ndarray, "h w"], rng: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """Clouds of false depth, 20 to 4000 m away, on about a third of the sky."""
    coarse = rng.standard_normal((7, 9)).astype(np.float32)
    cloud = cv2.resize(coarse, depth.shape[::-1], interpolation=cv2.INTER_CUBIC)
    false = np.exp(np.float32(rng.uniform(3, 8)) + np.float32(0.3) * cloud)
    return np.where((labels == SKY) & (cloud > 0.3), false, depth).astype(np.float32)


# --- where the cameras stand --------------------------------------------------------------------------------------


def _ground_shots(
    rng: np.random.Generator, count: int, size: tuple[int, int], stage: Stage, towards: float
) -> list[Shot]:
    """People's photographs from eye level, one after the other around the part of the square about `towards` degrees."""
    span = rng.uniform(90, 130)
    shapes = (size, (size[0], size[0] * 3 // 4), (size[0] * 2 // 3, size[0] * 2 // 3))
    shots = []
    for k in range(count):
        shape = shapes[int(rng.choice(3, p=[0.6, 0.25, 0.15]))]
        angle = towards + span * ((k + rng.uniform(-0.15, 0.15)) / max(count - 1, 1) - 0.5)
        K = _intrinsics(shape, float(rng.uniform(58, 78)))
        shots.append(Shot(_flickr_tag(rng), _standing(rng, float(angle), shape, K, stage)))
    return shots


def _standing(
    rng: np.random.Generator, degrees: float, size: tuple[int, int], K: Float64[np.ndarray, "3 3"], stage: Stage
) -> Camera:
    """A camera at eye level about `degrees` around the landmark that nothing stands right in front of."""
    for attempt in range(_TRIES):
        angle = np.radians(degrees + attempt * rng.uniform(-2, 2))
        away = rng.uniform(31, 45)
        place = np.array([away * np.sin(angle), -rng.uniform(1.5, 1.9), away * np.cos(angle)])
        target = np.array([rng.uniform(-3, 3), -rng.uniform(5, 9), rng.uniform(-3, 3)])
        camera = Camera(K, look_at(place, target, roll=float(rng.normal(0, 1.5))), size)
        seen = depth_map(stage, _coarse(camera))
        if np.min(seen, where=seen > 0, initial=np.inf) > _CLEAR:
            return camera
    return camera


def _coarse(camera: Camera) -> Camera:
    """The same view with a hundredth of the pixels; the foreground's paving, at the bottom, is left out."""
    K = np.diag([0.1, 0.1, 1.0]) @ camera.K
    return Camera(K, camera.world_T_cam, (camera.size[0] * 7 // 100, camera.size[1] // 10))


def _flight(rng: np.random.Generator, count: int, size: tuple[int, int], name: str, towards: float) -> list[Shot]:
    """Frames of one flight around the landmark, as a virtual globe renders them: one focal length, no roll."""
    span = rng.uniform(90, 120) * rng.choice([-1, 1])
    away, rise, turn = rng.uniform(80, 110), rng.uniform(26, 38), rng.uniform(8, 16)
    K, frame, step = _intrinsics(size, float(rng.uniform(46, 58))), int(rng.integers(0, 60)), int(rng.integers(9, 24))
    shots = []
    for k in range(count):
        part = k / max(count - 1, 1)
        a, b = np.radians(towards + span * (part - 0.5)), np.radians(rise + turn * np.sin(2.5 * part))
        radius = away * (1 + 0.12 * np.sin(4 * part))
        place = radius * np.array([np.sin(a) * np.cos(b), -np.sin(b), np.cos(a) * np.cos(b)])
        tag = f"{name}_{frame + k * step:03d}.jpeg"
        shots.append(Shot(tag, Camera(K, look_at(place, np.array([0.0, -6.0, 0.0])), size)))
    return shots


def _intrinsics(size: tuple[int, int], degrees: float) -> Float64[np.ndarray, "3 3"]:
    """K of an image of `size` whose longer side spans `degrees`, principal point in the middle."""
    focal = max(size) / 2 / np.tan(np.radians(degrees / 2))
    return np.array([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1]])


def _flickr_tag(rng: np.random.Generator) -> str:
    digits = "".join(rng.choice(list("0123456789abcdef"), 10))
    return f"{rng.integers(10**9, 10**10)}_{digits}_o.jpg.jpg"


# --- which of them are pairs --------------------------------------------------------------------------------------


def write_index(out: Path, names: Sequence[str]) -> None:
    """Write train.npz and val.npz of finished scenes: the last third to validate with; a single scene is in both."""
    held_out = max(1, len(names) // 3)
    train, val = (names[:-held_out], names[-held_out:]) if len(names) > 1 else (names, names)
    for file, part, records in (("train.npz", train, True), ("val.npz", val, False)):
        write.index(out / file, {name: _scored_pairs(out, name) for name in part}, records=records)


def _scored_pairs(out: Path, name: str) -> tuple[list[str], list[tuple[int, int, float]]]:
    """Tags of a scene in order, photographs first, and (i, j, score) of the pairs that see enough of each other."""
    tags = write.tags(out, name)
    shots = [write.read_back(out, name, tag) for tag in tags]
    shares = np.array([[covisible(a, b) for b in shots] for a in shots])
    found = []
    for i, j in zip(*np.triu_indices(len(tags), 1)):
        a, b = shares[i, j], shares[j, i]
        if min(a, b) >= _MIN_COVISIBLE:
            # Arithmetic over harmonic mean: 1 for views alike, more the more one of them sees beyond the other.
            found.append((int(i), int(j), float((a + b) ** 2 / (4 * a * b))))
    return tags, found


def covisible(
    first: tuple[Float32[np.ndarray, "h w"], Camera], second: tuple[Float32[np.ndarray, "h2 w2"], Camera]
) -> Float[np.ndarray, ""] | float:
    """Share of the first view's measured pixels that the second one sees too (depth within 3 %)."""
    (depth, camera), (other_depth, other) = first, second
    step = max(1, round(float(np.sqrt(depth.size / _SAMPLES))))
    points = backproject(depth, camera.K)[::step, ::step].reshape(-1, 3)
    points = points[points[:, 2] > 0]
    uv, z = project(transform(invert(other.world_T_cam) @ camera.world_T_cam, points), other.K)
    u, v = (np.rint(np.nan_to_num(uv[:, axis], nan=-1)) for axis in (0, 1))
    inside = (z > 0) & (u >= 0) & (v >= 0) & (u < other.size[1]) & (v < other.size[0])
    met = other_depth[v[inside].astype(int), u[inside].astype(int)]
    return float((np.abs(met - z[inside]) < 0.03 * z[inside]).sum() / max(len(points), 1))
