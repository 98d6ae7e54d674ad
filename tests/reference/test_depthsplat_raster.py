"""The rasterisers against reference vectors: DepthSplat's decoder and gsplat, values and gradients.

Within the tolerances that come with the vectors: a float64 evaluation with float32 thresholds, and float32 backends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from plumbline.rendering import (
    GSPLAT,
    OFFICIAL,
    Cameras,
    Gaussians,
    Rendering,
    centre_origin,
    render,
    symmetric,
    to_standard,
)
from plumbline.rendering.projection import colours, project
from rendering_scenes import needs_numba

BACKENDS = ["dense", "torch", pytest.param("compiled", marks=needs_numba)]
LEAVES = {"means": "means", "cov": "covariances", "opac": "opacities", "sh": "harmonics"}


@dataclass(frozen=True)
class Case:
    """One scene's vectors, as what we render and what is expected."""

    given: Mapping[str, np.ndarray]
    dtype: torch.dtype

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.given[name])).to(self.dtype)

    @property
    def size(self) -> tuple[int, int]:
        _, height, width = self.given["loss_w_depth"].shape
        return height, width

    def gaussians(self) -> Gaussians:
        names = ("means", "covariances", "sh", "opacities")
        return Gaussians(*(self.tensor(name)[None].requires_grad_() for name in names))

    def cameras(self) -> Cameras:
        """Their K is normalised and has the first pixel's centre at half a pixel; near is where official culling begins."""
        height, width = self.size
        K = centre_origin(self.tensor("K_norm") * self.tensor("K_norm").new_tensor([[width], [height], [1]]))
        return Cameras(K.repeat(1, 2, 1, 1), self.tensor("c2w")[None], 0.2 * float(self.given["near"]))

    def objective(self, seen: Rendering) -> Tensor:
        """Mean over each view of what is rendered times the weights, summed over views."""
        colour = seen.colour[0].permute(0, 2, 3, 1) * self.tensor("loss_w_rgb")
        return (colour.mean(dim=(1, 2, 3)) + (seen.depth[0] * self.tensor("loss_w_depth")).mean(dim=(1, 2))).sum()


@pytest.fixture(scope="module", params=["s1", "s2"])
def vectors(request: pytest.FixtureRequest, golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "depthsplat_raster.npz", allow_pickle=False) as file:
        prefix = f"{request.param}/"
        return {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}


def gradient_errors(case: Case, path: str, scene: Gaussians, seen: Rendering) -> dict[str, float]:
    """Norm of the difference from the expected gradients, relative to theirs."""
    found = torch.autograd.grad(case.objective(seen), [getattr(scene, name) for name in LEAVES.values()])
    errors = {}
    for name, gradient in zip(LEAVES, found, strict=True):
        ours, theirs = gradient[0], case.tensor(f"{path}.grad_{name}")
        if name == "cov":
            # Of a symmetric matrix only the sum of both entries has a meaning; the vectors split it their way.
            ours, theirs = ours + ours.mT, theirs + theirs.mT
        errors[name] = float((ours - theirs).norm() / theirs.norm())
    return errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_official_decoder(vectors: dict[str, np.ndarray], backend: str, dtype: torch.dtype) -> None:
    case = Case(vectors, dtype)
    scene, cameras = case.gaussians(), case.cameras()
    cameras = Cameras(symmetric(cameras.K, case.size), cameras.world_T_cam, cameras.near)
    seen = render(scene, cameras, case.size, case.tensor("bg"), backend=backend, rules=OFFICIAL)
    colour = (seen.colour[0].permute(0, 2, 3, 1) - case.tensor("official.rgb")).abs()
    through = (1 - seen.alpha[0] - case.tensor("official.T")).abs()
    depth = (seen.depth[0] - case.tensor("official.depth")).abs()
    if dtype == torch.float64:
        assert max(float(colour.max()), float(through.max())) <= 1e-5
        assert float(depth.max()) <= 1e-4
    else:
        assert max(float(colour.max()), float(through.max())) <= 2e-3
        assert max(float(colour.mean()), float(through.mean()), float(depth.mean())) <= 2e-5
    assert float(case.objective(seen).detach()) == pytest.approx(float(vectors["official.loss"]), rel=1e-5)
    errors = gradient_errors(case, "official", scene, seen)
    assert max(errors.values()) <= (1e-3 if dtype == torch.float64 else 1e-2), errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gsplat(vectors: dict[str, np.ndarray], backend: str, dtype: torch.dtype) -> None:
    """Closer than the rule's 0.013 and 1e-4, since the default rules are gsplat's."""
    case = Case(vectors, dtype)
    scene, cameras = case.gaussians(), case.cameras()
    seen = render(scene, cameras, case.size, case.tensor("bg"), backend=backend)
    colour = (seen.colour[0].permute(0, 2, 3, 1) - case.tensor("gsplat.rgb")).abs()
    alpha = (seen.alpha[0] - case.tensor("gsplat.alpha")).abs()
    depth = (seen.depth[0] - case.tensor("gsplat.depth_acc")).abs()
    assert max(float(colour.max()), float(alpha.max())) <= 2e-3
    assert max(float(colour.mean()), float(alpha.mean()), float(depth.mean())) <= 2e-6
    assert float(case.objective(seen).detach()) == pytest.approx(float(vectors["gsplat.loss"]), rel=1e-5)
    errors = gradient_errors(case, "gsplat", scene, seen)
    assert max(errors.values()) <= 1e-3, errors


def test_what_gsplat_projects(vectors: dict[str, np.ndarray]) -> None:
    """Centres (half a pixel further, in gsplat's convention), ellipses, depths and colours of all that it keeps."""
    case = Case(vectors, torch.float64)
    scene, cameras = case.gaussians(), case.cameras()
    splats = project(scene, cameras, case.size, GSPLAT)
    kept = torch.from_numpy(vectors["gsplat.radii"] > 0).all(dim=-1) & splats.drawn[0]
    assert int(kept.sum()) > 300
    for found, name, offset in (
        (splats.centre, "means2d", 0.5),
        (splats.conic, "conics", 0.0),
        (splats.z, "depths", 0.0),
        (colours(scene, cameras, GSPLAT), "colors", 0.0),
    ):
        expected = case.tensor(f"gsplat.{name}")[kept] - offset
        torch.testing.assert_close(found[0][kept].detach(), expected, rtol=1e-4, atol=1e-4)


def test_the_official_order_converted_to_the_standard_one(vectors: dict[str, np.ndarray]) -> None:
    """So that common viewers and gsplat show the colours of released weights."""
    case = Case(vectors, torch.float64)
    scene, cameras = case.gaussians(), case.cameras()
    converted = Gaussians(scene.means, scene.covariances, to_standard(scene.harmonics), scene.opacities)
    torch.testing.assert_close(colours(converted, cameras, GSPLAT), colours(scene, cameras, OFFICIAL))
