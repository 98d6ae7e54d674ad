"""DELTAS' diagnostics: medians by hand, NaN only where nothing can be measured."""

from dataclasses import replace

import torch
from torch import Tensor

from plumbline.systems.deltas.diagnostics import diagnostics
from plumbline.systems.records import Batch

RANGE = torch.tensor([[0.5, 10.0], [0.5, 10.0]])


def batch_and_answer() -> tuple[Batch, dict[str, Tensor]]:
    """A wall at 2 m and a camera 0.2 m to the right (1 px at focal length 10), with answers wrong by 0.5, 1 and 3 px."""
    K = torch.tensor([[10.0, 0, 5], [0, 10, 4], [0, 0, 1]]).repeat(2, 2, 1, 1)
    cam0_T_cam = torch.eye(4).repeat(2, 2, 1, 1)
    cam0_T_cam[:, 1, 0, 3] = 0.2
    depth = torch.full((2, 2, 9, 11), 2.0)
    batch = Batch(torch.zeros(2, 2, 3, 9, 11), K, cam0_T_cam, RANGE, depth=depth, mask=depth > 0)
    keypoints = torch.tensor([[5.0, 4.0], [6.0, 4.0], [7.0, 4.0], [8.0, 4.0]]).repeat(2, 1, 1)
    truth = torch.cat([(keypoints - torch.tensor([5.0, 4.0])) / 5, torch.full((2, 4, 1), 2.0)], dim=-1)
    wrong = torch.tensor([0.5, 1.0, 3.0, 9.0])[:, None] * torch.tensor([0.6, 0.8])
    usable = torch.tensor([True, True, True, False]).repeat(2, 1, 1)
    points = truth + torch.tensor([0.1, 0.2, 0.3, 9.0])[:, None] * torch.tensor([0.0, 0.0, 1.0])
    answer = {
        "keypoints": keypoints,
        "matches": (keypoints - torch.tensor([1.0, 0.0]) + wrong)[:, None],
        "usable": usable,
        "points": points,
        "defined": torch.ones(2, 4, dtype=torch.bool),
    }
    return batch, answer


def test_values_by_hand() -> None:
    batch, answer = batch_and_answer()
    result = diagnostics(answer, batch, RANGE)
    assert torch.equal(result["usable_share"], torch.tensor([0.75, 0.75]))
    assert torch.allclose(result["match_error_px"], torch.tensor([1.0, 1.0]))
    assert torch.allclose(result["triangulation_error_m"], torch.tensor([0.2, 0.2]))


def test_only_a_sample_without_anything_to_measure_has_no_number() -> None:
    batch, answer = batch_and_answer()
    mask = batch.mask.clone()
    mask[1] = False
    result = diagnostics(answer, replace(batch, mask=mask), RANGE)
    for name in ("match_error_px", "triangulation_error_m"):
        assert result[name].isfinite().tolist() == [True, False], name
    assert result["usable_share"].isfinite().all()


def test_without_truth_only_the_share_is_a_number() -> None:
    batch, answer = batch_and_answer()
    result = diagnostics(answer, replace(batch, depth=None, mask=None), RANGE)
    assert result["usable_share"].isfinite().all()
    assert result["match_error_px"].isnan().all() and result["triangulation_error_m"].isnan().all()
