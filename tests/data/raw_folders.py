"""Tiny raw folders of every format the readers know, written from one capture whose truth is known."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from plumbline.files import write_jpg, write_pfm, write_png, write_png16

SIZE = (24, 32)
K = np.array([[30.0, 0, 16], [0, 31.0, 12], [0, 0, 1]])
# DTU's published full-size camera of view 0, and what MVSNet's training files make of it.
DTU_K = np.array([[2892.33, 0, 823.205], [0, 2883.18, 619.071], [0, 0, 1]])
DTU_TRAIN_K = np.array([[361.54125, 0, 82.900625], [0, 360.3975, 66.383875], [0, 0, 1]])


@dataclass(frozen=True)
class Capture:
    """What a folder was written from: RGB images, depth in whole millimetres (0 = not measured), poses in metres."""

    images: list[np.ndarray]
    depths_mm: list[np.ndarray]
    world_T_cams: list[np.ndarray]
    K: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def capture(count: int = 4, *, size: tuple[int, int] = SIZE, depth_size: tuple[int, int] | None = None) -> Capture:
    """`count` frames of flat colour, random depth with holes, and cameras that turn and move; all differ."""
    rng = np.random.default_rng(7)
    depths = [rng.integers(400, 9000, depth_size or size).astype(np.uint16) for _ in range(count)]
    for depth in depths:
        depth[:2] = 0
    images = [np.full((*size, 3), (40 * (i % 6), 200 - 20 * (i % 9), 90 + i), np.uint8) for i in range(count)]
    return Capture(images, depths, [camera(i) for i in range(count)], K.copy())


def camera(index: int) -> np.ndarray:
    """A rigid transform that differs in rotation and translation for each index."""
    world_T_cam = np.eye(4)
    world_T_cam[:3, :3] = cv2.Rodrigues(np.array([0.1 * index, -0.2, 0.05 * index + 0.1]))[0]
    world_T_cam[:3, 3] = (0.1 * index, 0.3, -0.2 * index)
    return world_T_cam


def write_text(path: Path, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, matrix, fmt="%.17g")


def write_sun3d(
    folder: Path,
    truth: Capture,
    *,
    image_ids: Sequence[int] | None = None,
    image_times: Sequence[int] | None = None,
    depth_ids: Sequence[int] | None = None,
    depth_times: Sequence[int] | None = None,
    depth_folder: str = "depth",
    version: str = "20140112151017.txt",
) -> None:
    """A SUN3D sequence: depth rotated left by 3 bits, times in microseconds, one extrinsics file."""
    numbers = range(len(truth))
    image_ids, depth_ids = image_ids or [i + 1 for i in numbers], depth_ids or [i + 1 for i in numbers]
    image_times, depth_times = image_times or [33516 * i for i in numbers], depth_times or [33369 * i for i in numbers]
    for frame_id, time, image in zip(image_ids, image_times, truth.images, strict=True):
        write_jpg(folder / "image" / f"{frame_id:07d}-{time:012d}.jpg", image)
    for frame_id, time, depth in zip(depth_ids, depth_times, truth.depths_mm, strict=False):
        write_png16(folder / depth_folder / f"{frame_id:07d}-{time:012d}.png", (depth << 3) | (depth >> 13))
    write_text(folder / "intrinsics.txt", truth.K)
    write_text(folder / "extrinsics" / version, np.concatenate([T[:3] for T in truth.world_T_cams]))


def write_seven_scenes(folder: Path, truth: Capture, *, K: np.ndarray, invalid: int = 0, first: int = 0) -> None:
    """frame-NNNNNN.{color.png,depth.png,pose.txt} with camera-intrinsics.txt beside the folder."""
    for i, (image, depth, T) in enumerate(zip(truth.images, truth.depths_mm, truth.world_T_cams, strict=True), first):
        write_png(folder / f"frame-{i:06d}.color.png", image)
        write_png16(folder / f"frame-{i:06d}.depth.png", np.where(depth == 0, np.uint16(invalid), depth))
        write_text(folder / f"frame-{i:06d}.pose.txt", T)
    write_text(folder.parent / "camera-intrinsics.txt", K)


def write_scannet(folder: Path, truth: Capture, *, colour_K: np.ndarray, depth_K: np.ndarray) -> None:
    """ScanNet's export: {color,depth,pose}/N.*, 4x4 intrinsics."""
    for i, (image, depth, T) in enumerate(zip(truth.images, truth.depths_mm, truth.world_T_cams, strict=True)):
        write_jpg(folder / "color" / f"{i}.jpg", image)
        write_png16(folder / "depth" / f"{i}.png", depth)
        write_text(folder / "pose" / f"{i}.txt", T)
    write_scannet_intrinsics(folder, colour_K, depth_K)


