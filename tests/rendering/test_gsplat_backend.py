"""The gsplat backend's border: every argument in gsplat's conventions. The library itself runs on CUDA alone."""

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from plumbline.geometry import invert
from plumbline.rendering import GSPLAT, Cameras, Gaussians, Rules, centre_origin, render
from plumbline.rendering.gsplat_backend import composite
from rendering_scenes import SIZE, cameras, gaussians


def rasterization(**said: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What the documentation of `gsplat.rasterization` says it does with these arguments, by our reference."""
    assert said["quats"] is None and said["scales"] is None and said["packed"] is False
    assert (said["eps2d"], said["render_mode"]) == (0.3, "RGB+D")
    views = len(said["colors"])
    pictures = []
    for view in range(views):
        constant = ((said["colors"][view] - 0.5) / 0.28209479177387814)[None, :, :, None]
        made = Gaussians(said["means"][None], said["covars"][None], constant, said["opacities"][None])
        assert said["Ks"].shape == (views, 3, 3) and said["viewmats"].shape == (views, 4, 4)
        there = invert(said["viewmats"][view])[None, None]
        camera = Cameras(centre_origin(said["Ks"][view])[None, None], there, said["near_plane"])
        seen = render(made, camera, (said["height"], said["width"]), backend="dense")
        picture = torch.cat([seen.colour[0, 0], seen.depth[0], seen.alpha[0]])
        pictures.append(picture.permute(1, 2, 0))
    stacked = torch.stack(pictures)
    return stacked[..., :4], stacked[..., 4:], {}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = types.ModuleType("gsplat")
    module.rasterization = rasterization  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat", module)
    yield


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("rules", [GSPLAT, Rules(harmonics="e3nn")])
@pytest.mark.parametrize("near", [0.7, torch.tensor([[0.7, 1.2], [0.1, 0.5]], dtype=torch.float64)])
def test_it_is_asked_for_what_our_own_rasterisers_give(rules: Rules, near: Any) -> None:
    scene, views = gaussians(80, b=2, dtype=torch.float64), cameras(b=2, dtype=torch.float64)
    views = Cameras(views.K, views.world_T_cam, near)
    expected = render(scene, views, SIZE, backend="dense", rules=rules)
    found = composite(scene, views, SIZE, rules)
    torch.testing.assert_close(found[:, :, :3], expected.colour, rtol=0, atol=1e-9)
    torch.testing.assert_close(found[:, :, 3], expected.depth, rtol=0, atol=1e-9)
    torch.testing.assert_close(found[:, :, 4], expected.alpha, rtol=0, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_library_equals_torch() -> None:
    pytest.importorskip("gsplat", reason="gsplat is not installed: pip install gsplat==1.5.3")
    scene, views = gaussians(400).to("cuda"), cameras().to("cuda")
    theirs, ours = (render(scene, views, (48, 64), backend=name) for name in ("gsplat", "torch"))
    difference = (theirs.colour - ours.colour).abs()
    assert float(difference.max()) <= 0.013
    assert float(difference.mean()) <= 1e-4
