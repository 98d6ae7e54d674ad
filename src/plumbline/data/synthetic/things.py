"""Things built of solids, standing on y = 0 (up is -y), in metres: small things for a table, furniture for a room.

Small things stand around the y axis. Furniture has its back in the plane z = 0, its front towards -z, x centred.
"""

from collections.abc import Callable

import numpy as np

from plumbline.data.synthetic.materials import Library
from plumbline.data.synthetic.shapes import Box, Ellipsoid, Frustum, Number, Origin
from plumbline.data.synthetic.world import Material, Solid, moved, rigid, rotation

Size = Origin
Group = list[Solid]


def block(size: Size, centre: Origin, *materials: Material, turn: np.ndarray | None = None) -> Solid:
    """A box of full sizes `size` about `centre`."""
    return Solid(Box((size[0] / 2, size[1] / 2, size[2] / 2)), rigid(turn=turn, shift=centre), materials)


def column(top: Number, bottom: Number, height: Number, base: Origin, *materials: Material) -> Solid:
    """An upright frustum whose lower cap is at `base`."""
    x, y, z = base
    return Solid(Frustum(top, bottom, height), rigid(shift=(x, y - height / 2, z)), materials)


def ball(radii: Size, centre: Origin, material: Material, *, turn: np.ndarray | None = None) -> Solid:
    """An ellipsoid about `centre`."""
    return Solid(Ellipsoid(radii), rigid(turn=turn, shift=centre), (material,))


def carton(lib: Library, size: float) -> Group:
    """A printed or plain box."""
    width, height, depth = (float(x) for x in size * lib.rng.uniform([0.7, 0.6, 0.35], [1.3, 1.9, 1.1]))
    if lib.rng.random() < 0.65:
        front, side, top = lib.printed(), lib.printed(), lib.any(printed=0.5)
        return [block((width, height, depth), (0, -height / 2, 0), side, side, top, top, front, front)]
    return [block((width, height, depth), (0, -height / 2, 0), lib.any(printed=0.0))]


def can(lib: Library, size: float) -> Group:
    """A tin with a printed or plain side and bare caps."""
    radius, height = (float(x) for x in size * lib.rng.uniform([0.3, 0.7], [0.6, 1.6]))
    lid = lib.bare()
    return [column(radius, radius, height, (0, 0, 0), lib.any(printed=0.5), lid, lid)]


def bottle(lib: Library, size: float) -> Group:
    """A bottle: body, shoulder, neck, cap."""
    radius, height = (float(x) for x in size * lib.rng.uniform([0.22, 0.8], [0.38, 1.4]))
    skin, cap, neck = lib.any(printed=0.5), lib.bare(pale=False), radius * 0.35
    shell = skin if skin.tile else lib.bare()
    return [
        column(radius, radius, height, (0, 0, 0), skin, shell, shell),
        column(neck, radius, height * 0.25, (0, -height, 0), shell),
        column(neck, neck, height * 0.3, (0, -height * 1.2, 0), cap),
    ]


def fruit(lib: Library, size: float) -> Group:
    """A ball or an egg."""
    radii = size * lib.rng.uniform(0.35, 0.65) * lib.rng.uniform(0.8, 1.2, 3)
    return [
        ball(
            (float(radii[0]), float(radii[1]), float(radii[2])),
            (0, -float(radii[1]), 0),
            lib.any(printed=0.0, bare=0.3),
        )
    ]


def mug(lib: Library, size: float) -> Group:
    """A mug with a handle."""
    radius, height = (float(x) for x in size * lib.rng.uniform([0.3, 0.6], [0.45, 0.9]))
    skin, dark, grip = lib.any(printed=0.3), lib.weak(), lib.bare()
    bar = radius * 0.25
    handle = [block((radius * 0.7, bar, bar), (radius * 1.25, -height * part, 0), grip) for part in (0.25, 0.75)]
    return [
        column(radius, radius * 0.9, height, (0, 0, 0), skin, dark, dark),
        *handle,
        block((bar, height * 0.5 + bar, bar), (radius * 1.6, -height / 2, 0), grip),
    ]


