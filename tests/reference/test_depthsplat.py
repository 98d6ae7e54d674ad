"""DepthSplat's encoder against reference vectors of the published one, with weights drawn by the vectors' rule.

Names and shapes, outputs of all cases, probes of every stage and gradient norms, within the tolerances that come with them.
"""

import functools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plumbline.quaternions import to_matrices
from plumbline.rendering.gaussians import Gaussians
from plumbline.rendering.harmonics import to_standard
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.encoder import Encoded, Encoder
from plumbline.systems.depthsplat.views import Views

SEED = int(os.environ.get("PLUMBLINE_GOLDEN_SEED", "0"))
PRESETS = {"vits": "small", "vitb": "base", "vitl": "large"}
CASES = ("A_plain", "A_full", "A_v4", "A_b2v3", "A_varK", "D_varK", "B_v2", "C_train", "C_eval", "D_v2", "C_vitb")
GAINS = {
    "depth_predictor.upsampler.scratch.output_conv.4.weight": 0.003,
    "feature_upsampler.scratch.refinenet1.out_conv.weight": 0.03,
    "gaussian_head.2.weight": 0.5,
}
OUTPUT, PROBE, GRADIENT = 1e-4, 1e-3, 5e-3
# Two more nets than these would not fit into a small machine's memory beside the base one.
KEPT_NETS = 2


def weight(name: str, shape: tuple[int, ...], rule: str) -> np.ndarray:
    """The value of the entry `name`, by the rule."""
    x = np.random.default_rng((zlib.crc32(name.encode()) + SEED) % 2**32).standard_normal(shape)
    full = rule == "full"
    if name.endswith(("cls_token", "pos_embed")):
        value = 0.02 * x
    elif name.endswith(".bias"):
        value = 0.05 * x * full
    elif len(shape) == 1:
        value = 1 + 0.1 * x * full
    else:
        gain = 0.03 if name.startswith("depth_predictor.regressor_residual.") else GAINS.get(name, 1.0)
        value = gain * np.sqrt(2 / np.prod(shape[1:])) * x
    return value.astype(np.float32)


@functools.lru_cache(KEPT_NETS)
def network(preset: str, scales: int, stride: int, rule: str) -> Encoder:
    """An encoder with the rule's weights."""
    with torch.device("meta"):
        encoder = Encoder(Config(preset=preset, scales=scales, stride=stride))
    state = {k: torch.from_numpy(weight(k, tuple(v.shape), rule)) for k, v in encoder.state_dict().items()}
    encoder.load_state_dict(state, assign=True)
    return encoder


@pytest.fixture(scope="module")
def manifest(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "depthsplat_manifest.json").read_text())["configs"]


