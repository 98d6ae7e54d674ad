"""The one interface of all rasterisers."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from plumbline.rendering import dense, projection, tiles
from plumbline.rendering.cameras import Cameras
from plumbline.rendering.gaussians import Gaussians
from plumbline.rendering.rules import GSPLAT, Rules

Backend = Literal["auto", "dense", "torch", "compiled", "gsplat"]
BACKENDS: tuple[str, ...] = get_args(Backend)


@dataclass(frozen=True)
class Rendering:
    """What `v` cameras see of each scene.

    colour over the background, not held to 1. depth: z in the scene's unit, weighted as colour is and not divided by alpha
    (see `expected_depth`). alpha: how much of the background is covered, in [0, 1].
    """

    colour: Float[Tensor, "b v 3 h w"]
    depth: Float[Tensor, "b v h w"]
    alpha: Float[Tensor, "b v h w"]

    def expected_depth(self, min_alpha: float = 0.5) -> Float[Tensor, "b v h w"]:
        """Mean z of what is seen; 0 where less than `min_alpha` of the background is covered."""
        seen = self.alpha >= min_alpha
        return torch.where(seen, self.depth / torch.where(seen, self.alpha, 1), 0)


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    background: Float[Tensor, "*#b 3"] | None = None,
    *,
    backend: Backend = "auto",
    rules: Rules = GSPLAT,
    pair_budget: int | None = None,
) -> Rendering:
    """Pictures of `size` (height, width) of each scene from each of its cameras, on the Gaussians' device, in their precision.

    background: black, one colour, or one a scene and view ("b v 3"). Differentiable in means, covariances, harmonics,
    opacities, background and cameras; the order by depth is held fixed. The same inputs give bitwise the same result
    (gsplat's gradients excepted).
    backend: `dense` (every Gaussian at every pixel: slow, readable), `torch` (tiles; CPU and CUDA), `compiled` (numba; CPU),
    `gsplat` (CUDA; its own rules, so that pixels differ from ours by at most about 0.01), `auto`: compiled or gsplat where
    installed and fit, else torch. pair_budget: splats x pixels that torch holds at once, at about 60 bytes each.
    ValueError: shapes, devices or precisions that do not fit, values that are not finite, a backend that cannot run here.
    """
    check(gaussians, cameras, size)
    name = chosen_backend(backend, gaussians.means)
    if background is None:
        background = gaussians.means.new_zeros(3)
    # Half precision would put splats in wrong places: pixels take 10 bits, and depth decides the order.
    with torch.autocast(gaussians.means.device.type, enabled=False):
        composited = _composited(name, gaussians, cameras, size, rules, pair_budget)
    colour, depth, alpha = torch.split(composited, [3, 1, 1], dim=2)
    back = background.to(colour).expand(*colour.shape[:2], 3)[..., None, None]
    return Rendering(colour + (1 - alpha) * back, depth[:, :, 0], alpha[:, :, 0])


def _composited(
    name: str, gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], rules: Rules, pair_budget: int | None
) -> Float[Tensor, "b v 5 h w"]:
    """Red, green, blue, z and alpha. A backend is imported when it is chosen, since numba and gsplat are optional."""
    if name == "gsplat":
        from plumbline.rendering.gsplat_backend import composite as by_gsplat

        return by_gsplat(gaussians, cameras, size, rules)
    splats = projection.project(gaussians, cameras, size, rules)
    if name == "dense":
        return dense.composite(splats, size, rules)
    if name == "compiled":
        from plumbline.rendering.compiled import composite as by_loops

        return by_loops(splats, size, rules)
    return tiles.composite(splats, size, rules, pair_budget=pair_budget)


_MISSING: Mapping[str, str] = {
    "compiled": 'numba is not installed: pip install "plumbline[compiled]", or choose backend="torch"',
    "gsplat": 'gsplat is not installed: pip install gsplat==1.5.3 (it needs a CUDA GPU and nvcc), or choose backend="torch"',
}
_MODULES = {"compiled": "numba", "gsplat": "gsplat"}


def chosen_backend(backend: str, like: Tensor) -> str:
    """The rasteriser that `backend` means for tensors such as `like`; ValueError where it cannot run.

    auto: on a GPU gsplat when installed and float32, on the CPU compiled when numba is installed, else torch.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return _automatic(like)
    if backend in _MODULES and not _installed(_MODULES[backend]):
        raise ValueError(f"backend {backend!r}: {_MISSING[backend]}.")
    if backend == "compiled" and like.device.type != "cpu":
        raise ValueError(
            f'backend "compiled" runs on the CPU, the Gaussians are on {like.device}: choose "torch" there.'
        )
    if backend == "gsplat" and (like.device.type != "cuda" or like.dtype != torch.float32):
        raise ValueError(
            f'backend "gsplat" needs float32 Gaussians on a CUDA device; these are {like.dtype} on {like.device}: '
            'choose "torch".'
        )
    return backend


def _automatic(like: Tensor) -> str:
    if like.device.type == "cuda" and like.dtype == torch.float32 and _installed("gsplat"):
        return "gsplat"
    return "compiled" if like.device.type == "cpu" and _installed("numba") else "torch"


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def check(gaussians: Gaussians, cameras: Cameras, size: tuple[int, int]) -> None:
    """ValueError, with what to do, where Gaussians, cameras and size do not fit each other or hold no numbers."""
    b, n = gaussians.opacities.shape
    expected = {"means": (b, n, 3), "covariances": (b, n, 3, 3), "harmonics": (b, n, 3, gaussians.harmonics.shape[-1])}
    for name, shape in expected.items():
        if getattr(gaussians, name).shape != shape:
            raise ValueError(
                f"{name} {tuple(getattr(gaussians, name).shape)}; expected {shape}, as opacities are {(b, n)}"
            )
    v = cameras.K.shape[1]
    if cameras.K.shape != (b, v, 3, 3) or cameras.world_T_cam.shape != (b, v, 4, 4):
        raise ValueError(
            f"K {tuple(cameras.K.shape)} and world_T_cam {tuple(cameras.world_T_cam.shape)}; expected ({b}, v, 3, 3) and "
            f"({b}, v, 4, 4) for Gaussians of {b} scenes"
        )
    if (torch.as_tensor(cameras.near) < 0).any():
        raise ValueError(f"near {cameras.near}; expected 0 or more: what is behind a camera has no picture")
    if min(size) < 1:
        raise ValueError(f"size {size}; expected height and width of at least 1 pixel")
    _check_values(gaussians, cameras)


def _check_values(gaussians: Gaussians, cameras: Cameras) -> None:
    values = {name: getattr(gaussians, name) for name in ("means", "covariances", "harmonics", "opacities")}
    values |= {"K": cameras.K, "world_T_cam": cameras.world_T_cam}
    if gaussians.means.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"Gaussians are {gaussians.means.dtype}; expected float32 or float64: .to(dtype=torch.float32)"
        )
    for name, value in values.items():
        if value.dtype != gaussians.means.dtype or value.device != gaussians.means.device:
            raise ValueError(
                f"{name} is {value.dtype} on {value.device}, means are {gaussians.means.dtype} on {gaussians.means.device}: "
                "bring both to one with .to(...)"
            )
        # A sum is finite only when no part is NaN or infinite, and is one pass; only what it accuses is looked at closely.
        if not value.detach().sum().isfinite() and not (finite := value.isfinite()).all():
            raise ValueError(f"{name}: {int((~finite).sum())} of {value.numel()} values are NaN or infinite")
