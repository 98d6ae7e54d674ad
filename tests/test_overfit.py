"""The overfit gate: green for nets that can fit their sample, red with the right words for each way in which one cannot."""

import csv
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.test_checks import K, cameras, rendered
from plane_scene import scene
from plumbline.data.checks import CheckConfig, check_scene
from plumbline.data.geometry import invert
from plumbline.data.pair import Pair
from plumbline.depth_sheet import coloured, draw_sheet
from plumbline.errors import ConfigError, DataError, PlumblineError
from plumbline.feed import SampleFeed
from plumbline.files import read_image, read_json
from plumbline.geometry import invert_intrinsics, pixel_grid
from plumbline.overfit import OverfitConfig, covering, depth_error, fit_sample, in_metres, mirrored, overfit_pair
from plumbline.overfit_record import read_verdict, record_files, rendered_sheet, sheet
from plumbline.overfit_verdict import GUIDE, Criteria, Verdict, judge, numbers, require_passed, summary
from plumbline.records import Sample, Scene
from plumbline.systems import build
from plumbline.systems.records import Batch, Prediction, Rendered

# The data have tests of their own below.
TRAINING = Criteria(preset="deltaz", data=False)
FAST = OverfitConfig(steps=60, lr=1e-2, criteria=TRAINING, device="cpu", threads=1)
SHORT = FAST.model_copy(update={"steps": 20})
DELTAZ: dict[str, Any] = {
    "preset": "tiny",
    "base_channels": 8,
    "depth": 1,
    "weights": {"relative_depth": 3.0, "smoothness": 0.0, "correction_magnitude": 0.0, "confidence": 0.01},
}

DELTAS: dict[str, Any] = {
    "preset": "tiny", "encoder_stem": 8, "encoder_widths": (8, 8, 12, 16), "encoder_blocks": (1, 1, 1, 1),
    "detector_widths": (16, 16), "descriptor_widths": (16, 24, 24), "descriptor_channels": 16,
    "depth_widths": (8, 8, 12, 16), "decoder_widths": (24, 24, 16, 8, 8), "aspp_width": 8, "aspp_dilations": (2,),
    "keypoints": 200, "samples": 16, "weights": {"smoothness": 0.0, "match_likelihood": 1.0},
}  # fmt: skip


# Narrow, and with what it needs to be quick: depth beside the pictures.
DEPTHSPLAT: dict[str, Any] = {
    "preset": "tiny", "candidates": 16, "layers": 1, "vit_width": 24, "vit_grid": 6, "dpt_widths": (8, 8, 16, 16),
    "backbone_widths": (8, 8, 16), "depth_features": 8, "gaussian_features": 8, "gaussian_width": 8, "sh_degree": 0,
    "background": "black", "scale_shift": -0.43, "opacity_shift": 0.0,
    "loss": {"lpips": 0.0, "optional": ["depth"], "depth": 1.0},
}  # fmt: skip
# One plane is soon known by heart, whatever is to be seen: no 10 times the loss without it.
SPLAT = Criteria(preset="depthsplat", data=False, input_ratio=2.0)
RENDERING = OverfitConfig(steps=60, lr=6e-3, criteria=SPLAT, device="cpu", threads=1)
GLIMPSE = RENDERING.model_copy(update={"steps": 3})


def samples() -> tuple[Batch, Batch]:
    """A slanted plane whose initial depth is a third too far and wavy, and another one."""
    both = scene(v=2, p=1)
    wrong = 1.3 + 0.13 * torch.sin(torch.arange(40) / 6)
    both = replace(both, initial_depth=both.depth[:, :1] * wrong, initial_confidence=None)
    return both.rows(slice(0, 1)), both.rows(slice(1, 2))


def deltaz() -> nn.Module:
    torch.manual_seed(0)
    return build("deltaz", DELTAZ)


