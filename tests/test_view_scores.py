"""Scores of rendered views, from files."""

import logging

import numpy as np
import pytest

from fabricated import SIZE, truth_of, write_dataset
from plumbline.config import SuiteConfig
from plumbline.data.canonical import read_scene
from plumbline.errors import DataError
from plumbline.evaluation import assemble_metrics, evaluate, headline, read_rows, tracked_metrics
from plumbline.files import write_npy
from plumbline.image_metrics import psnr, ssim
from plumbline.stored import About, Cost, StoredSample, suite_fingerprint, write_cost, write_samples
from plumbline.view_scores import ViewRow, read_view_rows, scene_means

SCENES = ("flat/a", "flat/b")
SUITE = SuiteConfig(dataset="rooms", sources={"kind": "target", "count": 2, "targets": 2}, predict_views=2)
# Uneven on purpose: scene b has one sample, so means over scenes are no means over samples.
VIEWS = [("flat/a", (0, 2, 1, 3)), ("flat/a", (1, 3, 2, 4)), ("flat/b", (0, 2, 1, 3))]


@pytest.fixture
def place(tmp_path):
    write_dataset(tmp_path / "scenes", "rooms", SCENES)
    return tmp_path


def samples(views=VIEWS):
    return [StoredSample(scene, row, tuple(f"{view:04d}" for view in row), 2) for scene, row in views]


def write(place, method, *, rendered=True, depth=None, size=SIZE):
    """Rendered views with noise that grows from sample to sample and target to target; `depth(sample, view)` -> a map."""
    where = place / "predictions" / method / "rooms_new"
    where.mkdir(parents=True)
    if rendered:
        pictures = [
            [noisy(place, s, view, 10 * row + k, size) for k, view in enumerate(s.targets)]
            for row, s in enumerate(samples())
        ]
        write_npy(where / "rendered.npy", np.array(pictures))
    if depth is not None:
        write_npy(where / "depth.npy", np.array([[depth(s, view) for view in s.given] for s in samples()], np.float32))
    write_samples(
        where, About(method, "rooms_new", "rooms", ("image",), False, suite_fingerprint(SUITE), "cpu"), samples()
    )
    write_cost(
        place / "predictions" / method, Cost({"rooms_new": 0.5}, 7, 0.1, {"rooms_new": 0.01} if rendered else {})
    )


def noisy(place, sample, view, seed, size=SIZE):
    seen = np.asarray(read_scene(place / "scenes/rooms" / sample.scene).images[view]).astype(float)
    shown = seen + np.random.default_rng(seed).normal(0, 4 + seed, seen.shape)
    return np.clip(shown, 0, 255).astype(np.uint8)[: size[0], : size[1]]


def score(place, method, **options):
    where = {
        "predictions": place / "predictions" / method,
        "out": place / "scores" / method,
        "scenes": place / "scenes",
    }
    return evaluate(method, suites={"rooms_new": SUITE}, bootstrap=100, **where, **options)


def test_each_target_has_a_row_and_means_are_over_scenes(place):
    write(place, "renderer")
    summary = score(place, "renderer")["suites"]["rooms_new"]
    rows = read_view_rows(place / "scores/renderer/rooms_new_views.csv")
    assert [(r.sample, r.scene, r.views, r.target) for r in rows[:3]] == [
        (0, "flat/a", "0000+0002", "0001"),
        (0, "flat/a", "0000+0002", "0003"),
        (1, "flat/a", "0001+0003", "0002"),
    ]
    assert len(rows) == 6 and all(set(row.values) == {"psnr", "ssim"} for row in rows)
    seen = np.asarray(read_scene(place / "scenes/rooms/flat/a").images[3])
    shown = noisy(place, samples()[0], 3, 1)
    assert rows[1].values == pytest.approx({"psnr": psnr(shown, seen), "ssim": ssim(shown, seen)}, rel=1e-8)
    for name in ("psnr", "ssim"):
        values = [row.values[name] for row in rows]
        expected = (np.mean(values[:4]) + np.mean(values[4:])) / 2
        assert summary["views"][name]["mean"] == pytest.approx(expected, rel=1e-8)
        assert summary["views"][name]["low"] <= expected <= summary["views"][name]["high"]


