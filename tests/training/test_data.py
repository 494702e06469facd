"""What is read: crops that cover the area evenly and depend on (seed, epoch, sample) alone; whole tiles, cores only."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tiles import write_pair, write_tileset

from aerialseg.config.sections import DataSection
from aerialseg.geo.tiles.tileset import TileRecord, TileSet, load_tileset
from aerialseg.training.data import Crop, Sampler, TileReader, labelled_area, steps_to_cover

PLAIN = DataSection(crop=64, batch=4, flips=False, scale=0.0, colour=0.0)


def records(cores: list[tuple[int, int]], size: int = 100) -> tuple[TileRecord, ...]:
    return tuple(
        TileRecord(f"t{k}", "train", "s", (10, 20, size, size), (10, 20, height, width), 0.2, 1.0)
        for k, (height, width) in enumerate(cores)
    )


def crops(sampler: Sampler, epoch: int = 0) -> list[Crop]:
    return [crop for group in sampler.groups(epoch, 0, epoch + 1) for crop in group]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), min_size=1, max_size=8),
    st.integers(1, 9),
    st.integers(0, 2**31 - 1),
)
def test_every_tile_comes_as_often_as_its_labelled_area_says(cores: list, steps: int, seed: int) -> None:
    tiles = records(cores)
    sampler = Sampler(tiles, PLAIN, 100, seed, steps)
    counted = Counter(crop.name for crop in crops(sampler))
    assert sum(counted.values()) == steps * PLAIN.batch
    total = sum(map(labelled_area, tiles))
    for tile in tiles:
        expected = steps * PLAIN.batch * labelled_area(tile) / total
        assert abs(counted[tile.name] - expected) < 1.0 + 1e-6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(0, 99))
def test_balanced_sampling_shows_buildings_more_and_empty_ground_half_as_often_at_least(
    building: list[float], seed: int
) -> None:
    tiles = tuple(
        replace(tile, building=share)
        for tile, share in zip(records([(100, 100)] * len(building)), building, strict=True)
    )
    section = PLAIN.model_copy(update={"sampling": "balanced"})
    counted = Counter(crop.name for crop in crops(Sampler(tiles, section, 100, seed, 25)))
    whole = sum(building)
    for tile in tiles:
        expected = 100 * (1 / len(tiles) + (tile.building / whole if whole else 1 / len(tiles))) / 2
        assert abs(counted[tile.name] - expected) < 1.0 + 1e-6


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 5), st.sampled_from([32, 64, 100, 160]))
def test_crops_lie_inside_the_tile_or_begin_at_its_corner(seed: int, epoch: int, crop: int) -> None:
    section = DataSection(crop=crop, batch=4, scale=0.25)
    for placed in crops(Sampler(records([(100, 100), (30, 100)]), section, 100, seed, 3), epoch):
        assert round(crop / 1.25) <= placed.side <= round(crop / 0.75)
        for start in (placed.row, placed.col):
            assert start == 0 if placed.side >= 100 else 0 <= start <= 100 - placed.side


def test_crops_show_edges_of_tiles_too() -> None:
    seen = np.zeros(100)
    for crop in crops(Sampler(records([(100, 100)]), PLAIN, 100, 0, 500)):
        seen[crop.row : crop.row + crop.side] += 1 / 2000
    assert seen.min() > 0.2 and seen.max() <= 1.0


def test_an_epoch_covers_the_labelled_area_about_once() -> None:
    tiles = (*records([(100, 100)] * 7), replace(records([(100, 100)])[0], valid=0.5))
    steps = steps_to_cover(tiles, PLAIN)
    assert steps * PLAIN.batch * 64**2 == pytest.approx(75_000, rel=0.25)
    assert steps_to_cover(tiles[:1], DataSection(crop=512, batch=64)) == 1


def test_samples_depend_on_seed_epoch_and_number_alone() -> None:
    section = DataSection(crop=64, batch=4)
    sampler = Sampler(records([(100, 100)] * 5), section, 100, 3, 6)
    whole = list(sampler.groups(0, 0, 3))
    assert len(whole) == 18
    for epoch, step in ((0, 0), (0, 5), (1, 2), (2, 5), (2, 6)):
        assert list(sampler.groups(epoch, step, 3)) == whole[epoch * 6 + step :]
    assert list(replace(sampler, seed=4).groups(0, 0, 1)) != whole[:6]
    assert len({crop for group in whole for crop in group}) == 18 * 4


def test_a_plain_crop_is_the_pixels_of_the_files(tiles: TileSet) -> None:
    reader, record = TileReader(tiles, PLAIN, 32), tiles.of_split("train")[-1]
    pixels, target, valid = reader.crop(Crop(record, 10, 20, 64, 0))
    with rasterio.open(tiles.image_path(record)) as image, rasterio.open(tiles.mask_path(record)) as mask:
        assert np.array_equal(pixels, image.read()[:, 10:74, 20:84].transpose(1, 2, 0))
        assert np.array_equal(target, mask.read(1)[10:74, 20:84])
        assert np.array_equal(valid, image.dataset_mask()[10:74, 20:84] != 0)
    assert not valid.all() and (target[~valid] == 255).all()


def test_pixels_without_data_are_ignored_even_where_the_mask_has_a_label(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path, train=1, val=1)
    tiles = load_tileset(folder)
    record = tiles.of_split("train")[0]
    with rasterio.open(tiles.mask_path(record), "r+") as mask:
        mask.write(np.ones((1, 96, 96), np.uint8))
    _, target, valid = TileReader(tiles, PLAIN, 32).crop(Crop(record, 0, 0, 64, 0))
    assert set(np.unique(target[valid])) == {1} and set(np.unique(target[~valid])) == {255}


def test_a_tile_smaller_than_the_crop_goes_on_by_reflection(tiles: TileSet) -> None:
    section = DataSection(crop=224, batch=1, flips=False, scale=0.0, colour=0.0)
    record = tiles.of_split("train")[-1]
    pixels, target, valid = TileReader(tiles, section, 32).crop(Crop(record, 0, 0, 224, 0))
    assert pixels.shape == (224, 224, 3)
    for array in (pixels, target, valid):
        assert np.array_equal(array[96:191, :96], array[:95, :96][::-1])
        assert np.array_equal(array[191:224, :96], array[1:34, :96])


def test_zooming_keeps_image_and_mask_together(tmp_path: Path) -> None:
    mask = np.zeros((96, 96), np.uint8)
    mask[20:60, 30:70] = 1
    write_tileset(tmp_path, train=1, val=1)
    write_pair(tmp_path, "city1_0_0", np.repeat(mask[np.newaxis] * 200, 3, axis=0), mask)
    tiles = load_tileset(tmp_path)
    section = DataSection(crop=64, batch=1, flips=True, scale=0.0, colour=0.0)
    for seed, side in enumerate((48, 57, 64, 80, 96)):
        pixels, target, _ = TileReader(tiles, section, 32).crop(Crop(tiles.tiles[0], 0, 0, side, seed))
        assert ((pixels[..., 0] >= 100) != (target == 1)).mean() < 0.02
        assert target.mean() == pytest.approx(mask[:side, :side].mean(), abs=0.02)


def test_validation_tiles_are_whole_padded_and_scored_on_their_core_only(tiles: TileSet) -> None:
    record = replace(tiles.of_split("val")[0], window=(100, 200, 96, 96), core=(110, 200, 80, 70))
    reader = TileReader(tiles, PLAIN, 64)
    assert reader.validation_side == 128
    pixels, target, valid = reader.whole(record)
    assert pixels.shape == (128, 128, 3) and target.shape == valid.shape == (128, 128)
    with rasterio.open(tiles.mask_path(record)) as mask:
        labels = mask.read(1)
    assert np.array_equal(target[10:90, :70], labels[10:90, :70])
    target[10:90, :70] = 255
    assert (target == 255).all()


@pytest.mark.parametrize("bands", [1, 2, 4, 6])
def test_any_number_of_bands_is_read_and_augmented(tmp_path: Path, bands: int) -> None:
    tiles = load_tileset(write_tileset(tmp_path, train=1, val=1, bands=bands))
    reader = TileReader(tiles, DataSection(crop=64, batch=1), 32)
    pixels, target, valid = reader.crop(Crop(tiles.tiles[0], 0, 0, 80, 7))
    assert pixels.shape == (64, 64, bands) and pixels.dtype == np.uint8
    again = reader.crop(Crop(tiles.tiles[0], 0, 0, 80, 7))
    assert all(np.array_equal(a, b) for a, b in zip((pixels, target, valid), again, strict=True))
    other = reader.crop(Crop(tiles.tiles[0], 0, 0, 80, 8))
    assert not np.array_equal(pixels, other[0])
