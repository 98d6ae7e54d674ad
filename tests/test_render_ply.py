"""`plumbline render`: what is written, from which cameras, and what it says when something cannot be."""

import json
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from plumbline.cli import app
from plumbline.data.canonical import fit, write_scene
from plumbline.errors import DataError
from plumbline.records import View
from plumbline.render_ply import Request, movie_name, read_cameras, render_command
from plumbline.rendering import Cameras, Gaussians, render
from plumbline.rendering.orbit import orbit, to_8_bit
from plumbline.rendering.ply import read_gaussians, write_gaussians
from plumbline.rendering.surroundings import over_surroundings
from rendering_scenes import gaussians

K = [[24.0, 0, 14.5], [0, 24.0, 9.5], [0, 0, 1]]
SIZE = (20, 30)


def poses(count: int) -> list[list[list[float]]]:
    """Cameras side by side that look along z."""
    made = np.tile(np.eye(4), (count, 1, 1))
    made[:, 0, 3] = 0.1 * np.arange(count)
    return made.tolist()


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    write_gaussians(tmp_path / "scene.ply", gaussians(200, grad=False))
    return tmp_path / "scene.ply"


def cameras_file(folder: Path, **said: Any) -> Path:
    path = folder / "cameras.json"
    path.write_text(json.dumps({"K": K, "world_T_cam": poses(2), "size": list(SIZE), **said}))
    return path


def test_pictures_and_depth_are_what_the_rasteriser_gives(ply: Path, tmp_path: Path) -> None:
    cameras = cameras_file(tmp_path, names=["left", "right"])
    said = render_command(Request(ply, cameras, None, tmp_path / "out", (0.1, 0.2, 0.3), backend="torch"))
    assert said == f"2 pictures of 200 Gaussians and their depth (z, 0 = none) in {tmp_path / 'out'}."
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "left.png", "left_depth.npy", "right.png", "right_depth.npy",
    ]  # fmt: skip
    views = Cameras(torch.tensor(K).expand(1, 2, 3, 3).contiguous(), torch.tensor(poses(2))[None])
    expected = render(read_gaussians(ply), views, SIZE, torch.tensor([0.1, 0.2, 0.3]), backend="torch")
    for view, name in enumerate(("left", "right")):
        np.testing.assert_array_equal(
            imageio.imread(tmp_path / "out" / f"{name}.png"), to_8_bit(expected.colour[0, view])
        )
        depth = np.load(tmp_path / "out" / f"{name}_depth.npy")
        np.testing.assert_allclose(depth, expected.expected_depth()[0, view].numpy(), rtol=1e-6)
        assert depth.dtype == np.float32


def test_gaps_show_their_surroundings_when_asked(ply: Path, tmp_path: Path) -> None:
    cameras = cameras_file(tmp_path, world_T_cam=poses(1))
    render_command(Request(ply, cameras, None, tmp_path / "out", backend="torch", surroundings=True))
    views = Cameras(torch.tensor(K)[None, None], torch.tensor(poses(1))[None])
    black = render(read_gaussians(ply), views, SIZE, backend="torch")
    shown = imageio.imread(tmp_path / "out/0000.png")
    np.testing.assert_array_equal(shown, to_8_bit(over_surroundings(black).colour[0, 0]))
    assert (shown != to_8_bit(black.colour[0, 0])).any()
    both = Request(ply, cameras, None, tmp_path / "out", (0.1, 0.2, 0.3), surroundings=True)
    with pytest.raises(DataError, match="leave one of them out"):
        render_command(both)