def test_a_method_without_depth_has_view_metrics_alone(place):
    write(place, "renderer")
    summary = score(place, "renderer")
    assert summary["suites"]["rooms_new"]["regions"] == {} and summary["suites"]["rooms_new"]["alignment"] is None
    assert {path.name for path in (place / "scores/renderer").iterdir()} == {"summary.json", "rooms_new_views.csv"}
    metrics = assemble_metrics(place / "scores", ["renderer"])
    assert set(metrics["rooms_new"]["renderer"]) == {"psnr", "ssim"} and headline(metrics)["rooms_new"] == {}
    assert set(tracked_metrics(summary)) == {f"test/rooms_new/renderer/{name}" for name in ("psnr", "ssim")}


def test_without_rendered_views_there_are_no_metrics_of_them(place, caplog):
    write(place, "plane", rendered=False, depth=lambda s, view: np.full(SIZE, 3.0))
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        summary = score(place, "plane")
    assert summary["suites"]["rooms_new"]["views"] == {} and not caplog.records
    assert not (place / "scores/plane/rooms_new_views.csv").exists()
    assert "psnr" not in assemble_metrics(place / "scores", ["plane"])["rooms_new"]["plane"]


def test_lpips_is_measured_where_there_are_weights_and_missed_in_one_line(place, caplog):
    write(place, "renderer")
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        score(place, "renderer")
    assert [r.message for r in caplog.records] == [
        "lpips of rendered views is not measured: it needs weights that do not come with this project (evaluation.lpips)."
    ]
    caplog.clear()
    summary = score(place, "renderer", distance=lambda one, other: float(one.mean() > other.mean()) + 0.25)
    assert not caplog.records and 0.25 <= summary["suites"]["rooms_new"]["views"]["lpips"]["mean"] <= 1.25
    rows = read_view_rows(place / "scores/renderer/rooms_new_views.csv")
    assert {row.values["lpips"] for row in rows} <= {0.25, 1.25}
    assert "lpips" in assemble_metrics(place / "scores", ["renderer"])["rooms_new"]["renderer"]


def test_depth_is_scored_over_all_predicted_views(place):
    def answer(sample, view):
        """Right in the first given view, twice too far in the second, silent there in one sample."""
        truth = truth_of(SCENES.index(sample.scene))[view]
        if view == sample.given[0]:
            return np.where(truth > 0, truth, 1)
        return np.zeros(SIZE) if sample.views == VIEWS[1][1] else np.where(truth > 0, 2 * truth, 1)

    write(place, "both", rendered=False, depth=answer)
    values = score(place, "both")["suites"]["rooms_new"]["regions"]["all"]["none"]
    rows = [row for row in read_rows(place / "scores/both/rooms_new.csv") if row.alignment == "none"]
    assert [row.sample for row in rows] == [0, 1, 2] and rows[0].views == "0000+0002"
    assert [row.row.values["abs_rel"] for row in rows] == pytest.approx([0.5, 0.0, 0.5], abs=1e-6)
    assert [row.row.values["coverage"] for row in rows] == pytest.approx([1.0, 0.5, 1.0])
    pixels = SIZE[0] * SIZE[1] * 7 // 8
    assert [(row.row.valid, row.row.compared) for row in rows] == [
        (2 * pixels, 2 * pixels),
        (2 * pixels, pixels),
        (2 * pixels,) * 2,
    ]
    assert not any(row.row.reason for row in rows)
    assert values["abs_rel"]["mean"] == pytest.approx((0.25 + 0.5) / 2, abs=1e-6)


def test_pictures_of_another_size_are_refused(place):
    write(place, "renderer", size=(SIZE[0], SIZE[1] - 4))
    with pytest.raises(DataError, match=r"renderer rooms_new flat/a/0000\+0002>0001\+0003: rendered views are"):
        score(place, "renderer")


def test_a_sample_of_many_targets_weighs_no_more_than_one_of_few():
    rows = [
        ViewRow(0, "a", "", "", {"psnr": 10.0}),
        ViewRow(0, "a", "", "", {"psnr": 20.0}),
        ViewRow(1, "a", "", "", {"psnr": 30.0}),
    ]
    assert scene_means(rows) == {"a": {"psnr": 22.5}} and scene_means([]) == {}