def books(lib: Library, size: float) -> Group:
    """Two to six books lying on each other, each turned a little."""
    stack, level = [], 0.0
    for _ in range(int(lib.rng.integers(2, 7))):
        thick, width, depth = (float(x) for x in size * lib.rng.uniform([0.10, 0.9, 0.7], [0.35, 1.5, 1.1]))
        cover, pages = lib.any(printed=0.6, bare=0.2), lib.weak(pale=True)
        turn = rotation("y", float(lib.rng.uniform(-25, 25)))
        stack.append(
            block(
                (width, thick, depth), (0, -level - thick / 2, 0), pages, pages, cover, cover, cover, pages, turn=turn
            )
        )
        level += thick
    return stack


def plant(lib: Library, size: float) -> Group:
    """A pot with a crown of leaves."""
    radius, leaf = size * 0.35, lib.textured("blotches", contrast=0.7)
    crown = []
    for _ in range(int(lib.rng.integers(12, 26))):
        offset = lib.rng.normal(0, 1, 3) * size * np.array([0.3, 0.3, 0.3])
        radii = size * lib.rng.uniform([0.05, 0.05, 0.15], [0.10, 0.25, 0.28])
        turn = rotation("y", float(lib.rng.uniform(0, 180))) @ rotation("x", float(lib.rng.uniform(-60, 60)))
        centre = (float(offset[0]), float(offset[1] - size * 1.2), float(offset[2]))
        crown.append(ball((float(radii[0]), float(radii[1]), float(radii[2])), centre, leaf, turn=turn))
    return [column(radius, radius * 0.7, size * 0.7, (0, 0, 0), lib.any(printed=0.0)), *crown]


def figure(lib: Library, size: float) -> Group:
    """A toy of ellipsoids: body, head, limbs."""
    body, skin = lib.any(printed=0.0), lib.any(printed=0.0)
    limbs = [
        ball(
            (size * 0.10, size * 0.26, size * 0.10),
            (side * size * 0.28, -size * level, -size * 0.05),
            skin,
            turn=rotation("z", side * lean),
        )
        for side in (-1, 1)
        for level, lean in ((0.75, -35), (0.24, -12))
    ]
    return [
        ball((size * 0.3, size * 0.42, size * 0.25), (0, -size * 0.62, 0), body),
        ball((size * 0.24, size * 0.24, size * 0.24), (0, -size * 1.2, 0), skin),
        *limbs,
    ]


def house(lib: Library, size: float) -> Group:
    """A model house: walls, a gabled roof of two slabs, a chimney."""
    width, height, depth = (float(x) for x in size * lib.rng.uniform([1.0, 0.7, 0.8], [1.5, 1.4, 1.3]))
    wall, gable = lib.printed("facade"), lib.printed("facade")
    roof, pitch = lib.textured(str(lib.rng.choice(["tiles", "bricks", "stripes"]))), float(lib.rng.uniform(25, 45))
    slope = width / 2 / np.cos(np.radians(pitch)) * 1.15
    rise = width / 2 * np.tan(np.radians(pitch))
    slabs = [
        block(
            (slope, size * 0.05, depth * 1.1),
            (side * width / 4, -height - rise / 2, 0),
            roof,
            turn=rotation("z", side * pitch),
        )
        for side in (-1, 1)
    ]
    stack = block(
        (size * 0.14, rise, size * 0.14), (width * 0.2, -height - rise * 0.9, depth * 0.2), lib.textured("bricks")
    )
    return [block((width, height, depth), (0, -height / 2, 0), gable, gable, gable, gable, wall, wall), *slabs, stack]