def write_scannet_intrinsics(folder: Path, colour_K: np.ndarray, depth_K: np.ndarray) -> None:
    for kind, matrix in (("color", colour_K), ("depth", depth_K)):
        square = np.eye(4)
        square[:3, :3] = matrix
        write_text(folder / "intrinsic" / f"intrinsic_{kind}.txt", square)
        # A shift that would show if anyone applied it.
        shifted = np.eye(4)
        shifted[0, 3] = 0.5
        write_text(folder / "intrinsic" / f"extrinsic_{kind}.txt", shifted)


def write_sens(path: Path, truth: Capture, *, colour_K: np.ndarray, depth_K: np.ndarray, version: int = 4) -> None:
    """A .sens file with JPEG colour, zlib depth and inertial bytes behind the frames."""
    matrices = [np.eye(4, dtype="<f4") for _ in range(4)]
    matrices[0][:3, :3], matrices[2][:3, :3] = colour_K, depth_K
    parts = [struct.pack("<IQ", version, 9), b"StructSen", *(matrix.tobytes() for matrix in matrices)]
    (height, width), (depth_height, depth_width) = truth.images[0].shape[:2], truth.depths_mm[0].shape
    parts.append(struct.pack("<2i4IfQ", 2, 1, width, height, depth_width, depth_height, 1000.0, len(truth)))
    for i, (image, depth, T) in enumerate(zip(truth.images, truth.depths_mm, truth.world_T_cams, strict=True)):
        colour = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
        packed = zlib.compress(depth.astype("<u2").tobytes())
        parts += [T.astype("<f4").tobytes(), struct.pack("<4Q", i, i, len(colour), len(packed)), colour, packed]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts) + struct.pack("<Q", 1) + b"\0" * 40)


def write_tum(folder: Path, truth: Capture, *, depth_delay: float = 0.004, pose_delay: float = -0.003) -> None:
    """TUM RGB-D lists with times that differ between the sensors; depth in 1/5000 m, quaternions with qw last."""
    start = 1341841278.0
    rgb, depth, poses = (
        ["# color images", "# timestamp filename"],
        ["# depth maps"],
        ["# timestamp tx ty tz qx qy qz qw"],
    )
    for i, (image, millimetres, T) in enumerate(zip(truth.images, truth.depths_mm, truth.world_T_cams, strict=True)):
        time = start + 0.1 * i
        write_png(folder / "rgb" / f"{time:.6f}.png", image)
        write_png16(folder / "depth" / f"{time:.6f}.png", millimetres * np.uint16(5))
        rgb.append(f"{time:.6f} rgb/{time:.6f}.png")
        depth.append(f"{time + depth_delay:.6f} depth/{time:.6f}.png")
        values = (*T[:3, 3], *quaternion(T[:3, :3]))
        poses.append(" ".join([f"{time + pose_delay:.6f}", *(f"{value:.17g}" for value in values)]))
    for name, lines in (("rgb.txt", rgb), ("depth.txt", depth), ("groundtruth.txt", poses)):
        (folder / name).write_text("\n".join(lines) + "\n")


def quaternion(R: np.ndarray) -> np.ndarray:
    """(x, y, z, w) by way of the rotation vector."""
    vector = cv2.Rodrigues(R)[0][:, 0]
    angle = float(np.linalg.norm(vector))
    return np.array([*(vector / angle * np.sin(angle / 2)), np.cos(angle / 2)])


def write_demon(folder: Path, truth: Capture, *, numbers: Sequence[int] | None = None) -> None:
    """DeMoN views as DPSNet packs them: metres in .npy, world-to-camera rows in poses.txt."""
    for n, image, depth in zip(numbers or range(len(truth)), truth.images, truth.depths_mm, strict=True):
        write_jpg(folder / f"{n:04d}.jpg", image)
        np.save(folder / f"{n:04d}.npy", depth.astype(np.float32) / 1000)
    write_text(folder / "cam.txt", truth.K)
    write_text(folder / "poses.txt", np.stack([np.linalg.inv(T)[:3].ravel() for T in truth.world_T_cams]))


