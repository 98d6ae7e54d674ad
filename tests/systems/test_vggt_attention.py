"""What alternating attention may and may not tell apart, and where VGGT's tokens lie."""

import pytest
import torch

from plumbline.systems.vggt.aggregator import Aggregator, VisionTransformer, positions
from plumbline.systems.vggt.config import Config

SMALL = {"width": 32, "heads": 2, "rounds": 2, "dpt_layers": (0, 0, 1, 1), "camera": False, "point": False}


def aggregator(preset: str, **config: object) -> Aggregator:
    torch.manual_seed(0)
    made = Aggregator(Config(preset=preset, **(SMALL | {"embedder_heads": 2, "embedder_blocks": 1} | config)))
    for token in (made.camera_token, made.register_token):
        torch.nn.init.normal_(token)
    return made.eval()


def test_positions_count_from_one_after_the_special_tokens() -> None:
    assert positions((2, 3), 2).tolist() == [[0, 0], [0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


@pytest.mark.parametrize("preset", ["tiny", "reference"])
def test_frames_after_the_first_are_told_apart_by_their_images_alone(preset: str) -> None:
    made, patch = aggregator(preset), 14 if preset == "reference" else 8
    images = torch.rand(1, 3, 3, 2 * patch, 3 * patch)
    with torch.no_grad():
        before, after = made(images)[1], made(images[:, [0, 2, 1]])[1]
        torch.testing.assert_close(after, before[:, [0, 2, 1]], rtol=1e-4, atol=1e-5)
        moved = made(images[:, [1, 0, 2]])[1]
    assert (moved - before[:, [1, 0, 2]]).abs().max() > 1e-2


def test_a_sample_does_not_see_the_others_of_its_batch() -> None:
    made, images = aggregator("tiny"), torch.rand(2, 2, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(made(images)[1][:1], made(images[:1])[1], rtol=1e-4, atol=1e-5)


def test_recomputed_activations_give_the_same_gradients() -> None:
    images = torch.rand(1, 2, 3, 28, 42)
    gradients = []
    for checkpointing in (False, True):
        made = aggregator("reference", checkpointing=checkpointing).train()
        made(images)[1].square().sum().backward()
        gradients.append({name: p.grad for name, p in made.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_learnt_positions_are_kept_on_their_own_grid_and_resized_elsewhere() -> None:
    embedder = VisionTransformer(Config(preset="reference"))
    assert embedder.positions((4, 4)) is embedder.pos_embed
    torch.nn.init.constant_(embedder.pos_embed, 0.3)
    resized = embedder.positions((3, 7))
    assert resized.shape == (1, 22, 64)
    torch.testing.assert_close(resized, torch.full_like(resized, 0.3))
