"""Raw files to canonical scenes: all or nothing, resumable, broken scenes named, quarantined ones left out."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from plumbline.config import DatasetConfig
from plumbline.data import parse
from plumbline.data.canonical import list_scenes, read_scene
from plumbline.errors import ConfigError, DataError
from plumbline.files import write_jpg, write_png16

SIZE = (48, 64)


def write_room(folder: Path, *, frames: int = 3, seed: int = 0) -> None:
    """A raw 7-Scenes-like folder: a wall 2 m away, cameras 5 cm apart."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(frames):
        stem = folder / f"frame-{i:06d}"
        write_jpg(stem.with_suffix(".color.jpg"), rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8))
        write_png16(stem.with_suffix(".depth.png"), np.full(SIZE, 2000, np.uint16))
        world_T_cam = np.eye(4)
        world_T_cam[0, 3] = 0.05 * i
        np.savetxt(stem.with_suffix(".pose.txt"), world_T_cam)
    np.savetxt(folder / "camera-intrinsics.txt", [[60, 0, 32], [0, 60, 24], [0, 0, 1]])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for name in ("seq-01", "seq-02", "seq-03"):
        write_room(tmp_path / "raw" / name)
    return tmp_path / "raw"


def config(**changes: object) -> DatasetConfig:
    values = {
        "format": "rgbd",
        "source": {"kind": "folder", "path": "x"},
        "image_size": [24, 32],
        "depth_range": [0.5, 5.0],
        "split": "seeded",
        **changes,
    }
    return DatasetConfig.model_validate(values)


def run(raw: Path, place: Path, **changes: object) -> list[str]:
    given = config(**changes)
    return parse.parse_dataset("rooms", given, raw=raw, identity="a", out=place / "out", scratch=place / "scratch")


def test_every_scene_is_written_at_the_size_asked_for(raw: Path, tmp_path: Path) -> None:
    assert run(raw, tmp_path) == ["seq-01", "seq-02", "seq-03"]
    assert list_scenes(tmp_path / "out") == ["seq-01", "seq-02", "seq-03"]
    scene = read_scene(tmp_path / "out" / "seq-02")
    assert scene.images.shape == (3, 24, 32, 3)
    assert scene.depth_range == (0.5, 5.0)
    assert scene.depth is not None
    np.testing.assert_allclose(np.median(scene.depth), 2.0)
    np.testing.assert_allclose(scene.K[0], [[30, 0, 15.75], [0, 30, 11.75], [0, 0, 1]])


def test_broken_scenes_are_all_named_and_nothing_appears(raw: Path, tmp_path: Path) -> None:
    (raw / "seq-01/frame-000001.pose.txt").write_text("1 2 3")
    shutil.copy(raw / "seq-03/frame-000000.pose.txt", raw / "seq-03/frame-000002.pose.txt")
    (raw / "seq-03/frame-000002.depth.png").write_bytes(b"cut")
    with pytest.raises(DataError, match="2 of 3 scenes cannot be read") as error:
        run(raw, tmp_path)
    assert "seq-01" in str(error.value)
    assert "frame-000002.depth.png" in str(error.value)
    assert "datasets.rooms.quarantine" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_quarantined_scene_is_left_out_and_a_misspelt_one_refused(raw: Path, tmp_path: Path) -> None:
    assert run(raw, tmp_path, quarantine={"seq-02": "blurred"}) == ["seq-01", "seq-03"]
    with pytest.raises(ConfigError, match=r"quarantine names seq-09, which is no scene\. There is: seq-01"):
        run(raw, tmp_path, quarantine={"seq-09": "?"})


def test_finished_scenes_are_not_written_again(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pose = raw / "seq-03/frame-000001.pose.txt"
    good = pose.read_text()
    pose.write_text("broken")
    with pytest.raises(DataError):
        run(raw, tmp_path)
    pose.write_text(good)
    written: list[str] = []
    whole = parse._write_all
    monkeypatch.setattr(parse, "_write_all", lambda d, jobs: (written.extend(j.scene for j in jobs), whole(d, jobs))[1])
    run(raw, tmp_path)
    assert written == ["seq-03"]
    assert list_scenes(tmp_path / "out") == ["seq-01", "seq-02", "seq-03"]


def test_another_configuration_shares_nothing_with_an_unfinished_run(raw: Path, tmp_path: Path) -> None:
    (raw / "seq-03/frame-000001.pose.txt").unlink()
    with pytest.raises(DataError):
        run(raw, tmp_path)
    shutil.rmtree(raw / "seq-03")
    run(raw, tmp_path, image_size=[12, 16])
    assert read_scene(tmp_path / "out" / "seq-01").images.shape == (3, 12, 16, 3)


def test_images_can_be_stored_encoded(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path, storage="jpeg")
    scene = read_scene(tmp_path / "out" / "seq-01")
    assert scene.images.shape == (3, 24, 32, 3)
    assert scene.images[0].dtype == np.uint8
