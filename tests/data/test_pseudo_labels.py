"""Keypoint labels: corners that views keep finding, one a cell, the same whoever computes them; whole data sets resumed."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from fabricated import write_dataset
from plumbline.config import DatasetConfig
from plumbline.data import pseudo_labels
from plumbline.data.pseudo_labels import (
    PseudoLabelConfig,
    TeacherFile,
    adapt,
    best_of_each_cell,
    label_images,
    write_labels,
)
from plumbline.errors import DataError, PlumblineError

ROOT = Path(__file__).resolve().parents[2]
CORNERS = {(20, 30), (20, 69), (51, 30), (51, 69)}


def box(*, noise: float = 0.0, contrast: float = 110.0) -> np.ndarray:
    """A bright box on grey: its four corners (row, column) are CORNERS."""
    image = np.full((80, 100, 3), 90.0)
    image[20:52, 30:70] += contrast
    return np.clip(image + np.random.default_rng(0).normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


# --- homographic adaptation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "contrast", "weakest"),
    # The faint one is lost as soon as the border of a view counts as a corner beside it.
    [(0.0, 110.0, 2e-4), (3.0, 110.0, 2e-4), (0.0, 6.0, 5e-5)],
)
def test_the_corners_of_a_box_are_its_keypoints_and_its_edges_are_none(
    noise: float, contrast: float, weakest: float
) -> None:
    labels = adapt(box(noise=noise, contrast=contrast), PseudoLabelConfig(min_response=weakest), generator())
    found = list(zip(*np.nonzero(labels), strict=True))
    assert len(found) == 4
    assert all(min(max(abs(r - row), abs(c - column)) for row, column in CORNERS) <= 1 for r, c in found)
    assert labels.dtype == np.float32
    assert all(0.8 < labels[place] <= 1 for place in found)


def test_nothing_is_found_where_nothing_is() -> None:
    assert not adapt(np.full((64, 64, 3), 90, np.uint8), PseudoLabelConfig(), generator()).any()
    noise = generator().normal(90, 2, (64, 64, 3)).astype(np.uint8)
    assert not adapt(noise, PseudoLabelConfig(), generator()).any()


def test_a_corner_that_few_views_can_see_is_counted_by_those() -> None:
    shifted = np.roll(box(), (-14, -24), axis=(0, 1))
    labels = adapt(shifted, PseudoLabelConfig(), generator())
    assert labels[5:8, 5:8].max() > 0.8


def test_corners_are_taken_back_to_where_they_are() -> None:
    grey, config = cv2.cvtColor(box(), cv2.COLOR_RGB2GRAY), PseudoLabelConfig()
    quarter_turn = np.array([[0.0, -1, 89], [1, 0, -10], [0, 0, 1]])
    for view_H_image in (np.eye(3), quarter_turn, np.array([[1.5, 0, -25], [0, 1.5, -20], [0, 0, 1]])):
        hit = pseudo_labels._corners_through(grey, view_H_image, np.linalg.inv(view_H_image), config)
        found = list(zip(*np.nonzero(hit), strict=True))
        assert len(found) == 4, view_H_image
        assert all(min(max(abs(r - row), abs(c - column)) for row, column in CORNERS) <= 1 for r, c in found)


def test_a_view_sees_what_lies_inside_it() -> None:
    everything = pseudo_labels._visible((40, 60), np.eye(3))
    assert everything[4:36, 4:56].all()
    assert np.count_nonzero(everything) == 32 * 52
    middle = np.array([[0.5, 0, 15], [0, 0.5, 10], [0, 0, 1]])
    half = pseudo_labels._visible((40, 60), middle)
    rows, columns = np.nonzero(half)
    assert (rows.min(), columns.min()) == (12, 17)
    assert (float(rows.max()), float(columns.max())) == pytest.approx((27.5, 42.5), abs=0.5)


def test_views_are_as_different_as_they_are_asked_to_be() -> None:
    still = PseudoLabelConfig(zoom=0, turn=0, tilt=0, shift=0)
    np.testing.assert_allclose(pseudo_labels.random_homography((40, 60), still, generator()), np.eye(3), atol=1e-5)
    turned = [
        pseudo_labels.random_homography((40, 60), still.model_copy(update={"turn": 30.0}), np.random.default_rng(seed))
        for seed in range(50)
    ]
    angles = [np.degrees(np.arctan2(H[1, 0], H[0, 0])) for H in turned]
    assert 25 < np.abs(angles).max() <= 30.01
    zoomed = [
        pseudo_labels.random_homography((40, 60), still.model_copy(update={"zoom": 1.0}), np.random.default_rng(seed))
        for seed in range(50)
    ]
    scales = [np.sqrt(np.linalg.det(H[:2, :2])) for H in zoomed]
    assert (min(scales), max(scales)) == pytest.approx((0.5, 2.0), rel=0.1)


def test_a_share_below_the_threshold_is_no_keypoint() -> None:
    found = np.zeros((16, 16), np.float32)
    found[3, 3], found[12, 12], found[12, 13] = 2, 2, 2
    seen = np.full((16, 16), 10, np.float32)
    kept = pseudo_labels._keypoints(found, seen, PseudoLabelConfig(min_share=0.3))
    # Two neighbours that were found in turns are one keypoint, in 4 of 10 views.
    assert kept[3, 3] == 0
    assert kept.max() == pytest.approx(0.4)
    assert np.count_nonzero(kept) == 1
    seen[:8, :8] = 4
    assert pseudo_labels._keypoints(found, seen, PseudoLabelConfig(min_share=0.3))[3, 3] == pytest.approx(0.5)


def test_the_best_of_each_cell_stays() -> None:
    values = np.zeros((12, 17), np.float32)
    values[0, 0], values[7, 7], values[0, 8], values[8, 16], values[11, 16] = 0.4, 0.6, 0.5, 0.7, 0.7
    kept = best_of_each_cell(values)
    assert {(r, c): kept[r, c] for r, c in zip(*np.nonzero(kept), strict=True)} == pytest.approx(
        {(7, 7): 0.6, (0, 8): 0.5, (8, 16): 0.7}
    )


def test_labels_depend_on_the_image_and_its_name_alone() -> None:
    texture = cv2.GaussianBlur(generator().integers(0, 255, (2, 64, 80, 3)).astype(np.uint8)[0], (0, 0), 1.5)
    images = np.stack([texture, texture[::-1]])
    config = PseudoLabelConfig(views=8)
    both = label_images(images, ["s/0", "s/1"], config=config)
    assert both.shape == (2, 64, 80)
    np.testing.assert_array_equal(label_images(images[1:], ["s/1"], config=config)[0], both[1])
    assert (label_images(images[1:], ["s/2"], config=config)[0] != both[1]).any()
    other = config.model_copy(update={"seed": 1})
    assert (label_images(images[1:], ["s/1"], config=other)[0] != both[1]).any()
    cells = both[0].reshape(8, 8, 10, 8)
    assert ((cells > 0).sum(axis=(1, 3)) <= 1).all()
    assert (both > 0).sum() > 10


@pytest.mark.parametrize(
    "values", [{"splits": ["test"]}, {"splits": []}, {"tilt": 0.6}, {"teacher": {"path": "x", "sha256": "abc"}}]
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PseudoLabelConfig.model_validate(values)


# --- whole data sets --------------------------------------------------------------------------------------------------

CONFIG = PseudoLabelConfig(views=3, min_response=0, quality=0.05)


def source(**split: list[str]) -> DatasetConfig:
    values = {
        "format": "rgbd",
        "source": {"kind": "folder", "path": "x"},
        "image_size": [24, 32],
        "depth_range": [0.5, 8],
    }
    return DatasetConfig.model_validate(values | {"split": {"train": [], "val": [], "test": [], **split}})


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "scenes", "rooms", ["flat/a", "flat/b", "c", "d"], views=10)
    return tmp_path / "scenes" / "rooms"


def write(scenes: Path, place: Path, config: PseudoLabelConfig = CONFIG, **options: object) -> dict[str, float]:
    split = source(train=["flat/a", "flat/b"], val=["c"], test=["d"])
    options = {"workers": 1, **options}
    return write_labels("rooms", split, config, scenes=scenes, out=place / "out", scratch=place / "s", **options)  # type: ignore[arg-type]


class Half:
    """A teacher that finds half a keypoint in the first pixel, and counts how many images it was asked about."""

    def __init__(self, fails_at: str = "never") -> None:
        self.names: list[str] = []
        self.fails_at = fails_at

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        if any(name.startswith(self.fails_at) for name in names):
            raise RuntimeError("out of memory")
        self.names += names
        values = np.zeros(images.shape[:3], np.float32)
        values[:, 0, 0] = 0.5
        return values


TAUGHT = CONFIG.model_copy(update={"teacher": TeacherFile(path=Path("x"), sha256="0" * 64)})


def test_scenes_that_are_trained_on_get_labels(scenes: Path, tmp_path: Path) -> None:
    found = write(scenes, tmp_path)
    assert list(found) == ["flat/a", "flat/b", "c"]
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == ["about.json", "c.npy", "flat/a.npy", "flat/b.npy"]
    stack = np.load(tmp_path / "out/flat/b.npy", mmap_mode="r", allow_pickle=False)
    assert (stack.shape, stack.dtype) == ((10, 24, 32), np.float16)
    assert 0 < found["flat/b"] == pytest.approx(float(stack.sum(dtype=np.float64)) / 10, abs=0.01)
    about = json.loads((tmp_path / "out/about.json").read_text())
    assert about["made by"] == "homographic adaptation of corners"
    assert about["keypoints_per_image"] == found
    images = np.load(scenes / "flat/b/images.npy")
    expected = label_images(images[9:], ["flat/b/0009"], config=CONFIG)
    np.testing.assert_allclose(stack[9:], expected, atol=1e-3)


def test_labels_do_not_depend_on_the_number_of_processes(scenes: Path, tmp_path: Path) -> None:
    write(scenes, tmp_path / "one")
    write(scenes, tmp_path / "two", workers=2)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one/out").rglob("*.*")]
    assert len(files) == 4
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_a_run_that_was_cut_short_goes_on(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write(scenes, tmp_path, TAUGHT, teacher=Half(fails_at="flat/b"))
    assert not (tmp_path / "out").exists()
    (stopped,) = (tmp_path / "s").glob("pseudo_labels-rooms-*/")
    (stopped / "flat/.b.0123.part.npy").write_bytes(b"half")
    teacher = Half()
    found = write(scenes, tmp_path, TAUGHT, teacher=teacher)
    assert {name.rpartition("/")[0] for name in teacher.names} == {"flat/b", "c"}
    assert found == {"flat/a": 0.5, "flat/b": 0.5, "c": 0.5}
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.npy")) == ["a.npy", "b.npy", "c.npy"]


def test_other_settings_or_images_share_nothing_with_an_unfinished_run(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write(scenes, tmp_path, TAUGHT, teacher=Half(fails_at="flat/b"))
    other = TAUGHT.model_copy(update={"teacher": TeacherFile(path=Path("x"), sha256="1" * 64)})
    teacher = Half()
    write(scenes, tmp_path, other, teacher=teacher)
    assert len(teacher.names) == 30
    images = np.load(scenes / "c/images.npy")
    np.save(scenes / "c/images.npy", images // 2)
    teacher = Half()
    write(scenes, tmp_path, TAUGHT, teacher=teacher)
    assert len(teacher.names) == 30


def test_a_data_set_that_nothing_is_trained_on_gets_none(scenes: Path, tmp_path: Path) -> None:
    found = write_labels("rooms", source(test=["d"]), CONFIG, scenes=scenes, out=tmp_path / "o", scratch=tmp_path / "s")
    assert found == {}
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["about.json"]


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1])
def test_what_is_no_probability_is_refused_by_name(scenes: Path, tmp_path: Path, value: float) -> None:
    def broken(images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        return np.where(np.arange(len(images))[:, None, None] == 1, np.float32(value), np.zeros(images.shape[:3], "f4"))

    with pytest.raises(DataError, match=r"rooms/flat/a/0001: keypoint labels are between .* expected probabilities"):
        write(scenes, tmp_path, TAUGHT, teacher=broken)
    assert not (tmp_path / "out").exists()


def test_rounding_never_makes_a_cell_sum_to_more() -> None:
    values = generator().dirichlet(np.full(65, 0.1), 2000).astype(np.float32)[:, :64]
    half = pseudo_labels._rounded_down(values)
    assert half.dtype == np.float16
    assert (half <= values).all()
    np.testing.assert_allclose(half, values, rtol=1.1e-3, atol=1e-7)


def test_two_processes_do_not_label_the_same(scenes: Path, tmp_path: Path) -> None:
    class Second:
        def __call__(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
            write(scenes, tmp_path, TAUGHT, teacher=Half())
            return np.zeros(images.shape[:3], np.float32)

    with pytest.raises(PlumblineError, match="rooms is being labelled by another process"):
        write(scenes, tmp_path, TAUGHT, teacher=Second())


def test_the_stage_writes_labels_without_torch(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "scenes").rename(tmp_path / "data/scenes")
    split = source(train=["c"]).model_dump(mode="json")
    params = {"seed": 0, "datasets": {"rooms": split}, "pseudo_labels": {"views": 2}, "tracking": {"enabled": False}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    stage = ROOT / "stages/pseudo_labels.py"
    code = (
        "import runpy, sys; sys.argv[1:] = ['rooms'];"
        f"runpy.run_path({str(stage)!r}, run_name='__main__'); assert 'torch' not in sys.modules"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    environment["PYTHONPATH"] = str(ROOT / "src")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert np.load(tmp_path / "data/pseudo_labels/rooms/c.npy").shape == (10, 24, 32)
