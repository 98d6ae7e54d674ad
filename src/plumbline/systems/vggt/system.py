"""VGGT as a system: depth and cameras of all views from their images alone, in one pass, in a unit of its own."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from plumbline.errors import ConfigError, DataError
from plumbline.geometry import invert
from plumbline.systems.augment import augment
from plumbline.systems.blocks import pad_to_multiple
from plumbline.systems.records import Batch, Cameras, Prediction
from plumbline.systems.vggt import losses, pretrained
from plumbline.systems.vggt.aggregator import Aggregator
from plumbline.systems.vggt.camera_head import CameraHead
from plumbline.systems.vggt.config import Config
from plumbline.systems.vggt.dpt import DenseHead
from plumbline.systems.vggt.encoding import SceneUnits, decode, encode, to_scene_units

# Metres, and units: cameras no further apart than this tell nothing of the scale.
_SHORTEST_BASELINE = 1e-6
_NEAREST = 1e-8


@dataclass(frozen=True)
class Answer:
    """All that the network says of the images "b v 3 h w" it was given; d leading views have maps. Scene units."""

    encodings: tuple[Float[Tensor, "b v 9"], ...]
    depth: Float[Tensor, "b d h w"]
    depth_confidence: Float[Tensor, "b d h w"]
    points: Float[Tensor, "b d h w 3"] | None
    points_confidence: Float[Tensor, "b d h w"] | None


class System(nn.Module):
    """Depth of the leading views and the cameras of all views, from images.

    The network answers in a unit of its own, in which the scene's measured points are at a mean distance of 1 from the first
    camera. Nothing in the images tells metres, so by default predictions stay in that unit: `internals["scale_known"]` is
    then False, and depth is to be compared after median alignment. With `metric_from: poses` the given distances between
    cameras bring depth and cameras to metres.

    Images of any size are filled up to a multiple of the patch by repeating the last row and column, and maps are cropped to
    them. The principal point is taken to be in the middle. In training all views have depth, for the loss looks at them all.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config) if config.camera else None
        self.point_head = DenseHead(config, out=4) if config.point else None
        self.depth_head = DenseHead(config, out=2)
        self._frozen = [*self._idle_heads(), *self._named(config.frozen or ())]
        _stop(self._frozen)

    @property
    def metric(self) -> bool:
        """Whether depth is in metres."""
        return self.config.metric_from != "nothing"

    @property
    def inputs(self) -> frozenset[str]:
        """The images; poses as well if they are to tell the scale."""
        return frozenset({"image"} | ({"cam0_T_cam"} if self.config.metric_from == "poses" else set()))

    def train(self, mode: bool = True) -> "System":
        """Switch to training or inference; frozen modules stay in inference mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, batch: Batch) -> Prediction:
        """Depth of the leading views, "b p h w", its confidence 1 - 1 / c, and cameras of all views.

        Metres if `internals["scale_known"]` ("b") says so, else the scene's own unit; `internals["scale"]` ("b") is metres
        per unit, 1 where it is not known. Internals in the scene's unit: `encodings` "i b v 9" after each iteration of the
        camera head; of d views `depth` and `depth_confidence` c "b d h w", and with a point head `points` "b d h w 3" (the
        first camera's frame) and `points_confidence`. DataError without the poses that the configuration asks for.
        """
        p, (height, width) = batch.predict_views, batch.image.shape[-2:]
        padded = pad_to_multiple(batch.image.flatten(0, 1), self.config.patch)
        images = torch.unflatten(padded, 0, batch.image.shape[:2])
        answer = self.answer(images, views=batch.image.shape[1] if self.training else p)
        cameras = None
        if answer.encodings:
            cameras = _cameras(answer.encodings[-1], (images.shape[-2], images.shape[-1]))
        scale, known = self._scale(cameras, batch)
        depth, confidence = (x[..., :height, :width] for x in (answer.depth, answer.depth_confidence))
        internals = {"scale": scale, "scale_known": known, "depth": depth, "depth_confidence": confidence}
        if answer.encodings:
            internals["encodings"] = torch.stack(answer.encodings)
        if answer.points is not None and answer.points_confidence is not None:
            internals["points"] = answer.points[..., :height, :width, :]
            internals["points_confidence"] = answer.points_confidence[..., :height, :width]
        return Prediction(
            depth=depth[:, :p] * scale[:, None, None, None],
            confidence=1 - 1 / confidence[:, :p],
            cameras=None if cameras is None else _scaled(cameras, scale),
            internals=internals,
        )

    def answer(self, images: Float[Tensor, "b v 3 h w"], *, views: int) -> Answer:
        """What the network says of images in [0, 1] whose sizes are multiples of the patch; maps of the leading `views`.

        The aggregator may run in bfloat16, the caller's or its own; heads are always in float32: depth is an exponential.
        """
        with self._aggregator_precision(images.device.type):
            tokens = self.aggregator(images)
        size, special = (images.shape[-2], images.shape[-1]), self.aggregator.special
        with torch.autocast(images.device.type, enabled=False):
            tokens = {index: x.float() for index, x in tokens.items()}
            encodings = [] if self.camera_head is None else self.camera_head(tokens[self.config.rounds - 1][:, :, 0])
            tokens = {index: x[:, :views] for index, x in tokens.items()}
            depth, depth_sure = self.depth_head(tokens, size, special=special).unbind(2)
            points = points_sure = None
            if self.point_head is not None and (self.config.loss.point > 0 or not self.training):
                raw = self.point_head(tokens, size, special=special)
                points, points_sure = inverse_log(raw[:, :, :3]).movedim(2, -1), 1 + raw[:, :, 3].exp()
            return Answer(tuple(encodings), depth.exp(), 1 + depth_sure.exp(), points, points_sure)

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Every component by name, and "total", their weighted sum. DataError when the batch has no truth.

        `camera` sums `translation`, `rotation` and `focal`; depth and points have a term for confidence, regression and
        gradient each. Only those of a head that is there and weighs something are given.
        """
        truth, mask = _true_scene(batch)
        size = _padded((batch.image.shape[-2], batch.image.shape[-1]), self.config.patch)
        cameras = encode(truth.cam_T_cam0, batch.K, size)
        return self.weigh(prediction.internals, cameras, truth.depth, truth.points_cam0, mask)

    def weigh(
        self,
        said: Mapping[str, Tensor],
        cameras: Float[Tensor, "b v 9"],
        depth: Float[Tensor, "b v h w"],
        points: Float[Tensor, "b v h w 3"] | None,
        mask: Bool[Tensor, "b v h w"],
    ) -> dict[str, Tensor]:
        """`loss` of the internals `said`, when the truth is in scene units and its cameras are encoded."""
        config = self.config.loss
        components: dict[str, Tensor] = {}
        if config.camera > 0 and "encodings" in said:
            components |= self._camera_loss(said["encodings"], cameras, mask)
        if config.depth > 0:
            components |= self._map_loss("depth", said, depth[..., None], mask)
        if config.point > 0 and points is not None:
            components |= self._map_loss("points", said, points, mask)
        groups = {"camera": config.camera, "depth": config.depth, "points": config.point}
        weights = {name: groups.get(name.split("_")[0], 0.0) for name in components}
        return {**components, "total": torch.stack([weights[name] * value for name, value in components.items()]).sum()}

    def in_metres(self, prediction: Prediction, batch: Batch) -> Prediction:
        """The prediction with depth in metres by the true scale of the scene, that of the loss; DataError without truth."""
        truth, _ = _true_scene(batch)
        depth = prediction.internals["depth"][:, : prediction.depth.shape[1]]
        return replace(prediction, depth=depth * truth.scale[:, None, None, None])

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A geometry-true variation of a training batch."""
        return augment(batch, self.config.augment, generator)

    def load_pretrained(self, path: Path) -> None:
        """Load a published checkpoint or this project's, strictly; DataError names what differs."""
        pretrained.load(self, path)

    def fine_tune(self) -> None:
        """Prepare a training that starts from given weights: the aggregator stays as it is, unless `frozen` is configured.

        The released training does so by default. Called once, before the optimiser is made.
        """
        if self.config.frozen is None:
            self._frozen += self._named(("*aggregator*",))
            _stop(self._frozen)

    def _aggregator_precision(self, device: str) -> contextlib.AbstractContextManager[None]:
        if self.training or not self.config.bf16 or device != "cuda" or torch.is_autocast_enabled(device):
            return contextlib.nullcontext()
        return torch.autocast(device, torch.bfloat16)

    def _camera_loss(self, encodings: Tensor, truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
        config = self.config.loss
        terms = losses.camera_terms(list(encodings), truth, mask, norm=config.camera_norm, decay=config.stage_decay)
        weights = (config.translation, config.rotation, config.focal)
        camera = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()
        return {"camera": camera, **terms._asdict()}

    def _map_loss(self, name: str, said: Mapping[str, Tensor], truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
        config = self.config.loss
        predicted, confidence = said[name], said[f"{name}_confidence"]
        if name == "depth":
            predicted = predicted[..., None]
        views = predicted.shape[1]
        maps = losses.Maps(*(x.flatten(0, 1) for x in (predicted, confidence, truth[:, :views], mask[:, :views])))
        gradient = config.depth_gradient if name == "depth" else config.point_gradient
        terms = losses.map_terms(maps, gradient=gradient, quantile=config.quantile, certainty=config.certainty)
        return {f"{name}_{term}": value for term, value in terms._asdict().items()}

    def _scale(self, cameras: Cameras | None, batch: Batch) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """Metres per unit of each sample, and whether that is known."""
        if self.config.metric_from == "nothing":
            b = len(batch.image)
            return batch.image.new_ones(b), torch.zeros(b, dtype=torch.bool, device=batch.image.device)
        if batch.cam0_T_cam is None or cameras is None:
            raise DataError(
                "vggt: metric_from: poses needs the poses of every sample and a camera head; one is missing. "
                "Use posed scenes, or set systems.vggt.metric_from to nothing."
            )
        return baseline_scale(cameras.cam0_T_cam, batch.cam0_T_cam)

    def _idle_heads(self) -> list[nn.Module]:
        """Heads that no loss reaches."""
        idle = {"camera_head": self.config.loss.camera, "depth_head": self.config.loss.depth}
        idle["point_head"] = self.config.loss.point
        return [head for name, weight in idle.items() if weight == 0 and (head := getattr(self, name)) is not None]

    def _named(self, patterns: Iterable[str]) -> list[nn.Module]:
        """The modules that `patterns` name; ConfigError for one that matches nothing."""
        named: list[nn.Module] = []
        for pattern in patterns:
            found = [module for name, module in self.named_modules() if name and fnmatchcase(name, pattern)]
            if not found:
                parts = ", ".join(name for name, _ in self.named_children())
                raise ConfigError(
                    f"systems.vggt.frozen: {pattern!r} matches no module; expected a pattern such as *aggregator*. "
                    f"The modules are {parts} and what is inside them."
                )
            named += found
        return named


def _stop(modules: Iterable[nn.Module]) -> None:
    """Train these modules no more; `System.train` keeps them in inference mode."""
    for module in modules:
        module.requires_grad_(False)


def _true_scene(batch: Batch) -> tuple[SceneUnits, Bool[Tensor, "b v h w"]]:
    """The true scene in its own unit, and where it is measured; DataError when the batch has no truth."""
    if batch.depth is None or batch.mask is None or batch.cam0_T_cam is None:
        raise DataError("vggt: the loss needs true depth and poses; this batch lacks them. Train on scenes with both.")
    mask = batch.mask & (batch.depth > _NEAREST)
    return to_scene_units(batch.depth, mask, batch.K, invert(batch.cam0_T_cam)), mask


def inverse_log(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1): the inverse of a logarithm that lets coordinates have both signs."""
    return x.sign() * x.abs().expm1()


def baseline_scale(
    cam0_T_cam: Float[Tensor, "b v 4 4"], given: Float[Tensor, "b v 4 4"]
) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
    """Metres per unit by least squares between predicted and `given` (metres) distances from the first camera.

    1, and not known, for a sample whose cameras all stand in one place, given or predicted.
    """
    predicted, true = (x[:, :, :3, 3].norm(dim=-1) for x in (cam0_T_cam, given))
    known = (true.amax(dim=1) > _SHORTEST_BASELINE) & (predicted.amax(dim=1) > _SHORTEST_BASELINE)
    ratio = (predicted * true).sum(dim=1) / (predicted * predicted).sum(dim=1).where(known, 1.0)
    return ratio.where(known, 1.0), known


def _cameras(encoding: Float[Tensor, "b v 9"], size: tuple[int, int]) -> Cameras:
    cam_T_world, K = decode(encoding, size)
    # An encoding puts the principal point where the image's corner is (0, 0); here the top-left pixel's centre is.
    K[..., :2, 2] -= 0.5
    return Cameras(cam0_T_cam=cam_T_world[:, :1] @ invert(cam_T_world), K=K)


def _scaled(cameras: Cameras, scale: Float[Tensor, " b"]) -> Cameras:
    factors = torch.ones_like(cameras.cam0_T_cam)
    factors[..., :3, 3] = scale[:, None, None]
    return Cameras(cam0_T_cam=cameras.cam0_T_cam * factors, K=cameras.K)


def _padded(size: tuple[int, int], patch: int) -> tuple[int, int]:
    return -(-size[0] // patch) * patch, -(-size[1] // patch) * patch
