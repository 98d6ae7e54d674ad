import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from plumbline.config import SuiteConfig
from plumbline.errors import ConfigError, DataError
from plumbline.files import write_pfm, write_png16
from plumbline.prediction import Constant, Suite, constant_depth, predict, predict_files, training_feed
from plumbline.records import Sample, Scene
from plumbline.stored import read_cost, read_for, read_predictions, suite_fingerprint
from plumbline.systems.records import Prediction

SIZE = (12, 16)


def a_scene(name="room/a", views=5, seed=0, **changes):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1, 5, (views, *SIZE)).astype(np.float32)
    depth[:, :3] = 0
    K = np.array([[20.0, 0, 7.5], [0, 20, 5.5], [0, 0, 1]])
    scene = Scene(
        dataset="rooms",
        name=name,
        view_names=tuple(f"{index:04d}" for index in range(views)),
        images=rng.integers(0, 256, (views, *SIZE, 3), dtype=np.uint8),
        K=np.tile(K, (views, 1, 1)),
        depth_range=(0.5, 8.0),
        depth=depth,
        world_T_cam=np.tile(np.eye(4), (views, 1, 1)),
    )
    return replace(scene, **changes)


def a_suite(name="rooms_gap1", **changes):
    scenes = {scene: a_scene(scene, seed=seed) for seed, scene in enumerate(("room/a", "room/b"))}
    config = SuiteConfig(dataset="rooms", sources={"kind": "gap", "gap": 1}, **changes)
    samples = [Sample(scene, (i, i - 1, i + 1)) for scene in scenes for i in (1, 2, 3)]
    return Suite(name, config, scenes, samples)


class System:
    """Answers with a function of the batch and keeps every batch it saw."""

    def __init__(self, inputs, answer):
        self.inputs, self.answer, self.seen = frozenset(inputs), answer, []

    def __call__(self, batch):
        self.seen.append(batch)
        return self.answer(batch)

    def eval(self):
        return self


def brightness(batch):
    return Prediction(1 + batch.image[:, : batch.predict_views].mean(dim=2))


def predict_brightness(suite, out, **options):
    system = System({"image"}, brightness)
    predict(system, method="bright", suites=[suite], out=out, **options)
    return system


def test_every_sample_is_predicted_once_in_order(tmp_path):
    suite = a_suite()
    predict_brightness(suite, tmp_path / "bright", batch_size=4)
    stored = read_predictions(tmp_path / "bright" / suite.name)
    assert [(s.scene, s.views) for s in stored.samples] == [(s.scene, s.views) for s in suite.samples]
    assert stored.samples[0].names == ("0001", "0000", "0002")
    for sample, depth in zip(suite.samples, stored.depth, strict=True):
        image = suite.scenes[sample.scene].images[sample.views[0]].astype(np.float32)
        assert depth[0] == pytest.approx(1 + image.mean(axis=2) / 255, rel=1e-5)
    assert stored.depth.shape == (6, 1, *SIZE) and stored.confidence is None
    assert read_cost(tmp_path / "bright").seconds[suite.name] >= 0


class Diagnosed(System):
    """A system that measures itself against the truth; it has nothing to say of dark pictures."""

    def diagnostics(self, prediction, batch):
        error = (prediction.depth[:, 0] - batch.depth[:, 0]).abs().mean(dim=(1, 2))
        return {"error_m": torch.where(batch.image[:, 0].mean(dim=(1, 2, 3)) > 0.508, error, torch.nan)}


