"""DELTAS against reference vectors of the published network, with weights drawn by the vectors' own rule.

Every stage alone, then all of them from images to depth, within the tolerances that come with the vectors.
"""

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plumbline.geometry import invert
from plumbline.systems.deltas import Config, System
from plumbline.systems.deltas import system as system_module
from plumbline.systems.deltas.dense import sparse_depth_image
from plumbline.systems.deltas.front import FrontFeatures
from plumbline.systems.deltas.keypoints import select_keypoints
from plumbline.systems.deltas.matching import candidates, correlate_reference, search_segments
from plumbline.systems.deltas.pretrained import KEYS
from plumbline.systems.records import Batch

SEED = int(os.environ.get("PLUMBLINE_GOLDEN_SEED", "0"))
CASES = ("full", "small")
NEAR, FAR = 0.5, 10.0
FIXED = {
    "state_dict_tri/bn_match_convD.weight": 3.0,
    "state_dict_tri/bn_match_convD.bias": 0.3,
    "state_dict_tri/bn_match_convD.running_mean": 0.9,
    "state_dict_tri/bn_match_convD.running_var": 0.0025,
    **{f"state_dict_depth/{head}.bias": 2.5 for head in ("conv_final", "conv_scale2", "conv_scale4", "conv_scale8")},
}
# Where the rule scales a convolution, by its whole name; all others have 1.
GAINS = {
    r"(state_dict|state_dict_depth)/layer\d\.\d+\.conv3\.weight": 0.5,
    r"(state_dict|state_dict_depth)/layer\d\.\d+\.downsample\.0\.weight": 0.7,
    r"state_dict_depth/gud_up_proj_layer\d\.(conv2|sc_conv1)\.weight": 0.7,
    r"state_dict_depth/conv_scale\d\.weight": 0.5,
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of the entry `name` (key and name, joined by a slash), by the rule."""
    if name in FIXED:
        return np.full(shape, FIXED[name], np.float32)
    z = np.random.default_rng([SEED, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith("running_mean") or name.endswith("bias"):
        z *= 0.1
    elif name.endswith("running_var"):
        z = 1 + 0.2 * np.abs(z)
    elif len(shape) == 1:
        z = 1 + 0.1 * z
    else:
        gain = next((gain for pattern, gain in GAINS.items() if re.fullmatch(pattern, name)), 1.0)
        z *= gain * np.sqrt(2 / np.prod(shape[1:]))
    return z.astype(np.float32)


@pytest.fixture(scope="module")
def manifest(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "deltas_manifest.json").read_text())


@pytest.fixture(scope="module")
def system(manifest: dict[str, Any]) -> System:
    """The published network with the rule's weights, in inference mode."""
    made = System(Config(preset="full")).eval()
    for part, key in KEYS.items():
        for name, value in made.get_submodule(part).state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(torch.from_numpy(weight(f"{key}/{name}", tuple(value.shape))))
    return made.requires_grad_(False)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, golden: Path) -> dict[str, Tensor]:
    """The vectors of one case by name."""
    with np.load(golden / "deltas.npz", allow_pickle=False) as vectors:
        prefix = f"{request.param}/"
        return {k.removeprefix(prefix): torch.from_numpy(vectors[k]) for k in vectors.files if k.startswith(prefix)}


@pytest.fixture(scope="module")
def maps(system: System, case: dict[str, Tensor]) -> FrontFeatures:
    return system.front(images(case))


def images(case: Mapping[str, Tensor]) -> Tensor:
    """All images in [0, 1], first the anchors, then the first sources, and so on."""
    return case["images_u8"].permute(0, 1, 4, 2, 3).flatten(0, 1).float() / 255


def size(case: Mapping[str, Tensor]) -> tuple[int, int]:
    return case["images_u8"].shape[2], case["images_u8"].shape[3]


def batch(case: Mapping[str, Tensor]) -> Batch:
    """The case as a system reads it."""
    views, b = case["images_u8"].shape[:2]
    anchor = torch.eye(4).expand(b, 1, 4, 4)
    return Batch(
        image=images(case).unflatten(0, (views, b)).transpose(0, 1).contiguous(),
        K=case["intrinsics"][:, None].repeat(1, views, 1, 1),
        cam0_T_cam=torch.cat([anchor, invert(case["pose"])], dim=1),
        depth_range=torch.tensor([[NEAR, FAR]]).repeat(b, 1),
    )


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def descriptors(maps: FrontFeatures, case: Mapping[str, Tensor]) -> Tensor:
    """Descriptors "b v c h8 w8"."""
    views, b = case["images_u8"].shape[:2]
    return maps.descriptors.unflatten(0, (views, b)).transpose(0, 1)


def sparse(case: Mapping[str, Tensor]) -> Tensor:
    z = case["keypoints_3d"][..., 2]
    known = case["range_kp"].any(dim=1) & (z > NEAR) & (z < FAR)
    return sparse_depth_image(case["keypoints"], z, known, size(case))


