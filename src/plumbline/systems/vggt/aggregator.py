"""VGGT's trunk: patches become tokens, frame by frame, and attend within their frame and across all frames in turn.

Module names are those of the published checkpoints.
"""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from plumbline.systems.blocks import run
from plumbline.systems.vggt.config import Config
from plumbline.systems.vit.attention import Block, rotations
from plumbline.systems.vit.tokens import FIRST_STD, PatchEmbed, draw_linear_layers, learnt_positions, normalised

_FIRST_TOKEN_STD = 1e-6


class VisionTransformer(nn.Module):
    """DINOv2's encoder with registers (Oquab et al. 2023; Darcet et al. 2023)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, side = config.width, config.image_size // config.patch
        self.patch = config.patch
        self.checkpointing = config.checkpointing
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + side * side, width))
        self.register_tokens = nn.Parameter(torch.empty(1, config.registers, width)) if config.registers else None
        # Nothing is masked here, but the checkpoints have it.
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)
        self.patch_embed = PatchEmbed(config.patch, width)
        self.blocks = nn.ModuleList(
            Block(width, config.embedder_heads, mlp_ratio=config.mlp_ratio, layer_scale=1.0, norm_eps=1e-6)
            for _ in range(config.embedder_blocks)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._draw()

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t c"]:
        """Tokens of the patches alone, row-major; `images` are normalised."""
        height, width = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        tokens = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions((height, width))
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for block in self.blocks:
            x = run(block, x, checkpointing=self.checkpointing and self.training)
        return self.norm(x)[:, -tokens.shape[1] :]

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 t c"]:
        """The learnt positions of the class token and of a `grid` (rows, columns) of patches, resized to it by bicubics."""
        resize = partial(F.interpolate, size=grid, mode="bicubic", antialias=True)
        return learnt_positions(self.pos_embed, grid, resize)

    def _draw(self) -> None:
        nn.init.normal_(self.cls_token, std=_FIRST_TOKEN_STD)
        nn.init.trunc_normal_(self.pos_embed, std=FIRST_STD)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=_FIRST_TOKEN_STD)
        draw_linear_layers(self)


class Aggregator(nn.Module):
    """Rounds of a frame block (tokens of one frame) and a global block (tokens of all frames).

    Each frame has a camera token and registers before its patches; the first frame, the reference, has its own ones, all
    others share theirs. Beside that nothing tells frames apart.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.camera_token = nn.Parameter(torch.empty(1, 2, 1, width).normal_(std=_FIRST_TOKEN_STD))
        self.register_token = nn.Parameter(torch.empty(1, 2, config.registers, width).normal_(std=_FIRST_TOKEN_STD))
        self.patch_embed = VisionTransformer(config) if config.embedder == "vit" else PatchEmbed(config.patch, width)
        self.frame_blocks = nn.ModuleList(_round_block(config) for _ in range(config.rounds))
        self.global_blocks = nn.ModuleList(_round_block(config) for _ in range(config.rounds))

    @property
    def special(self) -> int:
        """The number of tokens before a frame's patches."""
        return 1 + self.config.registers

    def forward(self, images: Float[Tensor, "b s 3 h w"]) -> dict[int, Float[Tensor, "b s p c2"]]:
        """Tokens after the rounds that heads read, by round: the frame block's and the global block's, concatenated.

        `images` are in [0, 1], both sizes multiples of the patch. A frame's tokens: camera, registers, patches row-major.
        """
        config, x = self.config, self.tokens(images)
        patches = (images.shape[-2] // config.patch, images.shape[-1] // config.patch)
        grid = positions(patches, self.special, device=x.device)
        within = rotations(grid, config.width // config.heads, base=config.rope_base)
        across = within.repeat(images.shape[1])
        kept = {}
        checkpointing = config.checkpointing and self.training
        for index, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            framed = run(frame_block, x.flatten(0, 1), within, checkpointing=checkpointing).reshape(x.shape)
            x = run(global_block, framed.flatten(1, 2), across, checkpointing=checkpointing).reshape(framed.shape)
            if index in config.kept_rounds:
                kept[index] = torch.cat([framed, x], dim=-1)
        return kept

    def tokens(self, images: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b s p c"]:
        """The tokens that enter the first round."""
        b, s = images.shape[:2]
        patches = torch.unflatten(self.embed(images.flatten(0, 1)), 0, (b, s))
        camera, registers = _of_frames(self.camera_token, b, s), _of_frames(self.register_token, b, s)
        return torch.cat([camera, registers, patches.to(camera.dtype)], dim=2)

    def embed(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t c"]:
        """Patch tokens of images in [0, 1], each on its own."""
        return self.patch_embed(normalised(images))


def positions(grid: tuple[int, int], special: int, *, device: torch.device | str = "cpu") -> Int[Tensor, "p 2"]:
    """(y, x) of a frame's tokens: 0 for those before the patches, which are thus not rotated; patches count from 1."""
    rows, columns = (torch.arange(1, count + 1, device=device) for count in grid)
    patches = torch.cartesian_prod(rows, columns)
    return torch.cat([patches.new_zeros(special, 2), patches])


def _round_block(config: Config) -> Block:
    return Block(
        config.width, config.heads, mlp_ratio=config.mlp_ratio, layer_scale=config.layer_scale, normalised=True
    )


def _of_frames(token: Float[Tensor, "1 2 k c"], b: int, s: int) -> Float[Tensor, "b s k c"]:
    """The first of two sets of tokens for the first frame, the second for all others."""
    return torch.cat([token[:, :1], token[:, 1:].expand(-1, s - 1, -1, -1)], dim=1).expand(b, -1, -1, -1)
