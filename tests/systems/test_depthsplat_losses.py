"""DepthSplat's losses by numbers worked by hand, and their gradients."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from plumbline.systems.depthsplat import losses


def images(*, size: tuple[int, int] = (14, 15), count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(count, 3, *size, generator=generator, dtype=torch.float64)
    other = (one + 0.2 * torch.randn(one.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return one, other


def holes(size: tuple[int, int] = (14, 15), count: int = 2) -> Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(1)) > 0.3


def test_image_errors_by_hand() -> None:
    seen = torch.zeros(1, 3, 2, 2)
    rendered = seen.clone()
    rendered[0, :, 0, 0], rendered[0, 0, 1, 1] = 0.5, -0.2
    assert float(losses.image_error(rendered, seen)) == pytest.approx((3 * 0.25 + 0.04) / 12)
    assert float(losses.image_error(rendered, seen, norm="l1")) == pytest.approx((3 * 0.5 + 0.2) / 12)
    mask = torch.tensor([[[True, False], [True, False]]])
    assert float(losses.image_error(rendered, seen, mask)) == pytest.approx(3 * 0.25 / 6)


def reference_ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One channel, as skimage does it: a filter over the image, sample covariance, the border cut off."""

    def blur(a: np.ndarray) -> np.ndarray:
        return gaussian_filter(a, sigma=1.5, truncate=3.5)

    n = 121 / 120
    mx, my = blur(x), blur(y)
    vx, vy, cov = n * (blur(x * x) - mx * mx), n * (blur(y * y) - my * my), n * (blur(x * y) - mx * my)
    c1, c2 = 0.01**2, 0.03**2
    full = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return full[5:-5, 5:-5]


def test_ssim_is_the_reference_one() -> None:
    one, other = images()
    found = losses.ssim_map(one, other)
    for n in range(2):
        for c in range(3):
            np.testing.assert_allclose(found[n, c], reference_ssim(one[n, c].numpy(), other[n, c].numpy()), atol=1e-10)
    assert float(losses.ssim_error(one, other)) == pytest.approx(1 - float(found.mean()))
    assert float(losses.ssim_error(one, one)) == pytest.approx(0, abs=1e-12)


def test_ssim_of_flat_images_by_hand() -> None:
    one, other = torch.full((1, 3, 11, 11), 0.5), torch.full((1, 3, 11, 11), 0.25)
    expected = (2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    assert float(losses.ssim_error(one, other)) == pytest.approx(1 - expected, abs=1e-4)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        losses.ssim_error(one[..., :10], other[..., :10])


def test_what_is_outside_the_mask_changes_no_image_term() -> None:
    one, other = images()
    mask = holes()
    disturbed, too = (torch.where(mask[:, None], image, torch.rand_like(image)) for image in (one, other))
    for term in (losses.image_error, losses.ssim_error):
        torch.testing.assert_close(term(disturbed, too, mask), term(one, other, mask))
        assert not torch.allclose(term(disturbed, too), term(one, other))


def test_depth_errors_by_hand() -> None:
    truth = torch.tensor([[[2.0, 4.0, 0.0], [2.0, 4.0, 5.0]]])
    depth = torch.tensor([[[1.0, 4.0, 9.0], [2.0, 2.0, 5.0]]])
    mask = truth > 0
    # Inverse: truth .5 .25 - / .5 .25 .2; ours 1 .25 - / .5 .5 .2.
    assert float(losses.inverse_depth_error(depth, truth, mask)) == pytest.approx((0.5 + 0.25) / 5)
    right = (abs(0.75 - 0.25) + abs(0 - 0.25) + abs(0.3 - 0.05)) / 3
    down = (abs(0.5 - 0) + abs(0.25 - 0)) / 2
    assert float(losses.inverse_gradient_error(depth, truth, mask)) == pytest.approx(right + down)


def test_the_likelihood_of_true_depth_by_hand() -> None:
    # Candidates at inverse depths 0.25, 0.5, 0.75 and 1, at every second pixel; the truth lies on the second, half-way from
    # the second to the third, beyond the last, and nowhere.
    probability = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None].expand(4, 2, 3)[None, None]
    truth = torch.full((1, 1, 4, 4), 3.0)
    truth[..., ::2, ::2] = torch.tensor([[2.0, 1.6], [0.5, 0.0]])
    depth_range = torch.tensor([[[1.0, 4.0]]])
    expected = -(math.log(0.2) + (math.log(0.2) + math.log(0.3)) / 2 + math.log(0.4)) / 3
    term = losses.likelihood_error(probability, truth, truth > 0, depth_range, stride=2)
    assert float(term) == pytest.approx(expected)
    certain = torch.eye(4)[1][:, None, None].expand(4, 2, 2)[None, None]
    assert float(losses.likelihood_error(certain, truth, truth == 2.0, depth_range, stride=2)) == 0
    assert math.isfinite(losses.likelihood_error(1 - certain, truth, truth == 2.0, depth_range, stride=2))


