"""`plumbline render`: pictures and depth of a PLY of Gaussians from given cameras, and a short orbit."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from plumbline.data.canonical import fit, read_scene
from plumbline.errors import DataError
from plumbline.files import read_json, write_npy, write_png
from plumbline.progress import progress
from plumbline.records import View
from plumbline.rendering import Cameras, Gaussians, Rendering, render
from plumbline.rendering.orbit import orbit, to_8_bit, write_movie
from plumbline.rendering.ply import read_gaussians
from plumbline.rendering.surroundings import over_surroundings

_EXPECTED = (
    'expected {"K": 3x3 or one a camera, in pixels, "world_T_cam": a 4x4 a camera}, optionally "size": [height, width] that '
    'K is for and "names"'
)


@dataclass(frozen=True)
class Request:
    """What to render: `cameras` is a JSON file or the folder of a canonical scene; `orbit` a .gif or .mp4 to write beside.

    With `surroundings` gaps show the picture's own surroundings in place of the background.
    """

    ply: Path
    cameras: Path
    size: tuple[int, int] | None
    out: Path
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    near: float = 0.1
    backend: str = "auto"
    orbit: str | None = None
    orbit_frames: int = 60
    surroundings: bool = False


@dataclass(frozen=True)
class Shots:
    """Named cameras of one picture size."""

    names: tuple[str, ...]
    K: Float64[np.ndarray, "v 3 3"]
    world_T_cam: Float64[np.ndarray, "v 4 4"]
    size: tuple[int, int]


def render_command(request: Request) -> str:
    """Render all, and say in one line what was written. Errors: files that cannot be read, cameras that make no sense."""
    if request.surroundings and any(request.background):
        raise DataError("--background and --surroundings both say what shows through gaps: leave one of them out.")
    movie = None if request.orbit is None else movie_name(request.orbit)
    shots, gaussians = read_cameras(request.cameras, request.size), read_gaussians(request.ply)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gaussians, alpha = gaussians.to(device), []
    with progress("render", total=len(shots.names)) as show:
        for number, (name, seen) in enumerate(_renderings(gaussians, shots, request), start=1):
            write_png(request.out / f"{name}.png", to_8_bit(seen.colour[0, 0]))
            write_npy(request.out / f"{name}_depth.npy", seen.expected_depth()[0, 0].cpu().numpy())
            alpha.append(float(seen.alpha.mean()))
            show(number, {"covered": alpha[-1]})
    if movie:
        write_orbit(request.out / movie, gaussians, shots, request)
    count, covered = gaussians.means.shape[1], sum(alpha) / len(alpha)
    text = f"{len(alpha)} pictures of {count} Gaussians and their depth (z, 0 = none) in {request.out}"
    hint = "" if covered > 0.01 else _empty_hint(gaussians, shots)
    return text + (f", {movie} beside them." if movie else ".") + hint


def _empty_hint(gaussians: Gaussians, shots: Shots) -> str:
    middle = gaussians.means[0].median(dim=0).values.tolist()
    return (
        f"\nThey are almost empty: the Gaussians lie around {[round(x, 3) for x in middle]}, the first camera is at "
        f"{shots.world_T_cam[0, :3, 3].round(3).tolist()}. Are both in one world frame and unit, with OpenCV axes (z forward)?"
    )


def _renderings(gaussians: Gaussians, shots: Shots, request: Request) -> Iterator[tuple[str, Rendering]]:
    for name, K, world_T_cam in zip(shots.names, shots.K, shots.world_T_cam, strict=True):
        yield name, _shot(gaussians, K, world_T_cam, shots.size, request)


@torch.no_grad()
def _shot(
    gaussians: Gaussians, K: np.ndarray, world_T_cam: np.ndarray, size: tuple[int, int], request: Request
) -> Rendering:
    one, place = (torch.from_numpy(np.ascontiguousarray(each))[None, None] for each in (K, world_T_cam))
    cameras = Cameras(one, place, request.near).to(gaussians.means.device, gaussians.means.dtype)
    try:
        seen = render(gaussians, cameras, size, gaussians.means.new_tensor(request.background), backend=request.backend)  # type: ignore[arg-type]
    except ValueError as error:
        raise DataError(f"{request.ply}: {error}") from error
    return over_surroundings(seen) if request.surroundings else seen


def read_cameras(path: Path, size: tuple[int, int] | None) -> Shots:
    """The cameras of a JSON file or of a canonical scene's folder, for pictures of `size` (default: what K is for).

    Another size scales K by one factor and crops around the centre, as everywhere here. DataError says what is wrong.
    """
    shots = _scene_cameras(path) if path.is_dir() else _json_cameras(path, size)
    if size is None or size == shots.size:
        return shots
    blank = np.zeros((*shots.size, 3), np.uint8)
    return Shots(shots.names, np.stack([fit(View("", blank, K), size).K for K in shots.K]), shots.world_T_cam, size)


def _scene_cameras(folder: Path) -> Shots:
    scene = read_scene(folder)
    if scene.world_T_cam is None:
        raise DataError(f"{folder}: this scene has no camera poses. Render with a JSON of cameras instead.")
    return Shots(scene.view_names, scene.K, scene.world_T_cam, (scene.images.shape[1], scene.images.shape[2]))


def _json_cameras(path: Path, size: tuple[int, int] | None) -> Shots:
    said = read_json(path)
    if not isinstance(said, dict) or not {"K", "world_T_cam"} <= set(said):
        raise DataError(f"{path}: {_EXPECTED}.")
    world_T_cam = _stack(path, said, "world_T_cam", 4)
    K, own = _stack(path, said, "K", 3), said.get("size") or size
    if own is None:
        raise DataError(f'{path}: has no "size" that K is for. Add it there, or give --size HEIGHT WIDTH.')
    if len(K) not in (1, len(world_T_cam)):
        raise DataError(f"{path}: {len(K)} K for {len(world_T_cam)} world_T_cam; expected one, or one each.")
    turned = world_T_cam[:, :3, :3]
    if abs(turned @ turned.swapaxes(1, 2) - np.eye(3)).max() > 1e-3 or (np.linalg.det(turned) < 0).any():
        raise DataError(f"{path}: a world_T_cam is no rotation with a translation; {_EXPECTED}.")
    names = said.get("names", [f"{i:04d}" for i in range(len(world_T_cam))])
    if len(set(names)) != len(world_T_cam) or any(Path(str(name)).name != str(name) for name in names):
        raise DataError(f"{path}: names; expected {len(world_T_cam)} different file names without folders.")
    return Shots(
        tuple(map(str, names)), np.broadcast_to(K, (len(world_T_cam), 3, 3)).copy(), world_T_cam, (own[0], own[1])
    )


def _stack(path: Path, said: dict[str, Any], key: str, side: int) -> Float64[np.ndarray, "v s s"]:
    try:
        stack = np.array(said[key], np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {key} is no array of numbers; {_EXPECTED}.") from error
    stack = stack[None] if stack.ndim == 2 else stack
    if stack.ndim != 3 or stack.shape[1:] != (side, side) or not len(stack) or not np.isfinite(stack).all():
        raise DataError(f"{path}: {key} has shape {stack.shape} or holds NaN; {_EXPECTED}.")
    return stack


def movie_name(text: str) -> str:
    """The file name of an orbit; DataError for one that is neither .gif nor, with a writer for it installed, .mp4."""
    suffix = Path(text).suffix.lower()
    if suffix not in (".gif", ".mp4") or Path(text).name != text:
        raise DataError(f"--orbit {text}: expected the name of a .gif or .mp4, without a folder.")
    if suffix == ".mp4":
        import importlib.util

        if importlib.util.find_spec("imageio_ffmpeg") is None:
            raise DataError(
                f"--orbit {text}: MP4 needs imageio-ffmpeg (pip install imageio-ffmpeg); a .gif needs nothing."
            )
    return text


def write_orbit(path: Path, gaussians: Gaussians, shots: Shots, request: Request) -> None:
    """A loop of the first camera around where it looks, as GIF or MP4."""
    frames, shot = [], _shot(gaussians, shots.K[0], shots.world_T_cam[0], shots.size, request)
    seen = shot.expected_depth()[shot.expected_depth() > 0]
    distance = float(seen.median()) if len(seen) else 1.0
    with progress("orbit", total=request.orbit_frames) as show:
        for step, world_T_cam in enumerate(orbit(shots.world_T_cam[0], distance, request.orbit_frames), start=1):
            frames.append(to_8_bit(_shot(gaussians, shots.K[0], world_T_cam, shots.size, request).colour[0, 0]))
            show(step, {})
    write_movie(path, frames)
