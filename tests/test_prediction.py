import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from plumbline.config import SuiteConfig
from plumbline.errors import ConfigError, DataError
from plumbline.feed import SampleFeed
from plumbline.files import write_pfm, write_png16
from plumbline.prediction import (
    Constant,
    MeanPose,
    Suite,
    asked_suites,
    check_methods,
    constant_depth,
    mean_pose,
    predict,
    predict_files,
    training_feed,
    training_poses,
)
from plumbline.records import Sample, Scene
from plumbline.stored import read_cost, read_for, read_predictions, suite_fingerprint
from plumbline.systems import build
from plumbline.systems.records import Cameras, Prediction, Rendered

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


def test_a_batch_is_loaded_once_and_measured_as_a_whole(tmp_path, monkeypatch):
    loaded, load = [], SampleFeed.load
    monkeypatch.setattr(
        SampleFeed, "load", lambda feed, indices: (loaded.append(list(indices)), load(feed, indices))[1]
    )
    predict(Diagnosed({"image"}, brightness), method="bright", suites=[a_suite()], out=tmp_path / "b", batch_size=3)
    assert sorted(loaded) == [[0, 1, 2], [3, 4, 5]]


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


def test_the_fingerprint_ignores_the_caps_of_the_evaluation_and_who_answers():
    config = a_suite().config
    assert suite_fingerprint(config) == suite_fingerprint(a_suite(methods=["bright"]).config)
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
    with pytest.raises(DataError, match=r"has format 99; expected 2"):
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


