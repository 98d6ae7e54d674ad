"""A system of params.yaml before the overfit gate: built, given its extracted sample, and judged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plumbline import systems
from plumbline.data.checks import CheckConfig
from plumbline.data.pair import Pair, read_labels, read_other, read_pair
from plumbline.feed import SampleFeed
from plumbline.overfit import OverfitConfig, overfit_pair
from plumbline.overfit_verdict import Verdict
from plumbline.systems.records import Batch


@dataclass(frozen=True)
class Places:
    """Where a gate reads and writes: data/pair/<system>, data/pseudo_labels, runs/overfit/<system>."""

    pair: Path
    labels: Path
    out: Path


def run_gate(
    name: str, own: Mapping[str, Any], config: OverfitConfig, checks: CheckConfig, *, seed: int, places: Places
) -> Verdict:
    """Judge the system `name`, built from `own` (systems.<name>) with `config.system` over it, and write its record.

    The system gets the context views of its sample, the cameras of its target views if there are any, and labels if it learns
    from some; a method that refines another one's depth gets a constant one instead, the middle of the depth range. Then the
    images alone tell the depth, and no error of another method's stands between the network and its sample.
    """
    params = {**own, **config.system}
    torch.manual_seed(seed)
    system = systems.build(name, params)
    pair, other = read_pair(places.pair), read_other(places.pair)
    batch = sample_batch(pair, system.inputs, labels=places.labels if getattr(system, "labels", None) else None)
    return overfit_pair(
        system,
        batch,
        None if other is None else sample_batch(other, system.inputs),
        pair,
        config,
        checks,
        name=name,
        seed=seed,
        out=places.out,
        notes=_notes(batch, params),
    )


def sample_batch(pair: Pair, inputs: frozenset[str], *, labels: Path | None = None) -> Batch:
    """A sample as a batch of one: its context views given, the others to be rendered.

    Keypoint labels are read from `labels` (data/pseudo_labels).
    """
    size, depth_range = pair.scene.images.shape[1:3], pair.scene.depth_range
    start = None
    if "initial_depth" in inputs:
        start = np.full((1, pair.predict_views, *size), math.sqrt(depth_range[0] * depth_range[1]), np.float32)
    found = None if labels is None else {pair.sample.scene: read_labels(labels / pair.origin["dataset"], pair)}
    feed = SampleFeed(
        {pair.sample.scene: pair.scene},
        [pair.sample],
        initial_depth=start,
        keypoint_probability=found,
        predict_views=pair.predict_views,
    )
    return feed.load([0])


def _notes(batch: Batch, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says beside the gate's own settings: the system as it was built, and what it started from."""
    start = batch.initial_depth
    notes: dict[str, Any] = {"built from": dict(params)}
    if start is not None:
        notes["initial depth"] = f"{float(start.flatten()[0]):.4g} m everywhere, the middle of the depth range"
    return notes
