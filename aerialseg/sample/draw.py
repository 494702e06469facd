"""Draws a plan on a canvas: blocks and ground, roofs and their truth, cars, crowns, shadows, and what the camera sees.

Arithmetic is limited to what IEEE 754 fixes to the bit (no sine, no exponential, no matrix product), so that a scene
is the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.sample.plan import Box, Spot, cosine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aerialseg.sample.plan import Building, CityBlock, Dice, Frame, Paint, Patch, Plan, Tree, Wing

OUTSIDE = 1000.0
"""Metres a pixel outside a wing is ranked lower for each metre of distance: inside always wins."""
Window = tuple[slice, slice]
SKYLIGHT = (0.34, 0.37, 0.43)
"""What is left of the light where the sun does not reach, per band: the sky is blue."""
SOFT = 1.6
"""Shadow per metre of depth below its edge: 0.6 m take a surface from full sun to full shadow."""


def draw_plan(canvas: Canvas, plan: Plan, sun: Sun) -> None:
    """Draw ground, buildings, cars and trees over what is there, in that order."""
    for patch in plan.patches:
        draw_patch(canvas, patch)
    for building in plan.buildings:
        draw_building(canvas, building, sun)
    for car in plan.cars:
        draw_patch(canvas, car)
    for tree in plan.trees:
        draw_tree(canvas, tree, sun)


def draw_block(
    canvas: Canvas, frame: Frame, block: CityBlock, layers: tuple[tuple[float, Paint], ...], *, corner: float = 0.0
) -> None:
    """Draw the ground between bent lines: each layer begins its own number of metres inside the edge."""
    half_u, half_v = block.size[0] / 2, block.size[1] / 2
    middle = frame.spot(block.u0 + half_u, block.v0 + half_v)
    window = canvas.window(middle.east, middle.south, math.sqrt(half_u * half_u + half_v * half_v) + 2 * frame.bend)
    if window is None:
        return
    u, v = frame.coordinates(*canvas.places(window))
    box = Box(Spot(0, 0), half_u, half_v, min(corner, half_u, half_v))
    away = distance(u - (block.u0 + half_u), v - (block.v0 + half_v), box)
    for inset, paint in layers:
        canvas.blend(window, canvas.cover(away + inset), paint)


def draw_patch(canvas: Canvas, patch: Patch, base: float = 0.0) -> None:
    """Draw one rectangle of paint; one with a height stands that many metres above `base`."""
    spot = patch.box.spot
    window = canvas.window(spot.east, spot.south, patch.box.reach + patch.ragged)
    if window is None:
        return
    a, b = axes(canvas, window, patch.box)
    away = distance(a, b, patch.box)
    if patch.ragged:
        away = away + patch.ragged * (canvas.coarse[window] + canvas.middle[window] * np.float32(0.5))
    cover = canvas.cover(away) * np.float32(patch.alpha)
    if patch.stalls:
        cover *= canvas.cover(_from_line(a, patch.stalls) - 0.07)
    canvas.blend(window, cover, patch.paint)
    if patch.height:
        np.copyto(canvas.height[window], np.float32(base + patch.height), where=away <= 0)


def draw_building(canvas: Canvas, building: Building, sun: Sun) -> None:
    """Draw the roofs of the wings, the truth of their outline, and the fittings on them."""
    first, reach = building.wings[0].box.spot, 0.0
    for wing in building.wings:
        east, south = first.east - wing.box.spot.east, first.south - wing.box.spot.south
        reach = max(reach, math.sqrt(east * east + south * south) + wing.box.reach)
    window = canvas.window(first.east, first.south, reach)
    if window is None:
        return
    away, height, shade, up = _roofs(canvas, window, building.wings, sun)
    inside = away <= 0
    shade = shade * _courses(canvas, building, up)
    if building.cover in ("gravel", "deck"):  # a parapet: a paler rim of half a metre
        shade = shade * np.where(away > -0.6, 1.14, 1.0)
    canvas.blend(window, canvas.cover(away), building.paint, shade.astype(np.float32))
    canvas.building[window] |= inside
    np.copyto(canvas.height[window], height.astype(np.float32), where=inside)
    for fitting in building.fittings:
        draw_patch(canvas, fitting, building.wings[0].eave)


def draw_tree(canvas: Canvas, tree: Tree, sun: Sun) -> None:
    """Draw a crown with a ragged outline, clumps of leaves lit from the sun's side, and gaps where it is bare."""
    window = canvas.window(tree.east, tree.south, tree.radius * 1.35)
    size = canvas.building.shape[0]
    row, col = int(size / 2 + tree.south / canvas.gsd), int(size / 2 + tree.east / canvas.gsd)
    on_roof = 0 <= row < size and 0 <= col < size and bool(canvas.building[row, col])
    if window is None or on_roof:  # crowns hang over eaves, trunks stand outside
        return
    east, south = canvas.places(window)
    east, south = (east - tree.east) / tree.radius, (south - tree.south) / tree.radius
    clumps, leaves = canvas.middle[window], canvas.fine[window]
    dome = (1 - east * east - south * south).astype(np.float32)
    ragged = dome + clumps * np.float32(0.9)
    cover = np.clip(ragged * np.float32(tree.radius * 1.2), 0, 1)
    bare = np.float32(1 - tree.density)
    if bare:
        cover *= np.clip(leaves * np.float32(2.6) + clumps * np.float32(0.4) + np.float32(tree.density), 0, 1)
    lean = (east * sun.east + south * sun.south).astype(np.float32) * np.float32(0.32)
    shade = np.float32(0.9) + lean + clumps * (np.float32(0.55) - bare * np.float32(0.6)) + leaves * np.float32(0.45)
    canvas.blend(window, cover, tree.paint, np.clip(shade, 0.3, 1.7))
    crown = np.float32(tree.height) * np.clip(
        np.float32(0.55) + np.float32(0.4) * dome + clumps * np.float32(0.12), 0, 1
    )
    target = canvas.height[window]
    np.maximum(target, crown, out=target, where=cover > np.float32(0.45))


