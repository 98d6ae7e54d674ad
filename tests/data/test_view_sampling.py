"""Training's choice of frames: bounds that widen, draws within them, farthest points, and mirrors that keep geometry."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from plumbline.config import Gaps
from plumbline.data.geometry import backproject, invert, project, transform
from plumbline.data.synthetic.world import look_at
from plumbline.data.view_sampling import bounded, farthest_points, mirrored, spread
from plumbline.records import View


def test_bounds_widen_linearly_and_then_stay() -> None:
    gaps = Gaps()
    assert [gaps.at(step) for step in (0, 15_000, 30_000, 90_000)] == [(25, 45), (35, 90), (45, 135), (45, 135)]
    # Cut to whole frames, never rounded up: 25 + 20 * 1499 / 30000 = 25.99...
    assert gaps.at(1_499) == (25, 49)
    dl3dv = Gaps(shortest=(15, 20), longest=(30, 50), warm_up=10_000)
    assert [dl3dv.at(step) for step in (0, 9_999, 10_000)] == [(15, 30), (19, 49), (20, 50)]
    assert Gaps(warm_up=0).at(0) == (45, 135)
    with pytest.raises(ValidationError, match="expected 1 <= shortest <= longest"):
        Gaps(shortest=(25, 50), longest=(45, 49))


def test_two_frames_lie_a_bounded_gap_apart_with_targets_between() -> None:
    rng = np.random.default_rng(0)
    drawn = [bounded(60, (25, 45), rng) for _ in range(3000)]
    found = [one for one in drawn if one is not None]
    assert len(found) == 3000
    gaps = np.array([right - left for (left, right), _ in found])
    assert gaps.min() == 25 and gaps.max() == 45
    # Uniform: each of 21 gaps about 143 times.
    assert np.bincount(gaps - 25).min() > 95
    lefts = np.array([left for (left, _), _ in found])
    assert lefts.min() == 0 and max(right for (_, right), _ in found) == 59
    for (left, right), targets in found:
        assert len(targets) == 4 and all(left <= frame <= right for frame in targets)
    assert any(len(set(targets)) < 4 for _, targets in found) and any(
        targets[0] == left for (left, _), targets in found
    )


def test_short_clips_narrow_the_gap_and_shorter_ones_give_nothing() -> None:
    rng = np.random.default_rng(0)
    assert bounded(26, (25, 45), rng, targets=2) is not None
    only = bounded(26, (25, 45), rng)
    assert only is not None and only[0] == (0, 25)
    assert bounded(25, (25, 45), rng) is None
    again = [bounded(80, (25, 45), np.random.default_rng(7)) for _ in range(2)]
    assert again[0] == again[1]


def test_more_views_lie_far_apart_in_a_window_that_shrinks_for_few() -> None:
    centres = np.stack([np.arange(100.0), np.zeros(100), np.zeros(100)], axis=1)
    rng = np.random.default_rng(1)
    for context, bounds in ((2, (5, 10)), (3, (7, 15)), (4, (15, 30)), (6, (15, 30))):
        spans = set()
        for _ in range(200):
            found = spread(centres, (15, 30), rng, context=context, targets=5)
            assert found is not None
            given, targets = found
            assert len(set(given)) == context and list(given) == sorted(given)
            assert len(set(targets)) == 5 and list(targets) == sorted(targets)
            # On a straight walk the ends of the window are the farthest from its middle.
            assert all(given[0] <= frame <= given[-1] for frame in targets)
            spans.add(given[-1] - given[0])
        assert (min(spans), max(spans)) == bounds
    assert spread(centres[:10], (15, 30), rng, context=6, targets=5) is None
    assert spread(centres, (15, 30), rng, context=2, targets=40) is None


def test_farthest_points_by_hand() -> None:
    points = np.array([[0.0, 0], [1, 0], [10, 0], [10, 3], [0, 4]])
    # The centroid is (4.2, 1.4): (10, 3) is 6.02 away, (10, 0) 5.97; then (0, 0), 10.4; then (0, 4), 4 from (0, 0).
    assert farthest_points(points, 3) == [3, 0, 4]
    assert farthest_points(points, 5) == [3, 0, 4, 2, 1]
    assert sorted(farthest_points(np.zeros((4, 3)), 4)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="6 of 5 points were asked for; expected 1 to 5"):
        farthest_points(points, 6)


def view(world_T_cam: np.ndarray) -> View:
    """A picture whose pixels are their own coordinates, of a slanted plane."""
    image = np.zeros((20, 32, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(32)[None], np.arange(20)[:, None]
    K = np.array([[30.0, 0, 14.2], [0, 31.0, 9.1], [0, 0, 1]])
    depth = (2 + 0.05 * np.arange(32)[None] + np.zeros((20, 1))).astype(np.float32)
    return View("a", image, K, world_T_cam, depth, mask=depth > 2.2)


def test_mirrored_views_agree_as_the_views_did() -> None:
    """A point seen in one mirrored view lands in the other where the mirror image of its old landing place is."""
    first = view(look_at(np.array([0.1, -0.2, -2.0]), np.array([0.0, 0.1, 1.0]), roll=5.0))
    second = replace(first, world_T_cam=look_at(np.array([0.4, 0.0, -2.2]), np.array([0.1, 0.0, 1.0])))
    landed = _landing(first, second)
    mirrored_landing = _landing(mirrored(first), mirrored(second))[:, ::-1]
    np.testing.assert_allclose(mirrored_landing[..., 0], 31 - landed[..., 0], atol=1e-9)
    np.testing.assert_allclose(mirrored_landing[..., 1], landed[..., 1], atol=1e-9)
    flipped = mirrored(first)
    np.testing.assert_array_equal(flipped.image[3, 5], [26, 3, 0])
    assert flipped.mask is not None and first.mask is not None and (flipped.mask == first.mask[:, ::-1]).all()
    assert flipped.world_T_cam is not None and np.linalg.det(flipped.world_T_cam) == pytest.approx(1)


def _landing(first: View, second: View) -> np.ndarray:
    assert first.depth is not None and first.world_T_cam is not None and second.world_T_cam is not None
    points = backproject(first.depth, first.K)
    return project(transform(invert(second.world_T_cam) @ first.world_T_cam, points), second.K)[0]


def test_a_mirror_twice_changes_nothing_and_a_centred_camera_stays() -> None:
    one = replace(view(np.eye(4)), depth_K=view(np.eye(4)).K, K=np.array([[30.0, 0, 15.5], [0, 31, 9], [0, 0, 1]]))
    back = mirrored(mirrored(one))
    for name in ("image", "K", "world_T_cam", "depth", "depth_K", "mask"):
        np.testing.assert_array_equal(getattr(back, name), getattr(one, name))
    np.testing.assert_array_equal(mirrored(one).K, one.K)
    bare = mirrored(View("b", one.image, one.K))
    assert bare.depth is None and bare.world_T_cam is None
