"""DELTAS' densifying network: enlarging, its fast convolution, the sparse depth image and the published sizes."""

import pytest
import torch
import torch.nn.functional as F

from plumbline.systems.deltas import dense
from plumbline.systems.deltas.config import Config
from plumbline.systems.deltas.dense import (
    DenseASPP,
    SparseToDense,
    UpProjection,
    enlarge,
    enlarge_and_convolve,
    enlarge_and_convolve_reference,
    inserts_zeros,
    sparse_depth_image,
    spread_depth,
)
from plumbline.systems.deltas.front import Front

SMALL = Config(preset="tiny", decoder_widths=(8, 8, 8, 8, 4), aspp_width=4)


def test_the_full_preset_has_the_published_size() -> None:
    with torch.device("meta"):
        made = SparseToDense(Config(preset="full"))
    assert sum(parameter.numel() for parameter in made.parameters()) == 92_924_052
    assert made.gud_up_proj_layer1.conv1.weight.shape == (512, 2560, 5, 5)
    assert made.ASPP.convf.weight.shape == (256, 896, 3, 3)


def test_heights_alone_decide_how_a_map_is_enlarged() -> None:
    # 240 rows: 8 to 15, then doubling; 128 rows: doubling from the start; one row to one row counts as doubling.
    assert [inserts_zeros(*heights) for heights in ((8, 15), (15, 30), (4, 8), (1, 1), (2, 3))] == [0, 1, 1, 1, 0]


def test_zeros_are_inserted_below_and_to_the_right_and_cropped() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    expected = torch.tensor([[1.0, 0, 2], [0, 0, 0], [3, 0, 4], [0, 0, 0]])
    assert torch.equal(enlarge(x, (4, 3))[0, 0], expected)


def test_an_odd_height_repeats_the_nearest_pixel() -> None:
    x = torch.arange(8.0)[None, None, :, None].expand(1, 1, 8, 10)
    rows = enlarge(x, (15, 20))[0, 0, :, 0]
    assert rows.tolist() == [i * 8 // 15 for i in range(15)]


@pytest.mark.parametrize("shape", [(4, 5, 8, 10), (4, 5, 8, 9), (1, 3, 2, 6), (1, 1, 1, 1), (3, 4, 5, 8)])
def test_the_fast_convolution_is_the_reference_forward_and_backward(shape: tuple[int, int, int, int]) -> None:
    h, w, *size = shape
    torch.manual_seed(0)
    x = torch.randn(2, 3, h, w, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    fast = enlarge_and_convolve(x, weight, (size[0], size[1]))
    slow = enlarge_and_convolve_reference(x, weight, (size[0], size[1]))
    torch.testing.assert_close(fast, slow)
    upstream = torch.randn_like(slow)
    gradients = [torch.autograd.grad(y, (x, weight), upstream) for y in (fast, slow)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("largest", [0, 10**9])
@pytest.mark.parametrize("height", [8, 7])
def test_an_up_projection_step_by_step(largest: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first block where the image's height is a multiple of 32: 4 rows to 8, between zeros."""
    monkeypatch.setattr(dense, "LARGEST_MERGED", largest)
    torch.manual_seed(0)
    block = UpProjection(6, 5, side_channels=3).eval()
    block.sc_bn1.running_mean.normal_()
    x, side = torch.randn(2, 6, 4, 5), torch.randn(2, 3, height, 10)
    if height == 8:
        larger = torch.zeros(2, 6, 8, 10)
        larger[..., ::2, ::2] = x
    else:
        larger = F.interpolate(x, size=(7, 10), mode="nearest")
    y = F.relu(block.bn1(block.conv1(larger)))
    y = F.relu(block.bn1_1(block.conv1_1(torch.cat([y, side], dim=1))))
    expected = F.relu(block.bn2(block.conv2(y)) + block.sc_bn1(block.sc_conv1(larger)))
    torch.testing.assert_close(block(x, side[:, :1], side[:, 1:]), expected)


def test_the_last_up_projection_has_no_side_input_and_always_doubles() -> None:
    block = UpProjection(6, 5).eval()
    assert not hasattr(block, "conv1_1")
    larger = enlarge(x := torch.randn(1, 6, 3, 5), (6, 10))
    expected = F.relu(
        block.bn2(block.conv2(F.relu(block.bn1(block.conv1(larger))))) + block.sc_bn1(block.sc_conv1(larger))
    )
    torch.testing.assert_close(block(x), expected)


def test_dilated_layers_see_all_before_them() -> None:
    aspp = DenseASPP(6, 4, (1, 2, 5)).eval()
    assert [getattr(aspp, f"daspp_{i}").conv1.in_channels for i in (1, 2, 3)] == [6, 10, 14]
    assert aspp.daspp_3.conv2.dilation == aspp.daspp_3.conv2.padding == (5, 5)
    assert aspp(torch.randn(1, 6, 4, 5)).shape == (1, 6, 4, 5)


@pytest.mark.parametrize("size", [(8, 8), (24, 40), (40, 56), (64, 32)])
def test_four_depths_of_any_size_divisible_by_eight(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    front, net = Front(SMALL).eval(), SparseToDense(SMALL).eval()
    answers = net(torch.rand(2, 1, *size), front(torch.rand(2, 3, *size)))
    sizes = [(2, 1, size[0] // factor, size[1] // factor) for factor in (1, 2, 4, 8)]
    assert [tuple(answer.shape) for answer in answers] == sizes


def test_depth_keeps_its_digits_in_bfloat16() -> None:
    torch.manual_seed(0)
    front, net = Front(SMALL).eval(), SparseToDense(SMALL).eval()
    image, sparse = torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32)
    net.start_at(300.0)
    with torch.autocast("cpu", torch.bfloat16):
        answer = net(sparse, front(image)).full
    assert answer.dtype == torch.float32
    # bfloat16 has steps of 2 at 300.
    assert (answer - answer.round()).abs().max() > 0.01
    assert (answer - 300).abs().max() < 10


def test_the_sparse_depth_image_holds_known_depths_and_the_last_of_one_pixel() -> None:
    keypoints = torch.tensor([[[3.0, 1.0], [0.0, 0.0], [3.0, 1.0], [2.0, 2.0], [0.0, 0.0]]])
    z = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]], requires_grad=True)
    known = torch.tensor([[True, True, True, True, False]])
    image = sparse_depth_image(keypoints, z, known, (3, 4))
    expected = torch.zeros(1, 3, 4)
    expected[0, 1, 3], expected[0, 2, 2] = 3.0, 4.0
    assert torch.equal(image, expected)
    image.sum().backward()
    assert z.grad.tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0]]


def test_undefined_depths_do_no_harm() -> None:
    z = torch.tensor([[torch.nan, 2.0]], requires_grad=True)
    known = torch.tensor([[False, True]])
    image = sparse_depth_image(torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), z, known, (1, 2))
    assert image.tolist() == [[[0.0, 2.0]]]
    image.sum().backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("size", [(16, 24), (13, 21), (1, 7)])
