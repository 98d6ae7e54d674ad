"""The rasterisers: against each other, forward and in their gradients, and in every case that has to be defined."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plumbline.rendering import GSPLAT, OFFICIAL, Cameras, Gaussians, Rendering, chosen_backend, render, tiles
from plumbline.rendering.compositing import into_tiles
from plumbline.rendering.render import BACKENDS
from rendering_scenes import FAST, LEAVES, SIZE, cameras, gaussians

ALL = ["dense", *FAST]


def outputs(seen: Rendering) -> Tensor:
    return torch.cat([seen.colour, seen.depth[:, :, None], seen.alpha[:, :, None]], dim=2)


def gradients(scene: Gaussians, seen: Rendering, *, seed: int = 1) -> dict[str, Tensor]:
    """Of a random objective of everything that was rendered."""
    weights = torch.randn(outputs(seen).shape, generator=torch.Generator().manual_seed(seed), dtype=seen.colour.dtype)
    leaves = [getattr(scene, name) for name in LEAVES]
    found = torch.autograd.grad((outputs(seen) * weights).sum(), leaves)
    return dict(zip(LEAVES, found, strict=True))


def one(
    mean: tuple[float, float, float] = (0.0, 0.0, 2.0), *, scale: float = 0.2, opacity: float = 0.8, red: float = 0.9
) -> Gaussians:
    """A single ball of one colour."""
    harmonics = torch.zeros(1, 1, 3, 1, dtype=torch.float64)
    harmonics[0, 0, 0] = (red - 0.5) / 0.28209479177387814
    return Gaussians(
        torch.tensor([[mean]], dtype=torch.float64),
        scale**2 * torch.eye(3, dtype=torch.float64).expand(1, 1, 3, 3),
        harmonics,
        torch.full((1, 1), opacity, dtype=torch.float64),
    )


def ahead(size: tuple[int, int] = (11, 11), focal: float = 10.0) -> Cameras:
    """A camera at the origin, its axis through the middle pixel."""
    K = torch.tensor([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(K[None, None], torch.eye(4, dtype=torch.float64)[None, None])


def joined(*scenes: Gaussians) -> Gaussians:
    return Gaussians(*(torch.cat([getattr(scene, name) for scene in scenes], dim=1) for name in LEAVES))


@pytest.mark.parametrize(
    "rules", [GSPLAT, OFFICIAL, replace(GSPLAT, extent="tiles"), replace(OFFICIAL, extent="alpha")]
)
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_backends_equal_the_dense_reference(backend: str, rules, dtype: torch.dtype) -> None:
    scene, views = gaussians(220, b=2, dtype=dtype), cameras(b=2, dtype=dtype)
    background = torch.tensor([0.2, 0.5, 0.9], dtype=dtype)
    reference = render(scene, views, SIZE, background, backend="dense", rules=rules)
    seen = render(scene, views, SIZE, background, backend=backend, rules=rules)
    tolerance = 1e-10 if dtype == torch.float64 else 3e-5
    torch.testing.assert_close(outputs(seen), outputs(reference), rtol=0, atol=tolerance)
    expected = gradients(scene, reference)
    for name, found in gradients(scene, seen).items():
        assert expected[name].norm() > 0
        assert (found - expected[name]).norm() <= 10 * tolerance * expected[name].norm(), name


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("backend", FAST)
def test_every_degree_of_harmonics(backend: str, degree: int) -> None:
    scene, views = gaussians(60, degree=degree, dtype=torch.float64), cameras(dtype=torch.float64)
    reference, seen = (render(scene, views, SIZE, backend=name) for name in ("dense", backend))
    torch.testing.assert_close(outputs(seen), outputs(reference), rtol=0, atol=1e-10)
    expected, found = gradients(scene, reference)["harmonics"], gradients(scene, seen)["harmonics"]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", ALL)
def test_gradients_are_those_of_finite_differences(backend: str) -> None:
    """In everything, cameras included. Opacities keep clear of the cuts, where no derivative exists."""
    size, scene = (5, 6), gaussians(4, degree=1, dtype=torch.float64, grad=False)
    means = torch.tensor([[[-0.1, 0.0, 1.0], [0.2, 0.1, 1.4], [0.0, -0.2, 2.0], [0.1, 0.2, 2.5]]], dtype=torch.float64)
    views = cameras(v=1, size=size, dtype=torch.float64)
    opacities = torch.tensor([[0.4, 0.6, 0.5, 0.7]], dtype=torch.float64)
    covariances = 0.3 * torch.eye(3, dtype=torch.float64) + scene.covariances
    inputs = [means, covariances, 0.1 * scene.harmonics, opacities, views.K, views.world_T_cam]

    def function(means, covariances, harmonics, opacities, K, world_T_cam):
        made = Gaussians(means, covariances, harmonics, opacities)
        return outputs(render(made, Cameras(K, world_T_cam), size, backend=backend))

    torch.autograd.gradcheck(function, [value.clone().requires_grad_() for value in inputs], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("backend", ALL)
def test_a_single_gaussian_has_the_opacity_that_the_formula_gives(backend: str) -> None:
    seen = render(one(), ahead(), (11, 11), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), backend=backend)
    # On screen its variance is (10 / 2 * 0.2)² + 0.3 px².
    alpha = 0.8 * torch.tensor(-(2**2) / (2 * 1.3), dtype=torch.float64).exp()
    assert float(seen.alpha[0, 0, 5, 5]) == pytest.approx(0.8)
    assert float(seen.alpha[0, 0, 5, 7]) == pytest.approx(float(alpha))
    assert seen.colour[0, 0, :, 5, 5].tolist() == pytest.approx([0.8 * 0.9, 0.8 * 0.5 + 0.2, 0.8 * 0.5])
    assert float(seen.depth[0, 0, 5, 5]) == pytest.approx(1.6)
    assert float(seen.expected_depth()[0, 0, 5, 5]) == pytest.approx(2.0)
    assert float(seen.expected_depth()[0, 0, 0, 0]) == 0


@pytest.mark.parametrize("backend", ALL)
def test_the_origin_of_pixels_is_the_centre_of_the_first(backend: str) -> None:
    views = ahead()
    views.K[..., :2, 2] = 0
    seen = render(one(), views, (11, 11), backend=backend)
    assert int(seen.alpha.argmax()) == 0
    assert float(seen.alpha[0, 0, 0, 0]) == pytest.approx(0.8)


@pytest.mark.parametrize("backend", ALL)
def test_the_nearer_one_hides_the_farther(backend: str) -> None:
    far, near = one((0, 0, 3.0), opacity=0.5, red=0.1), one((0, 0, 2.0), opacity=0.6, red=1.0)
    for scene in (joined(far, near), joined(near, far)):
        seen = render(scene, ahead(), (11, 11), backend=backend)
        assert float(seen.colour[0, 0, 0, 5, 5]) == pytest.approx(0.6 + 0.4 * 0.5 * 0.1)
        assert float(seen.depth[0, 0, 5, 5]) == pytest.approx(0.6 * 2 + 0.4 * 0.5 * 3)


@pytest.mark.parametrize("backend", ALL)
def test_equal_depths_are_composited_in_the_order_of_their_indices(backend: str) -> None:
    first, second = one(opacity=0.5, red=1.0), one(opacity=0.5, red=0.0)
    reds = [float(render(joined(*pair), ahead(), (11, 11), backend=backend).colour[0, 0, 0, 5, 5]) for pair in
            ((first, second), (second, first))]  # fmt: skip
    assert reds == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize(("rules", "covered"), [(GSPLAT, 0.999), (OFFICIAL, 0.99)])
def test_what_would_leave_less_than_a_ten_thousandth_is_dropped(backend: str, rules, covered: float) -> None:
    """Two that are capped leave 1e-6 (9.99998e-5 in the official rules' float32): the second is not drawn."""
    scene = joined(*(one((0, 0, 2.0 + i), opacity=1.0) for i in range(5)))
    for dtype in (torch.float64, torch.float32):
        seen = render(scene.to(dtype=dtype), ahead().to(dtype=dtype), (11, 11), backend=backend, rules=rules)
        assert float(seen.alpha[0, 0, 5, 5]) == pytest.approx(covered, abs=1e-6)


@pytest.mark.parametrize("backend", ALL)
def test_below_one_255th_nothing_is_drawn(backend: str) -> None:
    assert float(render(one(opacity=1 / 256), ahead(), (11, 11), backend=backend).alpha.max()) == 0
    seen = render(one(opacity=1 / 254), ahead(), (11, 11), backend=backend).alpha
    assert int((seen > 0).sum()) == 1
    seen = render(one(opacity=0.1, scale=0.5), ahead((31, 31)), (31, 31), backend=backend).alpha
    assert float(seen[seen > 0].min()) >= 1 / 255
    assert float(seen.min()) == 0


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("z", [0.1, 0.05, 0.0, -0.05, -2.0])
def test_what_is_near_or_behind_is_not_drawn_and_has_finite_gradients(backend: str, z: float) -> None:
    scene = joined(one((0, 0, z)), one((0.0, 0.0, 2.0), opacity=0.5))
    leaves = [getattr(scene, name).requires_grad_() for name in LEAVES]
    seen = render(scene, ahead(), (11, 11), backend=backend)
    assert float(seen.alpha[0, 0, 5, 5].detach()) == pytest.approx(0.5)
    for gradient in torch.autograd.grad(outputs(seen).sum(), leaves):
        assert gradient.isfinite().all()
        assert gradient[:, 0].abs().max() == 0
        assert gradient[:, 1].abs().max() > 0


@pytest.mark.parametrize("backend", ALL)
def test_near_can_differ_by_view(backend: str) -> None:
    views = ahead()
    both = Cameras(
        views.K.repeat(1, 2, 1, 1), views.world_T_cam.repeat(1, 2, 1, 1), torch.tensor([[1.0, 2.0]]).double()
    )
    assert render(one(), both, (11, 11), backend=backend).alpha.amax(dim=(2, 3))[0].tolist() == pytest.approx(
        [0.8, 0.0]
    )


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_see_is_the_background(backend: str, n: int) -> None:
    """No Gaussians at all, or all behind the camera."""
    scene = gaussians(n, dtype=torch.float64)
    scene = replace(scene, means=(scene.means - torch.tensor([0, 0, 50.0]).double()).detach().requires_grad_())
    background = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    seen = render(scene, cameras(dtype=torch.float64), SIZE, background, backend=backend)
    torch.testing.assert_close(seen.colour, background.detach()[:, None, None].expand(1, 2, 3, *SIZE))
    assert float(seen.alpha.abs().max()) == float(seen.depth.abs().max()) == 0
    seen.colour.sum().backward()
    assert background.grad is not None
    assert background.grad.tolist() == pytest.approx([2 * SIZE[0] * SIZE[1]] * 3)
    assert not n or (scene.means.grad is not None and scene.means.grad.abs().max() == 0)


@pytest.mark.parametrize("backend", ALL)
def test_degenerate_covariances(backend: str) -> None:
    """A point and a disc seen edge-on are dilated to 0.3 px²; one with a negative axis on screen is not drawn."""
    point, disc, broken = one(opacity=0.5), one((0.4, 0, 2), opacity=0.5), one((-0.4, 0, 2), opacity=0.5)
    disc = replace(disc, covariances=torch.diag(torch.tensor([0.0, 0.01, 0.01]).double()).expand(1, 1, 3, 3))
    broken = replace(broken, covariances=-torch.eye(3).double().expand(1, 1, 3, 3))
    scene = joined(replace(point, covariances=torch.zeros(1, 1, 3, 3).double()), disc, broken)
    leaves = [getattr(scene, name).requires_grad_() for name in LEAVES]
    seen = render(scene, ahead(), (11, 11), backend=backend)
    across = seen.alpha[0, 0, 5].detach()
    # One pixel beside the point's centre the disc stands at x = 7: each is half there, the nearer index before the other.
    beside = 0.5 * math.exp(-0.5 / 0.3)
    assert float(across[5]) == pytest.approx(0.5, abs=0.01)
    assert float(across[6]) == pytest.approx(1 - (1 - beside) ** 2, abs=0.01)
    assert float(across[7]) == pytest.approx(0.5, abs=0.01)
    assert float(across[:4].max()) < 0.01
    gradients = torch.autograd.grad(outputs(seen).sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][0, 2].abs().max() == 0


@pytest.mark.parametrize("backend", ALL)
def test_larger_than_the_picture_and_than_a_tile(backend: str) -> None:
    seen = render(one(scale=50.0, opacity=0.5), ahead((40, 50)), (40, 50), backend=backend)
    assert float(seen.alpha.min()) > 0.49
    reference = render(one(scale=50.0, opacity=0.5), ahead((40, 50)), (40, 50), backend="dense")
    torch.testing.assert_close(outputs(seen), outputs(reference))


@pytest.mark.parametrize("backend", ALL)
def test_colours_below_zero_are_held_there_without_gradient(backend: str) -> None:
    scene = one(red=-0.5)
    scene.harmonics.requires_grad_()
    seen = render(scene, ahead(), (11, 11), backend=backend)
    seen.colour.sum().backward()
    assert float(seen.colour[:, :, 0].abs().max()) == 0
    assert scene.harmonics.grad is not None
    assert scene.harmonics.grad[0, 0, 0].tolist() == [0]
    assert float(scene.harmonics.grad[0, 0, 1]) > 0


@pytest.mark.parametrize("backend", ALL)
def test_the_order_of_gaussians_does_not_matter(backend: str) -> None:
    scene, views = gaussians(150), cameras()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
    mixed = Gaussians(*(getattr(scene, name).detach()[:, order].requires_grad_() for name in LEAVES))
    first, second = (render(each, views, SIZE, backend=backend) for each in (scene, mixed))
    torch.testing.assert_close(outputs(first), outputs(second), rtol=0, atol=1e-6)
    expected = gradients(scene, first)
    for name, found in gradients(mixed, second).items():
        torch.testing.assert_close(
            found, expected[name][:, order], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max())
        )