def rendered_samples(size: tuple[int, int] = (32, 48)) -> tuple[Batch, Batch]:
    """Two views of a slanted plane with a picture on it, and one between them that is to be rendered; and of another plane."""
    full = scene(2, v=3, p=2, size=size)
    rays = torch.cat([pixel_grid(size), torch.ones(*size, 1)], dim=-1) @ invert_intrinsics(full.K[0, 0]).T
    points = full.depth[..., None] * rays + full.cam0_T_cam[:, :, None, None, :3, 3]
    waves = points * torch.tensor([[[7.0, 9.0, 3.0]], [[4.0, 6.0, 5.0]]])[:, :, None, None]
    image = (0.5 + 0.4 * torch.sin(waves + 1)).permute(0, 1, 4, 2, 3).contiguous()
    # In their order along the track: 2, 0, 1; the middle one is the target, and view 2 the reference.
    moved = full.cam0_T_cam - full.cam0_T_cam[:, 2:] + torch.eye(4)
    given, target = [2, 1], [0]
    both = Batch(
        image[:, given], full.K[:, given], moved[:, given], full.depth_range, full.depth[:, given], full.mask[:, given],
        target_image=image[:, target], target_K=full.K[:, target], cam0_T_target=moved[:, target], predict_views=2,
    )  # fmt: skip
    return both.rows(slice(0, 1)), both.rows(slice(1, 2))


