"""The street net of a scene: a turned grid of blocks with one family of streets gently bent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aerialseg.sample.values import Dice, Paint, Spot, cosine

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
class Block:
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
    def ground(self) -> Block:
        """Return the street's own ground, kerb to kerb."""
        low, high = self.across - self.width / 2, self.across + self.width / 2
        return Block(self.start, self.end, low, high) if self.straight else Block(low, high, self.start, self.end)


def lay_frame(dice: Dice) -> Frame:
    """Return a frame with a random heading and bend; the bent streets turn by less than seven degrees."""
    degrees = dice.between(-40, 40)
    period = dice.between(300, 700)
    bend = dice.between(0.004, 0.015) * period
    return Frame(cosine(degrees), cosine(degrees - 90), bend, period, dice.between(0, 1))


def lay_streets(reach: float, longest: tuple[float, float], dice: Dice) -> tuple[list[Block], list[Street]]:
    """Cut the square of +-`reach` metres by streets until no block is longer than `longest` along u and v."""
    blocks: list[Block] = []
    streets: list[Street] = []
    shift_u, shift_v = dice.between(-40, 40), dice.between(-30, 30)
    waiting = [Block(-reach + shift_u, reach + shift_u, -reach + shift_v, reach + shift_v)]
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
        waiting += [Block(*half) for half in halves]
    return blocks, streets


def _wave(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a sine-like wave of parabolas: additions and products only, so that every machine agrees to the bit."""
    part = turns - np.floor(turns)
    rising = 8 * part * (1 - 2 * part)
    falling = 8 * (part - 0.5) * (2 * part - 2)
    return np.where(part < 0.5, rising, falling)
