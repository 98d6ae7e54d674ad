"""Which frames of a clip a system that renders novel views is trained on: pure functions of a generator's draws.

The rules are those published with RealEstate10K and DL3DV training of feed-forward Gaussians (pixelSplat, Charatan et al., CVPR
2024; DepthSplat, Xu et al., CVPR 2025): two context frames with a bounded gap that widens as training goes on, or more of them,
chosen far apart within such a window; targets lie between. Frames are indices, ascending in time.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float64

from plumbline.records import View

Frames = tuple[int, ...]
# Windows are made shorter where more views share them: for 2, 3 and 6 views by 3, 2 and 1.
_MOST_VIEWS = 6
# Left for right in the camera's frame.
_F = np.diag([-1.0, 1.0, 1.0, 1.0])


def bounded(
    frames: int, gap: tuple[int, int], rng: np.random.Generator, *, targets: int = 4
) -> tuple[Frames, Frames] | None:
    """(context, target) frames of a clip of `frames`: two, a gap within its bounds apart, and draws from between them.

    Gap and place are uniform; targets are drawn with replacement, the context frames among them. None for a clip that is too
    short for the shortest gap.
    """
    window = _window(frames, gap, rng)
    if window is None:
        return None
    left, right = window
    drawn = rng.integers(left, right, size=targets, endpoint=True)
    return (left, right), tuple(int(frame) for frame in drawn)


def spread(
    centres: Float[np.ndarray, "n 3"],
    gap: tuple[int, int],
    rng: np.random.Generator,
    *,
    context: int,
    targets: int = 8,
) -> tuple[Frames, Frames] | None:
    """(context, target) frames of a clip with these camera centres: context far apart within a window, both ascending.

    The bounds of the window are divided by 6 // `context`, so that few views do not lie too far apart; targets are drawn from
    it without replacement. None for a clip or a window that is too short for either.
    """
    share = max(_MOST_VIEWS // context, 1)
    window = _window(len(centres), (max(gap[0] // share, 1), max(gap[1] // share, 1)), rng)
    if window is None or window[1] - window[0] + 1 < max(context, targets):
        return None
    left, right = window
    given = sorted(left + k for k in farthest_points(np.asarray(centres[left : right + 1], np.float64), context))
    drawn = rng.choice(np.arange(left, right + 1), targets, replace=False)
    return tuple(given), tuple(sorted(int(frame) for frame in drawn))


def _window(frames: int, gap: tuple[int, int], rng: np.random.Generator) -> tuple[int, int] | None:
    """First and last frame of a window whose length is uniform within its bounds, anywhere in the clip."""
    low, high = gap[0], min(gap[1], frames - 1)
    if high < low:
        return None
    length = int(rng.integers(low, high, endpoint=True))
    left = int(rng.integers(0, frames - 1 - length, endpoint=True))
    return left, left + length


def farthest_points(points: Float64[np.ndarray, "n d"], count: int) -> list[int]:
    """Indices of `count` of the points, each the farthest from those before it; the first from the points' centroid.

    Of equally far points the first is taken. ValueError when there are fewer points.
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"{count} of {len(points)} points were asked for; expected 1 to {len(points)}")
    chosen = [int(np.argmax(np.linalg.norm(points - points.mean(axis=0), axis=1)))]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
        # Points that coincide with chosen ones are all 0 away: a chosen one must not come again.
        nearest[chosen] = -1.0
        chosen.append(int(np.argmax(nearest)))
    return chosen


def mirrored(view: View) -> View:
    """The view as a mirror shows it: image, depth and mask left for right, the pose F E F with F = diag(-1, 1, 1, 1).

    The world is mirrored too (x to -x), so views of one scene must be mirrored together. The principal point moves to the
    other side; published loaders leave K as it is, which is the same for a centred one.
    """
    size = view.image.shape[1]
    depth_width = None if view.depth is None else view.depth.shape[1]
    return replace(
        view,
        image=np.ascontiguousarray(view.image[:, ::-1]),
        K=_flipped(view.K, size),
        world_T_cam=None if view.world_T_cam is None else _F @ view.world_T_cam @ _F,
        depth=None if view.depth is None else np.ascontiguousarray(view.depth[:, ::-1]),
        depth_K=None if view.depth_K is None or depth_width is None else _flipped(view.depth_K, depth_width),
        mask=None if view.mask is None else np.ascontiguousarray(view.mask[:, ::-1]),
    )


def _flipped(K: Float64[np.ndarray, "3 3"], width: int) -> Float64[np.ndarray, "3 3"]:
    flipped = K.copy()
    flipped[0, 1], flipped[0, 2] = -K[0, 1], width - 1 - K[0, 2]
    return flipped
