"""VGGT against reference vectors of the published network and its training code, with weights drawn by the vectors' rule.

The network stage by stage, unit functions, gradients, losses and loader geometry, within the tolerances that come with them.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plumbline.geometry import backproject, invert, transform
from plumbline.quaternions import to_matrices, to_quaternions
from plumbline.systems.records import Batch, Prediction
from plumbline.systems.vggt import Config, System, losses
from plumbline.systems.vggt.aggregator import VisionTransformer
from plumbline.systems.vggt.config import LossConfig
from plumbline.systems.vggt.dpt import axes, sinusoids
from plumbline.systems.vggt.encoding import decode, encode, to_scene_units
from plumbline.systems.vggt.loader import Framed, prepare, target_size, without_outliers
from plumbline.systems.vit.attention import Rotation, rotate, rotations

SEED = int(os.environ.get("PLUMBLINE_GOLDEN_SEED", "0"))
TOKENS = (
    "camera_token",
    "register_token",
    "register_tokens",
    "cls_token",
    "pos_embed",
    "mask_token",
    "empty_pose_tokens",
)
NORMS = ("norm", "norm1", "norm2", "q_norm", "k_norm", "token_norm", "trunk_norm")
CASES = {"A": "plain", "B": "plain", "C": "dense", "D": "dense"}
GROUPS = ("aggregator", "depth", "camera")
LOSSES = {
    "camera": "loss_camera",
    "translation": "loss_T",
    "rotation": "loss_R",
    "focal": "loss_FL",
    "depth_confidence": "loss_conf_depth",
    "depth_regression": "loss_reg_depth",
    "depth_gradient": "loss_grad_depth",
    "points_confidence": "loss_conf_point",
    "points_regression": "loss_reg_point",
    "points_gradient": "loss_grad_point",
    "total": "objective",
}
LOSS_CASES = {
    "L1": LossConfig(),
    "L2": LossConfig(camera_norm="l2", depth_gradient="confident", quantile=0),
    "L3": LossConfig(),
    "L4": LossConfig(point=1.0),
    "L5": LossConfig(),
}


def weight(name: str, shape: tuple[int, ...], mode: str) -> np.ndarray:
    """The value of the entry `name`, by the rule."""
    dense, last, owner = mode == "dense", name.split(".")[-1], name.split(".")[-2]
    z = np.random.default_rng(zlib.crc32((f"{name}#{SEED}" if SEED else name).encode())).standard_normal(shape)
    if last in TOKENS:
        value = 0.02 * z
    elif last == "gamma":
        value = 0.5 + 0.1 * z if dense else np.full(shape, 1.0 if ".patch_embed." in name else 0.01)
    elif last == "bias":
        value = 0.1 * z * dense
        if dense and name == "camera_head.pose_branch.fc2.bias":
            value[7:9] += 3
    elif owner in NORMS:
        value = 1 + 0.1 * z * dense
    else:
        transposed = name.endswith(("resize_layers.0.weight", "resize_layers.1.weight"))
        value = z / np.sqrt(shape[0] if transposed else np.prod(shape[1:]))
    return value.astype(np.float32)


def filled(mode: str, **config: Any) -> System:
    """The small network of the published layers with the rule's weights, in inference mode."""
    system = System(Config(preset="reference", **config)).eval()
    for name, value in system.state_dict().items():
        value.copy_(torch.from_numpy(weight(name, tuple(value.shape), mode)))
    return system


@pytest.fixture(scope="module")
def manifest(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "vggt_manifest.json").read_text())


@pytest.fixture(scope="module")
def systems() -> dict[str, System]:
    return {mode: filled(mode).requires_grad_(False) for mode in ("plain", "dense")}


def arrays(file: Path, case: str) -> dict[str, np.ndarray]:
    """The vectors of one case, by name."""
    with np.load(file, allow_pickle=False) as vectors:
        names = [name for name in vectors.files if name.startswith(f"{case}/")]
        return {name.removeprefix(f"{case}/"): vectors[name] for name in names}


