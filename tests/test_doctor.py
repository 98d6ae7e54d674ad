"""`plumbline doctor`: what it says of systems that can be trained, and of those that cannot."""

import math
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

from plane_scene import scene
from plumbline.cli import app
from plumbline.data.pair import PairConfig, extract_pair
from plumbline.doctor import Examination, Subject, examine, open_subject, rates, tiled
from plumbline.doctor_show import curve, show
from plumbline.errors import ConfigError, DataError
from plumbline.overfit import OverfitConfig
from plumbline.systems import build
from plumbline.systems.records import Batch, Prediction
from plumbline.training import Schedule, TrainConfig
from test_overfit import DELTAS, DELTAZ, depthsplat, rendered_samples
from tiny_training import TinySystem

VGGT: dict[str, Any] = {
    "preset": "tiny", "width": 32, "rounds": 2, "camera_blocks": 1, "dpt_features": 16, "dpt_widths": [8, 8, 8, 8],
    "dpt_layers": [0, 0, 1, 1],
}  # fmt: skip
RESTING = {"deltas": ("tri.convD_confa", "tri.bnconvD_confa")}
CONFIG = TrainConfig(steps=200, batch_size=2, lr_scale=10.0, device="cpu", threads=1, val_every=100)


def batch(name: str = "tiny") -> Batch:
    views = 2 if name == "vggt" else 1
    return scene(1, p=views, v=max(views, 3 if name == "deltas" else 2), size=(48, 64))


def subject(system: nn.Module, name: str = "tiny", **changes: Any) -> Subject:
    parts: dict[str, Any] = {"batch": batch(name), "config": CONFIG, "lr": 1e-4, "seed": 0}
    return Subject(name, system, **(parts | {"allowed": RESTING.get(name, ())} | changes))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return TinySystem() if name == "tiny" else build(name, {"deltaz": DELTAZ, "deltas": DELTAS, "vggt": VGGT}[name])


def broken(found: Examination) -> list[str]:
    return [finding.text for finding in found.findings if finding.kind == "broken"]


def printed(found: Examination) -> str:
    stream = StringIO()
    show(found, Console(file=stream, width=160, highlight=False))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["tiny", "deltaz", "deltas", "vggt"])
def test_a_system_that_can_be_trained_is_found_whole(name: str) -> None:
    system = made(name)
    found = examine(subject(system, name))
    assert not found.broken, broken(found)
    assert math.isclose(sum(c.contribution for c in found.components), found.total, rel_tol=1e-4, abs_tol=1e-5)
    assert sum(m.parameters for m in found.modules) == sum(p.numel() for p in system.parameters())
    assert found.gradient_norm > 0 and found.depth_error > 0 and found.cost is not None and found.cost.batch == 2
    text = printed(found)
    assert "nothing is broken" in text and all(m.name in text for m in found.modules)
    assert all(c.name in text for c in found.components) and "\x1b" not in text


def test_weights_are_told_from_the_losses_themselves_and_parts_from_wholes() -> None:
    found = {c.name: c for c in examine(subject(made("vggt"), "vggt")).components}
    assert found["camera"].weight == pytest.approx(5) and found["camera"].part_of is None
    assert found["focal"].weight == pytest.approx(2.5) and found["focal"].part_of == "camera"
    assert found["focal"].contribution == 0 and found["depth_gradient"].weight == pytest.approx(1)
    unused = {c.name: c for c in examine(subject(made("deltaz"), "deltaz")).components}["direct_supervision"]
    assert unused.weight is None and unused.contribution == 0


def test_a_head_of_zeros_is_no_missing_gradient() -> None:
    system = made("deltaz")
    head = system.network.correction_head
    nn.init.zeros_(head.weight)
    modules = {m.name: m for m in examine(subject(system, "deltaz")).modules}
    behind = [m.state for name, m in modules.items() if "head" not in name]
    assert "from step 2 on" in behind or all(state == "" for state in behind)


def test_a_frozen_module_is_named_unless_it_is_meant_to_rest() -> None:
    system = made("tiny")
    system.first.requires_grad_(False)
    found = examine(subject(system))
    assert [text for text in broken(found) if text.startswith("Frozen: first has requires_grad off")] == broken(found)
    assert {m.name: m.state for m in found.modules}["first"] == "frozen" and "overfit.tiny.frozen" in broken(found)[0]
    declared = examine(subject(system, allowed=("first",)))
    assert not declared.broken
    assert [f.text for f in declared.findings] == ["Frozen, as configured: first."]


