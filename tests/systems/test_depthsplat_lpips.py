"""LPIPS on weights of a user's: its value against plain layers, and what happens without the files.

True weights are no part of the project; random ones test the arithmetic, and are never called LPIPS in a report.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plumbline.errors import ConfigError, DataError
from plumbline.systems.depthsplat import lpips

# torchvision's configuration "D": widths of convolutions, and pooling.
LAYOUT = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg16() -> nn.Sequential:
    """The convolutional part of VGG-16 as torchvision numbers its layers, with random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    entered = 3
    for width in LAYOUT:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(entered, int(width), 3, padding=1), nn.ReLU()]
            entered = int(width)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lpips")
    trunk = {f"features.{name}": value for name, value in vgg16().state_dict().items()}
    torch.save({**trunk, "classifier.0.bias": torch.zeros(4)}, folder / "vgg16.pth")
    heads = {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate(lpips.WIDTHS)}
    torch.save(heads, folder / "vgg.pth")
    return folder / "vgg16.pth", folder / "vgg.pth"


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 32, 40, generator=generator), torch.rand(2, 3, 32, 40, generator=generator)


def slow(files: tuple[Path, Path], one: Tensor, other: Tensor) -> Tensor:
    """The definition, on torch's own layers."""
    heads = torch.load(files[1], weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = (((2 * image - 1) - shift[:, None, None]) / scale[:, None, None] for image in (one, other))
    total, taps = torch.zeros(len(one)), iter(range(5))
    for index, layer in enumerate(vgg16()):
        x, y = layer(x), layer(y)
        if index in (3, 8, 15, 22, 29):
            a, b = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
            weights = heads[f"lin{next(taps)}.model.1.weight"][0]
            total = total + (weights * (a - b).square()).sum(1).mean((1, 2))
    return total


def test_the_distance_is_that_of_the_definition(files: tuple[Path, Path]) -> None:
    distance, (one, other) = lpips.load(*files), images()
    with torch.no_grad():
        torch.testing.assert_close(distance(one, other), slow(files, one, other), rtol=1e-4, atol=1e-6)
        assert not distance(one, one).any()
        torch.testing.assert_close(distance(one, other), distance(other, one))


def test_gradients_are_finite_even_where_nothing_is_seen(files: tuple[Path, Path]) -> None:
    distance, (one, other) = lpips.load(*files), images()
    rendered = one[:1].clone()
    rendered[:, :, :16] = 0.485
    rendered.requires_grad_()
    distance(rendered, other[:1]).sum().backward()
    assert rendered.grad.isfinite().all() and rendered.grad.any()


def test_its_weights_are_no_part_of_a_model(files: tuple[Path, Path]) -> None:
    distance = lpips.load(*files)
    assert not distance.state_dict() and not list(distance.parameters())


def test_without_files_it_is_unavailable_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        assert lpips.load(None, None) is None
    assert "LPIPS unavailable (no VGG-16 weights)" in caplog.text


def test_files_that_do_not_fit_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lpips_heads: not set"):
        lpips.load(files[0], None)
    with pytest.raises(DataError, match=r"vgg16\.pth: no weights for LPIPS: 5 of 5 entries"):
        lpips.load(files[0], files[0])
    with pytest.raises(DataError, match="no such file"):
        lpips.load(tmp_path / "absent.pth", files[1])


def test_a_scorer_takes_pictures_of_files(files: tuple[Path, Path]) -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (32, 40, 3), dtype=np.uint8) for _ in range(2))
    score = lpips.scorer(*files)
    expected = slow(files, *(torch.from_numpy(x).permute(2, 0, 1)[None] / 255 for x in (one, other)))
    assert score(one, other) == pytest.approx(float(expected[0].detach()), rel=1e-4)
    assert score(one, one) == 0


def test_a_scorer_without_weights_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        lpips.scorer(tmp_path / "absent.pth", files[1])
    with pytest.raises(DataError, match="no weights for LPIPS"):
        lpips.scorer(files[1], files[0])