def test_spreading_one_depth_fills_the_image_with_it(size: tuple[int, int]) -> None:
    sparse = torch.zeros(2, *size)
    sparse[0, size[0] // 2, 3] = 2.5
    spread = spread_depth(sparse, torch.full_like(sparse, 0.2))
    torch.testing.assert_close(spread[0], torch.full(size, 2.5))
    assert not spread[1].any()


def test_spreading_keeps_to_what_is_near_and_lets_gradients_through() -> None:
    sparse = torch.zeros(1, 32, 32)
    sparse[0, ::2, :14:2], sparse[0, ::2, 18::2] = 2.0, 4.0
    sparse.requires_grad_()
    spread = spread_depth(sparse, torch.ones_like(sparse))
    assert (spread[0, :, :8] < 2.3).all() and (spread[0, :, 24:] > 3.4).all()
    spread.sum().backward()
    assert torch.isfinite(sparse.grad).all() and (sparse.grad[sparse > 0] > 0).all()


def test_spreading_averages_inverse_depths() -> None:
    sparse = torch.zeros(1, 2, 2)
    sparse[0, 0, 0], sparse[0, 1, 1] = 1.0, 3.0
    # The only coarser cell holds the mean inverse depth, 2/3; a measured pixel weighs as much as it.
    expected = torch.tensor([[[6 / 5, 3 / 2], [3 / 2, 2.0]]])
    torch.testing.assert_close(spread_depth(sparse, torch.ones_like(sparse)), expected)


def test_spreading_follows_the_weights() -> None:
    sparse = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    spread = spread_depth(sparse, torch.tensor([[[1.0, 9.0], [9.0, 0.0]]]))
    torch.testing.assert_close(spread, torch.ones(1, 2, 2))