def cam_text(world_T_cam: np.ndarray, K: np.ndarray, *, tail: str = "425.0 2.5 ") -> str:
    """MVSNet's cam.txt for a camera-to-world transform in metres: world-to-camera in mm, blanks trailing as in real files."""
    cam_T_world = np.linalg.inv(world_T_cam)
    cam_T_world[:3, 3] *= 1000
    rows = [" ".join(f"{value:.17g}" for value in row) + " " for row in cam_T_world]
    lines = [
        "extrinsic",
        *rows,
        "",
        "intrinsic",
        *(" ".join(f"{value:.17g}" for value in row) + " " for row in K),
        "",
        tail,
    ]
    return "\n".join(lines) + "\n"


def dtu_capture(count: int = 3) -> Capture:
    """A capture of the training set's sizes: 640x512 images, 160x128 depth in DTU's range."""
    truth = capture(count, size=(512, 640), depth_size=(128, 160))
    depths = [np.where(depth == 0, 0, 425 + depth % 500).astype(np.uint16) for depth in truth.depths_mm]
    return Capture(truth.images, depths, truth.world_T_cams, DTU_K)


def write_dtu_cameras(root: Path, truth: Capture, *, train: bool = True, full: bool = True) -> None:
    for i, T in enumerate(truth.world_T_cams):
        for folder, matrix, wanted in (("Cameras/train", DTU_TRAIN_K, train), ("Cameras", DTU_K, full)):
            if wanted:
                (root / folder).mkdir(parents=True, exist_ok=True)
                (root / folder / f"{i:08d}_cam.txt").write_text(cam_text(T, matrix))
    others = {i: [j for j in range(len(truth)) if j != i] for i in range(len(truth))}
    write_pair_file(root / "Cameras" / "pair.txt", {i: [(j, 100.0 / (1 + j)) for j in js] for i, js in others.items()})


def write_pair_file(path: Path, pairs: Mapping[int, Sequence[tuple[int, float]]]) -> None:
    lines = [str(len(pairs))]
    for view, others in pairs.items():
        lines += [str(view), " ".join([str(len(others)), *(f"{other} {score:g}" for other, score in others)]) + " "]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_dtu_scan(root: Path, scan: int, truth: Capture, *, lights: Sequence[int] = (3,)) -> None:
    """One training scan; the green channel of each image tells its light."""
    for i, (image, depth) in enumerate(zip(truth.images, truth.depths_mm, strict=True)):
        for light in lights:
            lit = image.copy()
            lit[..., 1] = light
            write_png(root / "Rectified" / f"scan{scan}_train" / f"rect_{i + 1:03d}_{light}_r5000.png", lit)
        folder = root / "Depths" / f"scan{scan}_train"
        write_pfm(folder / f"depth_map_{i:04d}.pfm", depth.astype(np.float32))
        write_png(folder / f"depth_visual_{i:04d}.png", visible(depth))


def visible(depth: np.ndarray) -> np.ndarray:
    """A mask of reliable pixels that is stricter than "measured": the first four columns are not reliable."""
    mask = (depth > 0).astype(np.uint8) * 255
    mask[:, :4] = 0
    return mask


def write_dtu_test(root: Path, scan: int, truth: Capture, *, K: np.ndarray = DTU_K) -> None:
    """One scan of the test set: images, cams, pair.txt with the view itself among its sources."""
    folder = root / f"scan{scan}"
    for i, (image, T) in enumerate(zip(truth.images, truth.world_T_cams, strict=True)):
        write_jpg(folder / "images" / f"{i:08d}.jpg", image)
        (folder / "cams").mkdir(parents=True, exist_ok=True)
        (folder / "cams" / f"{i:08d}_cam.txt").write_text(cam_text(T, K))
    count = len(truth)
    pairs = {i: [(j, 10.0 * j) for j in range(count) if j != i] + [(i, 0.0)] for i in range(count)}
    write_pair_file(folder / "pair.txt", pairs)
