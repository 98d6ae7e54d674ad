"""Ray casting of a World: exact depth at pixel centres, and images without aliasing.

Rays are (x, y, 1) in the camera frame, so the parameter along a ray is the depth z. Depth is taken at pixel centres;
colour is filtered by the texture pyramid inside a surface and by four rays a pixel across the borders of surfaces.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int

from plumbline.data.geometry import invert
from plumbline.data.synthetic.shapes import Origin, Triple
from plumbline.data.synthetic.texture import sample
from plumbline.data.synthetic.world import Camera, Light, Material, Solid, World, look_at

_SHADOW_SIDE = 640
_FACES = 8
_SUBPIXELS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
# Half the nadir colour for surfaces that face down keeps undersides from being flat grey.
_SKY = 0.3


@dataclass(frozen=True)
class Shadow:
    """The lamp's view: mean and mean square of z, blurred, for a soft shadow (variance shadow maps, Donnelly 2006)."""

    lamp_T_world: np.ndarray
    spread: float
    moments: Float32[np.ndarray, "s s 2"]


@dataclass(frozen=True)
class Rays:
    """Rays (x, y, 1) of one camera; `pixel` is the width of a pixel at z = 1."""

    world_T_cam: np.ndarray
    x: np.ndarray
    y: np.ndarray
    pixel: float


def shadow_map(world: World) -> Shadow:
    """What the lamp of a world sees."""
    light = world.light
    world_T_lamp = look_at(light.position, light.target + np.array([0.0, 0.0, 1e-6]))
    steps = ((np.arange(_SHADOW_SIDE, dtype=np.float32) + 0.5) / _SHADOW_SIDE * 2 - 1) * np.float32(light.spread)
    z, _ = cast(world.solids, Rays(world_T_lamp, steps[None, :], steps[:, None], 0.0))
    z = np.minimum(z, np.float32(4 * np.linalg.norm(light.target - light.position)))
    moments = cv2.GaussianBlur(np.stack([z, z * z], axis=-1), (0, 0), 2.0)
    return Shadow(invert(world_T_lamp), light.spread, moments)


def depth_map(world: World, camera: Camera) -> Float32[np.ndarray, "h w"]:
    """Exact z at the pixel centres, in metres; 0 where no solid is met."""
    z, _ = cast(world.solids, _grid(camera))
    return np.where(np.isfinite(z), z, np.float32(0))