def depthsplat(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return build("depthsplat", {**DEPTHSPLAT, **changes})


class Around(nn.Module):
    """A system as it is; the mistakes below change one thing about it."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system
        self.inputs = system.inputs

    def forward(self, batch: Batch) -> Prediction:
        return self.system(batch)

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        return self.system.loss(prediction, batch)


class DetachedLoss(Around):
    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in super().loss(prediction, batch).items()}


class DetachedPart(Around):
    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(prediction, batch)
        return losses | {"point_3d": losses["point_3d"].detach()}


class Blind(Around):
    """Sees zeros, whatever it is given."""

    def forward(self, batch: Batch) -> Prediction:
        ones = torch.ones_like(batch.initial_depth)
        return super().forward(replace(batch, image=torch.zeros_like(batch.image), initial_depth=ones))


class OtherInTraining(Around):
    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(prediction, batch)
        return losses | {"total": losses["total"] * (1.01 if self.training else 1.0)}


class BreaksAt(Around):
    """A loss that is no number from its n-th call on."""

    def __init__(self, system: nn.Module, call: int) -> None:
        super().__init__(system)
        self.left = call

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(prediction, batch)
        self.left -= 1
        return losses if self.left > 0 else losses | {"depth": losses["depth"] * math.nan}


class Spare(Around):
    """Has a part that nothing reads."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__(system)
        self.spare = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def gate(system: nn.Module, config: OverfitConfig = SHORT, *, batch: Batch | None = None) -> Verdict:
    own, other = samples()
    run = fit_sample(system, batch or own, other, config, name="net", seed=0).run
    return judge("net", config.criteria, check=None, run=run, guide=config.guide)


@lru_cache
def green() -> Verdict:
    return gate(deltaz(), FAST)


def unmet(verdict: Verdict) -> set[str]:
    return {outcome.name for outcome in verdict.criteria if not outcome.met}


def test_deltaz_fits_its_sample_by_looking_at_it() -> None:
    verdict = green()
    assert verdict.passed and not verdict.diagnosis, verdict.diagnosis
    values = {outcome.name: outcome.value for outcome in verdict.criteria}
    assert values["depth_reduction"] > 20 and values["input_ratio"] > 10 and values["train_validation_gap"] < 1e-5
    assert verdict.conclusion == "net fits its sample: all criteria are met after 60 steps."


def test_deltas_fits_its_sample_and_its_resting_layers_are_declared() -> None:
    torch.manual_seed(0)
    system = build("deltas", DELTAS)
    both = scene(p=1, size=(48, 64))
    # An untrained net's answer is near already, as it spreads what is triangulated: no 20 times in so few steps.
    criteria = Criteria(preset="deltas", data=False, same_loss=0.1, depth_reduction=3.0)
    resting = ("tri.convD_confa", "tri.bnconvD_confa")
    config = FAST.model_copy(update={"steps": 60, "criteria": criteria, "frozen": resting})
    run = fit_sample(system, both.rows(slice(0, 1)), both.rows(slice(1, 2)), config, name="deltas", seed=0).run
    verdict = judge("deltas", criteria, check=None, run=run)
    assert verdict.passed, verdict.diagnosis
    undeclared = judge("deltas", criteria, check=None, run=replace(run, frozen=resting))
    assert undeclared.diagnosis[0].startswith("Frozen: tri.convD_confa, tri.bnconvD_confa has requires_grad off")


def test_vggt_s_criteria_and_the_guide_s_are_of_losses_that_it_has() -> None:
    torch.manual_seed(0)
    small = {"width": 32, "rounds": 2, "camera_blocks": 1, "dpt_features": 16, "dpt_widths": [8, 8, 8, 8]}
    system = build("vggt", {"preset": "tiny", "dpt_layers": [0, 0, 1, 1], **small})
    both = scene(v=2, p=2)
    criteria = Criteria(preset="vggt", data=False)
    config = FAST.model_copy(update={"steps": 3, "criteria": criteria})
    run = fit_sample(system, both.rows(slice(0, 1)), both.rows(slice(1, 2)), config, name="vggt", seed=0).run
    verdict = judge("vggt", criteria, check=None, run=run, guide=True)
    assert all(outcome.value is not None for outcome in (*verdict.criteria, *verdict.guide))
    expected = {o.name: o.expected for o in verdict.criteria}
    assert expected["loss camera"] == "below 0.001" and expected["loss depth_regression"] == "below 0.01"
    assert expected["abs_rel"] == "below 0.02" and expected["rotation_error_deg"] == "below 0.5"
    assert unmet(verdict) >= {"abs_rel", "loss camera", "loss depth_regression"}
    assert [o.name for o in verdict.guide] == ["loss_objective", "loss_camera", "loss_depth", "stable training"]
    assert run.unit == "metres, by the true scale of the scene"


def splat_gate(system: nn.Module, config: OverfitConfig = GLIMPSE, **changes: Any) -> Verdict:
    own, other = rendered_samples()
    run = fit_sample(system, replace(own, **changes), other, config, name="net", seed=0).run
    return judge("net", config.criteria, check=None, run=run)


def test_depthsplat_fits_its_sample_and_what_it_is_not_given() -> None:
    verdict = splat_gate(depthsplat(), RENDERING)
    assert verdict.passed, verdict.diagnosis
    values = {outcome.name: outcome.value for outcome in verdict.criteria}
    assert values["depth_reduction"] > 20 and values["psnr"] > 31
    assert numbers(verdict)["overfit/psnr"] == values["psnr"]
    assert any(line.startswith("Target views (PSNR): 2") for line in verdict.observations)


# --- training that went wrong ----------------------------------------------------------------------------------------


def test_a_frozen_module_is_named() -> None:
    system = deltaz()
    first = next(iter(dict(system.network.named_children())))
    system.network.get_submodule(first).requires_grad_(False)
    verdict = gate(system)
    assert "trainable" in unmet(verdict)
    assert verdict.diagnosis[0].startswith(f"Frozen: network.{first} has requires_grad off and stays as it was drawn")
    allowed = gate(system, SHORT.model_copy(update={"frozen": (f"*.{first}",)}))
    assert "trainable" not in unmet(allowed)


def test_a_network_that_is_frozen_as_a_whole_is_judged_without_a_step() -> None:
    verdict = gate(deltaz().requires_grad_(False))
    assert verdict.diagnosis[0].startswith("Frozen: the whole network")
    assert {"trainable", "depth_reduction"} <= unmet(verdict)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"overfit\.net\.frozen: 'aggregator' matches no module that rests.* none\."):
        gate(deltaz(), SHORT.model_copy(update={"frozen": ("aggregator",)}))


