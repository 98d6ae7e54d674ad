"""DepthSplat as a system: units and frames at its border, what it renders, and what it learns from."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest
import torch
from torch import Tensor

from plane_scene import scene
from plumbline.errors import DataError
from plumbline.rendering.ply import read_gaussians
from plumbline.systems.depthsplat import Config, System, losses
from plumbline.systems.depthsplat.gaussians import OFFSET, OPACITY, ROTATION, adapt
from plumbline.systems.depthsplat.system import gaussians_of, normalised
from plumbline.systems.depthsplat.views import Views
from plumbline.systems.records import Batch

SIZE = (32, 48)


def system(**changes: Any) -> System:
    torch.manual_seed(0)
    fixed = {"preset": "tiny", "backend": "torch", "background": "black", "loss": {"lpips": 0.0}}
    return System(Config(**(fixed | changes)))


def split(size: tuple[int, int] = SIZE) -> Batch:
    """Two context views, and two others as targets."""
    full = scene(2, v=4, p=2, size=size)
    names = ("image", "K", "cam0_T_cam", "depth", "mask", "keypoint_probability")
    seen = {"target_image": full.image, "target_K": full.K, "cam0_T_target": full.cam0_T_cam, "target_mask": full.mask}
    targets = {name: value[:, 2:] for name, value in seen.items()}
    return replace(full, **{name: getattr(full, name)[:, :2] for name in names}, **targets)


def psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * torch.log10((one.clamp(0, 1) - other).square().mean()))


def test_true_depth_gives_a_scene_that_looks_right_from_other_cameras() -> None:
    """Half a pixel, a mirrored axis or a wrong frame anywhere between images, Gaussians and pictures would show."""
    config = Config(preset="tiny", backend="torch", background="black", scale_shift=-1.0, opacity_shift=0.0)
    full = scene(1, v=4, p=2, size=(64, 80))
    # A smooth picture on the same planes: what moves by a fraction of a pixel changes by little.
    v, h, w = full.depth.shape[1:]
    rays = torch.stack(torch.meshgrid(torch.arange(float(w)), torch.arange(float(h)), indexing="xy"), dim=-1)
    local = torch.cat([rays, torch.ones(h, w, 1)], dim=-1) @ torch.linalg.inv(full.K[0, 0]).T
    points = full.depth[0, ..., None] * local + full.cam0_T_cam[0, :, None, None, :3, 3]
    image = (0.5 + 0.4 * torch.sin(points * torch.tensor([7.0, 9.0, 3.0]) + 1)).permute(0, 3, 1, 2)[None]
    near, far = torch.ones(1, v), torch.full((1, v), 6.0)
    views = Views(image, normalised(full.K, (h, w)), full.cam0_T_cam, near, far)
    raw = torch.zeros(1, v, 37, h, w)
    # Faint Gaussians, divided by alpha below: opaque ones would hide their neighbours on a slanted plane from one side.
    raw[:, :, OPACITY], raw[:, :, ROTATION], raw[:, :, OFFSET] = -5.0, torch.eye(4)[3, :, None, None], 0.0
    gaussians = adapt(raw[:, :2], full.depth[:, :2], replace_views(views, slice(0, 2)), config)
    made = System(config)
    pictures = []
    for K in (full.K[:, 1:3], full.K[:, 1:3] + torch.tensor([[0, 0, 0.5], [0, 0, 0], [0, 0, 0]])):
        shown = made.render(gaussians, K, full.cam0_T_cam[:, 1:3], (h, w), nearest=near[:, 0])
        pictures.append(shown.colour / shown.alpha[:, :, None])
    inner = (..., slice(4, -4), slice(8, -8))
    right, half_a_pixel_off = (psnr(x[inner], image[:, 1:3][inner]) for x in pictures)
    assert right > 35 and right > half_a_pixel_off + 3


def replace_views(views: Views, some: slice) -> Views:
    return Views(*(getattr(views, name)[:, some] for name in ("image", "K", "world_T_cam", "near", "far")))


def test_images_of_any_size_give_gaussians_of_their_own_pixels_only() -> None:
    made, context = system().eval(), split((30, 45))
    with torch.no_grad():
        prediction = made(context)
    gaussians = gaussians_of(prediction)
    assert prediction.depth.shape == (2, 2, 30, 45) and gaussians.means.shape == (2, 2 * 30 * 45, 3)
    assert gaussians.rotations.shape == (2, 2 * 30 * 45, 4)
    # Each lies on the ray of its pixel, at its depth.
    points = torch.unflatten(gaussians.means, 1, (2, 30, 45))
    seen = points[:, 1] - context.cam0_T_cam[:, 1, None, None, :3, 3]
    torch.testing.assert_close(seen[..., 2], prediction.internals["depth"][:, 1], rtol=1e-4, atol=1e-4)
    at = seen / seen[..., 2:] @ context.K[0, 1].T
    assert ((at[..., 0] - torch.arange(45.0)).abs() <= 0.501).all()
    assert ((at[..., 1] - torch.arange(30.0)[:, None]).abs() <= 0.501).all()


def test_the_quirk_renders_with_the_principal_point_in_the_middle() -> None:
    context = split()
    K = context.K.clone()
    K[..., 0, 2] += 3
    for quirks in (True, False):
        made = system(official_quirks=quirks).eval()
        with torch.no_grad():
            gaussians = gaussians_of(made(context))
            shown = [
                made.render(gaussians, given, context.cam0_T_cam, SIZE, nearest=context.depth_range[:, 0]).colour
                for given in (context.K, K)
            ]
        moved = (shown[0][..., :-3] - shown[1][..., 3:]).abs().mean(), (shown[0] - shown[1]).abs().mean()
        assert bool(moved[0] > moved[1]) is quirks


def test_the_loss_is_that_of_what_targets_see() -> None:
    made, context = system().eval(), split()
    prediction = made(context)
    found = made.loss(prediction, context)
    seen = made.render(
        gaussians_of(prediction), context.target_K, context.cam0_T_target, SIZE, nearest=context.depth_range[:, 0]
    )
    picture = seen.colour
    assert set(found) == {"image", "total"}
    assert found["image"].item() == pytest.approx((picture - context.target_image).square().mean().item(), rel=1e-5)
    without = replace(context, target_image=None)
    assert made.loss(prediction, without)["image"].item() != found["image"].item()
    rendered = made.novel_views(prediction, context.select(made.inputs))
    torch.testing.assert_close(rendered.image, picture.clamp(0, 1))
    # Metres, not metres times how much is covered.
    assert (seen.alpha < 0.9).any()
    covered = seen.alpha > 0.5
    torch.testing.assert_close(rendered.depth, torch.where(covered, seen.depth / seen.alpha.clamp(min=0.5), 0.0))
    with pytest.raises(DataError, match="no target cameras"):
        made.novel_views(prediction, replace(context, target_K=None))


def test_every_term_has_its_name_and_weight() -> None:
    optional = {"optional": ["ssim", "depth", "depth_gradient", "likelihood", "smoothness"], "lpips": 0.0}
    made, context = system(loss=optional).eval(), split()
    prediction = made(context)
    found = {name: value.item() for name, value in made.loss(prediction, context).items()}
    weights = {"image": 1.0, "ssim": 0.2, "depth": 0.1, "depth_gradient": 0.1, "likelihood": 0.1, "smoothness": 0.01}
    assert found["total"] == pytest.approx(sum(weights[name] * found[name] for name in weights), rel=1e-5)
    # Nearest depth 1: the error is in 1 / metre as it is.
    expected = losses.inverse_depth_error(prediction.internals["depth"], context.depth, context.mask)
    assert found["depth"] == pytest.approx(expected.item(), rel=1e-5)
    farther = replace(context, depth_range=2 * context.depth_range)
    assert made.loss(prediction, farther)["depth"].item() == pytest.approx(2 * expected.item(), rel=1e-5)


def test_an_intermediate_prediction_counts_nine_tenths() -> None:
    made, context = system(scales=2).train(), split()
    prediction = made(context)
    found = made.loss(prediction, context)["image"].item()
    each = []
    for intermediate in (False, True):
        picture = made.render(
            gaussians_of(prediction, intermediate=intermediate),
            context.target_K,
            context.cam0_T_target,
            SIZE,
            nearest=context.depth_range[:, 0],
        ).colour
        each.append((picture - context.target_image).square().mean().item())
    assert each[0] != each[1] and found == pytest.approx(each[0] + 0.9 * each[1], rel=1e-5)


def test_the_background_counts_in_no_term_when_only_the_foreground_is_asked_for() -> None:
    terms = {"optional": ["ssim", "depth", "depth_gradient", "smoothness"], "lpips": 0.0, "foreground": True}
    made, context = system(loss=terms).eval(), split()
    prediction = made(context)
    outside = ~context.target_mask[:, :, None].expand_as(context.target_image)
    disturbed = torch.where(outside, torch.rand_like(context.target_image), context.target_image)
    unmeasured = torch.where(context.mask, context.depth, 77.0)
    found = made.loss(prediction, context)
    other = made.loss(prediction, replace(context, depth=unmeasured, target_image=disturbed))
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in other.items()}, rel=1e-5)


def test_lpips_without_files_is_left_out_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    made, context = system(loss={}).eval(), split()
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        prediction = made(context)
        found = [made.loss(prediction, context) for _ in range(2)]
    assert all("lpips" not in terms for terms in found)
    assert caplog.text.count("LPIPS unavailable") == 1


def test_a_model_of_depth_alone_learns_from_depth() -> None:
    context = split()
    with pytest.raises(DataError, match="nothing to learn from"):
        made = system(gaussians=False)
        made.loss(made(context), context)
    made = system(gaussians=False, loss={"optional": ["depth"], "lpips": 0.0})
    assert set(made.loss(made(context), context)) == {"depth", "total"}
    with pytest.raises(DataError, match="need true depth"):
        made.loss(made(context), replace(context, depth=None))
    with pytest.raises(DataError, match="has no gaussian_means"):
        gaussians_of(made(context))


def test_what_a_batch_lacks_is_named() -> None:
    context = split()
    for missing in ("cam0_T_cam", "depth_range"):
        with pytest.raises(DataError, match="no poses or no depth range"):
            system()(replace(context, **{missing: None}))
    with pytest.raises(DataError, match="one view; expected two or more"):
        system()(scene(1, v=1, p=1, size=SIZE))


# Untrained features agree about as well with several candidates: where costs vote, rounding tips some pixels over.
@pytest.mark.parametrize(("votes", "bound"), [(False, 0.01), (True, 0.05)])
def test_bfloat16_changes_depth_by_little(votes: bool, bound: float) -> None:
    made, context = system(cost_shortcut=votes).eval(), split()
    with torch.no_grad():
        exact = made(context)
        with torch.autocast("cpu", torch.bfloat16):
            rough = made(context)
    assert gaussians_of(rough).means.dtype == torch.float32
    assert ((rough.depth - exact.depth).abs() / exact.depth).mean() < bound


def test_pictures_alone_teach_depth() -> None:
    made, context = system(), split()
    optimiser = torch.optim.Adam(made.parameters(), lr=2e-3)

    def error() -> float:
        return ((made(context).depth - context.depth).abs() / context.depth).mean().item()

    made.eval()
    first, values = error(), []
    made.train()
    for _ in range(20):
        optimiser.zero_grad()
        loss = made.loss(made(context), context)["total"]
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    made.eval()
    assert values[-1] < 0.6 * values[0] and error() < 0.7 * first


def test_gaussians_that_can_be_seen_are_counted() -> None:
    made, context = system().eval(), split()
    prediction = made(context)
    opacities = prediction.internals["gaussian_opacities"].clone()
    opacities[:, :7], opacities[0, 7:] = 1 / 256, 0.5
    opacities[1, 7:] = 0
    counted = replace(prediction, internals={**prediction.internals, "gaussian_opacities": opacities})
    assert made.diagnostics(counted, context)["gaussians"].tolist() == [opacities.shape[1] - 7, 0]


def test_a_scene_is_exported_as_gaussians_and_an_orbit(tmp_path: Path) -> None:
    made, context = system().eval(), split().rows(slice(0, 1))
    with torch.no_grad():
        prediction = made(context)
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            made.export(prediction, context.select(made.inputs), tmp_path / name)
        first = made.novel_views(prediction, context).image[0, 0]
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert set(files) == {"gaussians.ply", "orbit.gif"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    gaussians, read = gaussians_of(prediction), read_gaussians(tmp_path / "one/gaussians.ply")
    torch.testing.assert_close(read.means, gaussians.means)
    torch.testing.assert_close(read.opacities, gaussians.opacities, atol=1e-5, rtol=1e-4)
    frames = imageio.imread(tmp_path / "one/orbit.gif", index=None)
    assert frames.shape == (24, *SIZE, 3)
    # The circle is around the target camera: its frames look like what that sees, and not all alike.
    assert abs(frames.mean(axis=(0, 1, 2)) / 255 - first.mean(dim=(1, 2)).numpy()).max() < 0.1
    assert (frames[0] != frames[12]).any()
    with pytest.raises(DataError, match="no target cameras"):
        made.export(prediction, replace(context, target_K=None, cam0_T_target=None), tmp_path)


def test_thin_gaussians_over_their_surroundings_show_their_own_colours() -> None:
    made, batch = system(background="surroundings").eval(), split()
    with torch.no_grad():
        prediction = made(batch)
        grey = torch.zeros_like(prediction.internals["gaussian_harmonics"])
        prediction = replace(prediction, internals=prediction.internals | {"gaussian_harmonics": grey})
        seen, loss = made.novel_views(prediction, batch).image, made.loss(prediction, batch)["image"]
        black = system(background="black").eval().novel_views(prediction, batch).image
    assert batch.target_image is not None and black.amin() < 0.4
    torch.testing.assert_close(seen, torch.full_like(seen, 0.5))
    torch.testing.assert_close(loss, (seen - batch.target_image).square().mean())


@pytest.mark.parametrize("background", ["black", "surroundings"])
def test_a_picture_without_gaussians_is_black(background: str) -> None:
    made, batch = system(background=background).eval(), split()
    with torch.no_grad():
        prediction = made(batch)
        faint = {"gaussian_opacities": torch.zeros_like(prediction.internals["gaussian_opacities"])}
        prediction = replace(prediction, internals=prediction.internals | faint)
        seen, loss = made.novel_views(prediction, batch).image, made.loss(prediction, batch)["image"]
    assert batch.target_image is not None
    assert not seen.any()
    torch.testing.assert_close(loss, batch.target_image.square().mean())
