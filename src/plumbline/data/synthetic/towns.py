"""Towns: a landmark on a square, streets of houses around it, trees, cars and lamps. Metres, y down, the ground at y = 0.

The landmark stands around the origin within a radius of about 20 m; the square is free of houses up to `SQUARE` from there.
"""

from collections.abc import Callable

import numpy as np

from plumbline.data.synthetic import things
from plumbline.data.synthetic.materials import Library
from plumbline.data.synthetic.things import Group, ball, block, column
from plumbline.data.synthetic.world import Colour, Light, Material, World, moved, rigid, rotation

SQUARE = 52.0
_EXTENT = 800.0
# Radius and number of houses of each ring of streets.
_RINGS = ((62.0, 13), (92.0, 19), (128.0, 16))
_ROOFS = ("tiles", "bricks", "stripes")
_WALLS: tuple[Colour, ...] = (
    (0.85, 0.76, 0.58),
    (0.80, 0.80, 0.76),
    (0.86, 0.62, 0.47),
    (0.72, 0.66, 0.60),
    (0.88, 0.82, 0.66),
)
_TILES: tuple[Colour, ...] = (
    (0.45, 0.17, 0.11),
    (0.35, 0.20, 0.15),
    (0.22, 0.23, 0.26),
    (0.50, 0.27, 0.17),
    (0.30, 0.34, 0.31),
)
_CROPS: tuple[Colour, ...] = ((0.46, 0.42, 0.18), (0.20, 0.32, 0.11), (0.36, 0.27, 0.16), (0.30, 0.38, 0.16))


def town(kind: str, rng: np.random.Generator) -> World:
    """The town around a landmark of a kind (see LANDMARKS), under a sun of its own."""
    lib = Library(rng, tile=8.0)
    turn = rotation("y", float(rng.uniform(0, 360)))
    landmark = moved(LANDMARKS[kind](lib), rigid(turn=turn))
    sky = np.array([0.36, 0.52, 0.82]) + rng.normal(0, 0.04, 3)
    background = (float(sky[0]), float(sky[1]), float(sky[2]))
    group = [*_ground(lib), *landmark, *_streets(lib), *_trees(lib), *_furniture(lib), *_cars(lib)]
    return World(tuple(group), _sun(rng), background)


def facade(lib: Library, storey: float = 3.4) -> Material:
    """A wall with rows of windows of about `storey` metres."""
    # A share of the print's contrast over a plaster of its own: few bitmaps make many houses.
    plaster = _WALLS[int(lib.rng.integers(len(_WALLS)))]
    contrast, tile = float(lib.rng.uniform(0.6, 0.9)), storey * float(lib.rng.uniform(2.4, 3.4))
    return Material(lib.bitmap("facade"), plaster, contrast, tile)


def house(lib: Library, size: tuple[float, float, float], *, gabled: bool) -> Group:
    """Walls of a size (width, height, depth) with a roof of 45 degrees, its ridge along z, or a flat roof with a lift house."""
    width, height, depth = size
    wall = facade(lib)
    plate = lib.weak()
    walls = block(size, (0, -height / 2, 0), wall, wall, plate, plate, wall, wall)
    if gabled:
        return [walls, *_gable(lib, width, height, depth, wall)]
    shed = (width * 0.3, 2.6, depth * 0.25)
    return [walls, block(shed, (width * 0.15, -height - 1.3, depth * 0.1), lib.any(printed=0.0))]


def _gable(lib: Library, width: float, height: float, depth: float, wall: Material) -> Group:
    # A square beam turned by 45 degrees, its lower half inside the walls, is a roof with closed gables.
    roof, side = _roofing(lib), width / np.sqrt(2)
    beam = block((side, side, depth), (0, -height, 0), roof, roof, roof, roof, wall, wall, turn=rotation("z", 45))
    return [beam, block((0.9, width * 0.32, 0.9), (width * 0.22, -height - width * 0.3, depth * 0.2), lib.weak())]


def _roofing(lib: Library) -> Material:
    kind, colour = str(lib.rng.choice(_ROOFS)), _TILES[int(lib.rng.integers(len(_TILES)))]
    return Material(lib.bitmap(kind), colour, float(lib.rng.uniform(0.5, 0.9)), float(lib.rng.uniform(4, 9)))


def _stone(lib: Library) -> Material:
    return lib.textured(str(lib.rng.choice(["bricks", "mottled", "speckle"])), contrast=0.6, pale=True)