def render(world: World, shadow: Shadow, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Linear RGB reflected towards the camera, (h, w, 3) float32, and exact z at the pixel centres, (h, w) float32, metres."""
    rays = _grid(camera)
    z, ids = cast(world.solids, rays)
    height, width = camera.size
    x, y = (np.broadcast_to(axis, camera.size).ravel() for axis in (rays.x, rays.y))
    flat = Rays(rays.world_T_cam, x, y, rays.pixel)
    colours, keys = shade(world, shadow, flat, z.ravel(), ids.ravel())
    border = np.flatnonzero(_borders(keys.reshape(height, width)))
    colours[border] = _supersampled(world, shadow, flat, border)
    return colours.reshape(height, width, 3), np.where(np.isfinite(z), z, np.float32(0))


def cast(solids: tuple[Solid, ...], rays: Rays) -> tuple[np.ndarray, np.ndarray]:
    """z of the first solid on each ray (infinity: none) and its index (-1: none), in the broadcast shape of x and y."""
    shape = np.broadcast(rays.x, rays.y).shape
    z, ids = np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int16)
    cam_T_world = invert(rays.world_T_cam)
    for index, solid in enumerate(solids):
        window = _window(solid, cam_T_world)
        if window is None:
            continue
        where = _inside(rays, window)
        x, y = (rays.x[:, where[1]], rays.y[where[0]]) if isinstance(where, tuple) else (rays.x[where], rays.y[where])
        if x.size == 0 or y.size == 0:
            continue
        origin, direction = _to_local(solid, rays.world_T_cam, x, y)
        t = solid.shape.intersect(origin, direction)
        nearer = t < z[where]
        z[where] = np.where(nearer, t, z[where])
        ids[where] = np.where(nearer, np.int16(index), ids[where])
    return z, ids


def shade(
    world: World, shadow: Shadow, rays: Rays, z: np.ndarray, ids: np.ndarray
) -> tuple[Float32[np.ndarray, "n 3"], Int[np.ndarray, " n"]]:
    """Colour of each ray of a list, and a key that differs where the solid or its face does (-1: background)."""
    colours = np.full((len(z), 3), np.float32(0)) + np.float32(world.background)
    keys = np.full(len(z), -1, np.int32)
    order = np.argsort(ids, kind="stable")
    limits = np.searchsorted(ids[order], np.arange(len(world.solids) + 1))
    for index, solid in enumerate(world.solids):
        chosen = order[limits[index] : limits[index + 1]]
        if len(chosen):
            part = Rays(rays.world_T_cam, rays.x[chosen], rays.y[chosen], rays.pixel)
            colours[chosen], faces = _shade_solid(solid, world.light, shadow, part, z[chosen])
            keys[chosen] = index * _FACES + faces
    return colours, keys


def _shade_solid(
    solid: Solid, light: Light, shadow: Shadow, rays: Rays, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    origin, direction = _to_local(solid, rays.world_T_cam, rays.x, rays.y)
    local = np.stack([o + z * d for o, d in zip(origin, direction)])
    normals_local, u, v, faces = solid.shape.surface(local)
    points, normals = _to_world(solid, local, normals_local)
    to_eye = rays.world_T_cam[:3, 3].astype(np.float32)[:, None] - points
    to_eye /= np.linalg.norm(to_eye, axis=0)
    facing = np.abs(np.sum(normals * to_eye, axis=0))
    # The footprint of a pixel is stretched along one direction by 1/cos: its geometric mean with the other is filtered.
    footprint = z * np.float32(rays.pixel) / np.sqrt(np.maximum(facing, 0.05))
    albedo, gloss, shininess = _reflectance(solid, u, v, faces, footprint)
    return _lit(light, shadow, points, normals, to_eye, albedo, gloss, shininess), faces


def _reflectance(
    solid: Solid, u: np.ndarray, v: np.ndarray, faces: np.ndarray, footprint: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    albedo = np.empty((len(u), 3), np.float32)
    gloss, shininess = np.empty(len(u), np.float32), np.empty(len(u), np.float32)
    for face in np.unique(faces):
        chosen = np.flatnonzero(faces == face)
        material = solid.materials[face % len(solid.materials)]
        albedo[chosen] = _albedo(
            material, solid.shape.extent(int(face)), int(face), u[chosen], v[chosen], footprint[chosen]
        )
        gloss[chosen], shininess[chosen] = material.gloss, material.shininess
    return albedo, gloss, shininess


def _albedo(
    material: Material, extent: tuple[float, float], face: int, u: np.ndarray, v: np.ndarray, footprint: np.ndarray
) -> np.ndarray:
    across, down = extent if material.tile is None else (material.tile, material.tile)
    # Faces of one solid show different parts of a tiled texture.
    offset = 0.0 if material.tile is None else 0.37 * face
    texel = min(across, down) / material.texture.levels[0].shape[0]
    level = np.log2(np.maximum(footprint / texel, 1e-3))
    colours = sample(material.texture, u / across + offset, v / down + offset, level)
    return np.float32(material.tint) * np.maximum(1 + np.float32(material.contrast) * (colours - 1), 0.02)


def _lit(
    light: Light,
    shadow: Shadow,
    points: np.ndarray,
    normals: np.ndarray,
    to_eye: np.ndarray,
    albedo: np.ndarray,
    gloss: np.ndarray,
    shininess: np.ndarray,
) -> Float32[np.ndarray, "n 3"]:
    to_lamp = light.position.astype(np.float32)[:, None] - points
    distance = np.linalg.norm(to_lamp, axis=0)
    to_lamp /= distance
    reach = np.float32(np.linalg.norm(light.position - light.target))
    seen = _lit_fraction(shadow, points) * np.minimum(reach / distance, 1.6)
    lambert = np.maximum(np.sum(normals * to_lamp, axis=0), 0) * seen
    fill = np.maximum(light.fill_direction.astype(np.float32) @ normals, 0)
    sky = light.ambient * (1 - _SKY * normals[1])
    half = to_lamp + to_eye
    half /= np.maximum(np.linalg.norm(half, axis=0), 1e-6)
    highlight = gloss * np.maximum(np.sum(normals * half, axis=0), 0) ** shininess * seen
    return albedo * (sky + light.key * lambert + light.fill * fill)[:, None] + highlight[:, None]


def _lit_fraction(shadow: Shadow, points: np.ndarray) -> Float32[np.ndarray, " n"]:
    local = shadow.lamp_T_world[:3, :3].astype(np.float32) @ points + shadow.lamp_T_world[:3, 3:].astype(np.float32)
    z = np.maximum(local[2], 1e-3)
    side = shadow.moments.shape[0]
    u, v = ((local[k] / z / shadow.spread + 1) * side / 2 - 0.5 for k in (0, 1))
    mean, square = _lookup(shadow.moments, u, v).T
    variance = np.maximum(square - mean * mean, (0.004 * z) ** 2)
    behind = np.maximum(z - mean - 0.002 * z, 0)
    lit = variance / (variance + behind * behind)
    outside = (u < 0) | (v < 0) | (u > side - 1) | (v > side - 1) | (local[2] <= 0)
    # Chebyshev's bound leaks light behind thin occluders: its low end is cut off.
    return np.where(outside, np.float32(1), np.clip((lit - 0.25) / 0.75, 0, 1)).astype(np.float32)


def _lookup(moments: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = 1024
    rows = -(-len(u) // row)
    maps = np.zeros((2, rows * row), np.float32)
    maps[0, : len(u)], maps[1, : len(u)] = u, v
    x, y = maps.reshape(2, rows, row)
    return cv2.remap(moments, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, 2)[: len(u)]


def _grid(camera: Camera) -> Rays:
    height, width = camera.size
    K = camera.K
    x = ((np.arange(width) - K[0, 2]) / K[0, 0]).astype(np.float32)
    y = ((np.arange(height) - K[1, 2]) / K[1, 1]).astype(np.float32)
    return Rays(camera.world_T_cam, x[None, :], y[:, None], float(1 / K[0, 0]))


def _borders(keys: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    border = np.zeros(keys.shape, bool)
    down, right = keys[1:] != keys[:-1], keys[:, 1:] != keys[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    return border


def _supersampled(world: World, shadow: Shadow, rays: Rays, chosen: np.ndarray) -> Float32[np.ndarray, "n 3"]:
    steps = np.array(_SUBPIXELS, np.float32) * np.float32(rays.pixel)
    x = (rays.x[chosen, None] + steps[:, 0]).ravel()
    y = (rays.y[chosen, None] + steps[:, 1]).ravel()
    fine = Rays(rays.world_T_cam, x, y, rays.pixel)
    z, ids = cast(world.solids, fine)
    colours, _ = shade(world, shadow, fine, z, ids)
    return colours.reshape(len(chosen), len(_SUBPIXELS), 3).mean(axis=1)


def _window(solid: Solid, cam_T_world: np.ndarray) -> tuple[float, float, float, float] | None:
    """Bounds (x0, x1, y0, y1) at z = 1 of a solid's box; all of it when the box reaches behind the camera; None if it is behind."""
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
    corners = np.asarray(solid.shape.bounds())[:, None] * signs
    cam_T_local = cam_T_world @ solid.world_T_local
    x, y, z = cam_T_local[:3, :3] @ corners + cam_T_local[:3, 3:]
    if z.max() <= 0:
        return None
    if z.min() <= 1e-3:
        return -np.inf, np.inf, -np.inf, np.inf
    return float((x / z).min()), float((x / z).max()), float((y / z).min()), float((y / z).max())


def _inside(rays: Rays, window: tuple[float, float, float, float]) -> tuple[slice, slice] | np.ndarray:
    x0, x1, y0, y1 = window
    if rays.x.ndim == 2:
        return _span(rays.y[:, 0], y0, y1), _span(rays.x[0], x0, x1)
    return np.flatnonzero((rays.x >= x0) & (rays.x <= x1) & (rays.y >= y0) & (rays.y <= y1))


def _span(values: np.ndarray, low: float, high: float) -> slice:
    # One ray more on either side: the bounds are rounded to float32 when compared.
    return slice(max(0, int(np.searchsorted(values, low)) - 1), int(np.searchsorted(values, high)) + 1)


def _to_local(solid: Solid, world_T_cam: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[Origin, Triple]:
    local_T_cam = invert(solid.world_T_local) @ world_T_cam
    rows = [[np.float32(value) for value in row] for row in local_T_cam[:3, :3]]
    dx, dy, dz = (a * x + b * y + c for a, b, c in rows)
    ox, oy, oz = (float(value) for value in local_T_cam[:3, 3])
    return (ox, oy, oz), (dx, dy, dz)


def _to_world(solid: Solid, points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turn = solid.world_T_local[:3, :3].astype(np.float32)
    return turn @ points + solid.world_T_local[:3, 3:].astype(np.float32), turn @ normals
