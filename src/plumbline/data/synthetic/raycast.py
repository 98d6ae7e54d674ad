"""Ray casting of a World: exact depth at pixel centres, and images without aliasing.

Rays are (x, y, 1) in the camera frame, so the parameter along a ray is the depth z. Depth is taken at pixel centres;
colour is filtered by the texture pyramid inside a surface and by four rays a pixel across the borders of surfaces.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from plumbline.data.geometry import invert
from plumbline.data.synthetic.shapes import Origin, Triple
from plumbline.data.synthetic.texture import Texture, lookup, sample
from plumbline.data.synthetic.world import Camera, Light, Solid, World, look_at

_SHADOW_SIDE = 640
_FACES = 8
_SUBPIXELS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
# A step of the summed linear RGB below this makes no jagged edge.
_VISIBLE = 0.015
# The sky lights what faces up more than what faces down, by this share either way.
_SKY = 0.3


@dataclass(frozen=True)
class Shadow:
    """The lamp's view: mean and mean square of z, blurred, for a soft shadow (variance shadow maps, Donnelly 2006)."""

    lamp_T_world: Float64[np.ndarray, "4 4"]
    spread: float
    moments: Float32[np.ndarray, "s s 2"]


@dataclass(frozen=True)
class Skins:
    """The materials of all faces as columns; row = solid * 8 + face. `across`, `down`: metres a period of the texture."""

    textures: tuple[Texture, ...]
    texture: np.ndarray
    tint: np.ndarray
    contrast: np.ndarray
    gloss: np.ndarray
    shininess: np.ndarray
    across: np.ndarray
    down: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class Geometry:
    """The solids of a world, the corners of their bounding boxes in the world frame, and the transforms into their frames."""

    solids: tuple[Solid, ...]
    corners_world: Float64[np.ndarray, "n 8 3"]
    local_T_world: Float64[np.ndarray, "n 4 4"]


@dataclass(frozen=True)
class Stage:
    """A World made ready for casting: geometry, materials by face, shadow."""

    world: World
    geometry: Geometry
    skins: Skins
    shadow: Shadow


@dataclass(frozen=True)
class Rays:
    """Rays (x, y, 1) of one camera, x and y broadcasting; `pixel` is the width of a pixel at z = 1."""

    world_T_cam: Float64[np.ndarray, "4 4"]
    x: np.ndarray
    y: np.ndarray
    pixel: float


@dataclass(frozen=True)
class Hits:
    """Where a list of rays met solids: points and normals (3, n) in the world frame, texture coordinates in metres, face rows."""

    points_world: np.ndarray
    normals_world: np.ndarray
    u: np.ndarray
    v: np.ndarray
    skin: np.ndarray


def prepare(world: World) -> Stage:
    """A world with all that does not depend on the view worked out, its shadow among it."""
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(8, 3)
    placed = np.stack([solid.world_T_local for solid in world.solids])
    boxes = np.stack([np.asarray(solid.shape.bounds()) * signs for solid in world.solids])
    corners = boxes @ placed[:, :3, :3].swapaxes(1, 2) + placed[:, None, :3, 3]
    geometry = Geometry(world.solids, corners, invert(placed))
    return Stage(world, geometry, _skins(world.solids), _shadow(world, geometry))


def depth_map(stage: Stage, camera: Camera) -> Float32[np.ndarray, "h w"]:
    """Exact z at the pixel centres, in metres; 0 where no solid is met."""
    z, _ = _cast(stage.geometry, _grid(camera))
    return np.where(np.isfinite(z), z, np.float32(0))


