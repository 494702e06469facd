"""Draws aerial scenes with their building masks, under Inria's names, georeferencing and folders.

What the demo, the tests and the benchmarks run on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from aerialseg.errors import OutputError, UsageError, one_line
from aerialseg.files import prepare_output_folder, require_space
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.ownership import SAMPLE_TAG, check_overwrite, mark_of
from aerialseg.geo.writing import write_geotiff
from aerialseg.progress import Progress, Silent
from aerialseg.sample.districts import ASPHALT, CONCRETE, DRY, GRASS, fill_block, street_furniture, vary
from aerialseg.sample.draw import Canvas, Sun, cast_shadows, draw_block, draw_plan, expose
from aerialseg.sample.plan import Dice, Paint, Plan, lay_frame, lay_streets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.sample.districts import Style
    from aerialseg.sample.plan import CityBlock, Frame, Street

GSD_M = 0.3
SMALLEST, LARGEST = 64, 5000
SPACING_M = 1800.0
"""From one scene's corner to the next: Inria's scenes are 1500 m wide, so that drawn ones never touch."""
ORDER = (6, 1, 7, 8, 2, 9, 10, 3, 11, 12, 4, 13, 14, 5, *range(15, 37))
"""Scene numbers in the order of drawing: Inria's rule validates 1 to 5 and trains on the rest."""
MOST = 2 * len(ORDER)
SCENE_BYTES = 3.1
"""Disk that a pixel of a scene and its mask takes at most."""
VERSION = 1
"""The TIFF tag that says what a file was drawn as, and the version of the drawing, which changes with its pixels."""


@dataclass(frozen=True, slots=True)
class City:
    """Where a city's scenes lie: its CRS, the top-left corner of scene 1, and the longest block along both streets."""

    key: int
    crs: str
    east: float
    north: float
    longest_block: tuple[float, float]


CITIES: dict[Style, City] = {
    "austin": City(0, "EPSG:26914", 616500.0, 3352500.0, (210.0, 92.0)),
    "vienna": City(1, "EPSG:31256", -1500.0, 346500.0, (130.0, 96.0)),
}


@dataclass(frozen=True, slots=True)
class SceneLayout:
    """Everything that is decided before a pixel is drawn."""

    frame: Frame
    blocks: tuple[CityBlock, ...]
    streets: tuple[Street, ...]
    sidewalk_m: float
    verge: Paint
    plan: Plan
    sun: Sun


def sample_scenes(count: int) -> list[tuple[Style, int]]:
    """Return city and number of the first `count` scenes, the cities in turn; a longer list begins with every shorter.

    From two on, both sides of Inria's split rule (numbers 1 to 5 validate) have a scene. Raises UsageError.
    """
    if not 1 <= count <= MOST:
        raise UsageError(f"{count} scenes asked for, between 1 and {MOST} can be drawn; change --scenes")
    austin: list[tuple[Style, int]] = [("austin", number) for number in ORDER]
    vienna: list[tuple[Style, int]] = [("vienna", number) for number in (ORDER[1], ORDER[0], *ORDER[2:])]
    return [scene for pair in zip(austin, vienna, strict=True) for scene in pair][:count]


def draw_scene(seed: int, city: Style, size: int, number: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw scene `number` of a city: RGB uint8 (3, size, size) and where buildings stand, bool (size, size).

    The same arguments give the same bytes on every machine. Memory is about 90 bytes a pixel, time about a second a
    megapixel. Raises UsageError for a size out of range.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(
            f"scene size {size} px asked for, between {SMALLEST} and {LARGEST} can be drawn; change --size"
        )
    layout = lay_out(seed, city, size, number)
    canvas = Canvas.blank(size, GSD_M, ASPHALT, Dice.of(seed, CITIES[city].key, number, 1))
    for street in layout.streets:
        draw_block(canvas, layout.frame, street.ground, ((0.0, street.paint),))
    for block in layout.blocks:
        draw_block(canvas, layout.frame, block, ((0.0, CONCRETE), (layout.sidewalk_m, layout.verge)), corner=4.0)
    draw_plan(canvas, layout.plan, layout.sun)
    picture = expose(canvas, cast_shadows(canvas, layout.sun), Dice.of(seed, CITIES[city].key, number, 2))
    return picture, canvas.building


def lay_out(seed: int, city: Style, size: int, number: int) -> SceneLayout:
    """Decide streets, blocks and all that stands on them for one scene."""
    dice = Dice.of(seed, CITIES[city].key, number, 0)
    sun, frame = Sun.of(dice), lay_frame(dice)
    blocks, streets = lay_streets(size * GSD_M * 0.75 + 30, CITIES[city].longest_block, dice)
    plan = Plan()
    for street in streets:
        street_furniture(street, frame, city, plan, dice)
    for block in blocks:
        fill_block(block, frame, city, plan, dice)
    sidewalk_m, verge = dice.between(1.2, 2.4), vary(dice.pick((GRASS, GRASS, DRY)), dice)
    return SceneLayout(frame, tuple(blocks), tuple(streets), sidewalk_m, verge, plan, sun)


def scene_box(city: Style, number: int, size: int) -> GeoBox:
    """Return the ground of a scene: scenes stand six in a row, apart from each other."""
    place, corner = CITIES[city], number - 1
    spacing = max(SPACING_M, round(size * GSD_M * 1.2))
    east, north = place.east + corner % 6 * spacing, place.north - corner // 6 * spacing
    return GeoBox(size, size, Affine(GSD_M, 0.0, east, 0.0, -GSD_M, north), CRS.from_string(place.crs))


def write_sample(
    out: Path,
    scenes: int | Sequence[tuple[Style, int]] = 4,
    size: int = 1000,
    seed: int = 0,
    *,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> list[Path]:
    """Draw scenes under `out`/train/images, their masks (0 and 255) under `out`/train/gt; return the pictures' paths.

    `scenes` is how many of `sample_scenes`, or city and number of each. Those drawn before with the same size and seed
    stay as they are. Raises OutputError when another's file, or a scene drawn otherwise, is in the way, before anything
    is drawn.
    """
    wanted = sample_scenes(scenes) if isinstance(scenes, int) else scenes
    images, masks = out / "train" / "images", out / "train" / "gt"
    for folder in (images, masks):
        prepare_output_folder(folder)
    todo = []
    for city, number in wanted:
        drawn_as = f"{city}{number}, {size} px, seed {seed}"
        mark = f"{drawn_as}, version {VERSION}"
        found = [mark_of(folder / f"{city}{number}.tif", "sample") for folder in (images, masks)]
        for folder, old in zip((images, masks), found, strict=True):
            path = folder / f"{city}{number}.tif"
            check_overwrite(path, "sample", overwrite=overwrite)
            if old is not None and not overwrite and not old.startswith(f"{drawn_as}, "):
                raise OutputError(
                    f"{one_line(path)}: was drawn as {one_line(old)}, and is asked for as {drawn_as}; give another"
                    " folder, or --overwrite"
                )
        if found != [mark, mark]:
            todo.append((city, number, mark))
    require_space(out, SCENE_BYTES * size * size * len(todo))
    progress.start("draw", len(todo), "scene")
    for city, number, mark in todo:
        picture, building = draw_scene(seed, city, size, number)
        box, tags = scene_box(city, number, size), {SAMPLE_TAG: mark}
        write_geotiff(images / f"{city}{number}.tif", picture, box, tags=tags)
        write_geotiff(masks / f"{city}{number}.tif", building * np.uint8(255), box, tags=tags)
        progress.advance(1, f"{city}{number}")
    progress.finish()
    return [images / f"{city}{number}.tif" for city, number in wanted]