def tensors(file: Path, case: str) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in arrays(file, case).items() if v.dtype.kind != "U"}


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Equal to within `tolerance` of the largest expected value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(float(expected.abs().max()), 1e-6))


def square(extrinsics: Tensor) -> Tensor:
    """4x4 of 3x4."""
    last = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(*extrinsics.shape[:-2], 1, 4)
    return torch.cat([extrinsics, last], dim=-2)


@pytest.mark.parametrize(("preset", "entries"), [("full", "vggt_1b"), ("reference", "tiny")])
def test_names_and_shapes_are_the_published_ones(manifest: dict[str, Any], preset: str, entries: str) -> None:
    with torch.device("meta"):
        system = System(Config(preset=preset))
    ours = {name: list(value.shape) for name, value in system.state_dict().items()}
    published = {name: shape for name, shape in manifest[entries] if not name.startswith("track_head.")}
    assert ours == published
    untrained = {name for name, parameter in system.aggregator.named_parameters() if not parameter.requires_grad}
    assert {f"aggregator.{name}" for name in untrained} == set(manifest["requires_grad_false_by_default"])
    if preset == "full":
        counts, pair = manifest["counts"], sum(p.numel() for n, p in system.named_parameters() if "point" not in n)
        assert pair == counts["camera+depth training config (aggregator+camera+depth)"]


@pytest.mark.parametrize("case", CASES)
def test_the_network_stage_by_stage(systems: dict[str, System], golden: Path, case: str) -> None:
    system, given = systems[CASES[case]], tensors(golden / "vggt.npz", case)
    images = given["images"]
    close(system.aggregator.embed(images.flatten(0, 1)), given["patch_tokens"])
    rounds = system.aggregator(images)
    for index in range(4):
        close(rounds[index], given[f"agg_{index}"])
    answer = system.answer(images, views=images.shape[1])
    for index, encoding in enumerate(answer.encodings):
        close(encoding, given[f"pose_enc_{index}"])
    close(answer.depth[..., None], given["depth"])
    close(answer.depth_confidence, given["depth_conf"])
    close(answer.points, given["world_points"])
    close(answer.points_confidence, given["world_points_conf"])


def test_the_system_answers_what_the_network_does(systems: dict[str, System], golden: Path) -> None:
    given = tensors(golden / "vggt.npz", "C")
    K = torch.eye(3).expand(1, 2, 3, 3)
    prediction = systems["dense"](Batch(given["images"], K, None, None, predict_views=2))
    close(prediction.depth, given["depth"][..., 0])
    close(1 / (1 - prediction.confidence), given["depth_conf"], 1e-4)
    close(prediction.internals["encodings"][-1], given["pose_enc_3"])
    assert not prediction.internals["scale_known"].any()


def test_unit_functions(golden: Path) -> None:
    unit = tensors(golden / "vggt.npz", "unit")
    for sample in range(2):
        turn: Rotation = rotations(unit["rope_pos"][sample], 16, base=100.0)
        close(rotate(unit["rope_in"][sample : sample + 1], turn), unit["rope_out"][sample : sample + 1])
    u, v = axes((3, 5), 70 / 42)
    close(torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).float(), unit["uv_grid_w5_h3_aspect70_42"])
    spread = torch.cat([sinusoids(u, 8).expand(3, 5, 8), sinusoids(v, 8)[:, None].expand(3, 5, 8)], dim=-1)
    close(spread.float(), unit["uv_embed_dim16"])
    close(to_quaternions(unit["rot"]), unit["quat_xyzw"])
    close(to_matrices(unit["quat_unnormalised"]), unit["quat_unnormalised_mat"])
    close(encode(square(unit["pe_extrinsics"]), unit["pe_intrinsics"], (476, 518)), unit["pe_476x518"])
    cameras, K = decode(unit["pe_476x518"], (476, 518))
    close(cameras[..., :3, :], unit["pe_back_extrinsics"])
    close(K, unit["pe_back_intrinsics"])


def test_resized_positions_of_the_embedder(systems: dict[str, System], golden: Path) -> None:
    embedder = systems["plain"].aggregator.patch_embed
    assert isinstance(embedder, VisionTransformer)
    close(embedder.positions((3, 5)), tensors(golden / "vggt.npz", "unit")["vit_pos_embed_42x70"])


