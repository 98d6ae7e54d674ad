"""Rasterising pixel-like Gaussians, forward and backward: ours in torch and compiled, beside what is commonly copied.

The Gaussians are those that a network predicts for every pixel of one or two views: in the order of pixels, about 1.2 px
wide on screen, of any opacity. A fragment is a pixel that a splat adds to: opacity at least 1/255, nothing opaque before it.
"""

import functools
import importlib.util
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

import allocator
from plumbline.geometry import pixel_grid
from plumbline.rendering import GSPLAT, Cameras, Gaussians, Rendering, render
from plumbline.rendering.dense import alphas, composite
from plumbline.rendering.projection import Splats, project
from plumbline.rendering.rules import ALPHA_MIN
from timing import Bench, Contender

Size = tuple[int, int]
Run = Callable[[], Tensor]
SMALL, LARGE = (64, 64), (256, 256)
TILE = 16
LEAVES = ("means", "covariances", "harmonics", "opacities")


def benches(_: Path) -> list[Bench]:
    """Small against every Gaussian at every pixel, large against the loop over tiles and a limit in seconds."""
    rows = [small("torch", target=30.0), large("torch", allowed_s=1.0)]
    if importlib.util.find_spec("numba") is None:
        print("raster: no rows of the compiled backend, numba is not installed", file=sys.stderr)
        return rows
    return [*rows, small("compiled", target=120.0), large("compiled", allowed_s=0.3)]


def small(backend: str, *, target: float) -> Bench:
    """64x64 with a Gaussian for each of its pixels, 4096."""
    scene, cameras = pixel_like(SMALL, views=1), camera(SMALL)
    loop = Contender(
        "a Python loop over 16-px tiles", turn(scene, lambda: by_tiles(scene, cameras, SMALL)), allocator.plain
    )
    dense = turn(scene, lambda: ours(scene, cameras, SMALL, "dense"))
    fragments = count_fragments(scene, cameras, SMALL)
    return Bench(
        f"raster_{backend}_64x64_4k",
        Contender("every Gaussian at every pixel", dense, allocator.plain),
        Contender(backend, turn(scene, lambda: ours(scene, cameras, SMALL, backend)), allocator.kept),
        target=target,
        check=lambda: same(scene, cameras, SMALL, backend),
        limit=Contender("an exponential a fragment, twice", exponentials(fragments)),
        variants=(loop, Contender("the peer under our allocator", dense, allocator.kept)),
        work={"fragments": fragments},
        memory=memory(backend, SMALL),
    )


def large(backend: str, *, allowed_s: float) -> Bench:
    """256x256 with a Gaussian for each pixel of two views, 131072."""
    scene, cameras = pixel_like(LARGE, views=2), camera(LARGE)
    fragments = count_fragments(scene, cameras, LARGE)
    return Bench(
        f"raster_{backend}_256x256_131k",
        Contender(
            "a Python loop over 16-px tiles", turn(scene, lambda: by_tiles(scene, cameras, LARGE)), allocator.plain
        ),
        Contender(backend, turn(scene, lambda: ours(scene, cameras, LARGE, backend)), allocator.kept),
        target=1.0,
        check=lambda: same(scene, cameras, LARGE, backend),
        limit=Contender("an exponential a fragment, twice", exponentials(fragments)),
        rounds=3,
        work={"fragments": fragments},
        memory=memory(backend, LARGE),
        allowed_s=allowed_s,
    )


def camera(size: Size) -> Cameras:
    """One that looks along z from the origin."""
    f = 0.8 * size[1]
    K = torch.tensor([[f, 0, (size[1] - 1) / 2], [0, f, (size[0] - 1) / 2], [0, 0, 1]])
    return Cameras(K[None, None], torch.eye(4)[None, None])


