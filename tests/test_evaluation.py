import json
import subprocess
import sys

import numpy as np
import pytest

from fabricated import (
    SIZE,
    TOWN_METHODS,
    K_of,
    a_suite,
    cameras_of,
    truth_of,
    write_dataset,
    write_prediction,
    write_towns,
)
from plumbline.camera_scores import read_camera_rows
from plumbline.errors import DataError
from plumbline.evaluation import (
    Scored,
    assemble_metrics,
    batch_means,
    evaluate,
    headline,
    interval,
    paired,
    read_curve,
    read_rows,
    read_scene_means,
    read_summary,
    scene_means,
    tracked_metrics,
)
from plumbline.metrics import ERRORS, METRICS, Row

SCENES = ("flat/a", "flat/b", "flat/c")


@pytest.fixture
def place(tmp_path):
    write_dataset(tmp_path / "scenes", "rooms", SCENES)
    return tmp_path


def twice(truth, row):
    return np.where(truth > 0, 2 * truth, 1)


def left_half(truth, row):
    """Exact on the left, silent on the right."""
    depth = np.where(truth > 0, truth, 1)
    depth[:, SIZE[1] // 2 :] = 0
    return depth


def score(place, answer, *, method="twice", common=None, batch_size=None, metric=True, cameras=None, **caps):
    suite = a_suite("rooms", **caps)
    predicted = {"metric": metric, "cameras": cameras}
    write_prediction(place / "predictions", method, "rooms_gap1", suite, SCENES, answer, **predicted)
    return evaluate(
        method,
        predictions=place / "predictions" / method,
        suites={"rooms_gap1": suite},
        scenes=place / "scenes",
        out=place / "scores" / method,
        common=None if common is None else place / "predictions" / common,
        bootstrap=100,
        batch_size=batch_size,
    )["suites"]["rooms_gap1"]


def means(summary, region="all", alignment="none"):
    return {name: value["mean"] for name, value in summary["regions"][region][alignment].items()}


def test_double_depth_has_the_scores_worked_by_hand(place):
    values = means(score(place, twice))
    measured = [truth_of(seed)[view][3:] for seed in range(3) for view in (1, 2, 3)]
    assert values["abs_rel"] == pytest.approx(1)
    assert values["rmse_log"] == pytest.approx(np.log(2), rel=1e-6)
    assert values["log10"] == pytest.approx(np.log10(2), rel=1e-6)
    assert values["abs_diff"] == pytest.approx(np.mean([depth.mean() for depth in measured]), rel=1e-6)
    assert [values[name] for name in ("delta1", "delta3", "coverage")] == [0, 0, 1]


def test_alignment_takes_the_scale_away(place):
    summary = score(place, twice)
    for kind in ("median", "scale_shift"):
        assert means(summary, alignment=kind)["abs_rel"] == pytest.approx(0, abs=1e-6)


def test_every_sample_has_a_row_for_each_alignment_and_reads_back(place):
    score(place, twice)
    rows = read_rows(place / "scores/twice/rooms_gap1.csv")
    assert [(r.sample, r.alignment) for r in rows[:4]] == [(0, "none"), (0, "median"), (0, "scale_shift"), (1, "none")]
    assert len(rows) == 9 * 3
    assert (rows[0].scene, rows[0].views, rows[0].region) == ("flat/a", "0001+0000+0002", "all")
    assert rows[0].row.valid == rows[0].row.compared == 21 * 32
    assert set(METRICS) == set(rows[0].row.values)


def test_caps_are_stated_and_obeyed(place):
    summary = score(place, twice, depth_max=3.0, depth_min=0.5)
    assert summary["caps"] == {"depth_min": 0.5, "depth_max": 3.0}
    rows = read_rows(place / "scores/twice/rooms_gap1.csv")
    expected = [(d > 0) & (d <= 3) for seed in range(3) for d in truth_of(seed)[1:4]]
    assert [r.row.valid for r in rows[::3]] == [int(inside.sum()) for inside in expected]


def test_samples_without_truth_are_dropped_with_a_reason_and_never_nan(place):
    summary = score(place, twice, depth_max=2.3)  # the box of the third scene is farther
    dropped = summary["dropped"]
    assert {row["scene"] for row in dropped} == {"flat/c"}
    assert dropped[0]["reason"] == "no truth between 0 and 2.3 m inside the mask"
    assert "nan" not in (place / "scores/twice/rooms_gap1.csv").read_text().lower()
    assert means(summary)["abs_rel"] == pytest.approx(1)


def test_abstaining_counts_in_coverage_only(place):
    values = means(score(place, left_half, method="half"))
    assert values["coverage"] == pytest.approx(0.5)
    assert values["abs_rel"] == pytest.approx(0)


def test_the_common_region_compares_on_the_pixels_of_the_reference(place):
    def wrong_on_the_right(truth, row):
        depth = np.where(truth > 0, truth, 1)
        depth[:, SIZE[1] // 2 :] *= 3
        return depth

    score(place, left_half, method="half", common="half")
    summary = score(place, wrong_on_the_right, method="dense", common="half")
    assert summary["common_with"] == "half"
    assert means(summary)["abs_rel"] == pytest.approx(1)
    assert means(summary, region="common")["abs_rel"] == pytest.approx(0)
    assert means(summary, region="common")["coverage"] == 1
    own = read_summary(place / "scores/half")["suites"]["rooms_gap1"]
    assert means(own, region="common")["coverage"] == 1 and means(own)["coverage"] == 0.5


def test_scenes_weigh_the_same_whatever_their_length():
    def scored(sample, scene, value):
        return Scored(sample, scene, "", "all", "none", Row({"abs_rel": value}, 1, 1))

    rows = [scored(0, "long", 0.1), scored(1, "long", 0.2), scored(2, "long", 0.3), scored(3, "short", 0.6)]
    by_scene = scene_means(rows)["all", "none"]
    assert by_scene == {"long": {"abs_rel": pytest.approx(0.2)}, "short": {"abs_rel": 0.6}}


def test_means_of_batches_are_those_of_the_published_script():
    def scored(sample, value, *, valid=1, compared=1):
        values = ({"coverage": float(compared)} if valid else {}) | (dict.fromkeys(ERRORS, value) if compared else {})
        return Scored(sample, "s", "", "all", "none", Row(values, valid, compared))

    def means_of(rows):
        batches = batch_means(rows, batch_size=2)["all", "none"].values()
        return [(batch.get("abs_rel"), batch.get("coverage")) for batch in batches]

    rows = [scored(0, 0.1), scored(1, 0.3), scored(2, 0.5), scored(3, 0, valid=0, compared=0), scored(4, 0.9)]
    # Without truth a sample adds nothing and counts; the last batch, of one sample, weighs as much as the others.
    assert means_of(rows) == [(pytest.approx(0.2), 1), (pytest.approx(0.25), 1), (0.9, 1)]
    empty = [scored(0, 0, valid=0, compared=0), scored(1, 0, valid=0, compared=0)]
    assert means_of(empty) == [(0, None)]
    # The script knows no abstaining; here such a sample does not flatter the errors.
    silent = [scored(0, 0.4), scored(1, 0, compared=0), scored(2, 0, compared=0)]
    assert means_of(silent) == [(0.4, 0.5), (None, 0)]


def test_a_summary_of_batches_has_their_mean_and_no_interval(place):
    def worse_later(truth, row):
        return np.where(truth > 0, (1 + 0.01 * row) * truth, 1)

    by_scene = score(place, worse_later)["regions"]["all"]["none"]["abs_rel"]
    by_batch = score(place, worse_later, method="batches", batch_size=4)["regions"]["all"]["none"]["abs_rel"]
    errors = [row.row.values["abs_rel"] for row in read_rows(place / "scores/twice/rooms_gap1.csv")[::3]]
    assert len(errors) == 9
    expected = np.mean([np.mean(errors[:4]), np.mean(errors[4:8]), errors[8]])
    assert by_batch == {"mean": pytest.approx(expected), "low": None, "high": None}
    assert by_scene["mean"] == pytest.approx(np.mean(errors)) != by_batch["mean"]


def test_the_interval_is_that_of_the_mean_of_scenes():
    values = np.random.default_rng(3).normal(0.5, 0.1, 100)
    got = interval(values, bootstrap=4000)
    assert got.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 10
    assert (got.low, got.high) == (pytest.approx(got.mean - half, abs=3e-3), pytest.approx(got.mean + half, abs=3e-3))
    assert interval(values) == interval(values)
    assert interval(values, seed=1) != interval(values)


def test_one_scene_has_no_interval():
    assert interval(np.array([0.25])).low is None and interval(np.array([0.25])).mean == 0.25


def test_paired_differences_ignore_what_scenes_have_in_common():
    hard = np.random.default_rng(0).uniform(0.1, 0.9, 40)
    first = {str(i): {"abs_rel": float(value)} for i, value in enumerate(hard)}
    second = {str(i): {"abs_rel": float(value) + 0.01} for i, value in enumerate(hard)}
    got = paired(first, second | {"more": {"abs_rel": 9.0}}, "abs_rel")
    assert (got.mean, got.low, got.high) == pytest.approx((-0.01, -0.01, -0.01))
    with pytest.raises(DataError, match="share no scene with a value of rmse"):
        paired(first, second, "rmse")


def test_confidence_that_knows_the_error_has_no_area(place):
    def knows(truth, row):
        noise = np.random.default_rng(row).uniform(0, 0.5, truth.shape).astype(np.float32)
        depth = np.where(truth > 0, truth * (1 + noise), 1)
        return depth, 1 - noise

    def knows_nothing(truth, row):
        return knows(truth, row)[0], np.full(truth.shape, 0.5)

    sure = means(score(place, knows, method="knows"))["ause"]
    flat = means(score(place, knows_nothing, method="flat"))["ause"]
    assert sure == pytest.approx(0, abs=1e-3) and flat > 0.3
    curve = read_curve(place / "scores/flat/rooms_gap1_sparsification.csv")
    assert curve[:, 1] == pytest.approx(np.ones(len(curve)))
    assert flat == pytest.approx(np.mean(curve[:, 1] - curve[:, 2]), abs=1e-6)


def test_without_confidence_there_is_no_uncertainty(place):
    assert "ause" not in means(score(place, twice))
    assert not (place / "scores/twice/rooms_gap1_sparsification.csv").exists()


def test_the_same_scores_are_written_again(place):
    score(place, twice)
    before = {path.name: path.read_bytes() for path in (place / "scores/twice").iterdir()}
    suite = {"rooms_gap1": a_suite("rooms")}
    folders = {"predictions": place / "predictions/twice", "scenes": place / "scenes", "out": place / "scores/twice"}
    evaluate("twice", suites=suite, bootstrap=100, **folders)
    assert before == {path.name: path.read_bytes() for path in (place / "scores/twice").iterdir()}


def test_metrics_are_assembled_for_the_headline(place):
    score(place, twice)
    score(place, left_half, method="half")
    metrics = assemble_metrics(place / "scores", ["twice", "half"])
    assert tuple(metrics["rooms_gap1"]["twice"]) == METRICS
    assert headline(metrics) == {"rooms_gap1": {"twice": pytest.approx(1), "half": pytest.approx(0)}}
    assert read_scene_means(place / "scores/half/rooms_gap1_scenes.csv")["flat/b"]["coverage"] == 0.5


def test_a_method_that_never_speaks_is_left_out_of_the_headline(place):
    score(place, lambda truth, row: np.zeros_like(truth), method="mute")
    metrics = assemble_metrics(place / "scores", ["mute"])
    assert metrics == {"rooms_gap1": {"mute": {"coverage": 0}}}
    assert headline(metrics) == {"rooms_gap1": {}}


def test_predictions_of_another_suite_are_refused(place):
    score(place, twice)
    with pytest.raises(DataError, match="twice/rooms_gap1 was predicted for another definition of this suite"):
        evaluate(
            "twice",
            predictions=place / "predictions/twice",
            suites={"rooms_gap1": a_suite("rooms", max_samples=4)},
            scenes=place / "scenes",
            out=place / "scores/twice",
        )


def test_a_damaged_prediction_names_its_sample_and_leaves_older_scores(place):
    score(place, twice)
    depth = np.lib.format.open_memmap(place / "predictions/twice/rooms_gap1/depth.npy", mode="r+")
    depth[4, 0, 5, 5] = np.nan
    depth.flush()
    with pytest.raises(DataError, match=r"twice rooms_gap1 flat/b/0002\+0001\+0003: prediction has values between nan"):
        evaluate(
            "twice",
            predictions=place / "predictions/twice",
            suites={"rooms_gap1": a_suite("rooms")},
            scenes=place / "scenes",
            out=place / "scores/twice",
        )
    assert json.loads((place / "scores/twice/summary.json").read_text())["method"] == "twice"


def test_missing_scores_say_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"summary.json: no such file. Evaluate the method first"):
        assemble_metrics(tmp_path, ["deltaz"])


def test_evaluation_starts_without_torch_or_pandas():
    code = "import sys, plumbline.evaluation; print([m for m in ('torch', 'pandas', 'matplotlib', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_prediction_without_scale_is_measured_after_alignment_alone(place):
    summary = score(place, twice, metric=False)
    assert summary["alignment"] == "median" and list(summary["regions"]["all"]) == ["median", "scale_shift"]
    assert {row.alignment for row in read_rows(place / "scores/twice/rooms_gap1.csv")} == {"median", "scale_shift"}
    values = assemble_metrics(place / "scores", ["twice"])["rooms_gap1"]["twice"]
    assert set(values) == {*(f"{name}_median" for name in ERRORS), "coverage"}
    assert values["abs_rel_median"] == pytest.approx(0, abs=1e-6) and values["coverage"] == 1
    tracked = tracked_metrics(read_summary(place / "scores/twice"))
    assert tracked == {f"test/rooms_gap1/twice/{name}": value for name, value in values.items()}


def test_where_one_method_has_no_scale_all_are_compared_after_alignment(place):
    def tilted(truth, row):
        """Where it is far a tenth too far, whatever the unit: the median stays where it is."""
        return np.where(truth > 0, truth, 1) / 50 * np.where(truth > np.quantile(truth[truth > 0], 0.75), 1.1, 1)

    score(place, twice)
    score(place, tilted, method="tilted", metric=False)
    metrics = assemble_metrics(place / "scores", ["twice", "tilted"])
    assert metrics["rooms_gap1"]["twice"]["abs_rel"] == pytest.approx(1)
    assert metrics["rooms_gap1"]["twice"]["abs_rel_median"] == pytest.approx(0, abs=1e-6)
    # A quarter of the pixels is a tenth off.
    assert metrics["rooms_gap1"]["tilted"]["abs_rel_median"] == pytest.approx(0.025, abs=1e-5)
    assert "abs_rel" not in metrics["rooms_gap1"]["tilted"]
    assert headline(metrics)["rooms_gap1"] == {
        name: metrics["rooms_gap1"][name]["abs_rel_median"] for name in ("twice", "tilted")
    }


def test_a_confidence_is_judged_by_the_aligned_error(place):
    def knows(truth, row):
        noise = np.random.default_rng(row).uniform(0, 0.5, truth.shape).astype(np.float32)
        return np.where(truth > 0, truth * (1 + noise), 1) / 9, 1 - noise

    assert means(score(place, knows, metric=False), alignment="median")["ause"] < 0.6
    (place / "scores/twice/rooms_gap1_sparsification.csv").unlink()

    def knows_its_error(truth, row):
        depth = np.where(truth > 0, truth, 1) / 9
        depth[:, ::8] *= 1.5
        sure = np.ones_like(depth)
        sure[:, ::8] = 0
        return depth, sure

    # An eighth of the pixels is half too far and unsure; the median sits on the others, which are exact.
    assert means(score(place, knows_its_error, method="sure", metric=False), alignment="median")[
        "ause"
    ] == pytest.approx(0, abs=0.05)


def test_cameras_are_scored_by_pairs_as_worked_by_hand(place):
    # Views 10 degrees and 0.5 m apart along x. Answered: 12 degrees apart, in the same places.
    summary = score(place, twice, cameras=lambda s: (cameras_of(s, degrees=12), K_of(focal=1.1 * 1.2)))["cameras"]
    # Pairs of a sample (i, i - 1, i + 1): 2, 2 and 4 degrees too much.
    assert summary["rotation_error_deg"] == pytest.approx({"median": 2, "mean": 8 / 3}, abs=1e-4)
    assert summary["focal_error"] == pytest.approx({"median": 0.2, "mean": 0.2}, abs=1e-6)
    # Seen from view i, which is turned by 2 i degrees too much, so is the way to another one.
    rows = read_camera_rows(place / "scores/twice/rooms_gap1_cameras.csv")
    assert [row.sample for row in rows] == list(range(9)) and rows[3].scene == "flat/b"
    assert [row.values["translation_error_deg"] for row in rows[:3]] == pytest.approx([2, 4, 6], abs=1e-4)
    assert summary["translation_error_deg"]["median"] == pytest.approx(4, abs=1e-4)
    # The larger angles of the three samples' pairs: (2, 2, 4), (4, 4, 4), (6, 6, 6) less what they are seen from.
    metrics = assemble_metrics(place / "scores", ["twice"])["rooms_gap1"]["twice"]
    assert metrics["rotation_error_deg"] == summary["rotation_error_deg"]["median"]
    assert 0 < metrics["auc5"] < metrics["auc10"] < metrics["auc30"] < 1
    assert metrics["abs_rel"] == pytest.approx(1)


def test_who_predicts_cameras_alone_has_camera_metrics_alone(place):
    summary = score(place, None, method="identity", cameras=lambda s: cameras_of(s, degrees=0, step=0))
    assert summary["regions"] == {} and summary["alignment"] is None and summary["dropped"] == []
    assert sorted(path.name for path in (place / "scores/identity").iterdir()) == [
        "rooms_gap1_cameras.csv",
        "summary.json",
    ]
    score(place, twice)
    metrics = assemble_metrics(place / "scores", ["twice", "identity"])
    values = metrics["rooms_gap1"]["identity"]
    assert set(values) == {"rotation_error_deg", "translation_error_deg", "auc5", "auc10", "auc30"}
    # Two of three pairs are one step of 10 degrees apart; a translation without direction is as wrong as can be.
    assert values["rotation_error_deg"] == pytest.approx(10, abs=1e-4)
    assert (values["translation_error_deg"], values["auc30"]) == (180, 0)
    assert headline(metrics) == {"rooms_gap1": {"twice": pytest.approx(1)}}


def test_given_poses_are_not_scored(place):
    assert score(place, twice)["cameras"] == {}
    assert not (place / "scores/twice/rooms_gap1_cameras.csv").exists()


def test_the_reference_method_is_left_aside_in_a_suite_that_does_not_ask_it(place):
    summary = score(place, twice, common="sweep", methods=["twice"])
    assert summary["common_with"] is None and list(summary["regions"]) == ["all"]


def test_a_suite_of_towns_has_what_its_methods_can_say(tmp_path):
    write_towns(tmp_path)
    metrics = assemble_metrics(tmp_path / "scores", list(TOWN_METHODS))["towns"]
    assert metrics["constant"]["abs_rel_median"] == pytest.approx(metrics["median_plane"]["abs_rel_median"])
    assert metrics["constant"]["abs_rel"] > metrics["constant"]["abs_rel_median"]
    assert {name for name, values in metrics.items() if "auc5" in values} == {"identity", "mean_pose", "vggt"}
    assert metrics["vggt"]["rotation_error_deg"] < metrics["mean_pose"]["rotation_error_deg"]
    assert {name for name, values in metrics.items() if "focal_error" in values} == {"vggt"}
    assert headline({"towns": metrics, "overfit": {"vggt": {"abs_rel": 0.01}}}).keys() == {"towns"}
    assert list(headline({"towns": metrics})["towns"]) == ["constant", "median_plane", "plane_sweep", "vggt"]