def test_the_command_with_an_orbit(ply: Path, tmp_path: Path) -> None:
    cameras, out = cameras_file(tmp_path, world_T_cam=poses(1)), tmp_path / "out"
    arguments = ["render", "--ply", str(ply), "--cameras", str(cameras), "--out", str(out), "--size", "10", "14"]
    done = CliRunner().invoke(app, [*arguments, "--orbit", "round.gif", "--backend", "torch"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "1 pictures of 200 Gaussians" in done.output
    assert "round.gif beside them" in done.output
    assert imageio.imread(out / "0000.png").shape == (10, 14, 3)
    frames = imageio.imread(out / "round.gif")
    assert frames.shape == (60, 10, 14, 3)
    assert (frames[0] != frames[30]).any()


def test_cameras_of_a_canonical_scene(tmp_path: Path) -> None:
    views = [
        View(f"v{i}", np.zeros((*SIZE, 3), np.uint8), np.array(K), np.array(pose))
        for i, pose in enumerate(poses(3))
    ]  # fmt: skip
    write_scene(tmp_path / "scene", views=views, dataset="rgbd", name="scene", depth_range=(0.5, 10.0))
    shots = read_cameras(tmp_path / "scene", None)
    assert (shots.names, shots.size) == (("v0", "v1", "v2"), SIZE)
    np.testing.assert_array_equal(shots.world_T_cam, poses(3))
    smaller = read_cameras(tmp_path / "scene", (10, 10))
    np.testing.assert_array_equal(smaller.K[1], fit(views[1], (10, 10)).K)


def test_an_orbit_circles_and_looks_at_one_point() -> None:
    around = list(orbit(np.array(poses(2)[1]), 3.0, 12))
    target = np.array([0.1, 0.0, 3.0])
    for world_T_cam in around:
        rotation, place = world_T_cam[:3, :3], world_T_cam[:3, 3]
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        ahead = rotation.T @ (target - place)
        assert ahead[:2].tolist() == pytest.approx([0, 0], abs=1e-12)
        assert ahead[2] > 0
        assert rotation[1, 1] > 0.9, "up stays up"
    np.testing.assert_allclose(np.mean([pose[:3, 3] for pose in around], axis=0), [0.1, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world_T_cam": [[1, 2], [3]]}, "world_T_cam is no array of numbers"),
        ({"world_T_cam": np.eye(3).tolist()}, r"world_T_cam has shape \(1, 3, 3\)"),
        ({"K": [K, K, K]}, "3 K for 2 world_T_cam; expected one, or one each"),
        ({"world_T_cam": (2 * np.eye(4)).tolist()}, "no rotation with a translation"),
        ({"world_T_cam": np.diag([-1.0, 1, 1, 1]).tolist()}, "no rotation with a translation"),
        ({"names": ["a", "a"]}, "expected 2 different file names"),
        ({"names": ["../a", "b"]}, "file names without folders"),
        ({"size": None}, 'has no "size" that K is for. Add it there, or give --size'),
    ],
)
def test_cameras_that_make_no_sense(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_cameras(cameras_file(tmp_path, **change), None)


def test_messages(ply: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r'expected \{"K": 3x3'):
        read_cameras(tmp_path / "list.json", None)
    with pytest.raises(DataError, match=r"--orbit a.avi: expected the name of a .gif or .mp4"):
        movie_name("a.avi")
    away = cameras_file(tmp_path, world_T_cam=[np.diag([1.0, -1, -1, 1]).tolist()])
    empty = gaussians(5, grad=False)
    place = torch.tensor([0, 0, 5.0])
    write_gaussians(
        ply, Gaussians(0.1 * empty.means + place, empty.covariances, empty.harmonics, empty.opacities)
    )  # fmt: skip
    said = render_command(Request(ply, away, None, tmp_path / "out", backend="torch"))
    assert "almost empty" in said
    assert "the first camera is at [0.0, 0.0, 0.0]" in said
    with pytest.raises(DataError, match=r"not installed|needs float32"):
        render_command(Request(ply, away, None, tmp_path / "out", backend="gsplat"))


def test_an_mp4_needs_its_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"MP4 needs imageio-ffmpeg .* a .gif needs nothing"):
        movie_name("orbit.mp4")
