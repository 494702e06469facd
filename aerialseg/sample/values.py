"""What a drawn scene is made of, as plain values, and the dice that throw them.

Everything stands in metres east and south of the scene's middle. Nothing here knows pixels or colours on paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

T = TypeVar("T")
Roof = Literal["gable", "hip", "flat", "shed"]
Cover = Literal["shingle", "tile", "seam", "gravel", "deck"]


@dataclass(frozen=True, slots=True)
class Dice:
    """Random choices by `Generator.random` alone: the same numbers in every numpy and on every machine."""

    generator: np.random.Generator

    @classmethod
    def of(cls, *key: int) -> Dice:
        """Return the dice that belong to `key`, independent of those of any other key."""
        return cls(np.random.Generator(np.random.PCG64(np.random.SeedSequence(key))))

    def between(self, low: float, high: float) -> float:
        """Return a number from [low, high)."""
        return low + (high - low) * float(self.generator.random())

    def chance(self, probability: float) -> bool:
        """Return True with `probability`."""
        return float(self.generator.random()) < probability

    def pick(self, options: Sequence[T]) -> T:
        """Return one of `options`; repeat an option to make it likelier."""
        return options[int(self.generator.random() * len(options))]

    def noise(self, height: int, width: int) -> NDArray[np.float32]:
        """Return float32 numbers from [-0.5, 0.5)."""
        return self.generator.random((height, width), dtype=np.float32) - np.float32(0.5)


@dataclass(frozen=True, slots=True)
class Spot:
    """A place and a heading: axis a points along (cos, sin) in east and south, b a quarter turn clockwise of it."""

    east: float
    south: float
    cos: float = 1.0
    sin: float = 0.0

    def at(self, a: float, b: float) -> Spot:
        """Return the spot `a` and `b` metres away along the own axes, with the same heading."""
        east, south = self.east + self.cos * a - self.sin * b, self.south + self.sin * a + self.cos * b
        return replace(self, east=east, south=south)

    def turned(self, degrees: float) -> Spot:
        """Return the spot with its heading turned clockwise."""
        cos, sin = cosine(degrees), cosine(degrees - 90)
        return replace(self, cos=self.cos * cos - self.sin * sin, sin=self.sin * cos + self.cos * sin)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of 2 `a` by 2 `b` metres around its spot, with corners rounded by `round`."""

    spot: Spot
    a: float
    b: float
    round: float = 0.0

    @property
    def reach(self) -> float:
        """Metres from the middle to the farthest corner."""
        return math.sqrt(self.a * self.a + self.b * self.b)


@dataclass(frozen=True, slots=True)
class Paint:
    """A colour in sunlight (0..255 red, green, blue), and how uneven it is from pixel to pixel and over metres."""

    colour: tuple[float, float, float]
    grain: float = 3.0
    patches: float = 5.0


@dataclass(frozen=True, slots=True)
class Patch:
    """Paint on the ground; `height` in metres where it casts a shadow, `stalls` metres between its parking lines."""

    box: Box
    paint: Paint
    alpha: float = 1.0
    height: float = 0.0
    stalls: float = 0.0
    ragged: float = 0.0
    """Metres by which the outline wanders: 0 for anything built."""


@dataclass(frozen=True, slots=True)
class Wing:
    """One rectangle of a building with its own roof: eaves' height, rise per metre; ridge along the longer side."""

    box: Box
    roof: Roof
    eave: float
    slope: float


@dataclass(frozen=True, slots=True)
class Building:
    """Wings that touch, one roof cover, and what stands on the roof. The outline of the wings is the truth."""

    wings: tuple[Wing, ...]
    paint: Paint
    cover: Cover
    fittings: tuple[Patch, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """A crown: radius and height in metres; `density` 1 hides the ground, bare branches about 0.5."""

    east: float
    south: float
    radius: float
    height: float
    paint: Paint
    density: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What stands in a scene, in the order of drawing: the districts append, drawing reads."""

    patches: list[Patch] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    cars: list[Patch] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)


def cosine(degrees: float) -> float:
    """Return the cosine, rounded so that every machine's mathematics library agrees."""
    return round(math.cos(math.radians(degrees)), 9)
