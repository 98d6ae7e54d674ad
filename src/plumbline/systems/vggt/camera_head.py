"""VGGT's camera head: an estimate of every frame's camera, refined a few times from the same camera tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.vggt.config import Config
from plumbline.systems.vggt.encoding import FIELDS, FOV
from plumbline.systems.vit.attention import Block, Mlp


class CameraHead(nn.Module):
    """Each iteration reads the last estimate, cut off from the graph, and answers what to add to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = 2 * config.width
        self.iterations = config.camera_iterations
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, FIELDS))
        self.trunk = nn.Sequential(
            *(
                Block(width, config.camera_heads, mlp_ratio=config.mlp_ratio, layer_scale=config.layer_scale)
                for _ in range(config.camera_blocks)
            )
        )
        self.token_norm = nn.LayerNorm(width)
        self.trunk_norm = nn.LayerNorm(width)
        self.embed_pose = nn.Linear(FIELDS, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.pose_branch = Mlp(width, width // 2, FIELDS)
        with torch.no_grad():
            # Fields of view pass a ReLU: those that start below 0 would never learn.
            self.pose_branch.fc2.bias[FOV] += config.first_fov

    def forward(self, tokens: Float[Tensor, "b s c"]) -> list[Float[Tensor, "b s 9"]]:
        """The encoded cameras (see encoding.py) after each iteration, from the camera tokens of the last round."""
        tokens = self.token_norm(tokens)
        estimate: Tensor | None = None
        answers = []
        for _ in range(self.iterations):
            known = self.empty_pose_tokens if estimate is None else estimate.detach()
            delta = self._delta(tokens, known.expand(*tokens.shape[:2], -1))
            estimate = delta if estimate is None else estimate.detach() + delta
            answers.append(torch.cat([estimate[..., : FOV.start], estimate[..., FOV].relu()], dim=-1))
        return answers

    def _delta(self, tokens: Float[Tensor, "b s c"], known: Float[Tensor, "b s 9"]) -> Float[Tensor, "b s 9"]:
        """What to add, from tokens modulated by what is known (adaptive norm of Peebles and Xie 2023)."""
        shift, scale, gate = self.poseLN_modulation(self.embed_pose(known)).chunk(3, dim=-1)
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        return self.pose_branch(self.trunk_norm(self.trunk(tokens + gate * (normed * (1 + scale) + shift))))