def test_the_state_dicts_are_the_published_ones(manifest: dict[str, Any]) -> None:
    with torch.device("meta"):
        system = System(Config(preset="full"))
    for part, key in KEYS.items():
        module = system.get_submodule(part)
        parameters = dict(module.named_parameters())
        ours = [
            [name, list(value.shape), str(value.dtype).removeprefix("torch."), _kind(name, parameters)]
            for name, value in module.state_dict().items()
        ]
        assert ours == [
            list(entry.values()) if isinstance(entry, dict) else entry for entry in manifest[key]["entries"]
        ]


def _kind(name: str, parameters: Mapping[str, Tensor]) -> str:
    return "parameter" if name in parameters else "buffer"


def test_the_image_encoder_and_both_heads(system: System, maps: FrontFeatures, case: dict[str, Tensor]) -> None:
    names = ("skip_half", "skip_quarter", "skip_eight", "skip_sixteenth", "features")
    for name, tap in zip(names, maps):
        close(tap.mean(dim=1), case[f"{name}_mean_c"], 1e-4)
    close(system.front.detect(maps), case["scores_logits"], 1e-3)
    step = maps.descriptors.shape[-1] // case["descriptors"].shape[-1]
    close(maps.descriptors[..., ::step, ::step], case["descriptors"], 1e-5)


def test_detections_and_their_order(case: dict[str, Tensor]) -> None:
    n = case["keypoints"].shape[1]
    options = {"threshold": 0.0005, "radius": 9, "border": 4, "training": False}
    points, scores = select_keypoints(case["scores_logits"], size=size(case), count=n, detected=n // 2, **options)
    for i, count in enumerate(case["n_detected"].tolist()):
        assert int((scores[i] > 0).sum()) == count
        assert torch.equal(points[i, :count], case["detected_xy"][i, :count])
        close(scores[i, :count], case["detected_score"][i, :count], 1e-5)


def test_search_segments_and_correlations(maps: FrontFeatures, case: dict[str, Tensor]) -> None:
    data = batch(case)
    segments = search_segments(case["keypoints"], data.K, case["pose"], data.depth_range, size(case))
    assert torch.equal(segments.usable, case["range_kp"])
    close(torch.cat([segments.centre, segments.length[..., None]], dim=-1), case["segment_xc_yc_len"], 1e-2)
    places = candidates(segments, 100)[:, :, :8]
    ours = correlate_reference(descriptors(maps, case), case["keypoints"][:, :8], places)
    # The direction of a line is its own negative: the samples may be numbered from either end.
    either = torch.stack([ours, ours.flip(-2, -1)])
    distance = (either - case["corr_first8"]).abs().amax(dim=(-2, -1)).amin(dim=0)
    assert distance.max() < 1e-5


def test_matches_and_points(system: System, maps: FrontFeatures, case: dict[str, Tensor]) -> None:
    data, features = batch(case), descriptors(maps, case)
    found = system.tri(features, case["keypoints"], data.K, case["pose"], data.depth_range, size(case))
    compare_points(found.usable, found.confidence, found.matches, found.points, case)


def compare_points(
    usable: Tensor, confidence: Tensor, matches: Tensor, points: Tensor, case: Mapping[str, Tensor]
) -> None:
    assert torch.equal(usable, case["range_kp"])
    close(confidence, case["confidence"], 1e-4)
    close(matches, case["multiview_matches"], 1e-2)
    meaningful = case["range_kp"].any(dim=1)
    close(points[meaningful], case["keypoints_3d"][meaningful], 1e-3)


def test_densification(system: System, maps: FrontFeatures, case: dict[str, Tensor]) -> None:
    anchors = maps.rows(slice(0, case["images_u8"].shape[1]))
    if "sparse_depth" in case:
        assert torch.equal(sparse(case), case["sparse_depth"])
    answers = system.dense(sparse(case)[:, None], anchors)
    for answer, name in zip(answers, ("dense_depth", "ms_half", "ms_quarter", "ms_eighth"), strict=True):
        close(answer, case[name], 1e-3)


def test_from_images_to_depth(system: System, case: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    keypoints = case["keypoints"]
    monkeypatch.setattr(
        system_module, "select_keypoints", lambda *_, **__: (keypoints, torch.zeros(keypoints.shape[:2]))
    )
    prediction = system(batch(case))
    found = prediction.internals
    compare_points(found["usable"], found["match_confidence"], found["matches"], found["points"], case)
    names = {
        "depth_full": "dense_depth",
        "depth_half": "ms_half",
        "depth_quarter": "ms_quarter",
        "depth_eighth": "ms_eighth",
    }
    for ours, theirs in names.items():
        close(found[ours], case[theirs], 1e-3)
    close(prediction.depth, case["dense_depth"].clamp(min=0), 1e-3)