def _church(lib: Library) -> Group:
    stone, roof, wide, long = _stone(lib), _roofing(lib), float(lib.rng.uniform(10, 13)), 28.0
    nave = house(lib, (wide, float(lib.rng.uniform(11, 15)), long), gabled=True)
    tower_high, side = float(lib.rng.uniform(24, 32)), float(lib.rng.uniform(6.5, 8))
    tower = block((side, tower_high, side), (0, -tower_high / 2, -long / 2 - side / 3), facade(lib, 5.0), stone)
    spire = column(0.05, side * 0.62, side * 1.9, (0, -tower_high, -long / 2 - side / 3), roof)
    apse = column(wide * 0.42, wide * 0.42, 9, (0, 0, long / 2), stone, roof)
    aisles = [block((3.5, 6, long * 0.8), (x * (wide / 2 + 1.7), -3, 2), facade(lib, 5.0), roof) for x in (-1, 1)]
    return [*nave, tower, spire, apse, *aisles]


def _domed_hall(lib: Library) -> Group:
    stone, wall, wide = _stone(lib), facade(lib, 4.5), float(lib.rng.uniform(20, 26))
    high, radius = float(lib.rng.uniform(9, 13)), float(lib.rng.uniform(6.5, 8.5))
    base = block((wide, high, wide), (0, -high / 2, 0), wall, wall, stone, stone, wall, wall)
    drum = column(radius, radius, 6, (0, -high, 0), facade(lib, 2.6), stone)
    dome = ball((radius, radius * 1.05, radius), (0, -high - 6, 0), lib.textured("stripes", contrast=0.5))
    lantern = column(0.9, 1.2, 3.4, (0, -high - 6 - radius, 0), stone)
    porch = [column(0.55, 0.65, high - 1.5, (x, 0, -wide / 2 - 3.2), stone) for x in np.linspace(-7, 7, 6)]
    lid = block((17, 1.6, 5), (0, -high + 0.8, -wide / 2 - 2.4), stone)
    steps = [block((19, 0.3, 7.6 - 1.2 * k), (0, -0.15 - 0.3 * k, -wide / 2 - 2.4), stone) for k in range(3)]
    return [base, drum, dome, lantern, *porch, lid, *steps]


def _temple(lib: Library) -> Group:
    stone, roof, wide, long = _stone(lib), _roofing(lib), 17.0, 30.0
    high = float(lib.rng.uniform(8.5, 11))
    steps = [block((wide + 4 - k, 0.45, long + 4 - k), (0, -0.22 - 0.45 * k, 0), stone) for k in range(3)]
    places = [(x, z) for z in (-long / 2 + 1, long / 2 - 1) for x in np.linspace(-wide / 2 + 1, wide / 2 - 1, 6)]
    places += [(x, z) for x in (-wide / 2 + 1, wide / 2 - 1) for z in np.linspace(-long / 2 + 5, long / 2 - 5, 6)]
    columns = [column(0.6, 0.8, high, (float(x), -1.3, float(z)), stone) for x, z in places]
    cella = block((wide - 7, high, long - 9), (0, -1.3 - high / 2, 0), lib.textured("blotches", contrast=0.5))
    top = block((wide, 1.8, long), (0, -high - 2.2, 0), lib.textured("packaging", contrast=0.6))
    slope = wide / 2 / np.cos(np.radians(20)) * 1.06
    slabs = [
        block((slope, 0.5, long + 1.5), (x * wide / 4, -high - 4.7, 0), roof, turn=rotation("z", x * 20))
        for x in (-1, 1)
    ]
    # The triangles of the pediments, as steps hidden behind the slabs' edges.
    gables = [block((wide * (1 - k / 4), 0.8, long - 1), (0, -high - 3.4 - 0.75 * k, 0), stone) for k in range(4)]
    return [*steps, *columns, cella, top, *slabs, *gables]


