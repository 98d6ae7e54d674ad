"""Quaternions there and back wherever a formula might divide by 0, and their products."""

import pytest
import torch
from torch import Tensor

from plumbline.quaternions import multiply, to_matrices, to_quaternions


def about(axis: tuple[float, float, float], degrees: list[float]) -> Tensor:
    """Quaternions of turns about `axis`, float64."""
    direction = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    half = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64)) / 2
    return torch.cat([half.sin()[:, None] * direction, half.cos()[:, None]], dim=-1)


@pytest.mark.parametrize("axis", [(1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (1.0, -2.0, 0.5)])
def test_rotations_survive_a_quaternion_everywhere(axis: tuple[float, float, float]) -> None:
    R = to_matrices(about(axis, [0.0, 1e-7, 0.01, 60.0, 120.0, 179.99999, 180.0, -45.0]))
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=torch.float64).expand_as(R), rtol=0, atol=1e-12)
    q = to_quaternions(R)
    assert (q[:, 3] >= 0).all()
    torch.testing.assert_close(q.norm(dim=-1), torch.ones_like(q[:, 0]))
    torch.testing.assert_close(to_matrices(q), R, rtol=0, atol=1e-12)


def test_a_quarter_turn_about_z_by_hand() -> None:
    R = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    expected = torch.tensor([0.0, 0, 0.5**0.5, 0.5**0.5])
    torch.testing.assert_close(to_quaternions(R), expected)
    torch.testing.assert_close(to_matrices(-3 * expected), R)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_a_quaternion_without_length_is_no_rotation_and_has_finite_gradients(eps: float) -> None:
    q = torch.zeros(4, requires_grad=True)
    made = to_matrices(q, eps=eps)
    assert torch.equal(made, torch.eye(3))
    made.sum().backward()
    assert q.grad is not None and q.grad.isfinite().all()


def test_eps_draws_short_ones_to_the_identity_alone() -> None:
    q = torch.tensor([[1.0, 2, 3, 4], [1e-4, 2e-4, 3e-4, 4e-4], [1e-6, 2e-6, 3e-6, 4e-6]], dtype=torch.float64)
    exact, drawn = to_matrices(q), to_matrices(q, eps=1e-8)
    off = (drawn - torch.eye(3, dtype=q.dtype)).flatten(1).norm(dim=1) / (exact - torch.eye(3, dtype=q.dtype)).norm(
        dim=(1, 2)
    )
    torch.testing.assert_close(off, torch.tensor([1.0, 0.96774, 0.0029911], dtype=q.dtype), rtol=1e-4, atol=0)


def test_gradients() -> None:
    q = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: to_quaternions(to_matrices(x)), (q,))


def test_a_product_is_one_turn_after_the_other() -> None:
    a, b = torch.randn(2, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(to_matrices(multiply(a, b)), to_matrices(a) @ to_matrices(b))
    torch.testing.assert_close(multiply(a[:1], b)[3], multiply(a[0], b[3]))