def test_a_system_s_own_measures_are_kept_for_each_sample(tmp_path):
    suite = a_suite()
    system = Diagnosed({"image"}, brightness)
    predict(system, method="bright", suites=[suite], out=tmp_path / "bright", batch_size=4)
    assert all(batch.depth is None for batch in system.seen)
    stored = read_predictions(tmp_path / "bright" / suite.name)
    truth = [suite.scenes[s.scene].depth[s.views[0]] for s in suite.samples]
    means = [suite.scenes[s.scene].images[s.views[0]].mean() / 255 for s in suite.samples]
    expected = np.array([abs(d[0] - t).mean() for d, t in zip(stored.depth, truth, strict=True)])
    kept = np.array(means) > 0.508
    assert 0 < kept.sum() < len(kept)
    assert np.isnan(stored.diagnostics["error_m"]).tolist() == (~kept).tolist()
    assert stored.diagnostics["error_m"][kept] == pytest.approx(expected[kept], abs=1e-5)


def test_the_batch_size_does_not_change_the_answer(tmp_path):
    for size in (1, 6):
        predict_brightness(a_suite(), tmp_path / str(size), batch_size=size)
    one, six = (read_predictions(tmp_path / str(size) / "rooms_gap1").depth for size in (1, 6))
    assert np.array_equal(one, six)


def test_a_system_sees_its_inputs_and_nothing_else(tmp_path):
    for batch in predict_brightness(a_suite(), tmp_path / "bright").seen:
        hidden = (
            batch.cam0_T_cam,
            batch.depth,
            batch.mask,
            batch.depth_range,
            batch.initial_depth,
            batch.constant_depth,
        )
        assert all(field is None for field in hidden)
        assert batch.predict_views == 1


def test_about_says_what_the_method_was_given(tmp_path):
    suite = a_suite()
    predict_brightness(suite, tmp_path / "bright")
    about = read_predictions(tmp_path / "bright" / suite.name).about
    assert (about.method, about.suite, about.dataset) == ("bright", "rooms_gap1", "rooms")
    assert (about.inputs, about.oracle, about.device) == (("image",), False, "cpu")


def oracle(batch):
    return Prediction(batch.depth[:, :1] + 0.1)


def test_reading_the_truth_makes_an_oracle_and_refining_one_too(tmp_path):
    suite = a_suite()
    predict(System({"depth"}, oracle), method="perturbed", suites=[suite], out=tmp_path / "perturbed")
    refiner = System({"initial_depth"}, lambda batch: Prediction(batch.initial_depth * 2))
    predict(refiner, method="twice", suites=[suite], out=tmp_path / "twice", initial=tmp_path / "perturbed")
    first, second = (read_predictions(tmp_path / name / suite.name) for name in ("perturbed", "twice"))
    assert first.about.oracle and second.about.oracle
    assert second.about.notes == {"initial depth": "perturbed"}
    assert np.array_equal(second.depth, first.depth * 2)


def test_an_oracle_without_truth_is_refused(tmp_path):
    suite = a_suite()
    suite = replace(suite, scenes={name: replace(scene, depth=None) for name, scene in suite.scenes.items()})
    with pytest.raises(DataError, match=r"perturbed is an oracle and reads the truth, which room/a has not"):
        predict(System({"depth"}, oracle), method="perturbed", suites=[suite], out=tmp_path / "perturbed")


def test_initial_confidence_comes_along(tmp_path):
    suite = a_suite()
    sure = System(
        {"image"}, lambda batch: Prediction(brightness(batch).depth, torch.full((len(batch.image), 1, *SIZE), 0.25))
    )
    predict(sure, method="sure", suites=[suite], out=tmp_path / "sure")
    refiner = System({"initial_depth", "initial_confidence"}, lambda batch: Prediction(batch.initial_depth))
    predict(refiner, method="next", suites=[suite], out=tmp_path / "next", initial=tmp_path / "sure")
    assert all(torch.all(batch.initial_confidence == 0.25) for batch in refiner.seen)
    assert np.all(read_predictions(tmp_path / "sure" / suite.name).confidence == 0.25)


def test_a_refiner_needs_an_initial_method(tmp_path):
    refiner = System({"initial_depth"}, lambda batch: Prediction(batch.initial_depth))
    with pytest.raises(ConfigError, match=r"deltaz refines an initial depth and none was given; name the method"):
        predict(refiner, method="deltaz", suites=[a_suite()], out=tmp_path / "deltaz")


