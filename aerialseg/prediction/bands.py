"""Which rows of which scenes one of several processes predicts: bands, runs of window rows over one scene.

Shards are shared out by pixels, in the scenes' order and without regard to what is done already, so that the same shard
always has the same bands. A border inside a scene costs the window rows that reach over it, for both sides run them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from aerialseg.prediction.lattice import Lattice, Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.prediction.lattice import ScenePlacement
    from aerialseg.prediction.options import Shard

    Rows = tuple[int, int]
    """A scene's rows [first, stop)."""

LEAST = 20
"""Window rows of a band, where that still gives every shard one."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one process predicts."""

    bands: dict[Path, tuple[Rows, ...]]
    """By scene: its rows that leave after each of the band's window rows, from the top down."""
    all: dict[Path, tuple[Rows, ...]]
    """The same of the whole scenes."""
    repeated: float = 0.0
    """How many of the window rows are run once more, over all that there are."""
    low: bool = False
    """Whether bands had to be lower than `LEAST` for every shard to have one."""

    def line(self) -> str:
        """Return what a shard has, in one line for a person."""
        rows, whole = (sum(map(len, entry.values())) for entry in (self.bands, self.all))
        if not rows:
            return f"nothing to do: there are {whole} window rows in all, and other shards have them"
        twice = f"; {self.repeated:.0%} of them are run twice, at the borders of so low bands" if self.low else ""
        return f"{rows} of {whole} window rows, in {len(self.bands)} of {len(self.all)} scenes{twice}"


def share_out(placements: Mapping[Path, ScenePlacement], size: int, overlap: float, shard: Shard | None) -> Share:
    """Return the bands of a shard, or of all scenes where there is none; windows are `size` pixels high."""
    rows = {path: window_rows(placement, size, overlap) for path, placement in placements.items()}
    if shard is None:
        return Share(rows, rows)
    heights = [len(entry) for entry in rows.values()]
    boxes = [(placement.source.box, placement.factor) for placement in placements.values()]
    least = _least(heights, shard.count)
    places = _cut(heights, [box.height * box.width / factor**2 for box, factor in boxes], shard.count, least)
    (first, top), (last, end) = places[shard.number - 1 : shard.number + 1]
    bands: dict[Path, tuple[Rows, ...]] = {}
    for index, (path, entry) in enumerate(rows.items()):
        if first <= index <= last:
            band = entry[top if index == first else 0 : end if index == last else len(entry)]
            bands |= {path: band} if band else {}
    step = max(1, round(size * (1 - overlap)))
    repeated = sum(min(row, ceil(size / step) - 1) for _, row in set(places))
    return Share(bands, rows, repeated / max(1, sum(heights)), least < LEAST)


def window_rows(placement: ScenePlacement, size: int, overlap: float) -> tuple[Rows, ...]:
    """Return the scene's rows [first, stop) that leave after each window row that any leave after, top to bottom."""
    lattice = Lattice.of(placement, size, overlap)
    schedule = Schedule.of(placement, lattice)
    strips = (tuple(schedule.strips(index)) for index in lattice.down)
    return tuple((found[0][0], found[-1][1]) for found in strips if found)


def missing(rows: Sequence[Rows], there: NDArray[np.bool_]) -> tuple[tuple[Rows, ...], int]:
    """Return the runs of rows that are still to be computed, and how many of the others there are.

    `there` says of each of the scene's rows whether it is; a window row of which one is missing is run as a whole.
    """
    runs: list[Rows] = []
    done = 0
    for first, stop in rows:
        if there[first:stop].all():
            done += stop - first
        elif runs and runs[-1][1] == first:
            runs[-1] = runs[-1][0], stop
        else:
            runs.append((first, stop))
    return tuple(runs), done


def _least(heights: Sequence[int], shards: int) -> int:
    """Return how many window rows a band has at least, so that there is one for every shard if there can be."""
    for least in range(LEAST, 1, -1):
        if sum(max(1, height // least) for height in heights) >= shards:
            return least
    return 1


def _cut(heights: Sequence[int], pixels: Sequence[float], shards: int, least: int) -> list[tuple[int, int]]:
    """Return the shards' borders, as (scene, window row of it), from the first scene's top to the last one's end.

    Scenes are first cut into pieces of `least` window rows or a few more, whose borders nearest to equal shares are
    taken; those inside a scene are then moved to the row that is, as far as their neighbours leave `least` rows.
    """
    ends = [0.0, *accumulate(pixels)]
    pieces = [
        (scene, height * part // count)
        for scene, height in enumerate(heights)
        for count in (max(1, height // least),)
        for part in range(count)
    ]
    sums = np.array([ends[scene] + pixels[scene] * row / heights[scene] for scene, row in pieces] + [ends[-1]])
    pieces.append((len(heights), 0))
    wanted, chosen = [ends[-1] * number / shards for number in range(shards + 1)], [0]
    for number in range(1, shards):
        after = int(np.searchsorted(sums, wanted[number]))
        nearest = after - (wanted[number] - sums[after - 1] < sums[after] - wanted[number])
        chosen.append(max(min(nearest, len(pieces) - 1 - (shards - number)), min(chosen[-1] + 1, len(pieces) - 1)))
    places = [*(pieces[index] for index in chosen), pieces[-1]]
    for number in range(1, shards):
        scene, row = places[number]
        if row:
            (before, above), (after, below) = places[number - 1], places[number + 1]
            lowest = (above if before == scene else 0) + least
            highest = (below if after == scene else heights[scene]) - least
            ideal = round((wanted[number] - ends[scene]) / pixels[scene] * heights[scene])
            places[number] = scene, max(lowest, min(ideal, highest))
    return places
