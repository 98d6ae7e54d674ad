"""What shows through a picture's gaps."""

import pytest
import torch

from plumbline.rendering import Rendering
from plumbline.rendering.surroundings import fill, over_surroundings


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (16, 33)])
def test_filling_leaves_what_is_known_and_stays_within_it(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.4 * torch.rand(2, 3, *size, generator=generator)
    known = torch.rand(2, *size, generator=generator) > 0.7
    known[:, 0, 0] = True
    filled = fill(torch.where(known[:, None], image, 9.0), known)
    assert torch.equal(filled * known[:, None], image * known[:, None])
    assert filled.min() >= 0.3 - 1e-6 and filled.max() <= 0.7 + 1e-6
    assert not fill(torch.ones(1, 3, *size), torch.zeros(1, *size, dtype=torch.bool)).any()


def rendering(alpha: torch.Tensor, colour: torch.Tensor) -> Rendering:
    """Of one view of one scene, `colour` (3, h, w) covering `alpha` (h, w)."""
    return Rendering((alpha * colour)[None, None], alpha[None, None], alpha[None, None])


def test_thin_cover_is_made_full_and_holes_are_filled() -> None:
    alpha = torch.full((8, 10), 0.7)
    alpha[2:5, 3:6] = 0.0
    alpha[6, 1] = 0.3
    colour = torch.tensor([0.2, 0.6, 0.9])[:, None, None].expand(3, 8, 10)
    seen = over_surroundings(rendering(alpha, colour))
    torch.testing.assert_close(seen.colour[0, 0], colour)
    assert torch.equal(seen.alpha[0, 0], alpha) and torch.equal(seen.depth[0, 0], alpha)


def test_what_little_covers_a_gap_counts_as_much_as_it_covers() -> None:
    alpha, colour = torch.full((6, 6), 0.8), torch.full((3, 6, 6), 0.5)
    alpha[3, 3], colour[:, 3, 3] = 0.25, 0.9
    seen = over_surroundings(rendering(alpha, colour))
    torch.testing.assert_close(seen.colour[0, 0, :, 3, 3], torch.full((3,), 0.25 * 0.9 + 0.75 * 0.5))


def test_gradients_against_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    # Away from the half, where a pixel changes from hole to surroundings at once.
    alpha = torch.rand(1, 1, 5, 6, dtype=torch.float64, generator=generator) * 0.4
    alpha = torch.where(alpha > 0.15, alpha + 0.55, alpha).requires_grad_()
    colour = torch.rand(1, 1, 3, 5, 6, dtype=torch.float64, generator=generator).requires_grad_()

    def picture(colour: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return over_surroundings(Rendering(colour, alpha, alpha)).colour

    assert torch.autograd.gradcheck(picture, (colour, alpha), fast_mode=True)