def test_initial_depth_of_other_samples_is_refused(tmp_path):
    predict_brightness(a_suite(), tmp_path / "bright")
    refiner = System({"initial_depth"}, lambda batch: Prediction(batch.initial_depth))
    other = a_suite()
    other = replace(other, samples=other.samples[::-1])
    with pytest.raises(DataError, match=r"sample 0 is room/a \(1, 0, 2\); expected room/b \(3, 2, 4\)"):
        predict(refiner, method="deltaz", suites=[other], out=tmp_path / "deltaz", initial=tmp_path / "bright")
    with pytest.raises(DataError, match=r"predicted for another definition of suite 'rooms_gap1'"):
        read_for(tmp_path / "bright" / "rooms_gap1", list(other.samples), "0" * 16)


def test_the_fingerprint_ignores_the_caps_of_the_evaluation_only():
    config = a_suite().config
    assert suite_fingerprint(config) == suite_fingerprint(a_suite(depth_max=4.0).config)
    assert suite_fingerprint(config) != suite_fingerprint(a_suite(max_samples=3).config)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5])
def test_a_bad_prediction_is_refused_and_nothing_is_left(tmp_path, bad):
    def answer(batch):
        depth = brightness(batch).depth
        depth[1, 0, 4, 4] = bad
        return Prediction(depth)

    with pytest.raises(DataError, match=r"bad rooms_gap1 room/a/0002\+0001\+0003: depth has values between"):
        predict(System({"image"}, answer), method="bad", suites=[a_suite()], out=tmp_path / "bad", batch_size=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("confidence", [-0.1, 1.5, float("nan")])
def test_a_confidence_outside_0_to_1_is_refused(tmp_path, confidence):
    def answer(batch):
        depth = brightness(batch).depth
        return Prediction(depth, torch.full_like(depth, confidence))

    with pytest.raises(DataError, match=r"room/a/0001\+0000\+0002: confidence has values between .* 0 to 1"):
        predict(System({"image"}, answer), method="bad", suites=[a_suite()], out=tmp_path / "bad")


def test_a_wrong_shape_is_refused(tmp_path):
    half = System({"image"}, lambda batch: Prediction(brightness(batch).depth[..., ::2]))
    with pytest.raises(DataError, match=r"depth has shape \(6, 1, 12, 8\); expected \(6, 1, 12, 16\)"):
        predict(half, method="half", suites=[a_suite()], out=tmp_path / "half")


def test_ctrl_c_leaves_no_files_and_an_older_prediction_whole(tmp_path):
    predict_brightness(a_suite(), tmp_path / "bright")
    before = (tmp_path / "bright/rooms_gap1/depth.npy").read_bytes()

    def stop(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(System({"image"}, stop), method="bright", suites=[a_suite()], out=tmp_path / "bright")
    assert [path.name for path in tmp_path.iterdir()] == ["bright"]
    assert (tmp_path / "bright/rooms_gap1/depth.npy").read_bytes() == before


def test_constant_depth_is_the_median_of_usable_training_truth():
    depth = np.zeros((1, *SIZE), np.float32)
    depth[0, 0, :5] = (1, 2, 3, 40, 50)
    mask = np.ones((1, *SIZE), bool)
    mask[0, 0, 4] = False
    constant = constant_depth({"a": a_scene(views=1, depth=depth, mask=mask)}, (0.5, 8.0))
    assert constant == Constant(2.5, "median truth of the 1 training scenes")


def test_without_training_truth_the_constant_is_the_middle_of_the_range():
    for training in ({}, {"a": a_scene(depth=None)}):
        assert constant_depth(training, (0.5, 8.0)).depth == pytest.approx(2)


def test_the_constant_reaches_the_baseline_and_is_recorded(tmp_path):
    flat = System(
        {"constant_depth"}, lambda batch: Prediction(batch.constant_depth[:, None, None, None].expand(-1, 1, *SIZE))
    )
    constants = {"rooms": Constant(2.5, "median truth of the 7 training scenes")}
    predict(flat, method="constant", suites=[a_suite()], out=tmp_path / "constant", constants=constants)
    stored = read_predictions(tmp_path / "constant/rooms_gap1")
    assert np.all(stored.depth == 2.5)
    assert stored.about.notes == {"constant": "2.5 m: median truth of the 7 training scenes"}
    with pytest.raises(ConfigError, match=r"constant reads a constant depth and there is none for data set 'rooms'"):
        predict(flat, method="constant", suites=[a_suite()], out=tmp_path / "constant", constants={})


def write_maps(folder, suite, suffix):
    for name, scene in suite.scenes.items():
        for view, depth in zip(scene.view_names, scene.depth, strict=True):
            path = folder / "rooms" / name / f"{view}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".npy":
                np.save(path, depth)
            elif suffix == ".pfm":
                write_pfm(path, depth)
            else:
                write_png16(path, np.round(depth * 1000).astype(np.uint16))


@pytest.mark.parametrize("suffix", [".npy", ".pfm", ".png"])
def test_depth_maps_from_files(tmp_path, suffix):
    suite = a_suite()
    write_maps(tmp_path / "maps", suite, suffix)
    predict_files(tmp_path / "maps", suites=[suite], out=tmp_path / "file")
    stored = read_predictions(tmp_path / "file/rooms_gap1")
    truth = np.stack([suite.scenes[s.scene].depth[s.views[0]] for s in suite.samples])
    assert stored.depth[:, 0] == pytest.approx(truth, abs=6e-4)
    assert (stored.about.method, stored.about.inputs, stored.about.oracle) == ("file", ("file",), False)


def test_a_missing_or_misshapen_file_is_named(tmp_path):
    suite = a_suite()
    write_maps(tmp_path / "maps", suite, ".npy")
    file = tmp_path / "maps/rooms/room/b/0002.npy"
    np.save(file, np.ones((6, 8), np.float32))
    with pytest.raises(DataError, match=r"room/b/0002.npy: depth is \(6, 8\); expected \(12, 16\)"):
        predict_files(tmp_path / "maps", suites=[suite], out=tmp_path / "file")
    file.unlink()
    with pytest.raises(DataError, match=r"room/b/0002.npy, .pfm or .png: no such file"):
        predict_files(tmp_path / "maps", suites=[suite], out=tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_missing_and_foreign_predictions_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no samples.json there. Predict it first"):
        read_predictions(tmp_path)
    predict_brightness(a_suite(), tmp_path / "bright")
    folder = tmp_path / "bright/rooms_gap1"
    np.save(folder / "depth.npy", np.ones((2, 1, *SIZE), np.float32))
    with pytest.raises(DataError, match=r"expected float32 \(n, p, h, w\) with n = 6"):
        read_predictions(folder)
    stored = json.loads((folder / "samples.json").read_text())
    (folder / "samples.json").write_text(json.dumps(stored | {"format": 99}))
    with pytest.raises(DataError, match=r"has format 99; expected 1"):
        read_predictions(folder)


def test_training_reads_labels_when_they_are_asked_for(tmp_path):
    suite = a_suite()
    (tmp_path / "rooms/room").mkdir(parents=True)
    for place, name in enumerate(suite.scenes):
        np.save(tmp_path / f"rooms/{name}.npy", np.full((5, *SIZE), place / 4, np.float16))
    batch = training_feed(suite, None, tmp_path).load([0, 5])
    assert batch.keypoint_probability.shape == (2, 3, *SIZE)
    assert batch.keypoint_probability.flatten(1).mean(1).tolist() == [0.0, 0.25]
    assert training_feed(suite, None).load([0]).keypoint_probability is None