@pytest.mark.parametrize("backend", ALL)
def test_scenes_and_views_together_are_those_alone(backend: str) -> None:
    scene, views = gaussians(90, b=2), cameras(b=2, v=3)
    whole = render(scene, views, SIZE, backend=backend)
    for row in range(2):
        for view in range(3):
            own = views.rows(slice(row, row + 1)).views(slice(view, view + 1))
            alone = render(scene.rows(slice(row, row + 1)), own, SIZE, backend=backend)
            torch.testing.assert_close(outputs(alone)[0, 0], outputs(whole)[row, view], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ALL)
def test_twice_the_same_is_bitwise_the_same(backend: str) -> None:
    scene, views = gaussians(200), cameras()
    runs = [render(scene, views, SIZE, backend=backend) for _ in range(2)]
    assert torch.equal(outputs(runs[0]), outputs(runs[1]))
    found = [gradients(scene, seen) for seen in runs]
    assert all(torch.equal(found[0][name], found[1][name]) for name in LEAVES)


@pytest.mark.parametrize("budget", [1, 3000, 1 << 22])
def test_the_budget_changes_memory_alone(budget: int) -> None:
    scene, views = gaussians(300, dtype=torch.float64), cameras(dtype=torch.float64)
    usual, seen = render(scene, views, SIZE, backend="torch"), render(
        scene, views, SIZE, backend="torch", pair_budget=budget
    )  # fmt: skip
    torch.testing.assert_close(outputs(seen), outputs(usual), rtol=0, atol=1e-12)
    expected = gradients(scene, usual)
    for name, found in gradients(scene, seen).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", FAST)
