"""Data parallel over processes started by torchrun (or any launcher that sets the same variables); else one process.

torchrun --nproc-per-node 4 --max-restarts 3 stages/train.py deltaz
"""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """The processes that train together: this one's rank, their number, and the device of this one."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, items: int) -> slice:
        """This rank's equal part of `items` items; `items` must be a multiple of `size`."""
        part = items // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over the group; itself when there is one process."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, device_ids=[self.device] if self.device.type == "cuda" else None)

    def mean(self, values: Tensor) -> Tensor:
        """`values` averaged over the group, the same bits on every rank."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def gather(self, item: T) -> list[T]:
        """Each rank's `item`, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        items: list[T | None] = [None] * self.size
        dist.all_gather_object(items, item)
        return items  # type: ignore[return-value]  # every place was filled

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def join(device: str = "auto") -> Iterator[Group]:
    """The group this process belongs to, left at the end of the block; after an error it is not waited for."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    group = Group(rank, size, choose_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0"))))
    if size == 1:
        yield group
        return
    _connect(group)
    yield group
    dist.barrier()
    dist.destroy_process_group()


def choose_device(device: str, *, local_rank: int = 0) -> torch.device:
    """`auto` is the GPU of this local rank where there is one, else the CPU; other names are taken as they are."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def _connect(group: Group) -> None:
    on_gpu = group.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(group.device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=_store(group), rank=group.rank, world_size=group.size, timeout=_TIMEOUT
    )


def _store(group: Group) -> Store:
    # A restarted worker must not read its peers' addresses of the attempt before: that hangs, so each attempt has a
    # key space of its own. Under torchrun the agent hosts the store; under another launcher rank 0 does.
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, None, is_master=not hosted and group.is_main, timeout=_TIMEOUT)
    return PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