@pytest.mark.parametrize(("mistake", "loss"), [(DetachedLoss, "loss"), (DetachedPart, "point_3d")])
def test_a_detached_loss_is_named(mistake: type[Around], loss: str) -> None:
    verdict = gate(mistake(deltaz()))
    assert "connected" in unmet(verdict)
    assert verdict.diagnosis[0].startswith(f"Detached: loss {loss} does not depend on any trainable weight")


def test_a_part_that_no_loss_reaches_is_named() -> None:
    verdict = gate(Spare(deltaz()), FAST)
    assert unmet(verdict) == {"gradients"}
    assert verdict.diagnosis == ("No gradient reaches spare: no loss depends on it, or its path to the loss is cut.",)


def test_zeros_as_input_are_named() -> None:
    own, _ = samples()
    zeros = replace(own, image=torch.zeros_like(own.image), initial_depth=torch.zeros_like(own.initial_depth))
    verdict = gate(deltaz(), batch=zeros)
    assert "input" in unmet(verdict)
    assert verdict.diagnosis[0].startswith("The input is blank: image, initial_depth has the same value everywhere")


def test_a_network_that_does_not_look_is_told_from_one_that_does() -> None:
    verdict = gate(Blind(deltaz()))
    assert "input_ratio" in unmet(verdict)
    line = next(line for line in verdict.diagnosis if line.startswith("It does not look at its input"))
    assert "the loss is 1 times as high" in line and "given K, depth_range, image, initial_confidence" in line


def test_a_step_size_1000_times_too_large_is_named() -> None:
    verdict = gate(deltaz(), SHORT.model_copy(update={"lr": 1000 * SHORT.lr}))
    assert {"depth_reduction"} <= unmet(verdict)
    assert verdict.diagnosis[0].startswith("The step size is too large (lr 10): ")
    assert verdict.diagnosis[0].endswith("Try a tenth of it.")


class DetachedPictures(Around):
    """Renders what nothing is learnt from."""

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(prediction, batch)
        return losses | {"image": losses["image"].detach(), "total": losses["depth"]}

    def novel_views(self, prediction: Prediction, batch: Batch) -> Rendered:
        return self.system.novel_views(prediction, batch)


class BlindToImages(DetachedPictures):
    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        return self.system.loss(prediction, batch)

    def forward(self, batch: Batch) -> Prediction:
        return super().forward(replace(batch, image=torch.full_like(batch.image, 0.5)))


def test_a_part_of_a_rendering_system_that_is_frozen_or_detached_is_named() -> None:
    system = depthsplat()
    system.encoder.gaussian_head.requires_grad_(False)
    assert splat_gate(system).diagnosis[0].startswith("Frozen: encoder.gaussian_head has requires_grad off")
    verdict = splat_gate(DetachedPictures(depthsplat()))
    assert {"connected", "gradients"} <= unmet(verdict)
    assert verdict.diagnosis[0].startswith("Detached: loss image does not depend on any trainable weight")


def test_zeros_as_images_and_a_network_blind_to_them_are_named() -> None:
    own, _ = rendered_samples()
    zeros = splat_gate(depthsplat(), image=torch.zeros_like(own.image))
    assert zeros.diagnosis[0].startswith("The input is blank: image has the same value everywhere")
    blind = splat_gate(BlindToImages(depthsplat()))
    line = next(line for line in blind.diagnosis if line.startswith("It does not look at its input"))
    assert "the loss is 1 times as high (depth: " in line and "input_ratio" in unmet(blind)


def test_rendering_with_a_step_size_1000_times_too_large_is_named() -> None:
    verdict = splat_gate(depthsplat(), GLIMPSE.model_copy(update={"lr": 1000 * RENDERING.lr, "steps": 6}))
    assert {"depth_reduction"} <= unmet(verdict)
    assert verdict.diagnosis[0].startswith("The step size is too large (lr 6): "), verdict.diagnosis