def render(stage: Stage, camera: Camera) -> tuple[Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w"]]:
    """Linear RGB reflected towards the camera, and exact z at the pixel centres in metres (0: no solid)."""
    rays = _grid(camera)
    z, ids = _cast(stage.geometry, rays)
    x, y = (np.broadcast_to(axis, camera.size).ravel() for axis in (rays.x, rays.y))
    flat = Rays(rays.world_T_cam, x, y, rays.pixel)
    colours, skin = _shade(stage, flat, z.ravel(), ids.ravel())
    image = colours.reshape(*camera.size, 3)
    border = np.flatnonzero(_borders(skin.reshape(camera.size), image))
    colours[border] = _supersampled(stage, flat, border)
    return image, np.where(np.isfinite(z), z, np.float32(0))


def _skins(solids: tuple[Solid, ...]) -> Skins:
    faces = [(solid, face, solid.materials[face % len(solid.materials)]) for solid in solids for face in range(_FACES)]
    # A face number past a shape's last one is never met: any extent will do.
    periods = [(m.tile, m.tile) if m.tile else solid.shape.extent(min(face, 5)) for solid, face, m in faces]
    textures = list({id(m.texture): m.texture for _, _, m in faces}.values())
    index = {id(texture): k for k, texture in enumerate(textures)}
    return Skins(
        tuple(textures),
        texture=np.array([index[id(m.texture)] for _, _, m in faces], np.int16),
        tint=np.array([m.tint for _, _, m in faces], np.float32),
        contrast=np.array([m.contrast for _, _, m in faces], np.float32),
        gloss=np.array([m.gloss for _, _, m in faces], np.float32),
        shininess=np.array([m.shininess for _, _, m in faces], np.float32),
        across=np.array([across for across, _ in periods], np.float32),
        down=np.array([down for _, down in periods], np.float32),
        # Faces of one solid show different parts of a tiled texture; a print starts at the face's corner.
        offset=np.array([0.37 * face if m.tile else 0.0 for _, face, m in faces], np.float32),
    )


def _shadow(world: World, geometry: Geometry) -> Shadow:
    light = world.light
    # A lamp that shines straight down has no upright: a hair's breadth aside gives it one.
    world_T_lamp = look_at(light.position, light.target + np.array([0.0, 0.0, 1e-6]))
    steps = ((np.arange(_SHADOW_SIDE, dtype=np.float32) + 0.5) / _SHADOW_SIDE * 2 - 1) * np.float32(light.spread)
    z, _ = _cast(geometry, Rays(world_T_lamp, steps[None, :], steps[:, None], 0.0))
    z = np.minimum(z, np.float32(4 * np.linalg.norm(light.target - light.position)))
    moments = cv2.GaussianBlur(np.stack([z, z * z], axis=-1), (0, 0), 2.0)
    return Shadow(invert(world_T_lamp), light.spread, np.asarray(moments, np.float32))


def _grid(camera: Camera) -> Rays:
    height, width = camera.size
    K = camera.K
    x = ((np.arange(width) - K[0, 2]) / K[0, 0]).astype(np.float32)
    y = ((np.arange(height) - K[1, 2]) / K[1, 1]).astype(np.float32)
    return Rays(camera.world_T_cam, x[None, :], y[:, None], float(1 / K[0, 0]))


def _cast(geometry: Geometry, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
    """z of the first solid on each ray (infinity: none) and its index (-1: none), in the broadcast shape of x and y."""
    shape = np.broadcast(rays.x, rays.y).shape
    z, ids = np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int16)
    local_T_cam = geometry.local_T_world @ rays.world_T_cam
    for index, nearest, window in _windows(geometry.corners_world, rays):
        where = _inside(rays, window)
        x, y = (rays.x[:, where[1]], rays.y[where[0]]) if isinstance(where, tuple) else (rays.x[where], rays.y[where])
        current = z[where]
        if current.size == 0 or current.max() <= nearest:
            continue
        origin, direction = _to_local(local_T_cam[index], x, y)
        t = geometry.solids[index].shape.intersect(origin, direction)
        nearer = t < current
        z[where] = np.where(nearer, t, current)
        ids[where] = np.where(nearer, np.int16(index), ids[where])
    return z, ids


def _windows(corners_world: np.ndarray, rays: Rays) -> list[tuple[int, float, np.ndarray]]:
    """Of each solid that may be seen: index, z of its nearest corner, bounds (x0, x1, y0, y1) of its corners at z = 1.

    Nearest first, so that what is hidden altogether is passed over; those around the camera, such as a room, last.
    """
    cam_T_world = invert(rays.world_T_cam)
    corners = corners_world @ cam_T_world[:3, :3].T + cam_T_world[:3, 3]
    z = corners[..., 2]
    nearest = z.min(axis=1)
    flat = corners[..., :2] / np.maximum(z, 1e-3)[..., None]
    low, high = flat.min(axis=1), flat.max(axis=1)
    bounds = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    # A solid that reaches behind the camera has no bounds: it may be met by any ray.
    around = nearest <= 1e-3
    bounds[around] = [-np.inf, np.inf, -np.inf, np.inf]
    seen = (z.max(axis=1) > 0) & _overlap(bounds, rays)
    order = np.argsort(np.where(around, np.inf, nearest), kind="stable")
    return [(int(index), float(nearest[index]), bounds[index]) for index in order[seen[order]]]


def _overlap(bounds: np.ndarray, rays: Rays) -> np.ndarray:
    if rays.x.size == 0:
        return np.zeros(len(bounds), bool)
    across = (bounds[:, 0] <= rays.x.max()) & (bounds[:, 1] >= rays.x.min())
    return np.asarray(across & (bounds[:, 2] <= rays.y.max()) & (bounds[:, 3] >= rays.y.min()))


def _inside(rays: Rays, window: np.ndarray) -> tuple[slice, slice] | np.ndarray:
    x0, x1, y0, y1 = (float(bound) for bound in window)
    if rays.x.ndim == 2:
        return _span(rays.y[:, 0], y0, y1), _span(rays.x[0], x0, x1)
    return np.flatnonzero((rays.x >= x0) & (rays.x <= x1) & (rays.y >= y0) & (rays.y <= y1))


def _span(values: np.ndarray, low: float, high: float) -> slice:
    # One ray more on either side: the bounds are rounded to float32 when compared.
    return slice(max(0, int(np.searchsorted(values, low)) - 1), int(np.searchsorted(values, high)) + 1)


def _to_local(local_T_cam: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[Origin, Triple]:
    dx, dy, dz = (a * x + (b * y + c) for a, b, c in local_T_cam[:3, :3].tolist())
    ox, oy, oz = local_T_cam[:3, 3].tolist()
    return (ox, oy, oz), (dx, dy, dz)


def _shade(stage: Stage, rays: Rays, z: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour (n, 3) of each ray of a list, and its row in Skins (-1: background)."""
    colours = np.empty((len(z), 3), np.float32)
    colours[:] = stage.world.background
    skin = np.full(len(z), -1, np.int32)
    order = np.argsort(ids, kind="stable")
    order = order[np.searchsorted(ids[order], 0) :]
    met = Rays(rays.world_T_cam, rays.x[order], rays.y[order], rays.pixel)
    hits = _surfaces(stage.world.solids, met, z[order], ids[order])
    skin[order] = hits.skin
    to_eye = rays.world_T_cam[:3, 3].astype(np.float32)[:, None] - hits.points_world
    to_eye /= np.linalg.norm(to_eye, axis=0)
    facing = np.abs(np.sum(hits.normals_world * to_eye, axis=0))
    # A pixel's footprint is stretched along one direction by 1/cos: its geometric mean with the other is filtered.
    footprint = z[order] * np.float32(rays.pixel) / np.sqrt(np.maximum(facing, 0.05))
    albedo = _albedo(stage.skins, hits, footprint)
    colours[order] = _lit(stage, hits, to_eye, albedo)
    return colours, skin


def _surfaces(solids: tuple[Solid, ...], rays: Rays, z: np.ndarray, ids: np.ndarray) -> Hits:
    """Hits of rays that are sorted by solid."""
    cam = rays.world_T_cam.astype(np.float32)
    points = cam[:3, :3] @ np.stack([rays.x * z, rays.y * z, z]) + cam[:3, 3:]
    normals, uv, skin = np.empty_like(points), np.empty((2, len(z)), np.float32), np.empty(len(z), np.int32)
    limits = np.searchsorted(ids, np.arange(len(solids) + 1))
    for index in np.unique(ids):
        part = slice(limits[index], limits[index + 1])
        solid = solids[index]
        turn, centre = solid.world_T_local[:3, :3].astype(np.float32), solid.world_T_local[:3, 3:].astype(np.float32)
        local = turn.T @ (points[:, part] - centre)
        normals_local, uv[0, part], uv[1, part], faces = solid.shape.surface(local)
        normals[:, part] = turn @ normals_local
        skin[part] = index * _FACES + faces
    return Hits(points, normals, uv[0], uv[1], skin)


def _albedo(skins: Skins, hits: Hits, footprint: np.ndarray) -> np.ndarray:
    across, down, offset = skins.across[hits.skin], skins.down[hits.skin], skins.offset[hits.skin]
    u, v = hits.u / across + offset, hits.v / down + offset
    side = skins.textures[0].levels[0].shape[0]
    level = np.log2(np.maximum(footprint * side / np.minimum(across, down), 1e-3))
    which = skins.texture[hits.skin]
    colours = np.empty((len(u), 3), np.float32)
    order = np.argsort(which, kind="stable")
    for texture, part in zip(
        skins.textures, np.split(order, np.searchsorted(which[order], np.arange(1, len(skins.textures))))
    ):
        colours[part] = sample(texture, u[part], v[part], level[part])
    return skins.tint[hits.skin] * np.maximum(1 + skins.contrast[hits.skin][:, None] * (colours - 1), np.float32(0.02))


def _lit(stage: Stage, hits: Hits, to_eye: np.ndarray, albedo: np.ndarray) -> np.ndarray:
    light, normals = stage.world.light, hits.normals_world
    to_lamp = light.position.astype(np.float32)[:, None] - hits.points_world
    distance = np.linalg.norm(to_lamp, axis=0)
    to_lamp /= distance
    seen = _lit_fraction(stage.shadow, hits.points_world) * _falloff(light, distance)
    lambert = np.maximum(np.sum(normals * to_lamp, axis=0), 0) * seen
    fill = np.maximum(light.fill_direction.astype(np.float32) @ normals, 0)
    sky = np.float32(light.ambient) * (1 - np.float32(_SKY) * normals[1])
    irradiance = sky + np.float32(light.key) * lambert + np.float32(light.fill) * fill
    return albedo * irradiance[:, None] + _highlight(stage.skins, hits, to_lamp + to_eye, seen)[:, None]


def _falloff(light: Light, distance: np.ndarray) -> np.ndarray:
    reach = np.float32(np.linalg.norm(light.position - light.target))
    return np.minimum(reach / distance, np.float32(1.6))


def _highlight(skins: Skins, hits: Hits, half: np.ndarray, seen: np.ndarray) -> np.ndarray:
    gloss = skins.gloss[hits.skin] * seen
    shiny = np.flatnonzero(gloss > 0)
    half = half[:, shiny] / np.maximum(np.linalg.norm(half[:, shiny], axis=0), np.float32(1e-6))
    cosine = np.maximum(np.sum(hits.normals_world[:, shiny] * half, axis=0), 0)
    gloss[shiny] *= cosine ** skins.shininess[hits.skin[shiny]]
    return gloss


def _lit_fraction(shadow: Shadow, points_world: np.ndarray) -> np.ndarray:
    lamp = shadow.lamp_T_world.astype(np.float32)
    x, y, z = lamp[:3, :3] @ points_world + lamp[:3, 3:]
    side = shadow.moments.shape[0]
    safe = np.maximum(z, np.float32(1e-3)) * np.float32(shadow.spread)
    u, v = (x / safe + 1) * (side / 2) - np.float32(0.5), (y / safe + 1) * (side / 2) - np.float32(0.5)
    mean, square = lookup(shadow.moments, u, v, border=cv2.BORDER_REPLICATE).T
    variance = np.maximum(square - mean * mean, (np.float32(0.004) * z) ** 2)
    behind = np.maximum(z - mean - np.float32(0.002) * z, 0)
    lit = variance / (variance + behind * behind)
    outside = (u < 0) | (v < 0) | (u > side - 1) | (v > side - 1) | (z <= 0)
    # Chebyshev's bound leaks light behind thin occluders: its low end is cut off.
    return np.where(outside, np.float32(1), np.clip((lit - np.float32(0.25)) / np.float32(0.75), 0, 1))


def _borders(skin: Int[np.ndarray, "h w"], image: Float32[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Pixels on either side of a change of face that can be seen: the colour changes too."""
    border = np.zeros(skin.shape, bool)
    brightness = image.sum(axis=-1)
    down = (skin[1:] != skin[:-1]) & (np.abs(brightness[1:] - brightness[:-1]) > _VISIBLE)
    right = (skin[:, 1:] != skin[:, :-1]) & (np.abs(brightness[:, 1:] - brightness[:, :-1]) > _VISIBLE)
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    return border


def _supersampled(stage: Stage, rays: Rays, chosen: np.ndarray) -> np.ndarray:
    steps = np.array(_SUBPIXELS, np.float32) * np.float32(rays.pixel)
    x = (rays.x[chosen, None] + steps[:, 0]).ravel()
    y = (rays.y[chosen, None] + steps[:, 1]).ravel()
    fine = Rays(rays.world_T_cam, x, y, rays.pixel)
    z, ids = _cast(stage.geometry, fine)
    colours, _ = _shade(stage, fine, z, ids)
    return np.asarray(colours.reshape(len(chosen), len(_SUBPIXELS), 3).mean(axis=1))