def test_smoothness_by_hand() -> None:
    depth = 1 / torch.tensor([[[1.0, 3.0], [1.0, 3.0]]])
    image = torch.zeros(1, 3, 2, 2)
    # Inverse depth over its mean 2 is 0.5 and 1.5: a step of 1 to the right, none down.
    assert float(losses.smoothness(depth, image)) == pytest.approx(1.0)
    image[..., 1] = 0.7
    assert float(losses.smoothness(depth, image)) == pytest.approx(math.exp(-0.7))
    mask = torch.tensor([[[True, True], [True, False]]])
    assert float(losses.smoothness(depth, image, mask)) == pytest.approx(math.exp(-0.7))
    assert float(losses.smoothness(depth, image, ~mask)) == 0


def test_intermediate_predictions_count_less_the_earlier_they_are() -> None:
    assert losses.intermediate_weights(1) == [1.0]
    assert losses.intermediate_weights(3) == pytest.approx([0.81, 0.9, 1.0])


def test_an_empty_mask_gives_zero_and_a_gradient_of_zero() -> None:
    one, other = images()
    nothing = torch.zeros_like(holes())
    depth = (one[:, 0] + 1).requires_grad_()
    rendered = one.clone().requires_grad_()
    terms = [
        losses.image_error(rendered, other, nothing),
        losses.ssim_error(rendered, other, nothing),
        losses.inverse_depth_error(depth, torch.zeros_like(depth), nothing),
        losses.inverse_gradient_error(depth, torch.zeros_like(depth), nothing),
        losses.smoothness(depth, other, nothing),
        losses.likelihood_error(
            rendered.softmax(dim=1), torch.zeros_like(depth), nothing, torch.tensor([[1.0, 4.0]] * 2), stride=1
        ),
    ]
    assert [term.item() for term in terms] == [0] * 6
    sum(terms).backward()
    assert not depth.grad.any() and not rendered.grad.any()


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_against_differences(masked: bool) -> None:
    seen, rendered = images(count=1)
    mask = holes(count=1) if masked else None
    depth = rendered[:, 0] + 1
    truth = depth + 0.3 * seen[:, 1]
    measured = torch.ones_like(depth, dtype=torch.bool) if mask is None else mask
    depth_range = torch.tensor([[0.9, 2.5]], dtype=torch.float64)

    def total(rendered: Tensor, depth: Tensor) -> Tensor:
        return (
            losses.image_error(rendered, seen, mask)
            + losses.image_error(rendered, seen, mask, norm="l1")
            + losses.ssim_error(rendered, seen, mask)
            + losses.inverse_depth_error(depth, truth, measured)
            + losses.inverse_gradient_error(depth, truth, measured)
            + losses.smoothness(depth, seen, mask)
            + losses.likelihood_error(rendered.softmax(dim=1), truth, measured, depth_range, stride=1)
        )

    assert torch.autograd.gradcheck(total, (rendered.requires_grad_(), depth.detach().requires_grad_()), fast_mode=True)