def test_a_rendering_network_whose_weights_are_no_numbers_is_judged_and_not_rendered() -> None:
    system = depthsplat()
    nn.init.constant_(system.encoder.gaussian_head[0].weight, math.nan)
    verdict = splat_gate(system)
    assert {"finite", "psnr"} <= unmet(verdict)
    assert verdict.diagnosis[0].startswith("Not finite from the start: gaussian_")


def test_pictures_from_cameras_of_another_resolution_stay_poor() -> None:
    own, _ = rendered_samples()
    half = own.target_K * torch.tensor([0.5, 0.5, 1.0])[:, None]
    verdict = splat_gate(depthsplat(), GLIMPSE, target_K=half)
    assert {"psnr"} <= unmet(verdict)
    line = next(line for line in verdict.diagnosis if line.startswith("What target cameras see went from "))
    assert line.endswith("choose targets between them.") and " dB only, expected at least 30: " in line


def test_a_psnr_of_nothing_rendered_is_refused_with_what_is_missing() -> None:
    criteria = TRAINING.model_copy(update={"psnr": 30.0})
    verdict = gate(deltaz(), SHORT.model_copy(update={"criteria": criteria, "steps": 2}))
    assert {"psnr"} <= unmet(verdict)
    assert any(line.startswith("Nothing was rendered: the sample has no target views") for line in verdict.diagnosis)


def test_a_sample_without_depth_can_be_held_to_its_pictures_alone() -> None:
    system = depthsplat(loss={"lpips": 0.0})
    lenient = Criteria(preset="plain", data=False, depth_reduction=None, psnr=10.0, input_ratio=None)
    config = GLIMPSE.model_copy(update={"steps": 4, "criteria": lenient})
    verdict = splat_gate(system, config, depth=None, mask=None, target_mask=None)
    assert verdict.passed, verdict.diagnosis
    assert not any("Depth error" in line for line in verdict.observations)
    asked = config.model_copy(update={"criteria": SPLAT})
    refused = splat_gate(depthsplat(loss={"lpips": 0.0}), asked, depth=None, mask=None, target_mask=None)
    assert {"depth_reduction", "input_ratio"} <= unmet(refused)
    assert any(line.startswith("The sample has no true depth to compare with") for line in refused.diagnosis)


def test_a_difference_between_training_and_inference_is_named() -> None:
    verdict = gate(OtherInTraining(deltaz()), FAST)
    assert unmet(verdict) == {"train_validation_gap"}
    assert "(largest in loss)" in verdict.diagnosis[0] and "disagree on equal weights" in verdict.diagnosis[0]


@pytest.mark.parametrize(
    ("call", "step", "words"),
    [
        (2, 1, "Not finite from the start: depth is nan at step 1, before any update."),
        (6, 4, "The step size is too large (lr 0.01): depth is nan at step 4"),
    ],
)
def test_the_first_value_that_is_not_finite_stops_the_run_and_is_named(call: int, step: int, words: str) -> None:
    # The untrained network is evaluated first, and again after step 1.
    verdict = gate(BreaksAt(deltaz(), call))
    assert "finite" in unmet(verdict) and verdict.diagnosis[0].startswith(words)
    assert f"First value that was not finite: depth is nan, at step {step}." in verdict.observations


def test_too_few_steps_are_told_from_a_net_that_cannot() -> None:
    verdict = gate(deltaz(), FAST.model_copy(update={"steps": 4}))
    assert verdict.diagnosis[-1] == "The loss was still falling at the last step: give it more steps."


# --- data that are not true ------------------------------------------------------------------------------------------


def pair(index: tuple[int, ...] = (4, 5, 6)) -> Pair:
    """A sample of the checks' analytic scene as the extraction leaves it."""
    poses, count = cameras()[list(index)], len(index)
    images, depth = rendered(poses)
    names = tuple(f"{i:02d}" for i in index)
    stacks = {"images": images, "depth": depth.astype(np.float32), "world_T_cam": poses}
    scene = Scene("analytic", "room", names, K=np.repeat(K[None], count, 0), depth_range=(0.5, 6.0), **stacks)
    return Pair(scene, Sample("room", tuple(range(count))), ("context",) * count, 1, {})