def test_many_in_a_tile(backend: str) -> None:
    """More faint ones over each other than a run or a vector holds."""
    count, generator = 500, torch.Generator().manual_seed(5)
    place = 0.3 * torch.randn(1, count, 3, generator=generator, dtype=torch.float64) + torch.tensor([0, 0, 3.0])
    harmonics = torch.randn(1, count, 3, 1, generator=generator, dtype=torch.float64)
    covariances = 0.02 * torch.eye(3, dtype=torch.float64).expand(1, count, 3, 3)
    values = (place, covariances, harmonics, torch.full((1, count), 0.03, dtype=torch.float64))
    scene = Gaussians(*(value.clone().requires_grad_() for value in values))
    reference, seen = (render(scene, ahead(), (11, 11), backend=name) for name in ("dense", backend))
    assert float(reference.alpha.max()) > 0.95
    torch.testing.assert_close(outputs(seen), outputs(reference), rtol=0, atol=1e-10)
    expected = gradients(scene, reference)
    for name, found in gradients(scene, seen).items():
        assert (found - expected[name]).norm() <= 1e-9 * expected[name].norm(), name


def test_a_background_for_every_view() -> None:
    scene, background = gaussians(0), torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]])
    seen = render(scene, cameras(), SIZE, background, backend="torch").colour
    assert seen[0, :, :, 0, 0].tolist() == background[0].tolist()