def _roofs(
    canvas: Canvas, window: Window, wings: tuple[Wing, ...], sun: Sun
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return metres to the outline, roof height, light on the slope and metres from the eaves; the higher wing wins."""
    found = []
    for wing in wings:
        a, b = axes(canvas, window, wing.box)
        away = distance(a, b, wing.box)
        height, rise_a, rise_b, up = _slope(a, b, wing)
        rank = height - OUTSIDE * np.maximum(away, 0)
        spot = wing.box.spot  # how bright a slope is beside level ground, by the angle between its normal and the sun
        rise_east, rise_south = spot.cos * rise_a - spot.sin * rise_b, spot.sin * rise_a + spot.cos * rise_b
        facing = sun.rise - rise_east * sun.east - rise_south * sun.south
        direct = np.maximum(facing, 0) / (sun.rise * np.sqrt(1 + rise_east * rise_east + rise_south * rise_south))
        found.append((away, rank, height, np.minimum(0.36 + 0.64 * direct, 1.32), up))
    away, rank, height, shade, up = found[0]
    for other in found[1:]:
        higher = other[1] > rank
        away, rank = np.minimum(away, other[0]), np.maximum(rank, other[1])
        height, shade, up = (
            np.where(higher, new, old) for new, old in zip(other[2:], (height, shade, up), strict=True)
        )
    return away, height, shade, up


def _slope(
    a: NDArray[np.float64], b: NDArray[np.float64], wing: Wing
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return roof height, its rise per metre along a and b, and metres up from the eaves."""
    to_a, to_b = wing.box.a - np.abs(a), wing.box.b - np.abs(b)
    down_a, down_b = -np.sign(a) * wing.slope, -np.sign(b) * wing.slope
    flat = np.zeros_like(to_a + to_b)
    ridge_along_a = wing.box.a >= wing.box.b
    match wing.roof:
        case "flat":
            return flat + wing.eave, flat, flat, to_b + flat
        case "shed":
            return wing.eave + wing.slope * (b + wing.box.b), flat, flat + wing.slope, b + flat
        case "gable" if ridge_along_a:
            return wing.eave + wing.slope * to_b, flat, down_b + flat, to_b + flat
        case "gable":
            return wing.eave + wing.slope * to_a, down_a + flat, flat, to_a + flat
        case "hip":
            near_a = to_a < to_b
            up = np.minimum(to_a, to_b)
            return wing.eave + wing.slope * up, np.where(near_a, down_a, 0), np.where(near_a, 0, down_b), up


def _courses(canvas: Canvas, building: Building, up: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
    """Return the cover's own pattern of light: rows of tiles, standing seams, the lines of a parking deck."""
    match building.cover:
        case "tile":
            return 1 - 0.1 * canvas.cover(_from_line(up, 0.9) - 0.15)
        case "seam":
            return 1 + 0.06 * canvas.cover(_from_line(up, 1.8) - 0.2)
        case "deck":
            return 1 + 0.14 * canvas.cover(_from_line(up, 5.2) - 0.1)
        case "shingle" | "gravel":
            return np.ones(())


def _from_line(places: NDArray[np.float64], every: float) -> NDArray[np.float64]:
    """Return metres to the nearest of parallel lines that stand `every` metres apart."""
    part = places / every
    return np.abs(part - np.floor(part) - 0.5) * every


@dataclass(frozen=True, slots=True)
class Canvas:
    """Square arrays: sunlit colour (rows, cols, 3), height above ground in metres, truth, noise of three scales."""

    gsd: float
    colour: NDArray[np.float32]
    height: NDArray[np.float32]
    building: NDArray[np.bool_]
    fine: NDArray[np.float32]
    middle: NDArray[np.float32]
    coarse: NDArray[np.float32]

    @classmethod
    def blank(cls, size: int, gsd: float, ground: Paint, dice: Dice) -> Canvas:
        """Return a canvas of `size` pixels of `gsd` metres, covered by `ground`."""
        coarse = lattice_noise(size, round(36 / gsd), dice) * np.float32(1.2)
        coarse += lattice_noise(size, round(9 / gsd), dice) * np.float32(0.8)
        middle = lattice_noise(size, max(round(2.4 / gsd), 2), dice)
        middle += lattice_noise(size, max(round(0.9 / gsd), 2), dice)
        fine = dice.noise(size, size)
        fine[:, 1:] += fine[:, :-1] * np.float32(0.5)
        fine[1:] += fine[:-1] * np.float32(0.5)
        shape = size, size
        canvas = cls(
            gsd, np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.bool_),
            fine, middle, coarse,
        )  # fmt: skip
        canvas.blend((slice(0, size), slice(0, size)), np.ones(shape, np.float32), ground)
        return canvas

    def window(self, east: float, south: float, reach: float) -> Window | None:
        """Return rows and columns of the square of +-`reach` metres around a place, or None outside the picture."""
        size, pixels = self.height.shape[0], reach / self.gsd + 2
        row, col = size / 2 + south / self.gsd, size / 2 + east / self.gsd
        top, bottom = max(int(row - pixels), 0), min(int(row + pixels) + 1, size)
        left, right = max(int(col - pixels), 0), min(int(col + pixels) + 1, size)
        return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None

    def places(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return east (1, cols) and south (rows, 1) of the window's pixel centres, in metres from the middle."""
        rows, cols = window
        middle = self.height.shape[0] / 2
        east = (np.arange(cols.start, cols.stop) + 0.5 - middle) * self.gsd
        south = (np.arange(rows.start, rows.stop) + 0.5 - middle) * self.gsd
        return east[np.newaxis], south[:, np.newaxis]

    def cover(self, away: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the share of each pixel inside an outline that lies `away` metres from its centre (inside < 0)."""
        share: NDArray[np.float32] = np.clip(0.5 - away * (1 / self.gsd), 0, 1).astype(np.float32)
        return share

    def blend(
        self, window: Window, cover: NDArray[np.float32], paint: Paint, shade: NDArray[np.float32] | None = None
    ) -> None:
        """Lay textured paint over the window, as opaque as `cover` and as bright as `shade`."""
        target = self.colour[window]
        texture = self.fine[window] * np.float32(2 * paint.grain)
        texture += (self.coarse[window] + self.middle[window] * np.float32(0.5)) * np.float32(2 * paint.patches)
        for band, value in enumerate(paint.colour):
            wanted = texture + np.float32(value)
            if shade is not None:
                wanted *= shade
            wanted -= target[..., band]
            wanted *= cover
            target[..., band] += wanted


def axes(canvas: Canvas, window: Window, box: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the window's pixel centres as metres along the box's own axes, from its middle."""
    east, south = canvas.places(window)
    east, south = east - box.spot.east, south - box.spot.south
    cos, sin = box.spot.cos, box.spot.sin
    return cos * east + sin * south, cos * south - sin * east


def distance(a: NDArray[np.float64], b: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    """Return metres to the box's outline, negative inside; `a` and `b` are places along its axes."""
    beyond_a, beyond_b = np.abs(a) - (box.a - box.round), np.abs(b) - (box.b - box.round)
    corner_a, corner_b = np.maximum(beyond_a, 0), np.maximum(beyond_b, 0)
    corner = np.sqrt(corner_a * corner_a + corner_b * corner_b)
    inside = np.minimum(np.maximum(beyond_a, beyond_b), 0)
    away: NDArray[np.float64] = corner + inside - box.round
    return away


def lattice_noise(size: int, step: int, dice: Dice) -> NDArray[np.float32]:
    """Return noise in [-0.5, 0.5) of (size, size) pixels that changes smoothly over `step` pixels."""
    lattice = dice.noise(size // step + 2, size // step + 2)
    place = np.arange(size, dtype=np.float32) / np.float32(step)
    index = place.astype(np.intp)
    part = place - index.astype(np.float32)
    part = part * part * (3 - 2 * part)
    rows = lattice[index] * (1 - part)[:, np.newaxis] + lattice[index + 1] * part[:, np.newaxis]
    noise: NDArray[np.float32] = rows[:, index] * (1 - part) + rows[:, index + 1] * part
    return noise


@dataclass(frozen=True, slots=True)
class Sun:
    """Where the light comes from: a unit heading in east and south, and the sun's rise per metre towards it."""

    east: float
    south: float
    rise: float

    @classmethod
    def of(cls, dice: Dice) -> Sun:
        """Return a sun between south-east and south-west, 36 to 54 degrees high."""
        azimuth, elevation = dice.between(135, 225), dice.between(36, 54)
        return cls(cosine(azimuth - 90), -cosine(azimuth), round(cosine(elevation - 90) / cosine(elevation), 9))


def cast_shadows(canvas: Canvas, sun: Sun) -> NDArray[np.float32]:
    """Return 1 where the sun reaches a pixel's surface, 0 where something that stands between hides it."""
    size = canvas.height.shape[0]
    major = max(abs(sun.east), abs(sun.south))
    drop = canvas.gsd / major * sun.rise
    blocked = np.zeros_like(canvas.height)
    for step in range(1, min(int(float(canvas.height.max()) / drop) + 2, size)):
        here_rows, there_rows = _shift(round(step * sun.south / major), size)
        here_cols, there_cols = _shift(round(step * sun.east / major), size)
        target = blocked[here_rows, here_cols]
        np.maximum(target, canvas.height[there_rows, there_cols] - np.float32(drop * step), out=target)
    blocked -= canvas.height
    lit: NDArray[np.float32] = 1 - np.clip(blocked * np.float32(SOFT), 0, 1)
    return lit


def expose(canvas: Canvas, lit: NDArray[np.float32], dice: Dice) -> NDArray[np.uint8]:
    """Return what the sensor makes of it, uint8 (3, rows, cols): optics, exposure, haze, coarse chroma, noise."""
    size = lit.shape[0]
    across = np.arange(size, dtype=np.float32) / np.float32(size) - np.float32(0.5)
    exposure = np.float32(dice.between(0.9, 1.12)) + across * np.float32(dice.between(-0.1, 0.1))
    exposure = exposure + (across * np.float32(dice.between(-0.1, 0.1)))[:, np.newaxis]
    haze, strength = dice.between(2, 14), np.float32(dice.between(4, 9))
    noise = (dice.noise(size, size) + dice.noise(size, size)) * strength
    soft = _smooth(lit)
    bands = []
    for band, sky in enumerate(SKYLIGHT):
        light = np.float32(sky) + np.float32(1 - sky) * soft
        tint = np.float32(dice.between(0.96, 1.04))
        bands.append(
            _smooth(canvas.colour[..., band] * light) * (exposure * tint) + np.float32(haze * (0.9 + 0.1 * band))
        )
    luma = (bands[0] + bands[1] + bands[1] + bands[2]) * np.float32(0.25)
    vivid = np.float32(dice.between(0.7, 1.0))
    picture = [luma + _halved(band - luma) * vivid + noise for band in bands]
    return np.stack([np.clip(band + np.float32(0.5), 0, 255).astype(np.uint8) for band in picture])


def _shift(by: int, size: int) -> tuple[slice, slice]:
    """Return where a raster moved by `by` lands, and what of it lands there."""
    return (slice(0, size - by), slice(by, size)) if by >= 0 else (slice(-by, size), slice(0, size + by))


def _smooth(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weighted mean over three pixels each way: the optics' point spread."""
    wide = np.pad(values, 1, mode="edge")
    rows = wide[1:-1] * np.float32(0.72) + (wide[:-2] + wide[2:]) * np.float32(0.14)
    return np.asarray(rows[:, 1:-1] * np.float32(0.72) + (rows[:, :-2] + rows[:, 2:]) * np.float32(0.14), np.float32)


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values at half resolution, spread again: what JPEG keeps of colour."""
    height, width = values.shape
    wide = np.pad(values, ((0, height % 2), (0, width % 2)), mode="edge")
    quarter = (wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]) * np.float32(0.25)
    return np.repeat(np.repeat(quarter, 2, axis=0), 2, axis=1)[:height, :width]
