"""A training step of VGGT's transformer as the project runs it, against naive attention and torch's default products."""

import copy
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import allocator
from plumbline.systems.vggt.aggregator import positions
from plumbline.systems.vit import attention
from plumbline.systems.vit.attention import Attention, Block, Linear, Rotation, rotate, rotations, suits_onednn
from plumbline.training import cpu_has_bf16
from timing import Bench, Contender

FRAMES, SPECIAL = 2, 5
# bfloat16 keeps 8 bits, and the loss is a mean over many channels.
BF16_TOLERANCE = {"rtol": 2e-2, "atol": 1e-3}
NAIVE = "softmax attention written out, default matmul"


class Trunk(nn.Module):
    """Rounds of a block within frames and one across them, as in the aggregator, on tokens "1 s p c"."""

    def __init__(self, *, rounds: int, width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, layer_scale=0.1, normalised=True) for _ in range(2 * rounds))
        self.rotation = rotations(positions(grid, SPECIAL), width // heads, base=100.0)

    def forward(self, x: Tensor) -> Tensor:
        across = self.rotation.repeat(FRAMES)
        for within, among in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = within(x.flatten(0, 1), self.rotation).reshape(x.shape)
            x = among(x.flatten(1, 2), across).reshape(x.shape)
        return x


class Step:
    """A trunk with its optimiser; calling it makes one step on the same tokens. The loss is always in float32."""

    def __init__(self, trunk: nn.Module, tokens: Tensor, truth: Tensor, *, bf16: bool = False) -> None:
        self.trunk, self.tokens, self.truth = trunk, tokens, truth
        self.autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=bf16)
        self.optimiser = torch.optim.AdamW(trunk.parameters(), lr=1e-4)

    def __call__(self) -> float:
        loss = self.backward()
        self.optimiser.step()
        return loss

    def backward(self) -> float:
        """The loss, and gradients of it."""
        self.optimiser.zero_grad(set_to_none=True)
        with self.autocast():
            answer = self.trunk(self.tokens)
        loss = (answer.float() - self.truth).square().mean()
        loss.backward()
        return float(loss.detach())


def benches(_: Path) -> list[Bench]:
    """A pair of 16x16 patches at width 384, in bfloat16 where the CPU computes in it, and a width too small for oneDNN."""
    steps = [step(target=1.5, bf16=False), *([step(target=2.0, bf16=True)] if cpu_has_bf16() else [])]
    return [*steps, tiny()]


def step(*, target: float, bf16: bool) -> Bench:
    """3+3 blocks with equal weights, ours in bfloat16 when `bf16`. The bound: the multiply-adds at the rate of large products."""
    torch.manual_seed(0)
    trunk = Trunk(rounds=3, width=384, heads=6, grid=(16, 16))
    tokens, truth = torch.randn(2, 1, FRAMES, SPECIAL + 256, 384)
    ours, peer = Step(trunk, tokens, truth, bf16=bf16), Step(as_usual(trunk), tokens, truth)
    label = "bfloat16" if bf16 else "fused attention, oneDNN's products"
    return Bench(
        f"vggt_step_3+3x384{'_bf16' if bf16 else ''}",
        Contender(NAIVE, peer, allocator.plain),
        Contender(f"{label}, freed memory kept", ours, allocator.kept),
        target=target,
        check=lambda: same(ours, peer, bf16=bf16),
        limit=Contender(
            f"its multiply-adds in large {'bfloat16' if bf16 else 'oneDNN'} products",
            products(multiply_adds(tokens, blocks=6, width=384), torch.bfloat16 if bf16 else torch.float32),
            allocator.kept,
        ),
        rounds=7,
        variants=(Contender(f"{NAIVE}, freed memory kept", peer, allocator.kept),),
    )


def tiny() -> Bench:
    """Blocks so narrow that calling oneDNN costs more than it saves: the rule leaves it out, the peer takes it always."""
    torch.manual_seed(1)
    trunk = Trunk(rounds=3, width=32, heads=2, grid=(6, 6))
    tokens, truth = torch.randn(2, 1, FRAMES, SPECIAL + 36, 32)
    ours = Step(trunk, tokens, truth)
    assert not suits_onednn(tokens, trunk.blocks[0].mlp.fc1.weight)

    def always() -> float:
        with mock.patch.object(attention, "suits_onednn", lambda x, weight: True):
            return ours()

    def never() -> float:
        with mock.patch.object(attention, "suits_onednn", lambda x, weight: False):
            return ours()

    def check() -> None:
        found = [gradients(ours)]
        with mock.patch.object(attention, "suits_onednn", lambda x, weight: True):
            found.append(gradients(ours))
        for one, other in zip(*found, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm()

    return Bench(
        "vggt_step_3+3x32",
        Contender("oneDNN for every product", always),
        Contender("oneDNN by the rule: for none of these", ours),
        target=1.05,
        check=check,
        variants=(Contender("oneDNN never", never),),
    )


def as_usual(trunk: Trunk) -> Trunk:
    """The same weights, with products left to torch and softmax attention written out."""
    usual = copy.deepcopy(trunk)
    for module in usual.modules():
        if isinstance(module, Linear):
            module.forward = types.MethodType(nn.Linear.forward, module)
        if isinstance(module, Attention):
            module.forward = types.MethodType(naive_attention, module)
    return usual


def naive_attention(module: Attention, x: Tensor, rotation: Rotation | None = None) -> Tensor:
    """`Attention.forward` with the matrix of weights between all tokens, its softmax and the mean it gives."""
    q, k, v = module.qkv(x).unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = module.q_norm(q), module.k_norm(k)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    weights = F.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
    return module.proj((weights @ v).transpose(1, 2).flatten(2))


def same(ours: Step, peer: Step, *, bf16: bool) -> None:
    """Raise unless both answer the same and have the same gradients, to 1e-5 in float32; in bfloat16 a loss like the peer's."""
    if bf16:
        losses = torch.tensor([ours.backward(), peer.backward()])
        torch.testing.assert_close(losses[0], losses[1], **BF16_TOLERANCE)
        return
    with torch.no_grad():
        torch.testing.assert_close(ours.trunk(ours.tokens), peer.trunk(peer.tokens), atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients(ours), gradients(peer), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def gradients(step: Step) -> list[Tensor]:
    """Of every parameter."""
    step.backward()
    return [parameter.grad.clone() for parameter in step.trunk.parameters()]


def multiply_adds(tokens: Tensor, *, blocks: int, width: int) -> float:
    """Of a step forward and backward: 12 c^2 a token in linear layers, 2 n c a token in attention to n others."""
    per_frame, rows = tokens.shape[2], tokens.shape[1] * tokens.shape[2]
    reached = (per_frame + rows) / 2
    return 3.0 * blocks * rows * (12 * width**2 + 2 * reached * width)


def products(count: float, dtype: torch.dtype) -> Callable[[], None]:
    """`count` multiply-adds in products of 1024x1024 matrices, in oneDNN."""
    x, weight = torch.randn(2, 1024, 1024).to(dtype)
    repeats = round(count / 1024**3)

    def run() -> None:
        with torch.no_grad():
            for _ in range(repeats):
                torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    return run