def cabinet(lib: Library, size: Size, *, drawers: int | None = None) -> Group:
    """A cupboard: a carcass with doors or drawers in front, handles, a top. Often nearly without texture."""
    width, height, depth = size
    skin = lib.any(bare=0.45, weak=0.4, printed=0.0)
    count = int(lib.rng.integers(1, 5)) if drawers is None else drawers
    across = bool(lib.rng.random() < 0.5)
    front, grip, gap = skin if lib.rng.random() < 0.7 else lib.weak(), lib.bare(), 0.012
    parts = [block((width, height, depth), (0, -height / 2, -depth / 2), skin)]
    for k in range(count):
        wide, tall = (width, height / count) if across else (width / count, height)
        x = 0.0 if across else (k + 0.5) * wide - width / 2
        y = -(k + 0.5) * tall if across else -height / 2
        parts.append(block((wide - gap, tall - gap, 0.02), (x, y, -depth - 0.01), front))
        bar = (wide * 0.3, 0.015, 0.03) if across else (0.015, tall * 0.25, 0.03)
        parts.append(
            block(bar, (x if across else x + wide * 0.35, y - (tall * 0.2 if across else 0), -depth - 0.04), grip)
        )
    top = lib.any(printed=0.0, bare=0.3)
    return [*parts, block((width + 0.03, 0.03, depth + 0.05), (0, -height - 0.015, -depth / 2 - 0.01), top)]


def table(lib: Library, size: Size) -> Group:
    """A table with four legs and things on it."""
    width, height, depth = size
    top, leg = lib.any(bare=0.3, weak=0.3, printed=0.0), lib.weak()
    legs = [
        block((0.06, height, 0.06), (x * (width / 2 - 0.05), -height / 2, -depth / 2 + z * (depth / 2 - 0.05)), leg)
        for x in (-1, 1)
        for z in (-1, 1)
    ]
    plate = block((width, 0.04, depth), (0, -height - 0.02, -depth / 2), top)
    clutter = scatter(lib, int(lib.rng.integers(2, 6)), (width * 0.85, depth * 0.8), (0.08, 0.2))
    return [*legs, plate, *moved(clutter, rigid(shift=(0, -height - 0.04, -depth / 2)))]


def chair(lib: Library) -> Group:
    """A chair with a slatted back at z = 0."""
    frame, seat = lib.weak(), lib.any(printed=0.0)
    legs = [block((0.04, 0.45, 0.04), (x * 0.2, -0.225, -0.22 + z * 0.2), frame) for x in (-1, 1) for z in (-1, 1)]
    posts = [block((0.04, 0.5, 0.03), (x * 0.2, -0.7, -0.02), frame) for x in (-1, 1)]
    slats = [block((0.4, 0.06, 0.015), (0, -y, -0.02), frame) for y in (0.6, 0.75, 0.9)]
    return [*legs, *posts, *slats, block((0.45, 0.05, 0.44), (0, -0.47, -0.22), seat)]


def shelf(lib: Library, size: Size, *, boards: int, fill: tuple[float, float] = (0.1, 0.25)) -> Group:
    """An open shelf filled with small things (of `fill` metres) and rows of books."""
    width, height, depth = size
    wood, back = lib.any(bare=0.3, weak=0.4, printed=0.0), lib.any(bare=0.5, weak=0.3, printed=0.0)
    thick = min(0.03, height * 0.05)
    sides = [block((thick, height, depth), (x * (width - thick) / 2, -height / 2, -depth / 2), wood) for x in (-1, 1)]
    group = [*sides, block((width, height, thick), (0, -height / 2, -thick / 2), back)]
    pitch = (height - thick) / boards
    for k in range(boards + 1):
        group.append(block((width - 2 * thick, thick, depth), (0, -k * pitch - thick / 2, -depth / 2), wood))
    for k in range(boards):
        place = rigid(shift=(0, -k * pitch - thick, -depth / 2))
        row = _book_row if lib.rng.random() < 0.35 else _shelf_things
        group += moved(row(lib, (width - 3 * thick, pitch - thick, depth), fill), place)
    return group


