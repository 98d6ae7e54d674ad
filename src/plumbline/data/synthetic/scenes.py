"""Worlds: close-range arrangements as on a DTU turntable, and rooms to walk in. Metres, y down, floors at y = 0.

Arrangements stand around the origin and are meant to be seen from about 0.65 m, from -z and a little from above, through
a window of about 0.29 x 0.23 m. Rooms are centred on the origin.
"""

from collections.abc import Callable

import numpy as np

from plumbline.data.synthetic import things
from plumbline.data.synthetic.materials import Library
from plumbline.data.synthetic.shapes import Box
from plumbline.data.synthetic.things import Group, block
from plumbline.data.synthetic.world import Light, Material, Solid, World, moved, rigid, rotation, scaled

# A model of a room at this scale has its furniture in DTU's range of depths.
_MODEL = 0.12


def arrangement(kind: str, rng: np.random.Generator) -> World:
    """The close-range world of a kind (see ARRANGEMENTS), turned at random about the vertical and tilted a little."""
    lib = Library(rng, tile=0.2)
    group = ARRANGEMENTS[kind](lib)
    turn = rotation("x", float(rng.uniform(-6, 8))) @ rotation("y", float(rng.uniform(-28, 28)))
    dark = float(rng.uniform(0.0, 0.05))
    return World(tuple(moved(group, rigid(turn=turn))), _stage_light(rng), (dark, dark, dark))


def room(rng: np.random.Generator) -> tuple[World, tuple[float, float, float]]:
    """A furnished room with a lamp under its ceiling, and its (width, height, depth)."""
    lib = Library(rng, tile=1.2)
    width, height, depth = (float(x) for x in rng.uniform([4.2, 2.4, 3.6], [6.0, 2.8, 5.2]))
    walls = [lib.any(bare=0.55, weak=0.25, printed=0.0) for _ in range(4)]
    ceiling, floor = lib.bare(), lib.any(bare=0.1, weak=0.3, printed=0.0)
    shell = Solid(
        Box((width / 2, height / 2, depth / 2), inside=True),
        rigid(shift=(0, -height / 2, 0)),
        (walls[0], walls[1], ceiling, floor, walls[2], walls[3]),
    )
    group: Group = [shell]
    for turn, run, away in (
        (0, width, depth / 2),
        (180, width, depth / 2),
        (90, depth, width / 2),
        (-90, depth, width / 2),
    ):
        place = rigid(turn=rotation("y", turn)) @ rigid(shift=(0, 0, away))
        group += moved(_wall_row(lib, run - 1.6), place)
    if rng.random() < 0.7:
        spot = rigid(
            turn=rotation("y", float(rng.uniform(0, 360))),
            shift=(float(rng.uniform(-0.3, 0.3)), 0, float(rng.uniform(-0.3, 0.3))),
        )
        group += moved(_dining(lib), spot)
    return World(tuple(group), _ceiling_light(rng, height), (0.0, 0.0, 0.0)), (width, height, depth)


def _wall_row(lib: Library, run: float) -> Group:
    """Furniture along a wall of free length `run`, side by side, with pictures above what is low."""
    group: Group = []
    x = -run / 2
    while x < run / 2 - 0.7:
        width = float(lib.rng.uniform(0.7, min(1.9, run / 2 - x + 0.1)))
        item, tall = _furniture(lib, width)
        group += moved(item, rigid(shift=(x + width / 2, 0, 0)))
        if tall < 1.2:
            for part in np.linspace(-0.25, 0.25, int(lib.rng.integers(1, 3))):
                size = (float(lib.rng.uniform(0.25, 0.6)), float(lib.rng.uniform(0.25, 0.6)))
                group += moved(
                    things.picture(lib, size, float(lib.rng.uniform(1.4, 1.75))),
                    rigid(shift=(x + width * (0.5 + float(part)), 0, 0)),
                )
        x += width + float(lib.rng.choice([0.03, 0.15, 0.5]))
    return group


def _furniture(lib: Library, width: float) -> tuple[Group, float]:
    kind = str(
        lib.rng.choice(
            ["counter", "cabinet", "shelf", "sofa", "table", "wardrobe", "door"],
            p=[0.22, 0.16, 0.22, 0.1, 0.13, 0.1, 0.07],
        )
    )
    if kind == "door" and width > 0.95:
        return things.door(lib), 2.0
    if kind == "sofa":
        return things.sofa(lib, max(width, 1.2)), 0.9
    if kind == "table":
        return things.table(lib, (width, 0.74, 0.7)), 1.0
    if kind == "shelf":
        tall = float(lib.rng.uniform(1.0, 2.1))
        return things.shelf(lib, (width, tall, 0.35), boards=max(2, int(tall / 0.38))), tall
    tall = {"counter": 0.9, "wardrobe": 2.0}.get(kind, float(lib.rng.uniform(0.5, 1.2)))
    base = things.cabinet(lib, (width, tall, 0.55))
    clutter = things.scatter(lib, int(lib.rng.integers(2, 5)), (width * 0.8, 0.35), (0.1, 0.24)) if tall < 1.3 else []
    return [*base, *moved(clutter, rigid(shift=(0, -tall - 0.03, -0.28)))], tall


