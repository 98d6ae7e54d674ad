"""Rotary positions, attention and fusion of maps against readable versions; which kernels are taken when."""

import math

import pytest
import torch
import torch.nn.functional as F

from plumbline.systems.vit import attention
from plumbline.systems.vit.attention import Attention, Block, Linear, attend, rotate, rotations, suits_onednn
from plumbline.systems.vit.dense import Fusion, ResidualUnit, enlarge


def test_rotation_pair_by_pair() -> None:
    x, at = torch.randn(1, 1, 3, 16), torch.tensor([[0, 0], [2, 5], [7, 1]])
    expected = x.clone()
    for token, position in enumerate(at.tolist()):
        for axis, where in enumerate(position):
            for j in range(4):
                first, second = 8 * axis + j, 8 * axis + 4 + j
                angle = where * 100 ** (-2 * j / 8)
                a, b = x[0, 0, token, first], x[0, 0, token, second]
                expected[0, 0, token, first] = a * math.cos(angle) - b * math.sin(angle)
                expected[0, 0, token, second] = b * math.cos(angle) + a * math.sin(angle)
    torch.testing.assert_close(rotate(x, rotations(at, 16, base=100.0)), expected)


def test_products_of_rotated_tokens_depend_on_their_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)

    def product(one: tuple[int, int], other: tuple[int, int]) -> torch.Tensor:
        turned = [rotate(x, rotations(torch.tensor([at]), 32, base=100.0)) for x, at in ((q, one), (k, other))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product((3, 4), (5, 1)), product((13, 24), (15, 21)), rtol=1e-4, atol=1e-4)
    assert abs(float(product((3, 4), (5, 1)) - product((3, 4), (1, 5)))) > 1e-2


def test_attention_as_one_would_write_it() -> None:
    attention = Attention(16, 2, normalised=True).double()
    x, turn = torch.randn(2, 5, 16, dtype=torch.float64), rotations(torch.randint(0, 9, (5, 2)), 8, base=100.0)
    q, k, v = (part.reshape(2, 5, 2, 8).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    q, k = (rotate(norm(part), turn) for norm, part in ((attention.q_norm, q), (attention.k_norm, k)))
    weights = (q @ k.mT / math.sqrt(8)).softmax(dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(attention(x, turn), expected)


def test_a_block_is_two_scaled_branches_beside_a_skip() -> None:
    block, x = Block(16, 2, layer_scale=0.25), torch.randn(1, 4, 16)
    middle = x + 0.25 * block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + 0.25 * block.mlp(block.norm2(middle)))


@pytest.mark.parametrize("rectified", [False, True])
def test_the_skip_of_a_residual_unit(rectified: bool) -> None:
    unit, x = ResidualUnit(3, rectified=rectified), torch.randn(2, 3, 4, 5)
    branch = unit.conv2(F.relu(unit.conv1(F.relu(x))))
    torch.testing.assert_close(unit(x), branch + (F.relu(x) if rectified else x))


def test_maps_are_fused_from_coarse_to_fine() -> None:
    fusion, maps = Fusion((2, 3, 4), 5, rectified=False), [torch.randn(1, 2, 8, 12), torch.randn(1, 3, 4, 6)]
    maps.append(torch.randn(1, 4, 3, 3))
    assert not hasattr(fusion.refinenet3, "resConfUnit1")
    x = fusion.refinenet3.out_conv(enlarge(fusion.refinenet3.resConfUnit2(fusion.layer3_rn(maps[2])), (4, 6)))
    for refine, narrow, size in (
        (fusion.refinenet2, fusion.layer2_rn(maps[1]), (8, 12)),
        (fusion.refinenet1, fusion.layer1_rn(maps[0]), (16, 24)),
    ):
        x = refine.out_conv(enlarge(refine.resConfUnit2(x + refine.resConfUnit1(narrow)), size))
    torch.testing.assert_close(fusion(maps), x)


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12)])
def test_onednn_products_are_torch_s_forward_and_backward(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    linear, x = Linear(12, 20), torch.randn(shape, requires_grad=True)
    found = []
    for chosen in (True, False):
        monkeypatch.setattr(attention, "suits_onednn", lambda x, weight, chosen=chosen: chosen)
        y = linear(x)
        found.append([y.detach(), *torch.autograd.grad(y.sin().sum(), [x, linear.weight, linear.bias])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    frozen = Linear(12, 20).requires_grad_(False)
    monkeypatch.setattr(attention, "suits_onednn", lambda x, weight: True)
    torch.testing.assert_close(torch.autograd.grad(frozen(x).sum(), x)[0], frozen.weight.sum(0).expand(shape))


def test_onednn_is_for_large_products_in_single_precision_where_mkl_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_mkl_is_slow", lambda: True)
    wide, narrow, x = torch.zeros(384, 384), torch.zeros(96, 96), torch.zeros(2, 100, 96)
    assert suits_onednn(torch.zeros(2, 261, 384), wide)
    assert suits_onednn(torch.zeros(2, 261, 96), narrow)
    assert not suits_onednn(x, narrow)
    assert not suits_onednn(torch.zeros(261, 384, dtype=torch.bfloat16), wide.bfloat16())
    assert not suits_onednn(torch.zeros(261, 384, device="meta"), wide.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits_onednn(torch.zeros(2, 261, 384), wide)
    monkeypatch.setattr(attention, "_mkl_is_slow", lambda: False)
    assert not suits_onednn(torch.zeros(2, 261, 384), wide)


def test_attention_is_written_out_in_bfloat16_while_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 11, 16)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v), expected)
    narrow = [x.bfloat16() for x in (q, k, v)]
    fused: list[int] = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *x: fused.append(1) or kernel(*x))
    written = attend(*narrow)
    assert not fused and written.dtype == torch.bfloat16
    torch.testing.assert_close(written.float(), expected, atol=0.03, rtol=0.03)
    monkeypatch.setattr(attention, "MOST_WEIGHTS", 2 * 3 * 11 * 11 - 1)
    torch.testing.assert_close(attend(*narrow), written, atol=0.03, rtol=0.03)
    assert fused