def _castle(lib: Library) -> Group:
    stone, roof, half = _stone(lib), _roofing(lib), float(lib.rng.uniform(12, 14))
    high = float(lib.rng.uniform(9, 12))
    corners = [(x * half, z * half) for x in (-1, 1) for z in (-1, 1)]
    towers = [column(3.0, 3.3, high + 4, (x, 0, z), stone, roof) for x, z in corners]
    caps = [column(0.05, 3.9, 6, (x, -high - 4, z), roof) for x, z in corners]
    walls = [block((2 * half, high, 1.8), (0, -high / 2, z * half), stone) for z in (-1, 1)]
    walls += [block((1.8, high, 2 * half), (x * half, -high / 2, 0), stone) for x in (-1, 1)]
    merlons = [block((1.3, 1.2, 2.0), (x, -high - 0.6, -half), stone) for x in np.linspace(-half + 4, half - 4, 7)]
    keep = house(lib, (9, float(lib.rng.uniform(18, 26)), 11), gabled=bool(lib.rng.random() < 0.5))
    return [*towers, *caps, *walls, *merlons, *keep]


def _tower_block(lib: Library) -> Group:
    group: Group = []
    level, side = 0.0, float(lib.rng.uniform(19, 24))
    for share in (0.22, 0.45, 0.33):
        tall, wall = float(lib.rng.uniform(42, 58)) * share, facade(lib, 3.2)
        plate = lib.weak()
        group.append(block((side, tall, side * 0.8), (0, -level - tall / 2, 0), wall, wall, plate, plate, wall, wall))
        level, side = level + tall, side * float(lib.rng.uniform(0.62, 0.8))
    mast = column(0.15, 0.4, 9, (0, -level, 0), lib.bare())
    wings = moved(house(lib, (13, 7, 13), gabled=False), rigid(shift=(-15, 0, 3)))
    return [*group, mast, *wings]


def _arch(lib: Library) -> Group:
    stone, relief = _stone(lib), lib.textured("packaging", contrast=0.7)
    high, deep = float(lib.rng.uniform(13, 18)), 8.0
    piers = [
        block((6, high, deep), (x * 7.5, -high / 2, 0), relief, stone, stone, stone, relief, relief) for x in (-1, 1)
    ]
    attic = block((22, high * 0.45, deep), (0, -high * 1.22, 0), relief, stone, stone, stone, facade(lib, 3.0), relief)
    rim = block((23.4, 0.9, deep + 1.4), (0, -high - 0.4, 0), stone)
    bowls: Group = []
    for x in (-15, 15):
        bowls += [column(2.6, 3.2, 1.1, (x, 0, -9), stone), column(0.5, 0.7, 5, (x, 0, -9), stone)]
        bowls.append(ball((1, 1, 1), (x, -5.6, -9), relief))
    rider = moved(things.figure(lib, 5.0), rigid(shift=(0, -high * 1.45, 0)))
    return [*piers, attic, rim, *bowls, *rider]


LANDMARKS: dict[str, Callable[[Library], Group]] = {
    "church": _church,
    "domed_hall": _domed_hall,
    "castle": _castle,
    "tower_block": _tower_block,
    "temple": _temple,
    "arch": _arch,
}


def _ground(lib: Library) -> Group:
    """Country as far as the eye reaches, fields on it, a ring road and the paved square."""
    land = lib.textured("mottled", contrast=0.9)
    group = [block((_EXTENT, 2, _EXTENT), (0, 1, 0), Material(land.texture, (0.24, 0.28, 0.14), 0.9, 60.0))]
    for turn in np.arange(0, 360, 45):
        away, field = (
            float(lib.rng.uniform(150, 260)),
            lib.textured(str(lib.rng.choice(["stripes", "blotches", "mottled"]))),
        )
        shape = (float(lib.rng.uniform(50, 90)), 0.3, float(lib.rng.uniform(50, 90)))
        crop = _CROPS[int(lib.rng.integers(len(_CROPS)))]
        plot = block(shape, (0, -0.15, away), Material(field.texture, crop, 0.8, 35.0))
        group += moved([plot], rigid(turn=rotation("y", float(turn + lib.rng.uniform(-10, 10)))))
    asphalt, paving = (
        lib.weak(),
        lib.textured(str(lib.rng.choice(["tiles", "checks", "bricks"])), contrast=0.5, pale=True),
    )
    road = Material(asphalt.texture, (0.16, 0.16, 0.17), 0.7, 12.0)
    red, green, blue = (0.72 * part for part in paving.tint)
    plaza = Material(paving.texture, (red, green, blue), 0.7, 11.0)
    return [*group, column(82, 82, 0.1, (0, 0, 0), road), column(SQUARE - 5, SQUARE - 5, 0.25, (0, 0, 0), plaza)]


