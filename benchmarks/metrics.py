"""Depth metrics of sixteen 480x640 maps, 30 % not measured: the project's against the usual loop with boolean indexing."""

from pathlib import Path

import numpy as np
import torch

from plumbline.metrics import measure
from timing import Bench, Contender

NAMES = ("abs_rel", "abs_diff", "sq_rel", "rmse", "rmse_log", "delta1", "delta2", "delta3")


def usual_errors(truth: torch.Tensor, prediction: torch.Tensor) -> list[torch.Tensor]:
    """The eight numbers of one map as most evaluation scripts compute them."""
    mask = truth > 0
    gt, pred = truth[mask], prediction[mask]
    thresh = torch.max(gt / pred, pred / gt)
    a1 = (thresh < 1.25).float().mean()
    a2 = (thresh < 1.25**2).float().mean()
    a3 = (thresh < 1.25**3).float().mean()
    rmse = torch.sqrt(((gt - pred) ** 2).mean())
    rmse_log = torch.sqrt(((torch.log(gt) - torch.log(pred)) ** 2).mean())
    abs_diff = torch.mean(torch.abs(gt - pred))
    abs_rel = torch.mean(torch.abs(gt - pred) / gt)
    sq_rel = torch.mean((gt - pred) ** 2 / gt)
    return [abs_rel, abs_diff, sq_rel, rmse, rmse_log, a1, a2, a3]


def benches(_: Path) -> list[Bench]:
    """Rendered-like maps: blocks without truth, predictions off by some per cent. Ours computes three numbers more."""
    generator = np.random.default_rng(0)
    truth = generator.uniform(0.5, 10, (16, 480, 640)).astype(np.float32)
    holes = np.kron(generator.random((16, 15, 20)) < 0.3, np.ones((1, 32, 32))) > 0
    truth[holes] = 0
    noise = generator.normal(1, 0.15, truth.shape)
    prediction = np.clip(np.where(holes, 2.0, truth) * noise, 0.05, None).astype(np.float32)
    truths, predictions = torch.from_numpy(truth), torch.from_numpy(prediction)

    def peer() -> list[list[float]]:
        return [[float(x) for x in usual_errors(truths[i], predictions[i])] for i in range(len(truths))]

    def check() -> None:
        ours = [[row.values[name] for name in NAMES] for row in measure(prediction, truth)]
        np.testing.assert_allclose(ours, peer(), rtol=2e-5, atol=1e-6)

    return [
        Bench(
            "metrics_16x480x640",
            Contender("the usual torch loop, boolean index", peer),
            Contender("metrics.measure", lambda: measure(prediction, truth)),
            target=3.5,
            check=check,
            limit=Contender("read both maps once", lambda: (truth.sum(), prediction.sum())),
        )
    ]
