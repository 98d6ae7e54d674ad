"""DepthSplat's transformer: windows, masks, positions and attention against slow definitions."""

import math

import pytest
import torch

from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.transformer import (
    BARRED,
    Attention,
    Layer,
    Transformer,
    across_views,
    from_windows,
    shift_mask,
    sine_encoding,
    to_windows,
)


def test_windows_are_cut_row_by_row_and_put_back() -> None:
    x = torch.arange(2 * 1 * 4 * 6.0).reshape(2, 1, 4, 6, 1)
    cut = to_windows(x, 2)
    assert cut.shape == (2, 1, 4, 6, 1)
    assert cut[0, 0, 1, :, 0].tolist() == [3, 4, 5, 9, 10, 11]
    assert cut[0, 0, 2, :, 0].tolist() == [12, 13, 14, 18, 19, 20]
    assert torch.equal(from_windows(cut, 2, (2, 3)), x)


def test_a_shifted_window_bars_pixels_that_were_no_neighbours() -> None:
    window, windows = (2, 4), 2
    height, width = window[0] * windows, window[1] * windows
    mask = shift_mask(window, windows, device="cpu")
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([rows, columns], dim=-1).float()[None, None].roll((-1, -2), dims=(2, 3))
    tokens = to_windows(place, windows)[0, 0]
    for w in range(windows**2):
        for i in range(8):
            for j in range(8):
                # Neighbours before the roll: within a window's size of each other along both axes.
                near = all(abs(int(tokens[w, i, k] - tokens[w, j, k])) < window[k] for k in (0, 1))
                assert float(mask[w, i, j]) == (0 if near else BARRED)


def test_positions_are_detr_s_of_one_window() -> None:
    h, w, half = 3, 5, 8
    table = sine_encoding((h, w), 2 * half, device="cpu")
    for r in range(h):
        for c in range(w):
            for i in range(half):
                period = 10000 ** (2 * (i // 2) / half)
                function = math.sin if i % 2 == 0 else math.cos
                y, x = 2 * math.pi * (r + 1) / (h + 1e-6), 2 * math.pi * (c + 1) / (w + 1e-6)
                assert float(table[r, c, i]) == pytest.approx(function(y / period), abs=1e-5)
                assert float(table[r, c, half + i]) == pytest.approx(function(x / period), abs=1e-5)


def test_attention_is_the_softmax_of_dot_products() -> None:
    torch.manual_seed(0)
    attention = Attention(8, ffn=16)
    x, source, barred = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8), torch.zeros(2, 3, 5)
    barred[1, 0, 4] = BARRED
    q, k, v = attention.q_proj(x), attention.k_proj(source), attention.v_proj(source)
    scores = torch.softmax(q @ k.mT / 8**0.5 + barred, dim=-1)
    message = attention.norm1(attention.merge(scores @ v))
    expected = x + attention.norm2(attention.mlp(torch.cat([x, message], dim=-1)))
    torch.testing.assert_close(attention(x, source, barred), expected)
    assert scores[0, 1, 0, 4].item() < 1e-30


def test_keys_of_several_views_have_their_pixel_s_mask_or_by_the_quirk_another_one_s() -> None:
    barred = torch.tensor([[[0.0, BARRED], [BARRED, 0.0]]])
    assert across_views(barred, 2, aligned=True)[0, 0].tolist() == [0, 0, BARRED, BARRED]
    assert across_views(barred, 2, aligned=False)[0, 0].tolist() == [0, BARRED, 0, BARRED]
    assert torch.equal(across_views(barred, 1, aligned=True), across_views(barred, 1, aligned=False))


@pytest.mark.parametrize("quirks", [True, False])
def test_without_the_quirk_the_order_of_the_other_views_does_not_matter(quirks: bool) -> None:
    torch.manual_seed(0)
    layer = Layer(Config(preset="tiny", official_quirks=quirks))
    x = torch.randn(1, 3, 4, 4, 32)
    barred = shift_mask((2, 2), 2, device="cpu")
    one = torch.tensor([[[1, 2], [0, 2], [0, 1]]])
    same = torch.allclose(layer(x, one, barred), layer(x, one.flip(-1), barred), atol=1e-5)
    assert same is not quirks


def test_neighbours_are_seen_as_they_entered_a_layer() -> None:
    torch.manual_seed(0)
    layer = Layer(Config(preset="tiny"))
    x = torch.randn(1, 2, 4, 4, 32)
    out = layer(x, torch.tensor([[[1], [0]]]), None)
    own = layer.self_attn(x[:, 0], x[:, 0], None)
    torch.testing.assert_close(out[:, 0], layer.cross_attn_ffn(own, x[:, 1], None))


def test_recomputed_activations_give_the_same_gradients() -> None:
    features, neighbours = torch.randn(1, 2, 32, 8, 8), torch.tensor([[[1], [0]]])
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        transformer = Transformer(Config(preset="tiny", checkpointing=checkpointing))
        transformer(features, neighbours).square().sum().backward()
        gradients.append([p.grad for p in transformer.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