def _dining(lib: Library) -> Group:
    width, depth = float(lib.rng.uniform(0.8, 1.3)), float(lib.rng.uniform(0.7, 0.9))
    group = moved(things.table(lib, (width, 0.74, depth)), rigid(shift=(0, 0, depth / 2)))
    for turn, away in ((0, depth / 2), (180, depth / 2)):
        group += moved(
            things.chair(lib),
            rigid(turn=rotation("y", turn)) @ rigid(shift=(float(lib.rng.uniform(-0.2, 0.2)), 0, away + 0.3)),
        )
    return group


def _table_top(lib: Library) -> Group:
    group = _ground(lib)
    if lib.rng.random() < 0.75:
        group += _backdrop(lib, float(lib.rng.uniform(0.13, 0.22)))
    return group + things.scatter(lib, int(lib.rng.integers(7, 12)), (0.30, 0.24), (0.04, 0.085))


def _compartment(lib: Library) -> Group:
    size = (float(lib.rng.uniform(0.3, 0.5)), float(lib.rng.uniform(0.24, 0.36)), float(lib.rng.uniform(0.14, 0.22)))
    case = things.shelf(lib, size, boards=int(lib.rng.integers(1, 3)), fill=(0.05, 0.12))
    return [*_ground(lib), *moved(case, rigid(shift=(0, 0, 0.14)))]


def _model_room(lib: Library) -> Group:
    large = Library(lib.rng, tile=1.2, made=lib.made)
    walls = [large.any(bare=0.5, weak=0.3, printed=0.0) for _ in range(2)]
    shell = [
        block((6, 0.2, 6), (0, 0.1, 0), large.any(bare=0.1, weak=0.3, printed=0.0)),
        block((6, 4, 0.2), (0, -2, 1.6), walls[0]),
        block((0.2, 4, 2.2), (float(lib.rng.choice([-1, 1])) * 1.45, -2, 0.5), walls[1]),
    ]
    group = [*shell, *moved(_wall_row(large, 2.6), rigid(shift=(0, 0, 1.5)))]
    front = _dining(large) if lib.rng.random() < 0.6 else things.sofa(large, 1.3)
    group += moved(
        front,
        rigid(turn=rotation("y", float(lib.rng.uniform(-40, 40))), shift=(float(lib.rng.uniform(-0.4, 0.4)), 0, -0.1)),
    )
    return moved(scaled(group, _MODEL), rigid(shift=(0, 0.05, 0)))


def _lone_cabinet(lib: Library) -> Group:
    floor, height = lib.weak(pale=True), float(lib.rng.uniform(0.9, 1.4))
    large = Library(lib.rng, tile=1.0, made=lib.made)
    body = things.cabinet(large, (float(lib.rng.uniform(0.7, 1.1)), height, float(lib.rng.uniform(0.6, 1.0))))
    turned = moved(body, rigid(turn=rotation("y", float(lib.rng.uniform(-50, 50))), shift=(0, 0, 0.3)))
    ground = block((1.6, 0.05, 1.6), (0, 0.025, 0), floor)
    extra = things.scatter(lib, 3, (0.3, 0.14), (0.03, 0.05)) if lib.rng.random() < 0.5 else []
    return [ground, *_backdrop(lib, 0.24), *scaled(turned, 0.15), *moved(extra, rigid(shift=(0, 0, -0.1)))]


def _book_pile(lib: Library) -> Group:
    group = _ground(lib)
    for x, z in ((-0.09, 0.04), (0.08, 0.06), (0.0, -0.06)):
        pile = [solid for _ in range(2) for solid in things.books(lib, 0.085)]
        group += moved(pile, rigid(turn=rotation("y", float(lib.rng.uniform(-40, 40))), shift=(x, 0, z)))
    return group + _backdrop(lib, float(lib.rng.uniform(0.15, 0.22)))


def _village(lib: Library) -> Group:
    group = _ground(lib)
    for x in (-0.11, 0.0, 0.11):
        for z in (-0.07, 0.09):
            shift = (x + float(lib.rng.normal(0, 0.012)), 0, z + float(lib.rng.normal(0, 0.015)))
            turn = rotation("y", float(lib.rng.choice([0, 90])) + float(lib.rng.normal(0, 12)))
            group += moved(things.house(lib, float(lib.rng.uniform(0.045, 0.08))), rigid(turn=turn, shift=shift))
    return group


