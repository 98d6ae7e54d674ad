"""A training step of DeltaZ's U-Net as the project runs it, against the same network eager, contiguous, in float32."""

import copy
from pathlib import Path

import torch
from torch import nn

import allocator
from plumbline.systems.deltaz.network import DeltaZUNet
from plumbline.training import to_channels_last
from timing import Bench, Contender

CHANNELS = 7


class Step:
    """A network with its optimiser; calling it makes one step on the same batch."""

    def __init__(self, network: nn.Module, batch: torch.Tensor, truth: torch.Tensor) -> None:
        self.network, self.batch, self.truth = network, batch, truth
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def __call__(self) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        loss = (self.network(self.batch)[0] - self.truth).abs().mean()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


def benches(_: Path) -> list[Bench]:
    """The default size at batch 4 and DTU's full training size at batch 1."""
    return [
        bench(batch=4, size=(128, 160), target=1.1, rounds=3),
        bench(batch=1, size=(512, 640), target=1.35, rounds=3),
    ]


def bench(*, batch: int, size: tuple[int, int], target: float, rounds: int) -> Bench:
    """The same weights and data twice, in both memory layouts."""
    torch.manual_seed(0)
    images, truth = torch.rand(batch, CHANNELS, *size), torch.rand(batch, *size)
    network = DeltaZUNet(CHANNELS)
    ours_network = copy.deepcopy(network)
    to_channels_last(ours_network)
    peer = Step(network, images, truth)
    ours = Step(ours_network, images.contiguous(memory_format=torch.channels_last), truth)

    def check() -> None:
        first = [[step() for _ in range(2)] for step in (peer, ours)]
        torch.testing.assert_close(torch.tensor(first[1]), torch.tensor(first[0]), rtol=1e-4, atol=1e-5)

    return Bench(
        f"unet_step_{size[0]}x{size[1]}",
        Contender("eager, contiguous, float32", peer, allocator.plain),
        Contender("channels_last, freed memory kept", ours, allocator.kept),
        target=target,
        check=check,
        rounds=rounds,
        variants=(Contender("eager, contiguous, float32, freed memory kept", peer, allocator.kept),),
    )
