"""A training step of DeltaZ's U-Net as the project runs it, against the same network eager, contiguous, in float32."""

import copy
from functools import partial
from pathlib import Path

import torch
from torch import nn

import allocator
from plumbline.systems.deltaz.network import DeltaZUNet
from plumbline.training import cpu_has_bf16, to_channels_last
from timing import Bench, Contender

CHANNELS = 7
# The loss after two steps; bfloat16 keeps 8 bits of a feature, and a loss is a mean over many pixels.
TOLERANCE = {False: {"rtol": 1e-4, "atol": 1e-5}, True: {"rtol": 1e-2, "atol": 1e-3}}


class Step:
    """A network with its optimiser; calling it makes one step on the same batch. The loss is always in float32."""

    def __init__(self, network: nn.Module, batch: torch.Tensor, truth: torch.Tensor, *, bf16: bool = False) -> None:
        self.network, self.batch, self.truth = network, batch, truth
        self.autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=bf16)
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def __call__(self) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        with self.autocast():
            answer = self.network(self.batch)
        loss = (answer.correction - self.truth).abs().mean()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


def benches(_: Path) -> list[Bench]:
    """The default size at batch 4 and DTU's full training size at batch 1; in bfloat16 where the CPU computes in it."""
    cases = [
        bench(batch=4, size=(128, 160), target=1.1, bf16=False),
        bench(batch=1, size=(512, 640), target=1.35, bf16=False),
    ]
    if cpu_has_bf16():
        cases += [
            bench(batch=4, size=(128, 160), target=1.6, bf16=True),
            bench(batch=1, size=(512, 640), target=1.8, bf16=True),
        ]
    return cases


def bench(*, batch: int, size: tuple[int, int], target: float, bf16: bool) -> Bench:
    """The same weights and data twice, in both memory layouts, ours in bfloat16 when `bf16`."""
    torch.manual_seed(0)
    images, truth = torch.rand(batch, CHANNELS, *size), torch.rand(batch, *size)
    network = DeltaZUNet(CHANNELS)
    # A head of zeros, as training starts with, would hide what comes before it from the comparison.
    nn.init.normal_(network.correction_head.weight, std=0.05)
    ours_network = copy.deepcopy(network)
    to_channels_last(ours_network)
    peer = Step(network, images, truth)
    ours = Step(ours_network, images.contiguous(memory_format=torch.channels_last), truth, bf16=bf16)

    def check() -> None:
        first = [[step() for _ in range(2)] for step in (peer, ours)]
        torch.testing.assert_close(torch.tensor(first[1]), torch.tensor(first[0]), **TOLERANCE[bf16])

    name = "channels_last, freed memory kept"
    return Bench(
        f"unet_step_{size[0]}x{size[1]}{'_bf16' if bf16 else ''}",
        Contender("eager, contiguous, float32", peer, allocator.plain),
        Contender(f"bfloat16, {name}" if bf16 else name, ours, allocator.kept),
        target=target,
        check=check,
        rounds=3,
        variants=(Contender("eager, contiguous, float32, freed memory kept", peer, allocator.kept),),
    )