def test_a_network_that_is_frozen_as_a_whole_has_nothing_to_train() -> None:
    found = examine(subject(made("tiny").requires_grad_(False)))
    assert broken(found) == ["The whole network is frozen: nothing would be trained."] and not found.modules
    assert "1 thing broken" in printed(found)


def test_zeros_as_input_are_named() -> None:
    own = batch()
    zeros = replace(own, image=torch.zeros_like(own.image), initial_depth=torch.zeros_like(own.initial_depth))
    found = examine(subject(made("tiny"), batch=zeros))
    assert [text.split()[4] for text in broken(found)] == ["image", "initial_depth"], broken(found)


def test_a_system_that_renders_is_shown_with_its_pictures_and_its_groups_of_step_sizes() -> None:
    own, _ = rendered_samples()
    config = CONFIG.model_copy(update={"batch_size": 1, "lr_scales": {"pretrained": 1.0}})
    found = examine(subject(depthsplat(), "depthsplat", batch=own, config=config))
    assert not found.broken, broken(found)
    seen = {entry.name: entry.seen_by for entry in found.entries}
    assert (seen["target_image"], seen["target_K"], seen["cam0_T_target"]) == ("loss", "network", "network")
    text = printed(found)
    assert f"; target views rendered at {found.psnr:.3g} dB." in text and found.psnr > 10
    groups = re.findall(r"lr 0.0001 x (lr_scales?) (\d+) = (\S+) +(.*), (.*) weights", text)
    assert [group[:4] for group in groups] == [
        ("lr_scale", "10", "0.001", "all others"),
        ("lr_scales", "1", "0.0001", "pretrained"),
    ]
    # What is to be seen is enough to learn from.
    pictures = examine(
        subject(depthsplat(loss={"lpips": 0.0}), "depthsplat", batch=replace(own, depth=None, mask=None), config=config)
    )
    assert not pictures.broken and pictures.depth_error is None and "Target views rendered at" in printed(pictures)


class BreaksAt(TinySystem):
    """A loss that is no number from its n-th call on."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        self.left -= 1
        losses = super().loss(prediction, batch)
        return losses if self.left > 0 else {name: value * math.nan for name, value in losses.items()}


def test_a_loss_that_is_no_number_is_named() -> None:
    found = examine(subject(BreaksAt(1)))
    assert broken(found)[0].startswith("Not finite before any update: depth is nan, size is nan, total is nan.")
    assert found.cost is None and {m.state for m in found.modules} == {"not finite"}
    assert "nan" in printed(found)


def test_a_loss_that_breaks_in_the_first_steps_is_named() -> None:
    # It is asked in inference, for the first gradient, and then a step at a time.
    found = examine(subject(BreaksAt(5)))
    assert broken(found) == ["Not finite at step 3, as configured: loss component 'depth' is nan, 'size' is nan."]


class Detached(TinySystem):
    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in super().loss(prediction, batch).items()}


class Spare(TinySystem):
    """Has a part that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


def test_what_no_loss_reaches_is_named() -> None:
    assert broken(examine(subject(Detached()))) == ["Detached: the total does not depend on any trainable weight."]
    found = examine(subject(Spare()))
    assert broken(found) == ["No gradient reaches spare: no loss depends on it, or its path to the loss is cut."]
    assert {m.name: m.state for m in found.modules}["spare"] == "no gradient"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: {"image": b.image * 255}, "image leaves [0, 1]"),
        (lambda b: {"depth": b.depth * math.inf}, "depth holds "),
        (lambda b: {"mask": torch.zeros_like(b.mask)}, "The batch has no true depth"),
        (lambda b: {"depth": None}, "The batch has no true depth"),
    ],
)
def test_a_batch_that_cannot_be_learnt_from_is_named(change: Any, words: str) -> None:
    own = batch()
    found = examine(subject(made("tiny"), batch=replace(own, **change(own))))
    assert any(text.startswith(words) for text in broken(found)), broken(found)
    assert words in printed(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: {"depth_range": torch.tensor([[1.0, 1.5]])}, "of the true depth lies outside depth_range"),
        (lambda b: {"K": b.K * torch.tensor([4.0, 4.0, 1.0])[:, None]}, "is K of another resolution?"),
    ],
)
def test_what_may_be_meant_is_a_note(change: Any, words: str) -> None:
    own = batch()
    found = examine(subject(made("tiny"), batch=replace(own, **change(own))))
    assert not found.broken and any(words in finding.text for finding in found.findings)


