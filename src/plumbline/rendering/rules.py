"""What a rasteriser cuts off, and in which order colours by direction are stored."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

# Added to the variance on screen (px²), so that no Gaussian falls between pixel centres.
DILATION = 0.3
# Opacities at a pixel below this count as nothing. In float32, as all constants here: implementations agree on edge cases.
ALPHA_MIN = float(np.float32(1) / np.float32(255))
_STOP = np.float32(1e-4)
# The official rule gives a Gaussian whole tiles of this many pixels.
TILE = 16


@dataclass(frozen=True)
class Rules:
    """Where rasterisers of 3-D Gaussian splatting differ.

    alpha_max: opacity of one Gaussian at a pixel is held at this. gradient_at_cap: whether its gradient passes that cap as
    if it were not there. stop: a Gaussian that would bring the transmittance below this is dropped, and all behind it.
    extent: `alpha`, a Gaussian reaches all pixels where its opacity is at least 1/255; `tiles`, of these only such in the
    16-px tiles that meet the square of 3 standard deviations around its centre. harmonics: order of the coefficients,
    `standard` (3-D Gaussian splatting) or `e3nn` (axes permuted, as DepthSplat's released weights give them).
    """

    alpha_max: float = float(np.float32(0.999))
    gradient_at_cap: bool = False
    stop: float = float(np.nextafter(_STOP, np.float32(1)))
    extent: Literal["alpha", "tiles"] = "alpha"
    harmonics: Literal["standard", "e3nn"] = "standard"


# gsplat's (its documentation and specs/depthsplat 2.2): the default, the same on every backend.
GSPLAT = Rules()
# The decoder that DepthSplat's weights were trained with.
OFFICIAL = Rules(float(np.float32(0.99)), True, float(_STOP), "tiles", "e3nn")
