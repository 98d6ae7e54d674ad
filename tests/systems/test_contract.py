"""What every system promises, checked by name: adding a system's module is enough to have it tested here."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from plane_scene import scene
from plumbline.errors import DataError
from plumbline.systems import CAMERAS_ONLY, VIEWS_ONLY, build, names
from plumbline.systems.records import LABELS, Batch, Cameras, Prediction, Rendered

# Only what keeps a test small: every other parameter has its default.
SMALL: dict[str, dict[str, Any]] = {
    "deltaz": {"preset": "tiny", "base_channels": 8, "depth": 2, "patch": 2},
    "deltas": {"preset": "tiny", "keypoints": 32, "samples": 12},
    "depthsplat": {"preset": "tiny", "backend": "torch"},
    "vggt": {
        "preset": "tiny",
        "width": 32,
        "rounds": 2,
        "camera_blocks": 1,
        "dpt_features": 16,
        "dpt_widths": [8, 8, 8, 8],
        "dpt_layers": [0, 0, 1, 1],
    },
}
ORACLES = {"perturbed", "median_plane"}
MAPS = ("depth", "mask", "initial_depth", "initial_confidence")


def make(name: str) -> torch.nn.Module:
    """The system `name` with small parameters, and with no output layer left at its initial zero."""
    torch.manual_seed(0)
    system = build(name, SMALL.get(name, {}))
    for parameter in system.parameters():
        if parameter.requires_grad and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.02)
    return system.eval()


def close(one: Prediction, other: Prediction) -> None:
    torch.testing.assert_close(one.depth, other.depth, rtol=1e-4, atol=1e-4)
    assert (one.confidence is None) == (other.confidence is None)
    if one.confidence is not None:
        torch.testing.assert_close(one.confidence, other.confidence, rtol=1e-3, atol=1e-3)


def poison(batch: Batch, allowed: frozenset[str]) -> Batch:
    """The batch with every floating value that `allowed` does not name replaced by NaN, and masks inverted."""
    changes: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name in allowed or not torch.is_tensor(value):
            continue
        changes[field.name] = ~value if value.dtype == torch.bool else torch.full_like(value, torch.nan)
    return replace(batch, **changes)


@pytest.mark.parametrize("name", sorted(CAMERAS_ONLY))
def test_a_system_of_cameras_alone_looks_at_its_inputs_and_answers_every_view(name: str) -> None:
    system, batch = make(name), scene()
    cameras = system(batch.select(system.inputs))
    assert isinstance(cameras, Cameras) and cameras.cam0_T_cam.shape == (2, 3, 4, 4)
    assert torch.equal(cameras.cam0_T_cam, system(poison(batch, system.inputs)).cam0_T_cam)
    alone = [system(batch.rows(slice(i, i + 1))).cam0_T_cam for i in range(2)]
    assert torch.equal(cameras.cam0_T_cam, torch.cat(alone))
    assert not system.inputs & {"depth", "mask", "image", "cam0_T_cam", "K"}


@pytest.mark.parametrize("name", sorted(VIEWS_ONLY))
def test_a_system_of_views_alone_looks_at_its_inputs_and_renders_every_target(name: str) -> None:
    system, batch = make(name), scene(v=2, t=3)
    seen = system(batch.select(system.inputs))
    assert isinstance(seen, Rendered) and seen.image.shape == (2, 3, 3, 32, 40) and seen.image.dtype == torch.float32
    assert ((seen.image >= 0) & (seen.image <= 1)).all() and not seen.image.requires_grad
    assert seen.depth is None or (seen.depth.shape == (2, 3, 32, 40) and (seen.depth >= 0).all())
    assert torch.equal(seen.image, system(poison(batch, system.inputs)).image)
    alone = torch.cat([system(batch.rows(slice(i, i + 1))).image for i in range(2)])
    assert torch.allclose(seen.image, alone, atol=1e-6) and not torch.equal(alone[0], alone[1])
    assert {"target_K", "cam0_T_target"} & system.inputs
    assert not system.inputs & {"depth", "mask", "target_image", "target_mask"} and not list(system.parameters())


@pytest.mark.parametrize("name", sorted(VIEWS_ONLY))
def test_a_system_of_views_alone_says_that_there_is_nothing_to_render(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: this batch has no target cameras to render"):
        make(name)(scene())


@pytest.fixture(params=[name for name in names() if name not in CAMERAS_ONLY | VIEWS_ONLY])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_inputs_are_fields_of_a_batch_and_only_oracles_see_the_truth(name: str) -> None:
    inputs = make(name).inputs
    assert isinstance(inputs, frozenset) and inputs <= {field.name for field in fields(Batch)}
    assert bool(inputs & {"depth", "mask"}) == (name in ORACLES)


def test_labels_are_for_losses_alone(name: str) -> None:
    system = make(name)
    assert system.inputs.isdisjoint(LABELS) and getattr(system, "labels", frozenset()) <= LABELS


@pytest.mark.parametrize("size", [(32, 40), (33, 47)])
def test_predictions_have_the_image_s_size_and_are_depths(name: str, size: tuple[int, int]) -> None:
    system, batch = make(name), scene(size=size)
    prediction = system(batch.select(system.inputs))
    assert prediction.depth.shape == (2, 2, *size) and prediction.depth.dtype == torch.float32
    assert torch.isfinite(prediction.depth).all() and (prediction.depth >= 0).all()
    assert (prediction.depth > 0).float().mean() > 0.3
    if prediction.confidence is not None:
        assert prediction.confidence.shape == prediction.depth.shape
        assert ((prediction.confidence >= 0) & (prediction.confidence <= 1)).all()


def test_the_leading_view_alone_is_predicted_when_one_is_asked_for(name: str) -> None:
    system, batch = make(name), replace(scene(), predict_views=1)
    assert system(batch.select(system.inputs)).depth.shape == (2, 1, 32, 40)


def test_a_batch_of_two_is_two_batches_of_one(name: str) -> None:
    system, batch = make(name), scene().select(make(name).inputs)
    with torch.no_grad():
        both = system(batch)
        alone = [system(batch.rows(slice(i, i + 1))) for i in range(2)]
    confidence = None if both.confidence is None else torch.cat([part.confidence for part in alone])
    close(both, Prediction(torch.cat([part.depth for part in alone]), confidence))
    assert not torch.equal(both.depth[0], both.depth[1])


def test_nothing_outside_inputs_is_looked_at(name: str) -> None:
    system, batch = make(name), scene()
    with torch.no_grad():
        seen = system(batch.select(system.inputs))
        close(seen, system(batch))
        close(seen, system(poison(batch, system.inputs)))


def test_the_same_input_gives_the_same_prediction(name: str) -> None:
    system, batch = make(name), scene()
    with torch.no_grad():
        assert torch.equal(system(batch).depth, system(batch).depth)


def test_the_batch_is_left_as_it_was(name: str) -> None:
    system, batch = make(name), scene()
    before = {field.name: getattr(batch, field.name) for field in fields(batch)}
    before = {key: value.clone() for key, value in before.items() if torch.is_tensor(value)}
    with torch.no_grad():
        system(batch)
    assert all(torch.equal(value, getattr(batch, key)) for key, value in before.items())


def test_a_loss_has_a_total_and_finite_gradients_everywhere(name: str) -> None:
    system, batch = make(name), scene()
    trained = {key: parameter for key, parameter in system.named_parameters() if parameter.requires_grad}
    if not trained:
        assert not hasattr(system, "loss")
        return
    losses = system.train().loss(system(batch.select(system.inputs)), batch)
    assert "total" in losses and len(losses) > 1
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
    losses["total"].backward()
    assert {key for key, parameter in trained.items() if parameter.grad is None} == set()
    assert {key for key, parameter in trained.items() if not torch.isfinite(parameter.grad).all()} == set()
    assert {key for key, parameter in trained.items() if not parameter.grad.any()} == set()


def test_gradients_stay_finite_where_there_is_no_truth(name: str) -> None:
    system, batch = make(name), scene()
    if not hasattr(system, "loss"):
        pytest.skip(f"{name} is not trained")
    empty = replace(batch, depth=torch.zeros_like(batch.depth), mask=torch.zeros_like(batch.mask))
    system.loss(system(empty.select(system.inputs)), empty)["total"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in system.parameters() if parameter.grad is not None)


def test_weights_survive_a_file(name: str, tmp_path: Any) -> None:
    system, batch = make(name), scene()
    if not hasattr(system, "load_pretrained"):
        pytest.skip(f"{name} has no weights")
    torch.save({"model": system.state_dict()}, tmp_path / "model.pt")
    fresh = build(name, SMALL.get(name, {})).eval()
    fresh.load_pretrained(tmp_path / "model.pt")
    with torch.no_grad():
        assert torch.equal(fresh(batch).depth, system(batch).depth)
