"""What a synthetic scene is made of: materials, solids in a world frame, one lamp with its shadow, cameras. Metres, y down."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from plumbline.data.synthetic.shapes import Number, Shape
from plumbline.data.synthetic.texture import Texture

Colour = tuple[Number, Number, Number]


@dataclass(frozen=True)
class Material:
    """How a surface looks: reflectance = tint * (1 + contrast * (texture - 1)).

    `tile`: metres a period of the texture covers; None fits one period to the face. `gloss`: strength of the highlight.
    """

    texture: Texture
    tint: Colour = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    tile: float | None = None
    gloss: float = 0.0
    shininess: float = 30.0


@dataclass(frozen=True)
class Solid:
    """A shape placed in the world; face f has materials[f % len(materials)]."""

    shape: Shape
    world_T_local: Float64[np.ndarray, "4 4"]
    materials: tuple[Material, ...]


@dataclass(frozen=True)
class Light:
    """A lamp at `position` shining at `target` (shadows within a cone of half-angle tangent `spread`), and a sky.

    `key`, `fill`, `ambient` are irradiances at the target; the fill light comes from `fill_direction` without a shadow.
    """

    position: Float64[np.ndarray, "3"]
    target: Float64[np.ndarray, "3"]
    spread: float
    key: float
    fill: float
    ambient: float
    fill_direction: Float64[np.ndarray, "3"]


@dataclass(frozen=True)
class World:
    """Solids, their light, and the colour seen where there is no solid."""

    solids: tuple[Solid, ...]
    light: Light
    background: Colour


@dataclass(frozen=True)
class Camera:
    """A pinhole: K with the centre of the top-left pixel at (0, 0), `world_T_cam` in metres, size (height, width)."""

    K: Float64[np.ndarray, "3 3"]
    world_T_cam: Float64[np.ndarray, "4 4"]
    size: tuple[int, int]


def rigid(*, turn: Float64[np.ndarray, "3 3"] | None = None, shift: tuple[Number, ...] = (0, 0, 0)) -> np.ndarray:
    """The 4x4 rigid transform that turns, then shifts."""
    result = np.eye(4)
    result[:3, :3] = np.eye(3) if turn is None else turn
    result[:3, 3] = shift
    return result


def rotation(axis: str, degrees: Number) -> Float64[np.ndarray, "3 3"]:
    """Rotation about a coordinate axis; positive y takes +z to +x, positive x takes +y to +z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]),
    }[axis]


def look_at(position: np.ndarray, target: np.ndarray, *, roll: Number = 0) -> Float64[np.ndarray, "4 4"]:
    """`world_T_cam` of a camera at `position` that sees `target` in its centre, upright (world y is down) but for `roll`."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    upright = np.stack([right, np.cross(forward, right), forward], axis=1)
    return rigid(turn=upright @ rotation("z", roll), shift=tuple(position))


def moved(solids: list[Solid], world_T_group: np.ndarray) -> list[Solid]:
    """Solids of a group, put where the group is."""
    return [replace(solid, world_T_local=world_T_group @ solid.world_T_local) for solid in solids]


def scaled(solids: list[Solid], factor: Number) -> list[Solid]:
    """A model of the solids about the origin, `factor` times as large, textures included."""
    return [_scaled(solid, factor) for solid in solids]


def _scaled(solid: Solid, factor: Number) -> Solid:
    placed = solid.world_T_local.copy()
    placed[:3, 3] *= factor
    materials = tuple(
        material if material.tile is None else replace(material, tile=material.tile * factor)
        for material in solid.materials
    )
    return Solid(solid.shape.scaled(factor), placed, materials)
