"""Drawn scenes: the truth stands on the roofs, colours do not give it away, and nothing depends on machine or order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from shapely.geometry import Polygon

from aerialseg.errors import OutputError, UsageError
from aerialseg.sample import GSD_M, MOST, draw_scene, lay_out, sample_scenes, scene_box, write_sample
from aerialseg.sample.districts import ASPHALT
from aerialseg.sample.draw import Canvas, Sun, cast_shadows, draw_building, draw_plan
from aerialseg.sample.plan import Box, Building, Dice, Paint, Spot, Wing

if TYPE_CHECKING:
    from pathlib import Path

CITIES = ("austin", "vienna")
FROZEN = {
    "austin": "57291397466b7ba04ef1b3e3a5bba4a96bf920213e43f5a8b94d4bb4fd120498",
    "vienna": "5856061d68f5e1237be34d873c5246500667ca5cbdaa76ba5a6edf8e06c5e98a",
}
"""SHA-256 of picture and truth of scene 1, 160 px, seed 0. It changes only together with sample.scenes.VERSION."""


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    return {city: [draw_scene(0, city, 1000, number) for number in (1, 6)] for city in CITIES}


@pytest.mark.parametrize("city", CITIES)
def test_scenes_are_frozen(city: str) -> None:
    picture, building = draw_scene(0, city, 160, 1)
    assert (picture.shape, picture.dtype) == ((3, 160, 160), np.uint8)
    assert (building.shape, building.dtype) == ((160, 160), np.bool_)
    assert hashlib.sha256(picture.tobytes() + building.tobytes()).hexdigest() == FROZEN[city]


@pytest.mark.parametrize("city", CITIES)
def test_the_truth_is_where_pixel_centres_lie_on_a_roof(city: str) -> None:
    size = 400
    plan = lay_out(5, city, size, 3).plan
    outlines = [_outline(wing.box, size) for building in plan.buildings for wing in building.wings]
    expected = rasterize(outlines, (size, size), all_touched=False).astype(bool)
    _, building = draw_scene(5, city, size, 3)
    assert building.any()
    assert np.count_nonzero(building != expected) <= 2  # centres on an outline, to the last bit


def test_the_truth_stands_where_the_picture_shows_the_roof() -> None:
    canvas = Canvas.blank(100, GSD_M, Paint((60, 60, 60), 0, 0), Dice.of(0))
    roof = Building(
        (Wing(Box(Spot(1.3, -2.2).turned(30), 8, 5), "flat", 3.0, 0.0),), Paint((200, 200, 200), 0, 0), "shingle"
    )
    draw_building(canvas, roof, Sun(0.0, 1.0, 1.0))
    halfway = canvas.colour[..., 0] > 130
    assert np.count_nonzero(halfway != canvas.building) <= 2
    assert np.isclose(canvas.building.sum() * GSD_M**2, 16 * 10, rtol=0.01)


def test_no_threshold_on_one_band_finds_the_buildings(scenes: dict[str, list[tuple[np.ndarray, np.ndarray]]]) -> None:
    pooled = np.zeros((3, 2, 256), np.int64)
    for picture, building in (scene for city in CITIES for scene in scenes[city]):
        counts = np.stack([_histograms(band, building) for band in picture])
        assert max(map(_best_iou, counts)) < 0.35
        pooled += counts
    assert max(map(_best_iou, pooled)) < 0.25


def test_buildings_range_from_sheds_to_halls() -> None:
    areas = np.array([
        Polygon(_corners(wing.box)).area
        for city in CITIES for number in (1, 6, 7) for b in lay_out(1, city, 1000, number).plan.buildings
        for wing in b.wings[:1]
    ])  # fmt: skip
    assert areas.min() < 15
    assert areas.max() > 1000
    assert 40 < np.median(areas) < 300


@pytest.mark.parametrize("city", CITIES)
def test_a_tenth_to_a_third_of_the_ground_is_built_on(
    city: str, scenes: dict[str, list[tuple[np.ndarray, np.ndarray]]]
) -> None:
    assert 0.08 < np.mean([building.mean() for _, building in scenes[city]]) < 0.3


def test_crowns_hide_roofs_but_not_the_truth() -> None:
    layout = lay_out(1, "austin", 500, 2)
    with_trees, without = (Canvas.blank(500, GSD_M, ASPHALT, Dice.of(1)) for _ in range(2))
    draw_plan(with_trees, layout.plan, layout.sun)
    draw_plan(without, dataclasses.replace(layout.plan, trees=[]), layout.sun)
    assert np.array_equal(with_trees.building, without.building)
    covered = np.abs(with_trees.colour - without.colour).max(axis=2)[with_trees.building] > 8
    assert 0.01 < covered.mean() < 0.4


def test_a_shadow_is_as_long_as_height_and_sun_say_and_points_away_from_the_sun() -> None:
    canvas = Canvas.blank(101, 0.5, ASPHALT, Dice.of(0))
    canvas.height[50, 50] = 6.0
    lit = cast_shadows(canvas, Sun(0.0, 1.0, 0.75))  # the sun in the south, rising 0.75 m per metre: 8 m of shadow
    rows, cols = np.nonzero(lit < 0.5)
    assert set(cols) == {50}
    assert rows.max() == 49
    assert rows.min() in (34, 35, 36)


def test_longer_samples_begin_with_shorter_ones() -> None:
    everything = sample_scenes(MOST)
    assert all(sample_scenes(count) == everything[:count] for count in range(1, MOST))
    assert len(set(everything)) == MOST == 72
    assert Counter(number <= 5 for _, number in everything) == {True: 10, False: 62}
    assert {number <= 5 for _, number in sample_scenes(2)} == {True, False}


def test_scenes_stand_apart_on_their_cities_grids() -> None:
    for city, epsg in (("austin", 26914), ("vienna", 31256)):
        boxes = [scene_box(city, number, 5000) for number in range(1, 37)]
        assert {box.crs.to_epsg() for box in boxes} == {epsg}
        bounds = [box.bounds for box in boxes]
        for n, one in enumerate(bounds):
            for other in bounds[:n]:
                apart = max(
                    one.left - other.right, other.left - one.right, one.bottom - other.top, other.bottom - one.top
                )
                assert apart > 100


def test_written_scenes_carry_inrias_layout_and_georeferencing(tmp_path: Path) -> None:
    paths = write_sample(tmp_path, 3, 96)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        f"train/images/{name}.tif" for name in ("austin6", "vienna1", "austin1")
    ]
    for path, (city, number), epsg in zip(paths, sample_scenes(3), (26914, 31256, 26914), strict=True):
        picture, building = draw_scene(0, city, 96, number)
        with rasterio.open(path) as image, rasterio.open(tmp_path / "train" / "gt" / path.name) as mask:
            assert (image.crs.to_epsg(), mask.crs, mask.transform) == (epsg, image.crs, image.transform)
            assert (image.transform.a, image.transform.e) == (0.3, -0.3)
            assert (image.nodata, mask.nodata, mask.count) == (None, None, 1)
            assert np.array_equal(image.read(), picture)
            assert np.array_equal(mask.read(1), building * np.uint8(255))


def test_drawing_again_changes_nothing_and_another_seed_changes_all(tmp_path: Path, tree_hashes) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_sample(first, 2, 64)
    before, times = tree_hashes(first), {path: path.stat().st_mtime_ns for path in first.rglob("*.tif")}
    write_sample(second, 2, 64)
    assert tree_hashes(second) == before
    write_sample(first, 2, 64)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.tif")} == times
    for size, seed in ((64, 1), (65, 0), (64, 11)):
        with pytest.raises(OutputError, match=rf"was drawn as austin6, 64 px, seed 0, .* {size} px, seed {seed}; give"):
            write_sample(first, 3, size, seed)
    assert tree_hashes(first) == before
    write_sample(first, 2, 64, seed=1, overwrite=True)
    after = tree_hashes(first)
    assert all(after[name] != before[name] for name in before)
    with pytest.raises(OutputError, match="seed 1, version"):  # seed 11 is not seed 1
        write_sample(first, 2, 64, seed=11)


def test_half_a_pair_is_drawn_again(tmp_path: Path, tree_hashes) -> None:
    write_sample(tmp_path, 1, 64)
    before = tree_hashes(tmp_path)
    (tmp_path / "train" / "gt" / "austin6.tif").unlink()
    write_sample(tmp_path, 1, 64)
    assert tree_hashes(tmp_path) == before


def test_a_strangers_scene_is_never_drawn_over(tmp_path: Path, mask_file, tree_hashes) -> None:
    mask_file(tmp_path / "train" / "gt" / "vienna1.tif")
    before = tree_hashes(tmp_path)
    with pytest.raises(OutputError, match=r"vienna1\.tif: exists and was not written by aerialseg"):
        write_sample(tmp_path, 2, 64)
    assert tree_hashes(tmp_path) == before
    write_sample(tmp_path, 2, 64, overwrite=True)
    assert len(tree_hashes(tmp_path)) == 4


@pytest.mark.parametrize(("count", "size"), [(0, 64), (73, 64), (1, 63), (1, 5001)])
def test_counts_and_sizes_out_of_range_are_refused(tmp_path: Path, count: int, size: int) -> None:
    with pytest.raises(UsageError, match="can be drawn; change --"):
        write_sample(tmp_path, count, size)


def test_the_command_draws_and_lists_its_scenes(tmp_path: Path, run) -> None:
    code, out, err = run("sample", tmp_path / "out", "--scenes", 2, "--size", 64, "--seed", 3)
    assert (code, err) == (0, "")
    images = [str(tmp_path / "out" / "train" / "images" / name) for name in ("austin6.tif", "vienna1.tif")]
    assert out.split() == images
    code, out, err = run("sample", tmp_path / "out", "--scenes", 2, "--size", 64, "--seed", 3, "--json")
    assert (code, json.loads(out), err) == (0, {"images": images}, "")


def _histograms(band: np.ndarray, building: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(band[building == side], minlength=256) for side in (False, True)])


def _best_iou(counts: np.ndarray) -> float:
    """Return the best IoU of 'building is at least' and of 'building is at most' over all thresholds."""
    background, building = counts
    best = 0.0
    for order in (slice(None), slice(None, None, -1)):
        tp, fp = np.cumsum(building[order]), np.cumsum(background[order])
        best = max(best, float((tp / (building.sum() + fp)).max()))
    return best


def _corners(box: Box) -> list[tuple[float, float]]:
    spots = (box.spot.at(a * box.a, b * box.b) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    return [(spot.east, spot.south) for spot in spots]


def _outline(box: Box, size: int) -> Polygon:
    return Polygon([(size / 2 + east / GSD_M, size / 2 + south / GSD_M) for east, south in _corners(box)])