def turned(degrees, step=(0.0, 0.0, 0.0)):
    """A pose turned about the z axis, at `step`."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    pose = np.eye(4)
    pose[:2, :2], pose[:3, 3] = [[c, -s], [s, c]], step
    return pose


def posed(batch, *, pose=None, K=True, known=None):
    """A prediction with cameras: source views at `pose`."""
    cam0_T_cam = torch.eye(4).repeat(*batch.image.shape[:2], 1, 1)
    cam0_T_cam[:, 1:] = torch.tensor(turned(10, (1, 0, 0)) if pose is None else pose, dtype=torch.float32)
    cameras = Cameras(cam0_T_cam, batch.K.clone() if K else None)
    internals = {} if known is None else {"scale_known": torch.full((len(batch.image),), known)}
    return Prediction(brightness(batch).depth, cameras=cameras, internals=internals)


def test_predicted_cameras_are_stored_with_their_depth(tmp_path):
    suite = a_suite()
    predict(System({"image", "K"}, posed), method="posed", suites=[suite], out=tmp_path / "posed", batch_size=4)
    stored = read_predictions(tmp_path / "posed" / suite.name)
    assert stored.cameras.cam0_T_cam.shape == (6, 3, 4, 4) and stored.cameras.cam0_T_cam.dtype == np.float32
    assert stored.cameras.cam0_T_cam[5, 2] == pytest.approx(turned(10, (1, 0, 0)), abs=1e-6)
    assert stored.cameras.K[3, 1] == pytest.approx(np.array([[20.0, 0, 7.5], [0, 20, 5.5], [0, 0, 1]]))
    assert stored.maps.shape == (6, 1, *SIZE) and stored.about.metric
    predict_brightness(suite, tmp_path / "bright")
    assert read_predictions(tmp_path / "bright" / suite.name).cameras is None


def test_a_system_of_cameras_alone_has_no_depth(tmp_path):
    suite = a_suite()
    system = System({"image"}, lambda batch: posed(batch, K=False).cameras)
    predict(system, method="posed", suites=[suite], out=tmp_path / "posed", batch_size=4)
    stored = read_predictions(tmp_path / "posed" / suite.name)
    assert stored.depth is None and stored.confidence is None and stored.cameras.K is None
    assert sorted(p.name for p in (tmp_path / "posed" / suite.name).iterdir()) == ["cam0_T_cam.npy", "samples.json"]
    refiner = System({"initial_depth"}, lambda batch: Prediction(batch.initial_depth))
    with pytest.raises(DataError, match="posed rooms_gap1: this method predicts cameras and no depth"):
        predict(refiner, method="next", suites=[suite], out=tmp_path / "next", initial=tmp_path / "posed")


def test_a_scale_that_one_sample_does_not_know_is_not_known(tmp_path):
    suite = a_suite()

    def some(batch):
        known = torch.tensor([True, False])[: len(batch.image)]
        return Prediction(brightness(batch).depth, internals={"scale_known": known})

    for name, answer in (("some", some), ("all", lambda batch: posed(batch, known=True))):
        predict(System({"image", "K"}, answer), method=name, suites=[suite], out=tmp_path / name, batch_size=2)
    assert not read_predictions(tmp_path / "some" / suite.name).about.metric
    assert read_predictions(tmp_path / "all" / suite.name).about.metric
    refiner = System({"initial_depth"}, lambda batch: Prediction(batch.initial_depth))
    predict(refiner, method="next", suites=[suite], out=tmp_path / "next", initial=tmp_path / "some")
    assert not read_predictions(tmp_path / "next" / suite.name).about.metric


MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose": MIRROR}, r"room/a/0001\+0000\+0002: cam0_T_cam has a matrix that is no rotation"),
        ({"pose": 2 * np.eye(4)}, "has a matrix that is no rotation"),
        ({"pose": turned(0, (np.nan, 0, 0))}, "is not finite"),
    ],
)
def test_a_pose_that_is_none_is_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        predict(System({"image"}, lambda b: posed(b, **change)), method="bad", suites=[a_suite()], out=tmp_path / "bad")
    assert list(tmp_path.iterdir()) == []


def test_a_first_camera_that_moves_and_a_K_without_focal_length_are_refused(tmp_path):
    def moved(batch):
        cameras = posed(batch).cameras
        cameras.cam0_T_cam[:, 0, 0, 3] = 0.5
        return cameras

    with pytest.raises(DataError, match="cam0_T_cam does not start with the identity"):
        predict(System({"image", "K"}, moved), method="bad", suites=[a_suite()], out=tmp_path / "bad")
    # K is none of its inputs, so it is blank.
    with pytest.raises(DataError, match="has a focal length that is not positive"):
        predict(System({"image"}, posed), method="bad", suites=[a_suite()], out=tmp_path / "bad")
    with pytest.raises(
        DataError, match=r"cam0_T_cam has shape \(6, 1, 4, 4\); expected \(6, 3, 4, 4\), a camera for every"
    ):
        one = System({"image"}, lambda batch: Cameras(torch.eye(4).repeat(len(batch.image), 1, 1, 1), None))
        predict(one, method="bad", suites=[a_suite()], out=tmp_path / "bad", batch_size=6)


def test_all_batches_have_the_same_parts(tmp_path):
    answers = iter([True, False])
    system = System({"image", "K"}, lambda batch: posed(batch, K=next(answers)))
    with pytest.raises(DataError, match="bad rooms_gap1: gives K for some batches only; expected all or none"):
        predict(system, method="bad", suites=[a_suite()], out=tmp_path / "bad", batch_size=3)


def test_the_mean_pose_has_the_nearest_rotation_and_the_mean_direction():
    poses = np.stack([turned(10, (1, 0, 0)), turned(50, (0, 3, 0))])
    # Halfway between 10 and 50 degrees; halfway between x and y, 2 m long.
    assert mean_pose(poses) == pytest.approx(turned(30, (2**0.5, 2**0.5, 0)), abs=1e-12)
    assert mean_pose(np.stack([turned(0, (1, 0, 0)), turned(0, (-2, 0, 0))])) == pytest.approx(np.eye(4))
    flat = np.stack([turned(90), turned(-90)])
    flat[0, :3, :3], flat[1, :3, :3] = np.diag([1.0, -1, -1]), np.diag([-1.0, 1, -1])
    assert np.linalg.det(mean_pose(flat)[:3, :3]) == pytest.approx(1)


def train_split(tmp_path, **poses):
    from plumbline.config import DatasetConfig
    from plumbline.data.canonical import write_scene
    from plumbline.records import View

    image, K = np.zeros((8, 8, 3), np.uint8), np.array([[8.0, 0, 3.5], [0, 8, 3.5], [0, 0, 1]])
    for name, world_T_cam in poses.items():
        views = [View(f"{i}", image, K, world_T_cam=pose) for i, pose in enumerate(world_T_cam)]
        write_scene(tmp_path / "rooms" / name, dataset="rooms", name=name, views=views, depth_range=(0.5, 8.0))
    values = {
        "format": "sun3d",
        "source": {"kind": "folder", "path": "raw"},
        "image_size": (8, 8),
        "depth_range": (0.5, 8.0),
    }
    return {"rooms": DatasetConfig.model_validate({**values, "split": {"train": list(poses), "val": [], "test": []}})}


def test_the_mean_pose_is_that_of_the_training_pairs_by_the_suite_s_own_rule(tmp_path):
    # Three views a quarter turn apart, so the middle one has sources at -90 and at 90 degrees, both 1 m to its right.
    capture = [turned(-90, (1, 0, 0)), np.eye(4), turned(90, (1, 0, 0))]
    datasets = train_split(tmp_path, a=capture)
    suite, system = a_suite(), build("mean_pose", {})
    poses = training_poses(system, [suite], datasets, tmp_path)
    assert poses["rooms_gap1"].source == "mean of 2 pairs of 1 training scenes"
    assert poses["rooms_gap1"].cam0_T_cam == pytest.approx(turned(0, (1, 0, 0)), abs=1e-6)
    assert training_poses(build("identity", {}), [suite], datasets, tmp_path) is None
    predict(system, method="mean_pose", suites=[suite], out=tmp_path / "mean_pose", poses=poses)
    stored = read_predictions(tmp_path / "mean_pose/rooms_gap1")
    assert stored.cameras.cam0_T_cam[4, 1] == pytest.approx(turned(0, (1, 0, 0)), abs=1e-6)
    assert stored.about.notes == {"mean pose": "0 degrees, 1 m: mean of 2 pairs of 1 training scenes"}
    with pytest.raises(ConfigError, match="mean_pose reads a mean pose and there is none for suite 'rooms_gap1'"):
        predict(
            system,
            method="mean_pose",
            suites=[suite],
            out=tmp_path / "mean_pose",
            poses={"x": MeanPose(capture[1], "")},
        )


def test_a_training_split_without_pairs_has_no_mean_pose(tmp_path):
    datasets = train_split(tmp_path, a=[np.eye(4)])
    with pytest.raises(DataError, match="no view of 1 scenes has the sources it asks for"):
        training_poses(build("mean_pose", {}), [a_suite()], datasets, tmp_path)


def test_suites_say_which_methods_answer():
    sources = {"kind": "gap", "gap": 1}
    suites = {
        "towns": SuiteConfig(dataset="towns", sources=sources, methods=["vggt"]),
        "rooms": SuiteConfig(dataset="rooms", sources=sources),
        "learnt": SuiteConfig(dataset="rooms", sources=sources, split="train"),
    }
    assert list(asked_suites("vggt", suites)) == ["towns", "rooms"]
    assert list(asked_suites("sweep", suites, {"learnt"})) == ["rooms", "learnt"]
    with pytest.raises(ConfigError, match=r"systems.sweep: no suite asks this method. Add it to suites.<name>.methods"):
        asked_suites("sweep", {"towns": suites["towns"]})
    check_methods(suites, ["vggt", "sweep"])
    with pytest.raises(ConfigError, match=r"suites.towns.methods: no method 'vggt' in systems. Did you mean 'vgg'\?"):
        check_methods(suites, ["vgg", "sweep"])


# --- novel views ------------------------------------------------------------------------------------------------------


def target_suite(name="rooms_new", **changes):
    """Two given views and two targets of each sample."""
    suite = a_suite(name)
    config = SuiteConfig(dataset="rooms", sources={"kind": "target", "count": 2, "gap": 1, "targets": 2}, **changes)
    samples = [Sample(scene, (i, i + 2, i + 1, 4), context=2) for scene in suite.scenes for i in (0, 1)]
    return replace(suite, config=config, samples=samples)


class Renderer(System):
    """Depth as its answer says; its pictures are the first given view, darker from target to target."""

    depth = True

    def novel_views(self, prediction, batch):
        assert batch.target_image is None and batch.target_mask is None
        targets = batch.target_K.shape[1]
        share = 1 / torch.arange(1, targets + 1)[:, None, None, None]
        shown = torch.full((len(batch.image), targets, *batch.image.shape[-2:]), 2.5)
        return Rendered(batch.image[:, :1] * share, shown if self.depth else None)


RENDERS = {"image", "target_K", "cam0_T_target"}


def test_target_views_are_rendered_and_stored_in_their_order(tmp_path):
    suite, system = target_suite(), Renderer(RENDERS, brightness)
    predict(system, method="bright", suites=[suite, a_suite()], out=tmp_path / "bright", batch_size=3)
    stored = read_predictions(tmp_path / "bright" / suite.name)
    assert stored.rendered.dtype == np.uint8 and stored.rendered.shape == (4, 2, *SIZE, 3)
    for sample, row, picture in zip(suite.samples, stored.samples, stored.rendered, strict=True):
        image = suite.scenes[sample.scene].images[sample.views[0]]
        assert np.array_equal(picture[0], image) and abs(picture[1].astype(float) - image / 2).max() <= 0.5 + 1e-4
        assert (row.given, row.targets, row.context) == (sample.given, sample.targets, 2)
    assert (stored.rendered_depth == 2.5).all() and stored.rendered_depth.shape == (4, 2, *SIZE)
    assert stored.samples[0].label == "room/a/0000+0002>0001+0004"
    assert stored.depth.shape == (4, 1, *SIZE)
    cost = read_cost(tmp_path / "bright")
    assert set(cost.seconds) == {suite.name, "rooms_gap1"} and set(cost.render_seconds) == {suite.name}
    without = read_predictions(tmp_path / "bright/rooms_gap1")
    assert without.rendered is None and without.rendered_depth is None and without.samples[0].context is None
    assert not (tmp_path / "bright/rooms_gap1/rendered.npy").exists()


def test_depth_of_rendered_views_is_left_out_where_there_is_none(tmp_path):
    system = Renderer(RENDERS, brightness)
    system.depth = False
    predict(system, method="bright", suites=[target_suite()], out=tmp_path / "bright")
    stored = read_predictions(tmp_path / "bright/rooms_new")
    assert stored.rendered is not None and stored.rendered_depth is None


@pytest.mark.parametrize("name", ["mean_colour", "nearest_view"])
def test_a_method_that_only_renders_has_pictures_and_nothing_else(tmp_path, name):
    suite = target_suite()
    predict(build(name, {}), method=name, suites=[suite], out=tmp_path / name, batch_size=3)
    names = {path.name for path in (tmp_path / name / suite.name).iterdir()}
    assert names == {"samples.json", "rendered.npy"}
    stored = read_predictions(tmp_path / name / suite.name)
    assert stored.depth is None and stored.cameras is None and stored.rendered.shape == (4, 2, *SIZE, 3)
    assert read_cost(tmp_path / name).render_seconds[suite.name] >= 0
    with pytest.raises(DataError, match="this method predicts rendered views and no depth"):
        _ = stored.maps


def test_warped_views_refine_the_depth_of_another_method(tmp_path):
    suite = target_suite(predict_views=2)
    predict(System({"image"}, brightness), method="bright", suites=[suite], out=tmp_path / "bright")
    system = build("warped_view", {"initial": "bright"})
    predict(system, method="warped_view", suites=[suite], out=tmp_path / "warped", initial=tmp_path / "bright")
    stored = read_predictions(tmp_path / "warped" / suite.name)
    assert stored.about.notes["initial depth"] == "bright" and stored.depth is None
    assert stored.rendered_depth.shape == stored.rendered.shape[:4] == (4, 2, *SIZE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image: image[:, :1], r"rendered image has shape \(4, 1, 3, 12, 16\); expected \(4, 2, 3, 12, 16\)"),
        (lambda image: image.where(image < 2, image) / 0 * 0, r"rendered image has values between nan"),
        (lambda image: image + 1.0, "rendered image has values between .* expected finite values, 0 to 1"),
    ],
)
def test_pictures_that_are_none_are_refused(tmp_path, change, said):
    def answer(batch):
        return Rendered(change(batch.image[:, :1].repeat(1, 2, 1, 1, 1)))

    with pytest.raises(DataError, match=rf"bright rooms_new room/a/0000\+0002>0001\+0004: {said}"):
        predict(System(RENDERS, answer), method="bright", suites=[target_suite()], out=tmp_path / "bright")
    assert not (tmp_path / "bright").exists()


def test_depth_of_rendered_views_that_is_none_is_refused(tmp_path):
    def answer(batch):
        image = batch.image[:, :1].repeat(1, 2, 1, 1, 1)
        return Rendered(image, -torch.ones(len(image), 2, *SIZE))

    with pytest.raises(DataError, match=r"rendered depth has values between -1.0 and -1.0"):
        predict(System(RENDERS, answer), method="bright", suites=[target_suite()], out=tmp_path / "bright")


def test_predicted_cameras_are_those_of_given_views(tmp_path):
    suite = target_suite()
    predict(build("identity", {}), method="identity", suites=[suite], out=tmp_path / "identity")
    assert read_predictions(tmp_path / "identity" / suite.name).cameras.cam0_T_cam.shape == (4, 2, 4, 4)


def test_predictions_for_other_given_views_are_noticed(tmp_path):
    suite = target_suite()
    predict(Renderer(RENDERS, brightness), method="bright", suites=[suite], out=tmp_path / "bright")
    read_for(tmp_path / "bright" / suite.name, list(suite.samples), suite_fingerprint(suite.config))
    others = [replace(sample, context=3) for sample in suite.samples]
    with pytest.raises(DataError, match=r"sample 0 is room/a .* 3 of them given"):
        read_for(tmp_path / "bright" / suite.name, others, suite_fingerprint(suite.config))


class Exporter(Renderer):
    """Writes what it was asked to show."""

    def export(self, prediction, batch, folder):
        assert len(batch.image) == len(prediction.depth) == 1 and torch.get_num_threads() == 1
        np.save(folder / "shown.npy", batch.image[0, 0].numpy())


def test_the_middle_sample_of_the_first_suite_with_targets_is_exported(tmp_path):
    suites = [a_suite(), target_suite(), target_suite("rooms_more")]
    predict(Exporter(RENDERS, brightness), method="bright", suites=suites, out=tmp_path / "bright")
    assert [path.parent.name for path in (tmp_path / "bright").rglob("shown.npy")] == ["rooms_new"]
    shown, sample = np.load(tmp_path / "bright/rooms_new/shown.npy"), suites[1].samples[2]
    assert np.allclose(shown, suites[1].scenes[sample.scene].images[sample.views[0]].transpose(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("rendered", lambda x: x[:, :1], "rendered.npy is uint8 .4, 1, 12, 16, 3.; expected uint8"),
        ("rendered", lambda x: x.astype(np.float32), "rendered.npy is float32"),
        ("rendered_depth", lambda x: x[:2], "rendered_depth.npy is float32 .2, 2, 12, 16.; expected float32"),
    ],
)
def test_damaged_files_of_rendered_views_are_named(tmp_path, name, change, said):
    predict(Renderer(RENDERS, brightness), method="bright", suites=[target_suite()], out=tmp_path / "bright")
    path = tmp_path / "bright/rooms_new" / f"{name}.npy"
    changed = change(np.load(path))
    path.unlink()
    np.save(path, changed)
    with pytest.raises(DataError, match=said):
        read_predictions(path.parent)