def _harvest(lib: Library) -> Group:
    """Heaps of round things: smooth relief with creases."""
    group = _ground(lib)
    for _ in range(45):
        radii = lib.rng.uniform(0.012, 0.045) * lib.rng.uniform(0.7, 1.4, 3)
        x, z = lib.rng.normal(0, 0.075, 2)
        level = float(max(0.0, 0.08 - np.hypot(x, z) * 0.7) * lib.rng.random())
        turn = rotation("x", float(lib.rng.uniform(0, 180))) @ rotation("y", float(lib.rng.uniform(0, 180)))
        centre = (float(x), -level - float(radii.min()), float(z))
        group.append(
            things.ball((float(radii[0]), float(radii[1]), float(radii[2])), centre, lib.any(printed=0.0), turn=turn)
        )
    return group


def _relief(lib: Library) -> Group:
    """A wall of blocks standing out by different lengths, in front of a slope."""
    group = [
        block(
            (1.4, 1.4, 0.02), (0, -0.1, 0.16), lib.any(printed=0.0), turn=rotation("x", float(lib.rng.uniform(-15, 15)))
        )
    ]
    count, skins = int(lib.rng.integers(4, 8)), [lib.any() for _ in range(6)]
    side = 0.34 / count
    for row in range(count):
        for column in range(count):
            if lib.rng.random() < 0.25:
                continue
            deep, skin = float(lib.rng.uniform(0.02, 0.30)), skins[int(lib.rng.integers(len(skins)))]
            centre = ((column - count / 2 + 0.5) * side, (row - count / 2 + 0.5) * side - 0.05, 0.2 - deep / 2)
            group.append(block((side * 0.93, side * 0.93, deep), centre, skin))
    return group


def _fence(lib: Library) -> Group:
    """Thin bars before things before a wall."""
    group = [*_ground(lib), *_backdrop(lib, float(lib.rng.uniform(0.16, 0.22)))]
    skin = lib.any(printed=0.0)
    for x in np.arange(-0.2, 0.21, float(lib.rng.uniform(0.035, 0.06))):
        group.append(things.column(0.004, 0.004, 0.2, (float(x), 0, -0.08), skin))
    rails = [block((0.44, 0.008, 0.006), (0, -level, -0.08), skin) for level in (0.05, 0.15)]
    return [*group, *rails, *moved(things.scatter(lib, 6, (0.34, 0.12), (0.05, 0.09)), rigid(shift=(0, 0, 0.05)))]


def _ramps(lib: Library) -> Group:
    """Tilted boards, as roofs and open books have them."""
    group = _ground(lib)
    for x in (-0.12, -0.02, 0.09):
        turn = rotation("y", float(lib.rng.uniform(-50, 50))) @ rotation("x", float(lib.rng.uniform(-60, 60)))
        size = (float(lib.rng.uniform(0.08, 0.14)), float(lib.rng.uniform(0.1, 0.2)), 0.008)
        group.append(block(size, (x, -0.07, float(lib.rng.uniform(-0.05, 0.10))), lib.any(), turn=turn))
    return group + _backdrop(lib, 0.2) + things.scatter(lib, 4, (0.3, 0.1), (0.04, 0.06))


ARRANGEMENTS: dict[str, Callable[[Library], Group]] = {
    "table_top": _table_top,
    "model_room": _model_room,
    "compartment": _compartment,
    "lone_cabinet": _lone_cabinet,
    "village": _village,
    "book_pile": _book_pile,
    "relief": _relief,
    "harvest": _harvest,
    "fence": _fence,
    "ramps": _ramps,
}


def _ground(lib: Library) -> Group:
    return [block((1.6, 0.05, 1.6), (0, 0.025, 0), lib.any(bare=0.3, weak=0.35, printed=0.0))]


def _backdrop(lib: Library, away: float) -> Group:
    turn = rotation("y", float(lib.rng.uniform(-20, 20)))
    return [block((1.6, 0.9, 0.02), (0, -0.4, away + 0.01), _wall_material(lib), turn=turn)]


def _wall_material(lib: Library) -> Material:
    return lib.any(bare=0.5, weak=0.25, printed=0.0)


def _stage_light(rng: np.random.Generator) -> Light:
    position = np.array([rng.uniform(-0.9, 0.9), rng.uniform(-1.4, -0.7), rng.uniform(-1.1, -0.3)])
    key, ambient = float(rng.uniform(0.55, 0.95)), float(rng.uniform(0.14, 0.32))
    return Light(position, np.array([0.0, -0.05, 0.05]), 0.36, key, float(rng.uniform(0.05, 0.25)), ambient, _unit(rng))


def _ceiling_light(rng: np.random.Generator, height: float) -> Light:
    x, z = rng.uniform(-0.8, 0.8, 2)
    position, target = np.array([x, 0.12 - height, z]), np.array([x, -0.8, z])
    return Light(
        position,
        target,
        2.4,
        float(rng.uniform(0.5, 0.8)),
        float(rng.uniform(0.08, 0.2)),
        float(rng.uniform(0.2, 0.35)),
        _unit(rng),
    )


def _unit(rng: np.random.Generator) -> np.ndarray:
    direction = np.array([rng.normal(), rng.uniform(-1.0, -0.2), -abs(rng.normal())])
    return direction / np.linalg.norm(direction)
