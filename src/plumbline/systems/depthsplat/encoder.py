"""From context views to depth and Gaussians: DepthSplat's encoder (Xu et al., CVPR 2025, arXiv 2410.13862)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.errors import DataError
from plumbline.rendering.gaussians import Gaussians
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.dpt import DenseHead
from plumbline.systems.depthsplat.gaussians import adapt, gaussian_head, gaussian_regressor
from plumbline.systems.depthsplat.predictor import DepthPredictor, Depths, upsample
from plumbline.systems.depthsplat.views import Views


@dataclass(frozen=True)
class Encoded:
    """Depths of all views and the scene's Gaussians, as often as there are predictions: the final one is the last.

    `gaussians` is empty in a model without them.
    """

    depths: list[Float[Tensor, "b v h w"]]
    gaussians: list[Gaussians]
    probability: list[Float[Tensor, "n _ _ _"]]


class Encoder(nn.Module):
    """Depth and one Gaussian for each pixel of each view. In training, two scales give an intermediate prediction too."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.depth_predictor = DepthPredictor(config)
        if config.gaussians:
            self.feature_upsampler = DenseHead(config, depth=False)
            self.gaussian_regressor = gaussian_regressor(config)
            self.gaussian_head = gaussian_head(config)

    def forward(self, views: Views) -> Encoded:
        """Everything about `views`, two or more. DataError when there is one, or their size does not fit the strides."""
        self._check(views)
        found = self.depth_predictor(views)
        depths = [found.depth]
        if self.training and self.config.scales > 1:
            depths.insert(0, self._coarse_depth(found, views))
        gaussians = []
        if self.config.gaussians:
            # Parameters see the final depth only; each prediction places them anew.
            raw = self._raw(found, views)
            with torch.autocast(raw.device.type, enabled=False):
                gaussians = [adapt(raw.float(), depth, views, self.config) for depth in depths]
        return Encoded(depths, gaussians, [swept.probability for swept in found.swept])

    def _raw(self, found: Depths, views: Views) -> Float[Tensor, "b v k h w"]:
        image, depth = views.image.flatten(0, 1), found.depth.flatten(0, 1)[:, None]
        sure = F.interpolate(found.swept[-1].probability.amax(dim=1, keepdim=True), size=views.size, mode="nearest")
        features = self.feature_upsampler(found.features)
        regressed = self.gaussian_regressor(torch.cat([image, depth, sure, features], dim=1))
        raw = self.gaussian_head(torch.cat([regressed, image, features, sure], dim=1))
        return torch.unflatten(raw, 0, views.shape)

    def _coarse_depth(self, found: Depths, views: Views) -> Float[Tensor, "b v h w"]:
        inverse = upsample(found.swept[0].inverse_depth, self.config.stride, quirk=self.config.official_quirks)
        return torch.unflatten(1 / inverse[:, 0], 0, views.shape)

    def _check(self, views: Views) -> None:
        multiple, (height, width) = self.config.multiple, views.size
        if height % multiple or width % multiple:
            raise DataError(
                f"depthsplat: images of {height}x{width}; expected multiples of {multiple}, four times the stride. "
                "Resize or pad them first."
            )
        if views.shape[1] < 2:
            raise DataError("depthsplat: one view; expected two or more, since depth comes from matching views.")
