"""What a drawn scene is made of, as plain values: the dice that throw them, and the street net of turned, bent blocks.

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


@dataclass(frozen=True, slots=True)
class Frame:
    """Street coordinates (u, v) in metres: east and south turned by an angle, then u shifted by a wave along v."""

    cos: float
    sin: float
    bend: float
    period: float
    phase: float

    def spot(self, u: float, v: float) -> Spot:
        """Return the place at (u, v), heading along the straight streets."""
        straight = u - self.bend * float(_wave(np.array(v / self.period + self.phase)))
        return Spot(self.cos * straight - self.sin * v, self.sin * straight + self.cos * v, self.cos, self.sin)

    def bent(self, u: float, v: float) -> Spot:
        """Return the place at (u, v), heading along the straight streets but turned as the bent ones are there."""
        here, there = self.spot(u, v - 1.0), self.spot(u, v + 1.0)
        south_cos, south_sin = there.east - here.east, there.south - here.south
        length = math.sqrt(south_cos * south_cos + south_sin * south_sin)
        middle = self.spot(u, v)
        return Spot(middle.east, middle.south, south_sin / length, -south_cos / length)

    def coordinates(
        self, east: NDArray[np.float64], south: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (u, v) of places given by broadcasting `east` (1, cols) and `south` (rows, 1)."""
        u = self.cos * east + self.sin * south
        v = self.cos * south - self.sin * east
        return u + self.bend * _wave(v / self.period + self.phase), v


@dataclass(frozen=True, slots=True)
class CityBlock:
    """The ground between streets, kerb to kerb: [u0, u1] x [v0, v1] in street coordinates."""

    u0: float
    u1: float
    v0: float
    v1: float

    @property
    def size(self) -> tuple[float, float]:
        """Return the lengths along u and v."""
        return self.u1 - self.u0, self.v1 - self.v0


@dataclass(frozen=True, slots=True)
class Street:
    """A street and its surface: its middle line at `across`, from `start` to `end`; `straight` ones run along u."""

    straight: bool
    across: float
    start: float
    end: float
    width: float
    paint: Paint

    @property
    def ground(self) -> CityBlock:
        """Return the street's own ground, kerb to kerb."""
        low, high = self.across - self.width / 2, self.across + self.width / 2
        return (
            CityBlock(self.start, self.end, low, high) if self.straight else CityBlock(low, high, self.start, self.end)
        )


def lay_frame(dice: Dice) -> Frame:
    """Return a frame with a random heading and bend; the bent streets turn by less than seven degrees."""
    degrees = dice.between(-40, 40)
    period = dice.between(300, 700)
    bend = dice.between(0.004, 0.015) * period
    return Frame(cosine(degrees), cosine(degrees - 90), bend, period, dice.between(0, 1))


def lay_streets(reach: float, longest: tuple[float, float], dice: Dice) -> tuple[list[CityBlock], list[Street]]:
    """Cut the square of +-`reach` metres by streets until no block is longer than `longest` along u and v."""
    blocks: list[CityBlock] = []
    streets: list[Street] = []
    shift_u, shift_v = dice.between(-40, 40), dice.between(-30, 30)
    waiting = [CityBlock(-reach + shift_u, reach + shift_u, -reach + shift_v, reach + shift_v)]
    while waiting:
        block = waiting.pop()
        du, dv = block.size
        excess_u, excess_v = du / longest[0], dv / longest[1]
        if max(excess_u, excess_v) <= 1:
            blocks.append(block)
            continue
        width = dice.between(6.5, 9) if max(excess_u, excess_v) < 3 else dice.between(9.5, 14)
        share = dice.between(0.42, 0.58)
        grey = dice.between(84, 126)
        paint = Paint((grey, grey, grey * dice.between(0.96, 1.05)), 3, 8)
        if excess_u > excess_v:
            middle = block.u0 + share * du
            streets.append(Street(False, middle, block.v0, block.v1, width, paint))
            halves = (
                (block.u0, middle - width / 2, block.v0, block.v1),
                (middle + width / 2, block.u1, block.v0, block.v1),
            )
        else:
            middle = block.v0 + share * dv
            streets.append(Street(True, middle, block.u0, block.u1, width, paint))
            halves = (
                (block.u0, block.u1, block.v0, middle - width / 2),
                (block.u0, block.u1, middle + width / 2, block.v1),
            )
        waiting += [CityBlock(*half) for half in halves]
    return blocks, streets


def _wave(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a sine-like wave of parabolas: additions and products only, so that every machine agrees to the bit."""
    part = turns - np.floor(turns)
    rising = 8 * part * (1 - 2 * part)
    falling = 8 * (part - 0.5) * (2 * part - 2)
    return np.where(part < 0.5, rising, falling)
