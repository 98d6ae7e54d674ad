"""DELTAS' image encoder, its two heads, and what the released weights rely on."""

import pytest
import torch
import torch.nn.functional as F

from plumbline.systems.deltas.config import Config
from plumbline.systems.deltas.front import DEVIATION, MEAN, Front, encoder_channels, middle_quarter
from plumbline.systems.deltas.resnet import Bottleneck, Pointwise, run, stage

SMALL = Config(preset="tiny", encoder_widths=(4, 4, 8, 8), descriptor_channels=12, descriptor_cell=8)


@pytest.fixture
def front() -> Front:
    """A small encoder whose batch norms do something."""
    torch.manual_seed(0)
    made = Front(SMALL)
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return made.eval()


def test_the_full_preset_has_the_published_size() -> None:
    with torch.device("meta"):
        made = Front(Config(preset="full"))
    assert sum(parameter.numel() for parameter in made.parameters()) == 31_719_809
    assert made.channels == (64, 256, 512, 1024, 2048)
    assert [len(layer) for layer in (made.layer1, made.layer2, made.layer3, made.layer4)] == [3, 4, 6, 3]


@pytest.mark.parametrize("size", [(24, 40), (64, 48), (8, 8)])
def test_maps_halve_and_descriptors_are_unit_vectors(front: Front, size: tuple[int, int]) -> None:
    maps = front(torch.rand(2, 3, *size))
    ceil = [tuple(-(-side // factor) for side in size) for factor in (2, 4, 8, 16, 32)]
    assert [tuple(m.shape[-2:]) for m in maps[:5]] == ceil
    assert tuple(m.shape[1] for m in maps[:5]) == encoder_channels(SMALL)
    assert maps.descriptors.shape == (2, 12, *ceil[2])
    torch.testing.assert_close(maps.descriptors.norm(dim=1), torch.ones(2, *ceil[2]))
    assert front.detect(maps).shape == (2, 65, *ceil[2])


def test_descriptors_may_be_twice_as_dense(front: Front) -> None:
    dense = Front(SMALL.model_copy(update={"descriptor_cell": 4})).eval()
    dense.load_state_dict(front.state_dict())
    half, quarter, eighth, _, deepest = front.encode(torch.rand(1, 3, 24, 40))
    resize = lambda x, like: F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)  # noqa: E731
    x = resize(F.relu(front.bnDa(front.convDa(deepest))), eighth)
    x = F.relu(front.bnDb(front.convDb(torch.cat([x, eighth], dim=1))))
    x = F.relu(front.bnDc(front.convDc(x)))
    for made, like in ((front, eighth), (dense, quarter)):
        answer = made.convDd(torch.cat([resize(x, like), resize(quarter, like), resize(half, like)], dim=1))
        torch.testing.assert_close(made.describe(half, quarter, eighth, deepest), F.normalize(answer, dim=1))


def test_images_are_normalised_twice_and_padded_after_that(front: Front) -> None:
    images = torch.rand(1, 3, 16, 16)
    normalised = (2 * images - 1 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
    expected = F.relu(front.bn1(F.conv2d(normalised, front.conv1.weight, stride=2, padding=3)))
    torch.testing.assert_close(front.encode(images)[0], expected, rtol=1e-5, atol=1e-5)


def test_the_detector_may_look_at_some_images_only(front: Front) -> None:
    maps = front(torch.rand(6, 3, 16, 24))
    torch.testing.assert_close(front.detect(maps.rows(slice(1, None, 3))), front.detect(maps)[1::3])


def test_fast_downsampling_is_bilinear_resizing_without_antialiasing() -> None:
    x = torch.rand(2, 3, 24, 40)
    by_half, by_quarter = (
        F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False) for factor in (0.5, 0.25)
    )
    torch.testing.assert_close(F.avg_pool2d(x, 2), by_half)
    torch.testing.assert_close(middle_quarter(x), by_quarter)


@pytest.mark.parametrize(("stride", "bias"), [(1, True), (2, False)])
def test_a_single_pixel_kernel_is_not_changed_by_a_dilation(stride: int, bias: bool) -> None:
    layer, x = Pointwise(5, 3, stride=stride, bias=bias), torch.randn(2, 5, 7, 9, requires_grad=True)
    one, other = layer(x), F.conv2d(x, layer.weight, layer.bias, stride=stride)
    torch.testing.assert_close(one, other)
    weights = torch.randn_like(one)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), (x, layer.weight)) for y in (one, other)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_stage_strides_on_the_three_by_three_and_projects_its_first_shortcut() -> None:
    first, second = stage(6, 4, 2, expansion=3, stride=2)
    assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))
    assert second.downsample is None and second.conv2.stride == (1, 1)
    assert stage(6, 4, 2, expansion=3, stride=2)(torch.rand(2, 6, 5, 7)).shape == (2, 12, 3, 4)


def test_recomputed_activations_change_neither_gradients_nor_running_statistics() -> None:
    x = torch.randn(2, 6, 5, 7)
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        block = Bottleneck(6, 4, expansion=2, project=True)
        y = run(block, x.requires_grad_(), owner=block, recompute=recompute)
        gradients = torch.autograd.grad(y.square().sum(), [x, *block.parameters()])
        results.append([*gradients, *block.buffers()])
        assert block.bn1.momentum == 0.1
    assert all(torch.equal(kept, again) for kept, again in zip(*results, strict=True))
    assert block.bn1.num_batches_tracked == 1
