"""Look again at a batch whose loss or gradient was not finite: `python -m plumbline.replay FILE`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from plumbline import checkpoint
from plumbline.errors import DataError, PlumblineError
from plumbline.systems import build
from plumbline.systems.records import Batch


def replay(path: Path, system: Any = None) -> list[dict[str, float]]:
    """Each saved sample's losses and the norm of its gradient (`grad_norm`), in the batch's order, as training saw them.

    `system` (default: built anew from the name and parameters in the file) gets the saved weights. DataError when the
    file is none of those that training saves at a loss that is not finite.
    """
    saved = checkpoint.load(path)
    if "batch" not in saved:
        raise DataError(f"{path}: holds no batch. Expected a nonfinite-*.pt that a stopped training run named.")
    system = system or build(saved["system"], saved["params"])
    system.load_state_dict(saved["model"])
    batch = Batch(**saved["batch"])
    return [_losses(system.train(), batch.rows(slice(i, i + 1))) for i in range(len(batch.image))]


def _losses(system: Any, sample: Batch) -> dict[str, float]:
    system.zero_grad(set_to_none=True)
    losses = system.loss(system(sample.select(system.inputs)), sample)
    losses["total"].backward()
    grads = [parameter.grad for parameter in system.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    return {**{name: float(value.detach()) for name, value in losses.items()}, "grad_norm": float(norm)}


def table(saved: Mapping[str, Any], rows: list[dict[str, float]]) -> str:
    """The samples' losses as text, one line a sample."""
    head = f"{saved['system']}, step {saved['step']}, scene {saved['scene']}"
    names = list(rows[0])
    lines = [head, "sample  " + "  ".join(f"{name:>12}" for name in names)]
    for index, row in zip(saved["indices"], rows, strict=True):
        lines.append(f"{index:>6}  " + "  ".join(f"{row[name]:>{max(12, len(name))}.5g}" for name in names))
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the table for the file named in `arguments`; the exit status."""
    if len(arguments) != 1:
        print("usage: python -m plumbline.replay FILE", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        print(table(checkpoint.load(path), replay(path)))
    except PlumblineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
