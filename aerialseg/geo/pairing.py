"""Which mask belongs to which scene, and whether both lie on one grid."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aerialseg.errors import BadDataError, UsageError, one_line
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.inspection import Source
    from aerialseg.geo.scenes import Scene

EXACT_SHIFT = 0.01
TOLERATED_SHIFT = 0.5
"""In pixels, at the worst corner; half a pixel is the difference between pixel-is-area and pixel-is-point."""
NAMED_MISSING = 5


def pair_by_name(scenes: Sequence[Scene], masks: Sequence[Scene], pattern: str | None) -> dict[str, Path]:
    """Return scene name -> mask file, by relative stem, else by the bare stem where it is unique on both sides.

    `pattern`, such as "{stem}_label", says how the mask's stem is made from the scene's; a suffix in it must agree.
    """
    by_name = {mask.name: mask.image for mask in masks}
    by_stem = _unique_stems(masks)
    own_stems = _unique_stems(scenes)
    found = {}
    for scene in scenes:
        folder, _, stem = scene.name.rpartition("/")
        wanted, suffix = _wanted(stem, pattern)
        mask = by_name.get(f"{folder}/{wanted}" if folder else wanted)
        if mask is None and stem in own_stems:
            mask = by_stem.get(wanted)
        if mask is not None and suffix in ("", mask.suffix):
            found[scene.name] = mask
    return found


def pair_by_ground(scenes: Sequence[Scene], mask: Path) -> dict[str, Path]:
    """Return the scenes that a single mask file overlaps; a single scene needs no ground to belong to it."""
    if len(scenes) == 1:
        return {scenes[0].name: mask}
    with open_raster(mask) as dataset:
        box = GeoBox.of(dataset)
    found = {}
    for scene in scenes:
        with open_raster(scene.image) as dataset:
            if _overlap(GeoBox.of(dataset), box):
                found[scene.name] = mask
    return found


def with_masks(scenes: Sequence[Scene], found: dict[str, Path], *, partly: bool = False) -> tuple[Scene, ...]:
    """Return the scenes with their masks; those that are another's mask are left out.

    Raises BadDataError naming scenes without a mask, or, if they may be labelled `partly`, when none has one;
    UsageError when nothing is left: scenes and masks are the same files.
    """
    used = {mask.resolve() for mask in found.values()}
    kept = [scene for scene in scenes if scene.image.resolve() not in used]
    if scenes and not kept:
        raise UsageError(f"{one_line(scenes[0].image)}: is given as a scene and as a mask; --masks names true masks")
    missing = [one_line(scene.image) for scene in kept if scene.name not in found]
    if missing and not (partly and found):
        more = f" and {len(missing) - NAMED_MISSING} more" if len(missing) > NAMED_MISSING else ""
        raise BadDataError(
            f"{', '.join(missing[:NAMED_MISSING])}{more}: no mask found; masks pair by the same stem, or use"
            " --mask-pattern '{stem}_label.tif'"
        )
    return tuple(replace(scene, mask=found.get(scene.name)) for scene in kept)


def check_same_grid(first: Source | GeoBox, second: Source | GeoBox, names: tuple[object, object]) -> str | None:
    """Return None when two rasters share a grid, or a warning when they miss by up to half a pixel.

    A raster without georeferencing is taken to lie on the other's pixels when the sizes agree; with a warning when only
    one has none. Raises BadDataError with both grids and the offset in pixels.
    """
    one = first if isinstance(first, GeoBox) else first.box
    other = second if isinstance(second, GeoBox) else second.box
    here, there = (one_line(str(name)) for name in names)
    for name, box in ((here, one), (there, other)):
        if not box.usable:
            raise BadDataError(f"{name}: its transform gives pixels no place or no area: gdal_translate -a_ullr ...")
    grids = f"{here} is {one.describe()}; {there} is {other.describe()}"
    same_size = (one.height, one.width) == (other.height, other.width)
    if not (one.georeferenced and other.georeferenced):
        if not same_size:
            raise BadDataError(f"{there}: does not fit {here}: {grids}; cut both to one grid")
        bare = there if one.georeferenced else here
        return (
            None if one.georeferenced == other.georeferenced else f"{bare}: has no georeferencing; taken pixel by pixel"
        )
    if one.crs != other.crs:
        raise BadDataError(f"{there}: is in another CRS than {here}: {grids}; gdalwarp it to the same grid")
    row, col = one.offset_to(other)
    shift = one.largest_shift(other)
    offset = f"offset {row:+.2f} rows, {col:+.2f} columns"
    if not same_size or shift > TOLERATED_SHIFT:
        raise BadDataError(f"{there}: does not lie on the grid of {here}: {grids}; {offset}; cut both to one grid")
    return None if shift <= EXACT_SHIFT else f"{there}: lies {shift:.2f} px off {here} ({offset}); taken pixel by pixel"


def _wanted(stem: str, pattern: str | None) -> tuple[str, str]:
    """Return the stem of the wanted mask, and its suffix when the pattern has one."""
    if pattern is None:
        return stem, ""
    if "{stem}" not in pattern:
        raise UsageError(f"--mask-pattern {pattern}: must hold {{stem}}, for example '{{stem}}_label.tif'")
    name = pattern.replace("{stem}", stem)
    suffix = Path(pattern.replace("{stem}", "stem")).suffix
    return name.removesuffix(suffix), suffix


def _unique_stems(scenes: Sequence[Scene]) -> dict[str, Path]:
    """Return stem -> file for the stems that occur once."""
    counts = Counter(scene.name.rpartition("/")[2] for scene in scenes)
    stems = ((scene.name.rpartition("/")[2], scene.image) for scene in scenes)
    return {stem: image for stem, image in stems if counts[stem] == 1}


def _overlap(one: GeoBox, other: GeoBox) -> bool:
    if not (one.georeferenced and other.georeferenced) or one.crs != other.crs:
        return False
    a, b = one.bounds, other.bounds
    return bool(a.left < b.right and b.left < a.right and a.bottom < b.top and b.bottom < a.top)