def test_gradients_of_the_objective(golden: Path) -> None:
    system, given = filled("dense", point=False), tensors(golden / "vggt.npz", "grad")
    names = arrays(golden / "vggt.npz", "grad")["param_names"].tolist()
    images, mask = given["batch_images"], given["batch_point_masks"]
    answer = system.answer(images, views=2)
    camera_T = square(given["batch_extrinsics"])
    truth = encode(camera_T, given["batch_intrinsics"], (images.shape[-2], images.shape[-1]))
    said = {
        "encodings": torch.stack(answer.encodings),
        "depth": answer.depth,
        "depth_confidence": answer.depth_confidence,
    }
    found = objective(said, truth, given["batch_depths"], mask, LossConfig())
    for ours, theirs in LOSSES.items():
        if theirs in given:
            assert found[ours].item() == pytest.approx(given[theirs].item(), rel=1e-6, abs=1e-5)
    found["total"].backward()
    norms = {name: float(p.grad.norm()) for name, p in system.named_parameters() if p.grad is not None}
    assert set(norms) == set(names)
    expected = dict(zip(names, given["param_grad_norms"].tolist(), strict=True))
    largest = max(expected.values())
    assert norms == pytest.approx(expected, rel=1e-3, abs=1e-5 * largest)
    for group, value in zip(GROUPS, given["group_norms_aggregator_depth_camera"].tolist(), strict=True):
        ours = sum(norm**2 for name, norm in norms.items() if group in name) ** 0.5
        assert ours == pytest.approx(value, rel=1e-4)


def objective(
    said: dict[str, Tensor],
    encoded: Tensor,
    depth: Tensor,
    mask: Tensor,
    config: LossConfig,
    points: Tensor | None = None,
) -> dict[str, Tensor]:
    """All losses of a batch that is in scene units already, through the system's own weighing."""
    with torch.device("meta"):
        system = System(Config(preset="reference", point=points is not None, loss=config))
    return system.weigh(said, encoded, depth, points, mask)


@pytest.mark.parametrize("case", LOSS_CASES)
def test_losses(golden: Path, case: str) -> None:
    given, config = tensors(golden / "vggt_loss.npz", case), LOSS_CASES[case]
    height, width = given["gt_depths"].shape[-2:]
    said = {
        "encodings": torch.stack([given[f"pred_pose_enc_{stage}"] for stage in range(4)]),
        "depth": given["pred_depth"][..., 0],
        "depth_confidence": given["pred_depth_conf"],
    }
    if config.point:
        said |= {"points": given["pred_world_points"], "points_confidence": given["pred_world_points_conf"]}
    truth = encode(square(given["gt_extrinsics"]), given["gt_intrinsics"], (height, width))
    points = given.get("gt_world_points")
    found = objective(said, truth, given["gt_depths"], given["gt_point_masks"], config, points)
    expected = {ours: float(given[f"out_{theirs}"]) for ours, theirs in LOSSES.items() if f"out_{theirs}" in given}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_the_parts_of_the_depth_loss(golden: Path) -> None:
    given = tensors(golden / "vggt_loss.npz", "L1")
    maps = losses.Maps(
        given["pred_depth"][0],
        given["pred_depth_conf"][0],
        given["gt_depths"][0, ..., None],
        given["gt_point_masks"][0],
    )
    for index, stride in enumerate((1, 2, 4, 8)):
        value = losses.gradient_at(maps.every(stride), confident=False)
        assert float(value) == pytest.approx(float(given[f"out_grad_scale{index}"]), abs=1e-5)
    error = (maps.predicted - maps.truth)[maps.mask].abs()[:, 0]
    threshold = float(given["out_quantile98_reg"])
    assert (
        float(losses.kept(error, 0.98).max())
        < threshold
        == pytest.approx(float(error.sort().values[round(0.98 * (len(error) - 1))]))
    )


