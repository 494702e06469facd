"""Draw a plan on a canvas: blocks and ground, roofs and their truth, cars, crowns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.sample.canvas import Canvas, axes, distance
from aerialseg.sample.values import Box, Spot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aerialseg.sample.canvas import Window
    from aerialseg.sample.light import Sun
    from aerialseg.sample.streets import Block, Frame
    from aerialseg.sample.values import Building, Paint, Patch, Plan, Tree, Wing

OUTSIDE = 1000.0
"""Metres a pixel outside a wing is ranked lower for each metre of distance: inside always wins."""


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
    canvas: Canvas, frame: Frame, block: Block, layers: tuple[tuple[float, Paint], ...], *, corner: float = 0.0
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
    first = building.wings[0].box
    reach = max(_apart(first.spot, wing.box.spot) + wing.box.reach for wing in building.wings)
    window = canvas.window(first.spot.east, first.spot.south, reach)
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
    if window is None or _on_roof(canvas, tree):
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


def _on_roof(canvas: Canvas, tree: Tree) -> bool:
    """Return whether the trunk would stand in a building: crowns hang over eaves, trunks stand outside."""
    size = canvas.building.shape[0]
    row, col = int(size / 2 + tree.south / canvas.gsd), int(size / 2 + tree.east / canvas.gsd)
    return 0 <= row < size and 0 <= col < size and bool(canvas.building[row, col])


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
        found.append((away, rank, height, _light(wing, rise_a, rise_b, sun), up))
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


def _light(wing: Wing, rise_a: NDArray[np.float64], rise_b: NDArray[np.float64], sun: Sun) -> NDArray[np.float64]:
    """Return how bright a slope is beside level ground, by the angle between its normal and the sun."""
    spot = wing.box.spot
    rise_east, rise_south = spot.cos * rise_a - spot.sin * rise_b, spot.sin * rise_a + spot.cos * rise_b
    facing = sun.rise - rise_east * sun.east - rise_south * sun.south
    direct = np.maximum(facing, 0) / (sun.rise * np.sqrt(1 + rise_east * rise_east + rise_south * rise_south))
    return np.minimum(0.36 + 0.64 * direct, 1.32)


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


def _apart(one: Spot, other: Spot) -> float:
    east, south = one.east - other.east, one.south - other.south
    return math.sqrt(east * east + south * south)