def test_the_step_size_is_the_one_that_training_takes() -> None:
    config = CONFIG.model_copy(update={"schedule": Schedule(kind="cosine", warm_up=9), "steps": 100})
    found = rates(config, lr=1e-4)
    assert (found.start, found.peak, found.peak_step) == (pytest.approx(1e-4), pytest.approx(1e-3), 10)
    assert found.end < 1e-6 and len(found.curve) == 48 and curve(found.curve)[0] < max(curve(found.curve))
    long = config.model_copy(update={"steps": 10_000_000})
    assert rates(long, lr=1e-4).peak == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match=r"warm_up 9 is not below steps 5"):
        examine(subject(made("tiny"), config=config.model_copy(update={"steps": 5})))


def test_a_step_costs_what_it_costs_in_training() -> None:
    own = tiled(scene(2, size=(8, 8)), 5)
    assert len(own.image) == len(own.depth) == 5 and torch.equal(own.image[4], own.image[0])
    config = CONFIG.model_copy(update={"batch_size": 4, "accumulate": 2, "clip_groups": {"first": 1.0, "": 2.0}})
    found = examine(subject(made("tiny"), config=config, gate=OverfitConfig(steps=7, lr=0.5)))
    text = printed(found)
    assert found.cost.batch == 4 and "4 samples, in 2 parts; 200 steps" in text
    assert "clipped by group: first 1" in text and "7 steps at up to 0.5" in text


# --- a project on disk -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose only data set is one generated town."""
    from plumbline.config import DatasetConfig
    from plumbline.data.parse import Job, write_one
    from plumbline.data.synthetic import Config, generate

    root = tmp_path_factory.mktemp("project")
    generate(Config(layout="aerialmd", scenes=("0001",), views=8, image_size=(64, 80), seed=0), root / "raw", workers=1)
    dataset = {
        "format": "aerialmd", "source": {"kind": "folder", "path": str(root / "raw")}, "image_size": [32, 32],
        "depth_range": [1.0, 1000.0], "split": {"train": ["0001"]}, "storage": "raw",
    }  # fmt: skip
    rule = {"dataset": "aerialmd", "split": "train", "sources": {"kind": "pairs", "count": 1}}
    params = {
        "lr": 1e-4, "seed": 0, "datasets": {"aerialmd": dataset}, "suites": {"pairs": rule},
        "pair": {"vggt": {**rule, "context": 2, "predict_views": 2}}, "systems": {"vggt": VGGT},
        "train": {"vggt": {"train_suites": ["pairs"], "val_suite": "pairs", "steps": 20, "batch_size": 2, "threads": 1}},
    }  # fmt: skip
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    config = DatasetConfig.model_validate(dataset)
    write_one(Job("aerialmd", "0001", config, root / "raw", root / "data/scenes/aerialmd/0001"))
    return root


def test_the_command_examines_the_gate_s_sample_or_a_suite(project: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["doctor", "vggt", "--root", str(project)])
    assert done.exit_code == 0, done.output
    assert "pair.vggt, extracted for now: aerialmd/0001" in done.output and "1x2x3x32x32" in done.output
    suite = run(app, ["doctor", "vggt", "--root", str(project), "--suite", "pairs"])
    assert suite.exit_code == 0 and "suite pairs, first batch: 0001" in suite.output and "2x2x3x32x32" in suite.output
    assert not (project / "data/pair").exists()


def test_an_extracted_sample_is_read_and_weights_are_loaded(project: Path, tmp_path: Path) -> None:
    from plumbline.config import DatasetConfig as Dataset
    from plumbline.config import load_params, section, sections

    params = load_params(project / "params.yaml")
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    config = section(params, "pair.vggt", PairConfig)
    datasets = sections(params, "datasets", Dataset)
    extract_pair(config, datasets=datasets, scenes=project / "data/scenes", out=tmp_path / "data/pair/vggt")
    torch.manual_seed(3)
    other = build("vggt", VGGT)
    torch.save({"model": other.state_dict(), "system": "vggt", "params": VGGT, "step": 1}, tmp_path / "model.pt")
    found = open_subject("vggt", tmp_path, weights=tmp_path / "model.pt")
    assert found.given == "data/pair/vggt: aerialmd/0001" and found.weights == f"weights of {tmp_path / 'model.pt'}"
    assert all(torch.equal(a, b) for a, b in zip(found.system.parameters(), other.parameters(), strict=True))
    assert len(found.names) == 2


def test_what_is_missing_is_said_with_what_makes_it(project: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    with pytest.raises(DataError, match=r"Make it with: dvc repro extract_pair@vggt"):
        open_subject("vggt", tmp_path)
    with pytest.raises(ConfigError, match=r"'deltaz' is not trained here; expected one of vggt"):
        open_subject("deltaz", project)