@pytest.fixture(scope="module")
def stages(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "depthsplat_stages.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    """Give the networks' memory back afterwards."""
    yield
    network.cache_clear()


def vectors(golden: Path, case: str) -> dict[str, Tensor]:
    """The arrays of one case, by name."""
    with np.load(golden / "depthsplat.npz", allow_pickle=False) as file:
        names = [name for name in file.files if name.startswith(f"{case}/")]
        return {name.removeprefix(f"{case}/"): torch.from_numpy(file[name]) for name in names}


def prepared(case: dict[str, Any], given: dict[str, Tensor]) -> tuple[Encoder, Views]:
    """The network and the views of a case, in the case's mode."""
    geometry = case["geom"]
    encoder = network(PRESETS[case["vit"]], geometry["num_scales"], geometry["lowest_feature_resolution"], case["rule"])
    names = ("image", "intrinsics", "extrinsics", "near", "far")
    return encoder.train(case["train"]), Views(*(given[f"in.{name}"] for name in names))


def official(encoded: Encoded, views: Views) -> dict[str, Tensor]:
    """Everything returned, as the published encoder returns it: predictions along the batch, colours in e3nn's order."""
    joined = {
        name: torch.cat([getattr(one, name) for one in encoded.gaussians])
        for name in ("means", "covariances", "harmonics", "opacities", "scales", "rotations")
    }
    # to_standard is an orthogonal matrix: its transpose takes it back.
    joined["harmonics"] = joined["harmonics"] @ to_standard(torch.eye(9)).T
    return {"depth": torch.cat(encoded.depths), **joined}


def close(name: str, actual: Tensor, expected: Tensor, tolerance: float = OUTPUT) -> None:
    """Equal to within `tolerance` of the largest expected value."""
    error = float((actual - expected).abs().max()) / float(expected.abs().max())
    assert error <= tolerance, f"{name}: {error:.1e} of the largest value, expected at most {tolerance:.0e}"


@contextmanager
def recorded(encoder: Encoder, views: int) -> Iterator[dict[str, Tensor]]:
    """What passes through the stages, by the vectors' names."""
    found: dict[str, Tensor] = {}
    predictor = encoder.depth_predictor

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            if name == "transformer":
                found.update({f"{name}[{k}]": out[:, k] for k in range(views)})
            elif isinstance(out, Tensor):
                found[name] = out
            else:
                found.update({f"{name}[{k}]": x for k, x in enumerate(out)})
            if name.startswith("regressor."):
                scale = int(name[-1])
                found[f"regressor_input.{scale}"] = given[0]
                found[f"cost_volume.{scale}"] = given[0][:, : encoder.config.swept(scale)]

        return hook

    named: dict[str, nn.Module | None] = {
        "backbone": predictor.backbone,
        "transformer": predictor.transformer,
        "mv_pyramid": predictor.mv_pyramid,
        "mono_pyramid": predictor.mono_pyramid,
        "mono_1_8": predictor.pretrained,
        "upsampler_residual": predictor.upsampler,
        "feature_upsampler": encoder.feature_upsampler,
        "gaussian_regressor": encoder.gaussian_regressor,
        "gaussian_head": encoder.gaussian_head,
    }
    for kind, parts in (
        ("regressor", predictor.regressor),
        ("regressor_residual", predictor.regressor_residual),
        ("depth_head_logits", predictor.depth_head),
    ):
        named |= {f"{kind}.{scale}": part for scale, part in enumerate(parts)}
    hooks = [module.register_forward_hook(keep(name)) for name, module in named.items() if module is not None]
    yield found
    for hook in hooks:
        hook.remove()


def probe(x: Tensor) -> dict[str, Any]:
    """What the vectors hold of a stage."""
    flat = x.detach().double().flatten()
    where = torch.from_numpy(np.linspace(0, flat.numel() - 1, 16).astype(np.int64))
    return {
        "shape": list(x.shape),
        "mean": float(flat.mean()),
        "std": float(flat.std(correction=0)),
        "absmax": float(flat.abs().max()),
        "samples": flat[where].tolist(),
    }


def assert_probes(found: dict[str, Tensor], expected: dict[str, Any]) -> None:
    """Every probe of the vectors is among `found` and equal; values of a stage are compared by its spread."""
    assert set(expected) <= set(found), sorted(set(expected) - set(found))
    for name, theirs in expected.items():
        ours = probe(found[name])
        assert ours["shape"] == theirs["shape"], name
        scale = theirs["std"]
        for value in ("mean", "std", "absmax", "samples"):
            assert ours[value] == pytest.approx(theirs[value], rel=PROBE, abs=PROBE * scale), (name, value)


def rotations_of(gaussians: Tensor, views: Views) -> Tensor:
    """Matrices of the Gaussians' axes in the frame of the view each comes from."""
    b, v = views.shape
    world = torch.unflatten(to_matrices(gaussians), 1, (v, -1))
    R = views.world_T_cam[..., :3, :3].repeat(len(gaussians) // b, 1, 1, 1)
    return (R.mT[:, :, None] @ world).flatten(1, 2)


def test_names_and_shapes_are_the_published_ones(manifest: dict[str, Any]) -> None:
    assert len(manifest) == 7
    for name, entry in manifest.items():
        vit, scales, upsampling, stride = name.split("-")
        config = Config(preset=PRESETS[vit], scales=int(scales[-1]), stride=int(stride[-1]))
        assert config.upsampling == int(upsampling[-1])
        with torch.device("meta"):
            encoder, depth = Encoder(config), Encoder(config.model_copy(update={"gaussians": False}))
        assert {key: list(value.shape) for key, value in encoder.state_dict().items()} == entry["tensors"], name
        assert sum(p.numel() for p in encoder.parameters()) == entry["n_params"]
        assert sum(p.numel() for p in depth.parameters()) == entry["n_params_depth_predictor"]


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_stages(golden: Path, stages: dict[str, Any], case: str) -> None:
    given = vectors(golden, case)
    encoder, views = prepared(stages[case], given)
    with torch.no_grad(), recorded(encoder, views.shape[1]) as found:
        encoded = encoder(views)
    ours = official(encoded, views)
    close("depth", ours["depth"], given["out.depth"])
    covariances = ours["covariances"].flatten(2)[..., [0, 1, 2, 4, 5, 8]]
    turned = rotations_of(ours["rotations"], views)
    for name, value in (
        ("means", ours["means"]),
        ("covariances", covariances),
        ("harmonics", ours["harmonics"]),
        ("opacities", ours["opacities"]),
        ("scales", ours["scales"]),
        ("rotations_xyzw_cam", turned),
    ):
        expected = given[f"out.{name}"]
        if name == "rotations_xyzw_cam":
            expected = to_matrices(expected)
        close(name, value[:, :: int(given[f"step.{name}"])], expected)
    for scale, probability in enumerate(encoded.probability):
        found[f"match_prob[{scale}]"], found[f"match_prob_max[{scale}]"] = probability, probability.amax(dim=1)
    found |= {f"depth_pred[{k}]": depth for k, depth in enumerate(encoded.depths)}
    found |= {f"out.{name}": value for name, value in ours.items() if name != "rotations"}
    expected_probes = {k: v for k, v in stages[case]["stages"].items() if k != "out.rotations_xyzw_cam"}
    assert_probes(found, expected_probes)


@pytest.mark.parametrize("case", ["A_full", "C_train"])
def test_gradient_norms(golden: Path, stages: dict[str, Any], case: str) -> None:
    expected = json.loads((golden / "depthsplat_grads.json").read_text())[case]
    encoder, views = prepared(stages[case], vectors(golden, case))
    loss = objective(encoder(views))
    assert loss.item() == pytest.approx(expected.pop("loss"), rel=OUTPUT)
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    norms = {name: float(g.norm()) for name, g in zip(names, torch.autograd.grad(loss, parameters), strict=True)}
    # In front of an instance norm: the true gradient is 0, and what is left is rounding.
    idle = {name for name in names if "backbone.layer" in name and name.endswith("downsample.0.bias")}
    assert set(norms) == set(expected) and max(norms[name] for name in idle) < 1e-5
    wrong = {
        name: (norms[name], expected[name])
        for name in set(norms) - idle
        if abs(norms[name] - expected[name]) > GRADIENT * expected[name]
    }
    assert not wrong


def objective(encoded: Encoded) -> Tensor:
    """The vectors' loss over everything returned."""
    depths = torch.cat(encoded.depths)

    def mean(function: Callable[[Gaussians], Tensor]) -> Tensor:
        return torch.cat([function(one) for one in encoded.gaussians]).mean()

    return (
        depths.log().mean()
        + 1e-3 * mean(lambda one: one.means.square())
        + mean(lambda one: one.opacities)
        + mean(lambda one: one.harmonics.square())
        + mean(lambda one: one.covariances.diagonal(dim1=-2, dim2=-1))
    )
