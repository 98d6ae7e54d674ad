"""SuperPoint as a teacher: a keypoint detector whose public weights, supplied by the user, make labels for another detector.

DeTone, Malisiewicz and Rabinovich, SuperPoint: self-supervised interest point detection and description, CVPR workshops
2018, figure 3 and section 3.1-3.2. Its published weights are for non-commercial use; none are part of this project.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from plumbline.errors import ConfigError, DataError
from plumbline.files import sha256_file
from plumbline.systems.blocks import load_weights, pad_to_multiple

CELL = 8


class SuperPoint(nn.Module):
    """The encoder and the detector, with the layer names of the public weights.

    The descriptor's two layers are held, because the weights have them and are loaded strictly, and never run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1a, self.conv1b = _conv(1, 64), _conv(64, 64)
        self.conv2a, self.conv2b = _conv(64, 64), _conv(64, 64)
        self.conv3a, self.conv3b = _conv(64, 128), _conv(128, 128)
        self.conv4a, self.conv4b = _conv(128, 128), _conv(128, 128)
        self.convPa, self.convPb = _conv(128, 256), nn.Conv2d(256, CELL * CELL + 1, 1)
        self.convDa, self.convDb = _conv(128, 256), nn.Conv2d(256, 256, 1)

    def forward(self, grey: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 65 h8 w8"]:
        """Logits of each 8x8 cell's pixels, by rows, and of "no keypoint here". `grey` in [0, 1], sizes multiples of 8."""
        x = F.relu(self.conv1b(F.relu(self.conv1a(grey))))
        for first, second in ((self.conv2a, self.conv2b), (self.conv3a, self.conv3b), (self.conv4a, self.conv4b)):
            x = F.relu(second(F.relu(first(F.max_pool2d(x, 2)))))
        return self.convPb(F.relu(self.convPa(x)))


def probabilities(logits: Float[Tensor, "n 65 h8 w8"]) -> Float[Tensor, "n h w"]:
    """The probability of each pixel to be its cell's keypoint; a cell sums to 1 less the probability that it has none."""
    return F.pixel_shuffle(logits.softmax(dim=1)[:, :-1], CELL)[:, 0]


def load_teacher(path: Path, *, sha256: str) -> Callable[[UInt8[np.ndarray, "n h w 3"], Sequence[str]], np.ndarray]:
    """A function that gives RGB images' keypoint probabilities, f32 (n, h, w), by the network in `path`.

    It runs on a GPU where there is one. Images of any size are enlarged to whole cells by their last rows and columns, and
    the answer is cropped. DataError when the file is absent or no SuperPoint network, ConfigError when it is another file
    than `sha256` says.
    """
    _check_file(path, sha256)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = SuperPoint()
    load_weights(network, path)
    network.to(device).eval()

    @torch.inference_mode()
    def teacher(images: UInt8[np.ndarray, "n h w 3"], names: Sequence[str]) -> Float32[np.ndarray, "n h w"]:
        height, width = images.shape[1:3]
        grey = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
        x = torch.from_numpy(grey).to(device)[:, None].float() / 255
        found = probabilities(network(pad_to_multiple(x, CELL)))[:, :height, :width]
        return found.cpu().numpy()

    return teacher


def _check_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; expected SuperPoint's weights (pseudo_labels.teacher in params.yaml). Fetch them from "
            "their authors, under their licence, or set teacher to null to learn from corners."
        )
    if (found := sha256_file(path)) != sha256:
        raise ConfigError(
            f"{path} has SHA-256 {found}; pseudo_labels.teacher.sha256 in params.yaml says {sha256}. If this is the file to "
            "learn from, write its hash there."
        )


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)