def test_a_perfect_prediction_gains_what_its_confidence_says(golden: Path) -> None:
    given, config = tensors(golden / "vggt_loss.npz", "L6"), LossConfig()
    depth, mask = torch.rand(1, 2, 40, 48) + 1, torch.ones(1, 2, 40, 48, dtype=torch.bool)
    truth = encode(torch.eye(4).expand(1, 2, 4, 4), torch.eye(3).expand(1, 2, 3, 3), (40, 48))
    said = {"encodings": truth.expand(4, 1, 2, 9), "depth": depth, "depth_confidence": torch.full_like(depth, 50.0)}
    found = objective(said, truth, depth, mask, config)
    for ours, theirs in LOSSES.items():
        if f"out_{theirs}" in given:
            assert float(found[ours]) == pytest.approx(float(given[f"out_{theirs}"]), abs=1e-5)


def test_scene_units(golden: Path) -> None:
    given = tensors(golden / "vggt_loss.npz", "N")
    scene = to_scene_units(
        given["in_depths"], given["in_point_masks"], given["in_intrinsics"], square(given["in_extrinsics"])
    )
    for actual, name in (
        (scene.scale, "avg_scale"),
        (scene.depth, "out_depths"),
        (scene.cam_T_cam0[..., :3, :], "out_extrinsics"),
        (scene.points_cam0, "out_world_points"),
    ):
        torch.testing.assert_close(actual, given[name], rtol=1e-5, atol=1e-5)


def test_a_loss_of_the_whole_system_is_the_vectors_one(systems: dict[str, System], golden: Path) -> None:
    """From a batch in metres: normalised, encoded and weighed as the parts above."""
    given, system = tensors(golden / "vggt.npz", "grad"), systems["dense"]
    metres = 7.5
    cam_T_cam0 = square(given["batch_extrinsics"])
    cam_T_cam0[..., :3, 3] *= metres
    batch = Batch(
        image=given["batch_images"],
        K=given["batch_intrinsics"],
        cam0_T_cam=invert(cam_T_cam0),
        depth_range=None,
        depth=given["batch_depths"] * metres,
        mask=given["batch_point_masks"],
        predict_views=2,
    )
    prediction: Prediction = system(batch)
    found = system.loss(prediction, batch)
    assert float(found["total"]) == pytest.approx(float(given["objective"]), rel=1e-5, abs=2e-4)


@pytest.mark.parametrize("case", ["P1", "P2", "P3"])
def test_loader_geometry(golden: Path, case: str) -> None:
    given = arrays(golden / "vggt_data.npz", case)
    target = target_size(float(given["aspect"]), width=98)
    assert target == tuple(given["target_shape"])
    view = prepare(Framed(given["in_image"], given["in_depth"], given["in_intrinsic"].astype(np.float64)), target)
    assert np.abs(view.image.astype(int) - given["out_image"].astype(int)).max() <= 1
    np.testing.assert_array_equal(view.depth, given["out_depth"])
    np.testing.assert_allclose(view.K, given["out_intrinsic"], rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(view.depth > 1e-8, given["out_mask"])
    np.testing.assert_array_equal(given["in_extrinsic"], given["out_extrinsic"])
    camera_T_world = square(torch.from_numpy(given["out_extrinsic"]))
    points = backproject(torch.from_numpy(view.depth), torch.from_numpy(view.K).float())
    close(points, torch.from_numpy(given["out_cam_points"]))
    close(transform(invert(camera_T_world), points), torch.from_numpy(given["out_world_points"]))


def test_sizes_by_aspect_and_outliers(golden: Path) -> None:
    sizes = arrays(golden / "vggt_data.npz", "target_shapes")
    assert [target_size(aspect) for aspect in sizes["aspect"]] == [tuple(size) for size in sizes["hw"]]
    given = arrays(golden / "vggt_data.npz", "threshold")
    np.testing.assert_array_equal(without_outliers(given["in"]), given["out_max98_min-1"])
    cleaned = without_outliers(given["in"], high=99.0, low=1.0, farthest=80.0)
    np.testing.assert_array_equal(cleaned, given["out_max99_min1_maxdepth80"])