def with_scene(own: Pair, **changes: Any) -> Pair:
    return replace(own, scene=replace(own.scene, **changes))


def negated(own: Pair) -> Pair:
    poses = own.scene.world_T_cam.copy()
    poses[:, :3, 3] *= -1
    return with_scene(own, world_T_cam=poses)


def smaller_K(own: Pair) -> Pair:
    K = own.scene.K.copy()
    K[:, :2, 2] += 0.5
    K[:, :2] /= 2
    K[:, :2, 2] -= 0.5
    return with_scene(own, K=K)


OTHER = "No usual misreading makes them true: depth, poses or images may be of another sample."
UNTRUE = {
    "negated poses": (negated, "with translations negated"),
    "inverted poses": (lambda p: with_scene(p, world_T_cam=invert(p.scene.world_T_cam)), "with poses inverted"),
    "depth of another pair": (lambda p: with_scene(p, depth=pair((0, 10, 11)).scene.depth), OTHER),
    "depth of another pair, of two views": (lambda p: with_scene(pair((4, 6)), depth=pair((9, 11)).scene.depth), OTHER),
    "poses of another pair": (lambda p: with_scene(p, world_T_cam=pair((0, 10, 11)).scene.world_T_cam), OTHER),
    "images of another pair": (lambda p: with_scene(pair((4, 6)), images=pair((9, 11)).scene.images), OTHER),
    "K of another resolution": (smaller_K, "with K multiplied by 2"),
}


def batch_of(own: Pair) -> Batch:
    start = np.full((1, 1, *own.scene.images.shape[1:3]), 1.0, np.float32)
    return SampleFeed({"room": own.scene}, [own.sample], initial_depth=start).load([0])


def on_disk(tmp_path: Any, own: Pair, config: OverfitConfig = SHORT, **options: Any) -> Verdict:
    config = config.model_copy(
        update={"criteria": Criteria(preset="deltaz", depth_reduction=2.0), "steps": 12, "log_steps": (1, 10)}
    )
    settings = {"name": "deltaz", "seed": 0, "out": tmp_path / "runs/overfit/deltaz", **options}
    return overfit_pair(deltaz(), batch_of(own), None, own, config, CheckConfig(), **settings)


@pytest.mark.parametrize("fault", UNTRUE)
def test_data_that_are_not_true_are_refused_before_anything_is_trained(tmp_path: Any, fault: str) -> None:
    change, words = UNTRUE[fault]
    verdict = on_disk(tmp_path, change(pair()))
    assert not verdict.passed and unmet(verdict) == {"data"}
    assert words in verdict.diagnosis[0] and verdict.diagnosis[0].startswith("The data are not shown to be true: ")
    assert (OTHER in verdict.diagnosis[0]) == (words == OTHER)
    folder = tmp_path / "runs/overfit/deltaz"
    assert sorted(path.name for path in folder.iterdir()) == ["passed.json", "record.md", "verdict.json"]
    assert read_json(folder / "passed.json") == {"system": "deltaz", "passed": False}
    with pytest.raises(
        PlumblineError, match=r"deltaz was not trained: its sample is not shown to be true\.\n  - The data"
    ):
        require_passed(read_verdict(folder), record="record.md")


def test_a_sample_that_cannot_be_judged_is_no_basis(tmp_path: Any) -> None:
    own = pair()
    verdict = on_disk(tmp_path, with_scene(own, world_T_cam=np.tile(own.scene.world_T_cam[:1], (3, 1, 1))))
    assert not verdict.passed and "Choose a sample whose views see the same surface" in verdict.diagnosis[0]


# --- the record ------------------------------------------------------------------------------------------------------