def test_messages() -> None:
    scene, views = gaussians(4), cameras()
    with pytest.raises(ValueError, match="backend 'open'; expected one of auto, dense, torch, compiled, gsplat"):
        chosen_backend("open", scene.means)
    broken = replace(scene, means=scene.means.detach().clone().index_fill_(1, torch.tensor([2]), float("nan")))
    with pytest.raises(ValueError, match="means: 3 of 12 values are NaN or infinite"):
        render(broken, views, SIZE)
    with pytest.raises(ValueError, match=r"K is torch.float64 on cpu, means are torch.float32 .* with .to"):
        render(scene, Cameras(views.K.double(), views.world_T_cam), SIZE)
    with pytest.raises(ValueError, match=r"expected \(1, v, 3, 3\)"):
        render(scene, cameras(b=2), SIZE)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        render(scene, views, (0, 5))
    with pytest.raises(ValueError, match=r"near -0\.1; expected 0 or more"):
        render(scene, Cameras(views.K, views.world_T_cam, -0.1), SIZE)
    with pytest.raises(
        ValueError, match=r"are torch.bfloat16; expected float32 or float64: \.to\(dtype=torch.float32\)"
    ):
        render(scene.to(dtype=torch.bfloat16), views.to(dtype=torch.bfloat16), SIZE)


