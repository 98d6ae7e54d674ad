"""A system and a feed small enough to train in a test: depth from image and initial depth by one small network."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from plumbline.systems.records import Batch, Prediction


class TinySystem(nn.Module):
    inputs = frozenset({"image", "initial_depth"})

    def __init__(self, *, dropout: float = 0.0, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, width, 3, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, batch: Batch) -> Prediction:
        x = torch.cat([batch.image[:, 0], batch.initial_depth[:, :1]], 1)
        correction = self.last(self.dropout(torch.relu(self.norm(self.first(x)))))
        return Prediction(depth=(batch.initial_depth[:, :1] + correction).clamp(min=0.01))

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        error = (prediction.depth - batch.depth[:, :1]).abs().flatten(1).mean(1).mean()
        size = prediction.depth.flatten(1).mean(1).mean() * 0.01
        return {"depth": error, "size": size, "total": error + size}


class NoisySystem(TinySystem):
    """Draws from the generator it is handed, and from torch's own through dropout."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        return replace(batch, image=batch.image * torch.rand(len(batch.image), 1, 1, 1, 1, generator=generator))


@dataclass(frozen=True)
class TinyFeed:
    """`per_scene` samples of each of `scenes` scenes; a sample's content follows from its number and `seed` alone."""

    scenes: int = 3
    per_scene: int = 5
    seed: int = 0
    broken: int | None = None  # a sample whose initial depth is not a number

    @property
    def scenes_of(self) -> Sequence[str]:
        return [f"scene{i // self.per_scene}" for i in range(self.scenes * self.per_scene)]

    @property
    def parts_of(self) -> Sequence[str]:
        return [""] * (self.scenes * self.per_scene)

    def scores(self) -> Sequence[float]:
        return [1.0 + i % self.per_scene for i in range(self.scenes * self.per_scene)]

    @property
    def identity(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def load(self, indices: Sequence[int], *, step: int = 0) -> Batch:
        samples = [self._sample(int(i)) for i in indices]
        image, depth, initial = (torch.stack(part) for part in zip(*samples, strict=True))
        eye = torch.eye(4).expand(len(image), 1, 4, 4)
        return Batch(image, eye[:, :, :3, :3], eye, None, depth=depth, mask=depth > 0, initial_depth=initial)

    def _sample(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        image = torch.rand(1, 3, 8, 8, generator=generator)
        depth = 1 + image.mean(1)
        initial = depth + 0.2 * torch.randn(depth.shape, generator=generator)
        return image, depth, initial if index != self.broken else initial * torch.nan