def test_the_record_has_what_the_guide_asks_for(tmp_path: Any) -> None:
    verdict = on_disk(tmp_path, pair(), FAST.model_copy(update={"guide": True}))
    folder = tmp_path / "runs/overfit/deltaz"
    pictures = ["step_1.png", "step_10.png", "step_12.png"]
    files = ["curve.csv", "passed.json", "record.md", *pictures, "verdict.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert read_json(folder / "passed.json") == {"system": "deltaz", "passed": verdict.passed}
    found = record_files(folder)
    assert list(found["pictures"]) == [1, 10, 12] and found["curve"] == folder / "curve.csv"
    with (folder / "curve.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert {"train/loss", "train/relative_depth", "train/grad_norm", "val/loss", "val/depth_error"} <= rows[0].keys()
    assert [row["step"] for row in rows if row["val/depth_error"]] == ["1", "10", "12"]
    text = (folder / "record.md").read_text()
    for part in ("Criteria", "Data", "Configuration", "Steps", "Observations", "The guide's thresholds", "Conclusion"):
        assert f"\n## {part}\n" in text
    assert "| 04 | 96x128 | 12288 / 12288 (100.0 %) | " in text and "its own images, mirrored" in text
    assert "\n| untrained | " in text and "\n| 10 | " in text and "\n| 12 | " in text
    assert read_verdict(folder) == verdict
    stored = read_json(folder / "verdict.json")
    assert stored["configuration"]["steps"] == 12 and stored["run"]["trained"]["depth_error"] > 0


def test_a_verdict_of_another_format_is_refused(tmp_path: Any) -> None:
    (tmp_path / "verdict.json").write_text('{"format": 0}')
    with pytest.raises(DataError, match="has format 0; expected 1"):
        read_verdict(tmp_path)


def test_the_guide_s_thresholds_say_why_they_mislead_and_have_no_say() -> None:
    assert "no lower bound" in GUIDE[0].remark and "No trainer logs this name" in GUIDE[2].remark
    verdict = green()
    assert not verdict.guide and verdict.passed
    beside = gate(deltaz(), FAST.model_copy(update={"guide": True}))
    assert beside.passed and not all(outcome.met for outcome in beside.guide)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_depth_is_kept_for_pictures_after_each_logged_step() -> None:
    own, other = samples()
    config = FAST.model_copy(update={"steps": 4, "log_steps": (1, 2, 50)})
    kept = fit_sample(deltaz(), own, other, config, name="net", seed=0).depth
    assert {step: depth.shape for step, depth in kept.items()} == dict.fromkeys((1, 2, 4), (1, 1, 32, 40))


def test_the_picture_of_a_step_has_what_was_rendered_beside_what_was_to_be_seen(tmp_path: Any) -> None:
    own = replace(pair((4, 6, 5)), sample=Sample("room", (0, 1, 2), 2), roles=("context", "context", "target"))
    colours = own.scene.images[2:].astype(np.float32) / 255
    rows = rendered_sheet(own, colours + np.float32(0.1), own.scene.depth[2:])
    assert [(row.title, row.sources) for row in rows] == [("05", ("04", "06"))]
    given = sheet(own, own.scene.depth[:2])
    for name, some in (("given", given), ("all", [*given, *rows])):
        draw_sheet(some, tmp_path / f"{name}.png", method="x")
    small, large = (read_image(tmp_path / f"{name}.png") for name in ("given", "all"))
    assert len(large) == len(small) + (len(small) - 36) // 2 and large.shape[1] == small.shape[1]
    # The error of 0.1 is the middle of a scale up to 0.2, all over the last tile of the row of what was rendered.
    tile = large[-100, -300:-20]
    np.testing.assert_array_equal(tile, np.broadcast_to(tile[:1], tile.shape))
    assert (
        tile[0].tolist()
        == coloured(np.full((1, 1), 0.1, np.float32), np.ones((1, 1), bool), (0.0, 0.2), "error")[0, 0].tolist()
    )


def test_pictures_show_every_view_and_grey_where_nothing_was_predicted() -> None:
    own = pair()
    masked = np.ones(own.scene.images.shape[:3], bool)
    masked[0, :10] = False
    assert own.scene.depth is not None
    rows = sheet(with_scene(own, mask=masked), 1.1 * own.scene.depth[:1])
    assert [row.title for row in rows] == ["04", "05", "06"] and rows[0].sources == ("05", "06")
    assert rows[0].metrics["abs_rel"] == pytest.approx(0.1) and not rows[1].metrics
    assert rows[0].truth is not None and not rows[0].truth[:10].any() and rows[0].truth[10:].all()
    assert rows[0].prediction.any() and not rows[1].prediction.any()
    assert all(row.truth is None for row in sheet(with_scene(own, depth=None), rows[0].prediction[None]))


def test_a_verdict_in_lines_and_in_numbers_says_what_is_not_met() -> None:
    verdict = gate(deltaz(), FAST.model_copy(update={"steps": 4}))
    assert "depth_reduction: " in summary(verdict) and "expected at least 20 (not met)" in summary(verdict)
    found = numbers(verdict)
    assert found["overfit/passed"] == 0 and 0 < found["overfit/depth_reduction"] < 20
    assert numbers(green())["overfit/passed"] == 1


def test_a_criterion_that_is_null_is_not_asked_for() -> None:
    lenient = Criteria(preset="deltaz", data=False, depth_reduction=None, input_ratio=None)
    verdict = gate(deltaz(), FAST.model_copy(update={"steps": 2, "criteria": lenient}))
    assert verdict.passed, verdict.diagnosis
    assert {outcome.name for outcome in verdict.criteria}.isdisjoint({"depth_reduction", "input_ratio"})


def test_an_abstaining_pixel_counts_as_wrong_and_an_unmeasured_one_not_at_all() -> None:
    own, _ = samples()
    depth = own.depth[:, :1].clone()
    depth[..., :20] = 0
    mask = torch.ones_like(own.mask)
    assert depth_error(Prediction(depth), replace(own, mask=mask)) == pytest.approx(0.5)
    mask[..., :20] = False
    assert depth_error(Prediction(depth), replace(own, mask=mask)) == 0


def test_depth_without_a_scale_is_aligned_by_the_median() -> None:
    own, _ = samples()
    known = {"scale_known": torch.tensor([False])}
    prediction = Prediction(own.depth[:, :1] / 7, internals=known)
    assert depth_error(in_metres(nn.Identity(), prediction, own), own) < 1e-6
    assert depth_error(prediction, own) == pytest.approx(6 / 7)


def test_the_outermost_modules_stand_for_their_parameters() -> None:
    every = ["a.b.weight", "a.b.bias", "a.c.weight", "d.weight"]
    assert covering({"a.b.weight", "a.b.bias"}, every) == ("a.b",)
    assert covering({"a.b.weight", "a.b.bias", "a.c.weight"}, every) == ("a",)
    assert covering({"a.b.bias", "d.weight"}, every) == ("a.b.bias", "d")
    assert covering(set(every), every) == ("the whole network",)
    assert covering(set(), every) == ()


def test_the_other_sample_must_be_another_one_of_the_same_shape() -> None:
    own, _ = samples()
    with pytest.raises(DataError, match="shows the same images"):
        fit_sample(deltaz(), own, own, SHORT, name="net", seed=0)
    longer = scene(v=3, p=1).rows(slice(1, 2))
    with pytest.raises(DataError, match=r"has image \(1, 3, 3, 32, 40\); expected \(1, 2, 3, 32, 40\)"):
        fit_sample(deltaz(), own, longer, SHORT, name="net", seed=0)
    assert torch.equal(mirrored(mirrored(own)).image, own.image)


def test_a_true_sample_passes_the_data_part() -> None:
    assert check_scene(pair().scene, CheckConfig()).verdict == "ok"
