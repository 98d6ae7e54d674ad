"""What a picture shows where nothing is: its own surroundings, smooth."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline.rendering.render import Rendering

# Of a pixel covered by less than this, too little is known to say what lies beside it.
_COVERED = 0.5


def over_surroundings(seen: Rendering) -> Rendering:
    """A rendering over black, over its own surroundings instead: thin cover is made full, holes are filled.

    Where half or more of a pixel is covered, that is its colour divided by alpha; elsewhere the rest shows what `fill` makes
    of such pixels. Depth and alpha stay as they are.
    """
    own = seen.colour / seen.alpha.clamp(min=_COVERED)[:, :, None]
    behind = torch.unflatten(fill(own.flatten(0, 1), (seen.alpha >= _COVERED).flatten(0, 1)), 0, (-1, own.shape[1]))
    return Rendering(seen.colour + (1 - seen.alpha)[:, :, None] * behind, seen.depth, seen.alpha)


def fill(image: Float[Tensor, "n 3 h w"], known: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 3 h w"]:
    """The image with smooth surroundings where it is not known (push-pull, Gortler et al. 1996); black if nothing is."""
    weight = known[:, None].to(image.dtype)
    if min(image.shape[-2:]) == 1 or bool(known.all()):
        mean = (image * weight).sum(dim=(2, 3), keepdim=True) / weight.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        return torch.where(weight > 0, image, mean)
    size = (image.shape[-2], image.shape[-1])
    both = F.avg_pool2d(torch.cat([image * weight, weight], dim=1), 2, ceil_mode=True)
    coarse = fill(both[:, :3] / both[:, 3:].clamp(min=1e-12), both[:, 3] > 0)
    wide = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return torch.where(weight > 0, image, wide)