def sofa(lib: Library, width: float) -> Group:
    """A sofa: seat, back, arms, cushions."""
    cloth = lib.any(bare=0.2, weak=0.4, printed=0.0)
    arms = [block((0.18, 0.6, 0.85), (x * (width / 2 - 0.09), -0.3, -0.43), cloth) for x in (-1, 1)]
    cushions = [
        ball((0.24, 0.2, 0.1), (x * width * 0.25, -0.62, -0.35), lib.textured(), turn=rotation("x", -20))
        for x in (-1, 1)
    ]
    return [
        block((width, 0.42, 0.85), (0, -0.21, -0.43), cloth),
        block((width, 0.85, 0.22), (0, -0.42, -0.11), cloth),
        *arms,
        *cushions,
    ]


def door(lib: Library) -> Group:
    """A door of 0.85 m with its frame and handle."""
    leaf, frame, grip = lib.any(bare=0.4, weak=0.4, printed=0.0), lib.bare(pale=False), lib.bare()
    posts = [block((0.07, 2.07, 0.06), (x * 0.46, -1.035, -0.03), frame) for x in (-1, 1)]
    lintel = block((0.85, 0.07, 0.06), (0, -2.035, -0.03), frame)
    handle = block((0.12, 0.025, 0.03), (0.33, -1.0, -0.07), grip)
    return [block((0.85, 2.0, 0.04), (0, -1.0, -0.02), leaf), *posts, lintel, handle]


def picture(lib: Library, size: tuple[float, float], height: float) -> Group:
    """A framed print or a notice on the wall, its centre `height` above the floor."""
    kind = str(lib.rng.choice(["packaging", "sheet"]))
    frame = lib.bare(pale=False)
    face = lib.printed(kind)
    return [block((size[0], size[1], 0.02), (0, -height, -0.011), frame, frame, frame, frame, face, frame)]


SMALL: tuple[Callable[[Library, float], Group], ...] = (carton, carton, can, bottle, fruit, mug, books, plant, figure)


def scatter(lib: Library, count: int, area: tuple[float, float], sizes: tuple[float, float]) -> Group:
    """Up to `count` small things, turned at random, on an area (x, z) about the origin, without touching each other."""
    group: Group = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(count * 3):
        size = float(lib.rng.uniform(*sizes))
        x, z = (float(lib.rng.uniform(-side / 2, side / 2)) for side in area)
        if len(taken) >= count or any(np.hypot(x - a, z - b) < 0.62 * (size + other) for a, b, other in taken):
            continue
        taken.append((x, z, size))
        build = SMALL[int(lib.rng.integers(len(SMALL)))]
        turn = rotation("y", float(lib.rng.uniform(-60, 60)))
        group += moved(build(lib, size), rigid(turn=turn, shift=(x, 0, z)))
    return group


def _shelf_things(lib: Library, room: Size, fill: tuple[float, float]) -> Group:
    return scatter(
        lib,
        int(lib.rng.integers(3, 7)),
        (room[0] * 0.85, room[2] * 0.4),
        (min(fill[0], room[1] * 0.4), min(fill[1], room[1] * 0.6)),
    )


def _book_row(lib: Library, room: Size, fill: tuple[float, float]) -> Group:
    width, height, depth = room
    row: Group = []
    x = -width / 2
    while True:
        thick, tall, deep = (
            float(v) for v in lib.rng.uniform([0.08, 0.6, 0.6], [0.30, 0.92, 0.95]) * [fill[1], height, depth]
        )
        if x + thick > width / 2:
            return row
        spine, pages = lib.any(printed=0.4, bare=0.3), lib.weak(pale=True)
        lean = rotation("z", float(lib.rng.choice([0, 0, 0, 8])))
        row.append(
            block(
                (thick * 0.95, tall, deep),
                (x + thick / 2, -tall / 2, (depth - deep) / 2),
                spine,
                spine,
                pages,
                pages,
                spine,
                pages,
                turn=lean,
            )
        )
        x += thick * (1.0 if lean[0, 1] == 0 else 2.2)