def _streets(lib: Library) -> Group:
    group: Group = []
    for radius, count in _RINGS:
        for k in range(count):
            if lib.rng.random() < 0.08:
                continue
            size = tuple(float(x) for x in lib.rng.uniform([9, 6, 9], [16, 20, 14]))
            body = house(lib, (size[0], size[1], size[2]), gabled=bool(lib.rng.random() < 0.55))
            spin = rotation("y", float(lib.rng.choice([0, 90]) + lib.rng.normal(0, 4)))
            place = rigid(shift=(0, 0, radius + float(lib.rng.uniform(-3, 5))), turn=spin)
            around = rotation("y", 360 * (k + float(lib.rng.uniform(-0.12, 0.12))) / count)
            group += moved(body, rigid(turn=around) @ place)
    return group


def _trees(lib: Library) -> Group:
    group: Group = []
    leaf, bark = lib.textured("blotches", contrast=0.9), lib.textured("wood")
    crown = Material(leaf.texture, (0.14, 0.27, 0.09), 0.9, 3.0)
    for angle in lib.rng.uniform(0, 2 * np.pi, 9):
        away, tall = float(lib.rng.uniform(48, 53)), float(lib.rng.uniform(2.5, 4))
        x, z = away * float(np.sin(angle)), away * float(np.cos(angle))
        group.append(column(0.22, 0.32, tall + 1, (x, 0, z), bark))
        for _ in range(3):
            r = lib.rng.uniform(1.3, 2.3, 3)
            dx, dy, dz = (float(v) for v in lib.rng.normal(0, [0.8, 0.6, 0.8]))
            group.append(ball((float(r[0]), float(r[1]), float(r[2])), (x + dx, -tall - 1.2 + dy, z + dz), crown))
    return group


def _furniture(lib: Library) -> Group:
    """Lamps, a kiosk, a statue and benches on the square, between the landmark and where people stand."""
    group: Group = []
    metal, seat = lib.bare(pale=False), lib.textured("wood")
    for angle in lib.rng.uniform(0, 2 * np.pi, 6):
        x, z = 24 * float(np.sin(angle)), 24 * float(np.cos(angle))
        group += [column(0.08, 0.12, 5, (x, 0, z), metal), ball((0.35, 0.35, 0.35), (x, -5.2, z), lib.bare())]
        bench = [block((2, 0.08, 0.5), (0, -0.72, 0), seat), block((1.8, 0.45, 0.3), (0, -0.45, 0), metal)]
        group += moved(bench, rigid(turn=rotation("y", float(np.degrees(angle))), shift=(x * 1.06, 0, z * 1.06)))
    angle = float(lib.rng.uniform(0, 2 * np.pi))
    statue = [column(0.9, 1.1, 2.2, (0, 0, 0), _stone(lib)), *moved(things.figure(lib, 1.9), rigid(shift=(0, -2.2, 0)))]
    group += moved(statue, rigid(shift=(23 * np.sin(angle), 0, 23 * np.cos(angle))))
    return group + moved(
        house(lib, (3.2, 2.4, 3.2), gabled=True), rigid(shift=(-24 * np.cos(angle), 0, 24 * np.sin(angle)))
    )


def _cars(lib: Library) -> Group:
    group: Group = []
    glass = Material(lib.bitmap("mottled"), (0.05, 0.06, 0.08), 0.3, 2.0, 0.3, 60.0)
    for angle in lib.rng.uniform(0, 360, 8):
        paint = Material(lib.bitmap("mottled"), lib.colour(), 0.1, 3.0, 0.3, 60.0)
        car = [block((1.8, 0.8, 4.3), (0, -0.75, 0), paint), block((1.6, 0.65, 2.2), (0, -1.45, 0.2), glass)]
        heading = rigid(turn=rotation("y", 90), shift=(0, 0, SQUARE - 3.5))
        group += moved(car, rigid(turn=rotation("y", float(angle))) @ heading)
    return group


def _sun(rng: np.random.Generator) -> Light:
    up, around = np.radians(rng.uniform(32, 62)), rng.uniform(0, 2 * np.pi)
    direction = np.array([np.sin(around) * np.cos(up), -np.sin(up), np.cos(around) * np.cos(up)])
    fill = np.array([-direction[0], -0.5, -direction[2]])
    key, ambient = float(rng.uniform(0.65, 0.95)), float(rng.uniform(0.22, 0.34))
    return Light(direction * 600, np.zeros(3), 0.2, key, 0.12, ambient, fill / np.linalg.norm(fill))
