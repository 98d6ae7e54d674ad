"""Surfaces by kind: strongly textured, weakly textured, nearly bare, printed. Texture bitmaps are shared within a scene."""

from dataclasses import dataclass, field

import numpy as np

from plumbline.data.synthetic import texture
from plumbline.data.synthetic.world import Colour, Material

# Reflectances (linear RGB) that furniture, walls and things often have.
_COLOURS: tuple[Colour, ...] = (
    (0.72, 0.70, 0.66),
    (0.80, 0.79, 0.76),
    (0.55, 0.50, 0.42),
    (0.38, 0.24, 0.12),
    (0.52, 0.35, 0.18),
    (0.45, 0.05, 0.05),
    (0.06, 0.10, 0.28),
    (0.05, 0.05, 0.16),
    (0.30, 0.32, 0.34),
    (0.12, 0.12, 0.13),
    (0.10, 0.26, 0.12),
    (0.65, 0.48, 0.10),
    (0.20, 0.42, 0.55),
    (0.60, 0.25, 0.10),
)
_PALE = 3
_MODULATORS = tuple(kind for kind in texture.KINDS if kind not in texture.PRINTS)
_VARIANTS = 3


@dataclass
class Library:
    """The materials of one scene: draws from `rng`, keeps each bitmap it made. `tile`: usual metres a period of texture."""

    rng: np.random.Generator
    tile: float
    made: dict[tuple[str, int], texture.Texture] = field(default_factory=dict)

    def bitmap(self, kind: str) -> texture.Texture:
        """One of a few variants of a kind of texture."""
        key = (kind, int(self.rng.integers(_VARIANTS)))
        if key not in self.made:
            self.made[key] = texture.pyramid(texture.KINDS[kind](self.rng))
        return self.made[key]

    def colour(self, *, pale: bool = False) -> Colour:
        """A usual reflectance, varied a little; `pale`: as walls and paper have it."""
        base = np.array(_COLOURS[int(self.rng.integers(_PALE if pale else len(_COLOURS)))])
        red, green, blue = np.clip(base * self.rng.uniform(0.8, 1.2) + self.rng.normal(0, 0.02, 3), 0.03, 0.9)
        return float(red), float(green), float(blue)

    def textured(self, kind: str | None = None, *, contrast: float | None = None, pale: bool = False) -> Material:
        """A surface with a clear pattern (contrast 0.3 to 1 unless told)."""
        name = kind or str(self.rng.choice(_MODULATORS))
        strength = self.rng.uniform(0.3, 1.0) if contrast is None else contrast
        return self._material(name, self.colour(pale=pale), float(strength))

    def weak(self, *, pale: bool = False) -> Material:
        """A surface with faint stains: contrast 0.04 to 0.16 of a soft pattern."""
        kind = str(self.rng.choice(["mottled", "speckle", "wood"]))
        return self._material(kind, self.colour(pale=pale), float(self.rng.uniform(0.04, 0.16)))

    def bare(self, *, pale: bool = True) -> Material:
        """A painted or plastic surface: next to no pattern (contrast at most 0.03)."""
        return self._material("mottled", self.colour(pale=pale), float(self.rng.uniform(0.0, 0.03)))

    def printed(self, kind: str = "packaging") -> Material:
        """A print that fills the face it is on."""
        return Material(self.bitmap(kind), contrast=1.0, gloss=float(self.rng.choice([0.0, 0.05, 0.2])))

    def any(self, *, bare: float = 0.3, weak: float = 0.3, printed: float = 0.2) -> Material:
        """A surface of any kind, with these shares; the rest is textured."""
        draw = self.rng.random()
        if draw < bare:
            return self.bare(pale=bool(self.rng.random() < 0.6))
        if draw < bare + weak:
            return self.weak()
        return self.printed() if draw < bare + weak + printed else self.textured()

    def _material(self, kind: str, tint: Colour, contrast: float) -> Material:
        gloss = float(self.rng.choice([0.0, 0.0, 0.08, 0.35]))
        tile = self.tile * float(self.rng.uniform(0.6, 1.6))
        return Material(self.bitmap(kind), tint, contrast, tile, gloss, float(self.rng.uniform(12, 90)))
