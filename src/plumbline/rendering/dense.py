"""The readable reference: every Gaussian at every pixel, differentiated by autograd, in any precision.

Memory grows with pixels x Gaussians: for tests and small pictures.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from plumbline.geometry import pixel_grid
from plumbline.rendering.projection import Splats
from plumbline.rendering.rules import ALPHA_MIN, Rules


def composite(splats: Splats, size: tuple[int, int], rules: Rules) -> Float[Tensor, "b v 5 h w"]:
    """The features of all splats, composited front to back at every pixel; a channel of ones gives alpha."""
    pictures = [
        torch.stack([_view(splats, scene, view, size, rules) for view in range(splats.drawn.shape[1])])
        for scene in range(splats.drawn.shape[0])
    ]
    return torch.stack(pictures)


def _view(splats: Splats, scene: int, view: int, size: tuple[int, int], rules: Rules) -> Float[Tensor, "5 h w"]:
    order = splats.z[scene, view].argsort(stable=True)
    order = order[splats.drawn[scene, view, order]]
    centre, conic, features, box = (
        each[scene, view, order] for each in (splats.centre, splats.conic, splats.features, splats.box)
    )
    pixels = pixel_grid(size, dtype=centre.dtype, device=centre.device).flatten(0, 1)
    alpha = alphas(pixels, centre, conic, splats.opacities[scene, order], rules)
    inside = ((pixels[:, None] >= box[:, :2]) & (pixels[:, None] < box[:, 2:])).all(dim=-1)
    alpha = torch.where(inside & (alpha >= ALPHA_MIN), alpha, 0)
    after = (1 - alpha).cumprod(dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    # Transmittance never grows: whatever lies behind the first splat that is dropped is dropped too.
    weights = torch.where(after >= rules.stop, alpha * before, 0)
    return (weights @ features).mT.reshape(-1, *size)


def alphas(
    pixels: Float[Tensor, "p 2"],
    centre: Float[Tensor, "n 2"],
    conic: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    rules: Rules,
) -> Float[Tensor, "p n"]:
    """Opacity of each splat at each pixel, held at `rules.alpha_max`."""
    dx, dy = (pixels[:, None] - centre).unbind(-1)
    alpha = opacities * (-(conic[:, 0] * dx**2 + conic[:, 2] * dy**2) / 2 - conic[:, 1] * dx * dy).exp()
    held = alpha.clamp(max=rules.alpha_max)
    return alpha + (held - alpha).detach() if rules.gradient_at_cap else held
