"""The training loop: exact resume, accumulation, validation, step sizes, batches, and what it says when it stops."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plumbline import checkpoint
from plumbline.distributed import Group
from plumbline.errors import ConfigError, DataError, PlumblineError
from plumbline.files import read_json
from plumbline.systems.records import Batch, Prediction
from plumbline.training import (
    NonFiniteError,
    Plan,
    Schedule,
    Share,
    TrainConfig,
    clip,
    clip_groups,
    cpu_has_bf16,
    cpu_threads,
    depth_errors,
    fit,
    gradient_norms,
    initialise,
    make_plan,
    optimise,
    prepare,
    step_groups,
    step_size,
    trained_parameters,
    uses_bf16,
)
from tiny_training import NoisySystem, TinyFeed, TinySystem

FAST = TrainConfig(steps=7, batch_size=4, val_every=3, checkpoint_every=2, log_every=2, device="cpu")
VAL = TinyFeed(scenes=1, seed=9)


class HaltError(Exception):
    pass


class HaltingFeed:
    """A feed whose process dies at the n-th load."""

    def __init__(self, feed, loads):
        self.feed, self.left = feed, loads

    scenes_of = property(lambda self: self.feed.scenes_of)
    parts_of = property(lambda self: self.feed.parts_of)
    identity = property(lambda self: self.feed.identity)

    def scores(self):
        return self.feed.scores()

    def load(self, indices, *, step=0):
        self.left -= 1
        if self.left < 0:
            raise HaltError
        return self.feed.load(indices)


class SignallingFeed(HaltingFeed):
    """A feed at whose n-th load the process is asked to stop."""

    signum = signal.SIGTERM

    def load(self, indices, *, step=0):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.signum)
        return self.feed.load(indices)


def run(tmp_path, feed=None, *, system=None, config=FAST, val=VAL, **options):
    torch.manual_seed(0)
    system = (system or NoisySystem)()
    settings = {"name": "tiny", "lr": 1e-2, "seed": 3, "params": {"width": 4}} | options
    summary = fit(
        system, feed or TinyFeed(), val, config, out=tmp_path / "out", scratch=tmp_path / "scratch", **settings
    )
    return system, summary


def weights(tmp_path):
    return (tmp_path / "out/model.pt").read_bytes()


def curve(tmp_path, without=("seconds",)):
    with (tmp_path / "out/curve.csv").open() as stream:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(stream)]


def same_run(first, second):
    return weights(first) == weights(second) and curve(first) == curve(second)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    system, summary = run(folder)
    return folder, system, summary


def test_writes_weights_curve_and_summary_once(straight):
    folder, _, summary = straight
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["curve.csv", "model.pt", "summary.json"]
    assert read_json(folder / "out/summary.json") == summary
    assert not (folder / "scratch").exists()
    assert (summary["steps"] == 7 and summary["best"] == summary["validation"]["abs_rel"]) or summary["best_step"] < 7


def test_curve_has_every_component_and_validation(straight):
    rows = curve(straight[0])
    assert [int(row["step"]) for row in rows] == [2, 3, 4, 6, 7]
    expected = ["step", "lr", "train/depth", "train/size", "train/loss", "train/grad_norm"]
    assert list(rows[0]) == [*expected, "val/depth", "val/size", "val/loss", "val/abs_rel", "val/coverage"]
    assert [bool(row["val/abs_rel"]) for row in rows] == [False, True, False, True, True]


def test_same_run_twice_gives_the_same_bytes(straight, tmp_path):
    run(tmp_path)
    assert same_run(straight[0], tmp_path)


@pytest.mark.parametrize("loads", [1, 3, 5, 6])
def test_killed_at_any_step_and_resumed_equals_uninterrupted(straight, tmp_path, loads):
    with pytest.raises(HaltError):
        run(tmp_path, HaltingFeed(TinyFeed(), loads))
    run(tmp_path)
    assert same_run(straight[0], tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_exits_nonzero_and_resumes_exactly(straight, tmp_path, capsys, signum):
    feed = SignallingFeed(TinyFeed(), 3)
    feed.signum = signum
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, feed)
    assert stopped.value.code == 128 + signum
    assert signal.getsignal(signum) is before
    said = capsys.readouterr().err
    assert f"stopped by {signal.Signals(signum).name} after step 3 of 7" in said
    assert "Run the same command again to go on" in said
    assert not (tmp_path / "out").exists()
    run(tmp_path)
    assert "going on from step 3" in capsys.readouterr().err
    assert same_run(straight[0], tmp_path)


def test_a_finished_run_whose_folder_was_not_written_is_only_published(straight, tmp_path, monkeypatch):
    def crash(*_):
        raise HaltError

    with monkeypatch.context() as patch, pytest.raises(HaltError):
        patch.setattr("plumbline.training.publish", crash)
        run(tmp_path)
    run(tmp_path, HaltingFeed(TinyFeed(), 0))
    assert same_run(straight[0], tmp_path)


class PretrainedSystem(NoisySystem):
    def load_pretrained(self, path):
        self.load_state_dict(checkpoint.load(path)["model"])


def test_training_starts_from_given_weights(tmp_path):
    given = {name: value + 3 for name, value in PretrainedSystem().state_dict().items()}
    checkpoint.save(tmp_path / "given.pt", {"model": given})
    config = FAST.model_copy(update={"init_from": tmp_path / "given.pt", "steps": 1})
    system, _ = run(tmp_path, system=PretrainedSystem, config=config)
    # Adam's first step moves a weight by no more than the step size.
    moved = [float((end - given[name]).abs().max()) for name, end in system.state_dict().items()]
    assert 0 < max(moved) <= 1.01e-2


def test_other_weights_to_start_from_are_another_run(tmp_path):
    config = FAST.model_copy(update={"init_from": tmp_path / "given.pt"})
    with pytest.raises(DataError, match=r"given\.pt: no such file"):
        initialise(PretrainedSystem(), config)
    prints = []
    for shift in (0, 1):
        given = {name: torch.zeros_like(value) + shift for name, value in PretrainedSystem().state_dict().items()}
        checkpoint.save(tmp_path / "given.pt", {"model": given})
        prints.append(initialise(PretrainedSystem(), config))
    assert prints[0] != prints[1]
    assert initialise(PretrainedSystem(), FAST) == {}


@pytest.mark.parametrize("change", [{"lr": 1e-3}, {"seed": 4}, {"params": {"width": 5}}, {"identity": {"data": "x"}}])
def test_resume_with_other_parameters_is_refused(tmp_path, change):
    with pytest.raises(HaltError):
        run(tmp_path, HaltingFeed(TinyFeed(), 3))
    with pytest.raises(ConfigError, match=r"of a run with fingerprint .* Undo the change, or delete"):
        run(tmp_path, **change)


def test_resume_with_other_data_config_or_code_is_refused(tmp_path):
    with pytest.raises(HaltError):
        run(tmp_path, HaltingFeed(TinyFeed(), 3))
    for change in ({"feed": TinyFeed(seed=1)}, {"config": FAST.model_copy(update={"weight_decay": 0.0})}):
        with pytest.raises(ConfigError, match="fingerprint"):
            run(tmp_path, **change)


def test_how_often_it_saves_does_not_make_it_another_run(straight, tmp_path):
    with pytest.raises(HaltError):
        run(tmp_path, HaltingFeed(TinyFeed(), 3))
    run(tmp_path, config=FAST.model_copy(update={"checkpoint_every": 5}))
    assert same_run(straight[0], tmp_path)


def test_loading_ahead_changes_nothing_and_its_errors_come_in_turn(straight, tmp_path):
    ahead = FAST.model_copy(update={"loaders": 3})
    run(tmp_path / "ahead", config=ahead)
    assert same_run(straight[0], tmp_path / "ahead")
    with pytest.raises(HaltError):
        run(tmp_path / "halted", HaltingFeed(TinyFeed(), 5), config=ahead)
    run(tmp_path / "halted", config=ahead)
    assert same_run(straight[0], tmp_path / "halted")


def test_accumulation_equals_the_big_batch(tmp_path):
    results = []
    for accumulate in (1, 4):
        folder = tmp_path / str(accumulate)
        run(folder, system=TinySystem, config=FAST.model_copy(update={"accumulate": accumulate}))
        results.append((checkpoint.load(folder / "out/model.pt")["model"], curve(folder)))
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-4, atol=1e-6)
    losses = [[float(row["train/loss"]) for row in rows] for _, rows in results]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_bf16_is_for_the_network_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("plumbline.training.cpu_has_bf16", lambda: True)
    seen = []

    class Watching(TinySystem):
        def forward(self, batch):
            seen.append(self.first(torch.cat([batch.image[:, 0], batch.initial_depth[:, :1]], 1)).dtype)
            return super().forward(batch)

        def loss(self, prediction, batch):
            seen.append(prediction.depth.dtype)
            return super().loss(prediction, batch)

    run(tmp_path / "bf16", system=Watching, config=FAST.model_copy(update={"precision": "bf16"}), val=None)
    assert set(seen[::2]) == {torch.bfloat16} and set(seen[1::2]) == {torch.float32}
    assert [uses_bf16("auto", device) for device in ("cpu", "cuda")] == [False, True]
    exact, _ = run(tmp_path / "fp32", system=TinySystem, val=None)
    rounded = checkpoint.load(tmp_path / "bf16/out/model.pt")["model"]
    for name, value in exact.state_dict().items():
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], value, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("features", "has"), [({"avx512_bf16": True}, True), ({"amx_bf16": False, "avx2": True}, False)]
)
def test_bf16_is_refused_on_a_cpu_that_would_imitate_it(tmp_path, monkeypatch, features, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert cpu_has_bf16() is has
    if not has:
        with pytest.raises(ConfigError, match=r"precision bf16, but this CPU has no bfloat16 .* Set precision: fp32"):
            run(tmp_path, config=FAST.model_copy(update={"precision": "bf16"}), system=TinySystem, val=None)
        assert not (tmp_path / "out").exists()


def test_validation_never_changes_the_network(tmp_path):
    rarely = FAST.model_copy(update={"val_every": 7, "log_every": 1})
    often = FAST.model_copy(update={"val_every": 1, "log_every": 1})
    run(tmp_path / "rarely", config=rarely, system=TinySystem)
    run(tmp_path / "often", config=often, system=TinySystem)
    train = [
        [{k: v for k, v in row.items() if "val" not in k} for row in curve(tmp_path / f)] for f in ("rarely", "often")
    ]
    assert train[0] == train[1]


def test_training_lowers_the_error_and_keeps_the_best_weights(tmp_path):
    config = FAST.model_copy(update={"steps": 60, "val_every": 5, "schedule": Schedule(kind="constant")})
    _, summary = run(tmp_path, system=TinySystem, config=config)
    errors = {int(row["step"]): float(row["val/abs_rel"]) for row in curve(tmp_path) if row["val/abs_rel"]}
    assert min(errors.values()) < 0.8 * errors[5]
    assert summary["best_step"] == min(errors, key=errors.get)
    assert checkpoint.load(tmp_path / "out/model.pt")["step"] == summary["best_step"]


def test_without_validation_the_last_weights_are_kept(tmp_path):
    system, summary = run(tmp_path, val=None)
    fresh, saved = NoisySystem(), checkpoint.load(tmp_path / "out/model.pt")
    fresh.load_state_dict(saved.pop("model"))
    assert saved == {"system": "tiny", "params": {"width": 4}, "step": 7}
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), system.parameters(), strict=True))
    assert summary["best"] is None and "val/abs_rel" not in curve(tmp_path)[0]


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path):
    with pytest.raises(
        NonFiniteError, match=r"scene scene1, samples .*7.*loss component 'depth' is nan, 'size' is nan"
    ):
        run(tmp_path, TinyFeed(broken=7))
    (path,) = (tmp_path / "scratch").glob("nonfinite-*.pt")
    saved = torch.load(path, weights_only=True)
    bad = saved["indices"].index(7)
    assert [bool(v) for v in saved["batch"]["initial_depth"].isnan().flatten(1).any(1)] == [
        i == bad for i in range(len(saved["indices"]))
    ]
    assert all(bool(torch.isfinite(value).all()) for value in saved["model"].values())


def test_a_gradient_that_is_not_finite_names_the_parameter(tmp_path):
    class Infinite(TinySystem):
        def loss(self, prediction, batch):
            losses = super().loss(prediction, batch)
            hidden = (self.last.bias * 0).abs().sqrt().sum()  # value 0, gradient not a number
            return losses | {"total": losses["total"] + hidden}

    with pytest.raises(NonFiniteError, match=r"not the gradient of last\.bias"):
        run(tmp_path, system=Infinite)


def test_two_runs_at_once_are_refused(tmp_path, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr("plumbline.training.PATIENCE_S", 0.01)
    with (
        FileLock(tmp_path / "scratch.lock"),
        pytest.raises(PlumblineError, match=r"this very run .* is being trained by another process"),
    ):
        run(tmp_path)


def test_messages_for_parameters_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match="batch_size 4 is no multiple of 1 processes x accumulate 3 = 3"):
        run(tmp_path, config=FAST.model_copy(update={"accumulate": 3}))
    with pytest.raises(ConfigError, match=r"eta_min 1e-06 is above the step size lr \* lr_scale = 1e-07"):
        run(tmp_path, lr=1e-7)
    with pytest.raises(ConfigError, match=r"schedule\.warm_up 7 is not below steps 7; the peak would never be reached"):
        run(tmp_path, config=FAST.model_copy(update={"schedule": Schedule(kind="cosine", warm_up=7)}))
    with pytest.raises(DataError, match="the suite has no samples"):
        run(tmp_path, TinyFeed(scenes=0))


def test_batches_are_of_one_scene_and_cover_every_sample_each_epoch():
    scenes = ["a"] * 5 + ["b"] * 9 + ["c"]
    plan = Plan(scenes, batch_size=4, seed=1)
    assert plan.batches == 2 + 3 + 1
    epochs = [np.stack([plan.batch(e * plan.batches + i) for i in range(plan.batches)]) for e in range(2)]
    for epoch in epochs:
        assert epoch.shape == (6, 4)
        assert all(len({scenes[i] for i in row}) == 1 for row in epoch)
        assert set(epoch.ravel()) == set(range(15))
    assert not np.array_equal(*epochs)
    again = Plan(scenes, batch_size=4, seed=1)
    np.testing.assert_array_equal(again.batch(8), epochs[1][2])
    assert not np.array_equal(Plan(scenes, batch_size=4, seed=2).batch(8), epochs[1][2])


def test_by_score_a_samples_chance_is_its_score():
    scenes, scores = ["a"] * 3 + ["b"] * 5, [1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0, 10.0]
    plan = Plan(scenes, batch_size=4, seed=1, scores=scores)
    assert plan.batches == 1 + 2
    drawn = np.stack([plan.batch(step) for step in range(6000)])
    assert all(len({scenes[i] for i in row}) == 1 for row in drawn)
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / drawn.size, np.array(scores) / 20, atol=0.012)
    again = Plan(scenes, batch_size=4, seed=1, scores=scores)
    np.testing.assert_array_equal(again.batch(5001), drawn[5001])
    other = Plan(scenes, batch_size=4, seed=2, scores=scores)
    assert not np.array_equal(np.stack([other.batch(step) for step in range(30)]), drawn[:30])
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(
            DataError, match=r"sample 1 has the pair score .*, 1 of 2 are not above 0.*sampling: uniform"
        ):
            Plan(["a", "a"], batch_size=1, seed=0, scores=[1.0, bad])


def test_the_configured_sampling_is_the_plan_s():
    feed = TinyFeed()
    plans = [make_plan(feed, FAST.model_copy(update={"sampling": kind}), seed=3) for kind in ("uniform", "score")]
    expected = [Plan(feed.scenes_of, batch_size=4, seed=3, scores=scores) for scores in (None, feed.scores())]
    for plan, right in zip(plans, expected, strict=True):
        np.testing.assert_array_equal([plan.batch(s) for s in range(9)], [right.batch(s) for s in range(9)])


def test_step_sizes_equal_those_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    lr_scheduler = torch.optim.lr_scheduler

    def sizes(make, steps):
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        schedule, found = make(optimizer), []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    def ours(steps, **schedule):
        return [step_size(s, peak=0.1, steps=steps, schedule=Schedule(**schedule)) for s in range(steps)]

    restarts = sizes(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 2, eta_min=1e-3), 30)
    np.testing.assert_allclose(ours(30, kind="cosine_restarts", t0=5, t_mult=2, eta_min=1e-3), restarts, rtol=1e-6)
    cycle = sizes(lambda o: lr_scheduler.OneCycleLR(o, 0.1, 30, pct_start=0.2, cycle_momentum=False), 29)
    np.testing.assert_allclose(ours(30, kind="onecycle", pct_start=0.2)[:29], cycle, rtol=1e-6)
    falling = sizes(lambda o: lr_scheduler.CosineAnnealingLR(o, 26), 26)
    np.testing.assert_allclose(ours(30, kind="cosine", warm_up=4)[4:], falling, rtol=1e-6)
    np.testing.assert_allclose(ours(30, kind="cosine", warm_up=4)[:4], 0.1 * np.arange(1, 5) / 5, rtol=1e-6)
    warm = sizes(lambda o: lr_scheduler.LinearLR(o, 1 / 5, total_iters=4), 10)
    np.testing.assert_allclose(ours(10, kind="constant", warm_up=4), warm, rtol=1e-6)


def test_the_cosine_is_scaled_by_its_peak_alone():
    schedule = Schedule(kind="cosine", warm_up=3)
    small, large = ([step_size(s, peak=peak, steps=20, schedule=schedule) for s in range(20)] for peak in (1e-4, 1e-2))
    np.testing.assert_allclose(np.array(large), 100 * np.array(small), rtol=1e-12)
    assert max(large) == large[3] == 1e-2 and 0 < large[-1] < 1e-4


PAIRS = {
    "sampling": "score",
    "accumulate": 2,
    "optimizer": "adamw",
    "clip_groups": {"first": 0.05, "norm": 0.5, "last": 0.01},
    "schedule": Schedule(kind="cosine", warm_up=2),
}


def test_a_run_with_sampling_groups_and_warm_up_resumes_exactly(tmp_path):
    config = FAST.model_copy(update=PAIRS)
    run(tmp_path / "straight", config=config)
    for loads in (1, 4):
        folder = tmp_path / str(loads)
        with pytest.raises(HaltError):
            run(folder, HaltingFeed(TinyFeed(), loads), config=config)
        run(folder, config=config)
        assert same_run(tmp_path / "straight", folder)
    rows = curve(tmp_path / "straight")
    norms = ["train/grad_norm", *(f"train/grad_norm_{key}" for key in PAIRS["clip_groups"])]
    assert [name for name in rows[0] if "norm" in name] == norms
    for row in rows:
        parts = [float(row[name]) for name in norms[1:]]
        assert all(part > 0 for part in parts) and float(row[norms[0]]) >= max(parts) * 0.999


def test_each_group_is_clipped_to_its_own_norm(tmp_path):
    limits = {"first": 1e-3, "norm": 1e9, "last": 2e-3}
    config = FAST.model_copy(update={"clip_groups": limits, "clip": 1e-9})
    system = TinySystem()
    settings = {"name": "tiny", "lr": 1e-2, "seed": 3, "run": "", "params": {}, "scratch": tmp_path}
    trainer = prepare(system, config, Group(0, 1, torch.device("cpu")), **settings)
    batch = TinyFeed().load([0, 1, 2, 3])
    system.loss(system(batch), batch)["total"].backward()
    before = {name: parameter.grad.clone() for name, parameter in system.named_parameters()}
    clip(trainer, trained_parameters(trainer), gradient_norms(trainer, trained_parameters(trainer)))
    after = {key: torch.stack([p.grad.norm() for p in trainer.clip_groups[key]]).norm().item() for key in limits}
    assert after["first"] == pytest.approx(1e-3, rel=1e-3) and after["last"] == pytest.approx(2e-3, rel=1e-3)
    assert all(torch.equal(p.grad, before[name]) for name, p in system.named_parameters() if name.startswith("norm"))


def test_named_parameters_have_a_step_size_of_their_own(tmp_path):
    system = TinySystem()
    config = FAST.model_copy(update={"lr_scale": 2.0, "lr_scales": {"first": 0.02}, "optimizer": "adamw"})
    settings = {"name": "tiny", "lr": 1e-2, "seed": 3, "run": "", "params": {}, "scratch": tmp_path}
    trainer = prepare(system, config, Group(0, 1, torch.device("cpu")), **settings)
    named, batch = dict(system.named_parameters()), TinyFeed().load([0, 1, 2, 3])
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimise(trainer, Share(batch, [0], "a"), step=0, stop=False)
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates[1] == pytest.approx(rates[0] / 100)
    # Adam's first step is the step size, whatever the gradient.
    moved = {name: (parameter - before[name]).abs().max().item() for name, parameter in named.items()}
    assert moved["first.weight"] < 0.02 * moved["last.weight"]
    with pytest.raises(ConfigError, match=r"train\.tiny\.lr_scales: 'frist' is in no trained parameter's name"):
        step_groups(system, config.model_copy(update={"lr_scales": {"frist": 1.0}}), name="tiny")


def test_parameters_and_groups_that_do_not_fit_each_other_are_named():
    system = TinySystem()
    groups = clip_groups(system, {"first": 1.0, "norm": 1.0, "last": 1.0, "bias": 1.0}, name="tiny")
    # The key that stands first in the name has it, whatever the order of the keys.
    assert groups["first"] == [system.first.weight, system.first.bias] and groups["bias"] == []
    with pytest.raises(
        ConfigError, match=r"train\.tiny\.clip_groups: parameter norm\.weight is in no group.* freeze it"
    ):
        clip_groups(system, {"first": 1.0, "last": 1.0}, name="tiny")
    with pytest.raises(
        ConfigError, match=r"'lst' is in no parameter's name\. The modules are first, norm, dropout, last"
    ):
        clip_groups(system, {"first": 1.0, "norm": 1.0, "last": 1.0, "lst": 1.0}, name="tiny")
    system.norm.requires_grad_(False)
    assert set(clip_groups(system, {"first": 1.0, "last": 1.0}, name="tiny")) == {"first", "last"}
    assert clip_groups(system, {"first": 1.0, "norm": 1.0, "last": 1.0}, name="tiny")["norm"] == []
    assert clip_groups(system, {}, name="tiny") == {}


class UnitlessSystem(TinySystem):
    """Answers in a unit of its own, and says so."""

    metric = False

    def forward(self, batch):
        return Prediction(depth=super().forward(batch).depth * 7)


def test_depth_in_no_known_unit_is_validated_after_median_alignment(tmp_path):
    _, summary = run(tmp_path / "unitless", system=UnitlessSystem)
    assert summary["select"] == "abs_rel_median"
    assert set(summary["validation"]) == {"depth", "size", "loss", "abs_rel_median", "coverage"}
    (last,) = [row for row in curve(tmp_path / "unitless") if int(row["step"]) == 7]
    assert float(last["val/abs_rel_median"]) == pytest.approx(summary["validation"]["abs_rel_median"], rel=1e-6)
    by_loss = FAST.model_copy(update={"select": "loss"})
    assert run(tmp_path / "loss", system=UnitlessSystem, config=by_loss)[1]["select"] == "loss"


class UnmeasuredFeed(TinyFeed):
    """Views without depth, as those of a film."""

    def load(self, indices, *, step=0):
        return replace(super().load(indices), depth=None, mask=None)


class ImageSystem(TinySystem):
    """Learns from images alone."""

    def loss(self, prediction, batch):
        total = (prediction.depth - batch.image.mean(2)).square().mean()
        return {"image": total, "total": total}


def test_without_measured_depth_weights_are_selected_by_their_loss(tmp_path):
    film, by_loss = UnmeasuredFeed(scenes=1, seed=9), FAST.model_copy(update={"select": "loss"})
    _, summary = run(tmp_path / "film", system=ImageSystem, val=film, config=by_loss)
    losses = [float(row["val/loss"]) for row in curve(tmp_path / "film") if row["val/loss"]]
    assert summary["select"] == "loss" and summary["best"] == pytest.approx(min(losses))
    assert set(summary["validation"]) == {"image", "loss"}
    (last,) = [row for row in curve(tmp_path / "film") if int(row["step"]) == 7]
    assert float(last["val/loss"]) > 0 and not last["val/abs_rel"]
    with pytest.raises(DataError, match=r"needs measured depth to select weights by.*Set select: loss"):
        run(tmp_path / "refused", system=ImageSystem, val=film)
    # Where there is depth, its error is said whatever selects.
    assert "abs_rel" in run(tmp_path / "measured", config=by_loss)[1]["validation"]


def test_alignment_undoes_a_factor_of_each_sample():
    truth = torch.arange(1.0, 17).reshape(2, 1, 2, 4)
    mask = truth != 5
    predicted = truth * torch.tensor([3.0, 0.2])[:, None, None, None]
    predicted[1, 0, 0, 0] = 0
    batch = Batch(torch.zeros(2, 1, 3, 2, 4), torch.zeros(2, 1, 3, 3), None, None, depth=truth, mask=mask)
    errors = depth_errors(Prediction(depth=predicted), batch, aligned=True)
    assert errors["abs_rel_median"][0] < 1e-6 and errors["abs_rel_median"][1] == 2
    assert depth_errors(Prediction(depth=predicted), batch)["abs_rel"][0] == pytest.approx((2 + 0.8) / 2)
    # By hand: truth 1, 2, 3 of median 2; predicted 1, 1, 2 of median 1, so 2, 2, 4: errors 1, 0, 1/3.
    small = Batch(
        torch.zeros(1, 1, 3, 1, 3), torch.zeros(1, 1, 3, 3), None, None,
        depth=torch.tensor([[[[1.0, 2.0, 3.0]]]]), mask=torch.ones(1, 1, 1, 3, dtype=torch.bool),
    )  # fmt: skip
    error = depth_errors(Prediction(depth=torch.tensor([[[[1.0, 1.0, 2.0]]]])), small, aligned=True)
    assert error["abs_rel_median"][0] == pytest.approx((1 + 0 + 1 / 3) / 3)
    nothing = depth_errors(Prediction(depth=torch.zeros(2, 1, 2, 4)), batch, aligned=True)
    assert nothing["abs_rel_median"] == (0.0, 0.0) and nothing["coverage"] == (0.0, 2.0)


def test_a_system_is_told_that_it_starts_from_given_weights(tmp_path):
    class Resting(PretrainedSystem):
        def fine_tune(self):
            # Both: torch's group norm crashes, channels last, when its parameters learn and its input does not.
            self.first.requires_grad_(False)
            self.norm.requires_grad_(False)

    given = PretrainedSystem().state_dict()
    checkpoint.save(tmp_path / "given.pt", {"model": given})
    config = FAST.model_copy(update={"init_from": tmp_path / "given.pt", "steps": 2})
    system, _ = run(tmp_path / "tuned", system=Resting, config=config)
    moved = {name: not torch.equal(value, given[name]) for name, value in system.state_dict().items()}
    assert not moved["first.weight"] and not moved["first.bias"] and moved["last.weight"]


def test_training_neither_imports_mlflow_nor_data_frames():
    code = "import sys, plumbline.training; print([m for m in ('mlflow', 'pandas', 'matplotlib') if m in sys.modules])"
    root = Path(__file__).parents[1] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.stdout.strip() == "[]"


def test_threads_are_limited_only_while_training():
    before = torch.get_num_threads()
    with cpu_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