def test_autocast_changes_nothing() -> None:
    scene, views = gaussians(60), cameras()
    with torch.autocast("cpu", torch.bfloat16):
        seen = render(scene, views, SIZE, backend="torch")
    assert torch.equal(outputs(seen), outputs(render(scene, views, SIZE, backend="torch")))


def test_tiles_grow_where_splats_are_many_and_large(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, views = gaussians(150, dtype=torch.float64), cameras(dtype=torch.float64)
    usual = render(scene, views, SIZE, backend="torch")
    sides = []
    monkeypatch.setattr(tiles, "into_tiles", lambda *given, tile: sides.append(tile) or into_tiles(*given, tile=tile))
    for most in (10_000, 1000, 300, 1):
        monkeypatch.setattr(tiles, "MOST_PAIRS", most)
        torch.testing.assert_close(
            outputs(render(scene, views, SIZE, backend="torch")), outputs(usual), rtol=0, atol=1e-12
        )
    assert sides[0] == 4
    assert sides[-1] == 32
    assert sides == sorted(sides)


def test_backends_that_cannot_run_here_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    like = torch.zeros(1)
    monkeypatch.setattr(sys.modules[chosen_backend.__module__], "_installed", lambda module: False)
    with pytest.raises(ValueError, match=r'numba is not installed: pip install "plumbline\[compiled\]"'):
        chosen_backend("compiled", like)
    with pytest.raises(ValueError, match="gsplat is not installed: pip install gsplat"):
        chosen_backend("gsplat", like)
    assert chosen_backend("auto", like) == "torch"
    monkeypatch.setattr(sys.modules[chosen_backend.__module__], "_installed", lambda module: True)
    assert chosen_backend("auto", like) == "compiled"
    with pytest.raises(ValueError, match=r"needs float32 Gaussians on a CUDA device; these are torch.float32 on cpu"):
        chosen_backend("gsplat", like)
    with pytest.raises(ValueError, match='runs on the CPU, the Gaussians are on meta: choose "torch"'):
        chosen_backend("compiled", torch.zeros(1, device="meta"))
    assert set(BACKENDS) == {"auto", "dense", "torch", "compiled", "gsplat"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_torch_on_a_gpu_equals_the_cpu() -> None:
    scene, views = gaussians(300), cameras()
    there = Gaussians(*(getattr(scene, name).detach().cuda().requires_grad_() for name in LEAVES))
    usual, seen = render(scene, views, SIZE, backend="torch"), render(there, views.to("cuda"), SIZE, backend="torch")
    torch.testing.assert_close(outputs(seen).cpu(), outputs(usual), rtol=0, atol=3e-5)
    again = render(there, views.to("cuda"), SIZE, backend="torch")
    weights = torch.randn(outputs(usual).shape, generator=torch.Generator().manual_seed(1)).cuda()
    found = [
        torch.autograd.grad((outputs(each) * weights).sum(), [getattr(there, n) for n in LEAVES])
        for each in (seen, again)
    ]
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    for gradient, expected in zip(found[0], gradients(scene, usual).values(), strict=True):
        assert (gradient.cpu() - expected).norm() <= 1e-3 * expected.norm()