def pixel_like(size: Size, *, views: int, degree: int = 2) -> Gaussians:
    """A Gaussian on the surface behind each pixel of views at either side of the camera."""
    generator = torch.Generator().manual_seed(0)
    n, focal = size[0] * size[1], float(camera(size).K[0, 0, 0, 0])
    v, u = (each.flatten().float() for each in torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    means = []
    for view in range(views):
        z = 2 + 0.5 * (u / size[1] * 7).sin() * (v / size[0] * 5 + view).cos()
        offset = torch.rand(2, n, generator=generator) - 0.5
        x, y = (u + offset[0] - (size[1] - 1) / 2) / focal * z, (v + offset[1] - (size[0] - 1) / 2) / focal * z
        means.append(torch.stack([x + 0.02 * view, y, z], dim=-1))
    place = torch.cat(means)
    scales = (0.6 + 0.9 * torch.rand(len(place), 3, generator=generator)) * place[:, 2:] / focal
    axes = torch.linalg.qr(torch.randn(len(place), 3, 3, generator=generator))[0] * scales[:, None]
    harmonics = 0.3 * torch.randn(len(place), 3, (degree + 1) ** 2, generator=generator)
    opacities = 0.05 + 0.9 * torch.rand(len(place), generator=generator)
    return Gaussians(*(each[None].requires_grad_() for each in (place, axes @ axes.mT, harmonics, opacities)))


def stacked(seen: Rendering) -> Tensor:
    return torch.cat([seen.colour, seen.depth[:, :, None], seen.alpha[:, :, None]], dim=2)


def ours(scene: Gaussians, cameras: Cameras, size: Size, backend: str) -> Tensor:
    return stacked(render(scene, cameras, size, backend=backend))


def by_tiles(scene: Gaussians, cameras: Cameras, size: Size) -> Tensor:
    """The same, a tile at a time, all splats that reach it at all of its pixels, by autograd."""
    splats = project(scene, cameras, size, GSPLAT)
    rows = []
    for top in range(0, size[0], TILE):
        row = [tile(splats, left, top) for left in range(0, size[1], TILE)]
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def tile(splats: Splats, left: int, top: int) -> Tensor:
    index, corner = reaching(splats, left, top), splats.box.new_tensor([left, top])
    centre, conic, features = (each[:, :, index] for each in (splats.centre - corner, splats.conic, splats.features))
    box = splats.box[:, :, index] - corner.repeat(2)
    inside = Splats(centre, conic, features, splats.opacities[:, index], splats.drawn[:, :, index], box)
    return composite(inside, (TILE, TILE), GSPLAT)


def reaching(splats: Splats, left: int, top: int) -> Tensor:
    """Indices of the splats that reach a tile."""
    box, corner = splats.box[0, 0], splats.box.new_tensor([left, top])
    reached = (box[:, :2] < corner + TILE).all(-1) & (box[:, 2:] > corner).all(-1)
    return (splats.drawn[0, 0] & reached).nonzero()[:, 0]


def turn(scene: Gaussians, run: Run) -> Run:
    """`run` with its backward pass."""

    def both() -> Tensor:
        for name in LEAVES:
            getattr(scene, name).grad = None
        result = run()
        (result * weights(result.shape)).sum().backward()
        return result

    return both


@functools.cache
def weights(shape: torch.Size) -> Tensor:
    """Of an objective that tells all pixels and channels apart."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def same(scene: Gaussians, cameras: Cameras, size: Size, backend: str) -> None:
    """Raise unless values and gradients are those of the dense reference (where that is feasible) and of the loop."""
    runs: list[Run] = [lambda: by_tiles(scene, cameras, size)]
    if size == SMALL:
        runs.append(lambda: ours(scene, cameras, size, "dense"))
    found, gradients = checked(scene, lambda: ours(scene, cameras, size, backend))
    for run in runs:
        expected, theirs = checked(scene, run)
        # A float32 threshold flips a splat's faintest pixel here and there.
        assert (found - expected).abs().max() <= 1e-2
        assert (found - expected).abs().mean() <= 1e-6
        for one, other in zip(gradients, theirs, strict=True):
            assert (one - other).norm() <= 1e-3 * other.norm()


def checked(scene: Gaussians, run: Run) -> tuple[Tensor, list[Tensor]]:
    result = turn(scene, run)().detach()
    return result, [getattr(scene, name).grad.clone() for name in LEAVES]


@torch.no_grad()
def count_fragments(scene: Gaussians, cameras: Cameras, size: Size) -> int:
    """How many pixels all splats add to, together."""
    splats = project(scene, cameras, size, GSPLAT)
    corners = ((left, top) for top in range(0, size[0], TILE) for left in range(0, size[1], TILE))
    return sum(fragments_of_tile(splats, left, top) for left, top in corners)


def fragments_of_tile(splats: Splats, left: int, top: int) -> int:
    index = reaching(splats, left, top)
    index = index[splats.z[0, 0, index].argsort(stable=True)]
    pixels = (pixel_grid((TILE, TILE)) + torch.tensor([left, top])).flatten(0, 1)
    alpha = alphas(pixels, splats.centre[0, 0, index], splats.conic[0, 0, index], splats.opacities[0, index], GSPLAT)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0)
    return int(((alpha > 0) & ((1 - alpha).cumprod(1) >= GSPLAT.stop)).sum())


def exponentials(fragments: int) -> Callable[[], None]:
    """What no way of rendering can leave out: the opacity of each fragment, again in the backward pass."""
    values, out = torch.linspace(-5, 0, fragments), torch.empty(fragments)

    def run() -> None:
        torch.exp(values, out=out)
        torch.exp(values, out=out)

    return run


def memory(backend: str, size: Size) -> Callable[[], float] | None:
    """Measures what a process of its own takes for one turn beyond what it takes before, in MB; None where no kernel tells."""

    def measured() -> float:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(peak, backend, size).result()

    return measured if Path("/proc/self/clear_refs").exists() else None


def peak(backend: str, size: Size) -> float:
    """Growth of this process' memory at the peak of one turn, in MB, after a small one that loads and compiles everything."""
    torch.set_num_threads(1)
    warm, scene = pixel_like((16, 16), views=1), pixel_like(size, views=1 if size == SMALL else 2)
    turn(warm, lambda: ours(warm, camera((16, 16)), (16, 16), backend))()
    # The peak that getrusage tells is also that of the process which started this one; this one's can be set back.
    Path("/proc/self/clear_refs").write_text("5")
    before = status_kb("VmHWM")
    turn(scene, lambda: ours(scene, camera(size), size, backend))()
    return (status_kb("VmHWM") - before) * 1024 / 1e6


def status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
