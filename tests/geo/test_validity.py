"""Which pixels of a scene hold data, against masks that were drawn; and what only looks as if it held none."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from aerialseg.errors import BadDataError, UsageError
from aerialseg.geo.inspection import BandRule, inspect_scene
from aerialseg.geo.opening import open_raster
from aerialseg.geo.raster import read_window

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]

LOSSY = {"compress": "JPEG", "interleave": "pixel", "jpeg_quality": 75}


def noise(*shape: int, low: int = 1, high: int = 200) -> np.ndarray:
    return np.random.default_rng(3).integers(low, high, shape, dtype=np.uint8)


def valid_of(path: Path, **rule: object) -> np.ndarray:
    source = inspect_scene(path, BandRule(**rule))  # type: ignore[arg-type]
    with warnings.catch_warnings(action="error"), open_raster(path) as dataset:
        return read_window(dataset, source, Window(0, 0, dataset.width, dataset.height))[1]


def disc(size: int, feather: float) -> np.ndarray:
    """Return alpha that falls from opaque to 0 over `feather` pixels."""
    rows, cols = np.mgrid[:size, :size] - size / 2
    return (255 * np.clip((0.4 * size - np.hypot(rows, cols)) / feather, 0, 1)).astype(np.uint8)


def test_feathered_alpha_is_alpha_and_only_its_zeros_are_invalid(tmp_path: Path, scene_file: Write) -> None:
    alpha = disc(600, 25)
    pixels = np.concatenate([noise(3, 600, 600) * (alpha > 0), alpha[None]])
    path = scene_file(tmp_path / "odm.tif", pixels, photometric="RGB", alpha="YES")
    assert (valid_of(path) == (alpha > 0)).all()
    assert (valid_of(path, bands=(1, 2, 3)) == (alpha > 0)).all(), "choosing bands maps no transparent ground"
    assert valid_of(path, bands=(1, 2, 3), alpha="data").all()
    assert inspect_scene(path, BandRule(alpha="data")).bands == (1, 2, 3, 4)


def test_alpha_with_the_ringing_of_a_lossy_codec_is_alpha_by_a_threshold(tmp_path: Path, scene_file: Write) -> None:
    alpha = disc(600, 0.1)
    pixels = np.concatenate([noise(3, 600, 600) * (alpha > 0), alpha[None]])
    path = scene_file(tmp_path / "jpeg.tif", pixels, photometric="RGB", alpha="YES", **LOSSY)
    with rasterio.open(path) as dataset:
        read = dataset.read(4)
    assert ((read > 0) != (alpha > 0)).mean() > 0.002, "the codec rings"
    assert ((valid_of(path) == (alpha > 0)).mean()) > 0.9995


def test_near_infrared_of_a_scene_with_a_collar_is_data(tmp_path: Path, scene_file: Write) -> None:
    """Colour is constant where the fourth band is 0, as under alpha, but next to nothing is opaque."""
    pixels = noise(4, 400, 400, high=255)
    pixels[:, :, :90] = 0
    path = scene_file(tmp_path / "nir.tif", pixels, photometric="RGB", alpha="YES")
    with pytest.raises(BadDataError, match=r"band 4 looks like data.*use --bands.*--alpha 4"):
        inspect_scene(path)
    assert "--alpha 4 says what is" in inspect_scene(path, BandRule((1, 2, 3))).warnings[0]
    assert (valid_of(path, alpha=4) == (pixels[3] > 0)).all()


def test_an_untagged_band_is_alpha_when_the_user_says_so(tmp_path: Path, scene_file: Write) -> None:
    pixels = noise(4, 64, 64)
    pixels[3] = 0
    pixels[3, 10:40] = 7
    path = scene_file(tmp_path / "a.tif", pixels, photometric="MINISBLACK", alpha="NO")
    assert (valid_of(path, alpha=4) == (pixels[3] > 0)).all()
    assert inspect_scene(path, BandRule(alpha=4)).bands == (1, 2, 3)
    with pytest.raises(BadDataError, match=r"a\.tif: scene has 4 bands, --alpha 5 asks for another"):
        inspect_scene(path, BandRule(alpha=5))
    with pytest.raises(UsageError, match="--alpha 4: is one of the bands 1,2,4"):
        BandRule((1, 2, 4), alpha=4)


@pytest.mark.parametrize("bands", [None, (1, 2, 3), (3, 1)])
def test_a_nodata_tag_counts_in_the_bands_that_are_read(
    tmp_path: Path, scene_file: Write, bands: tuple[int, ...] | None
) -> None:
    """rasterio's dataset_mask answers from the fourth band alone."""
    pixels = noise(4, 64, 64)
    pixels[3] = 9
    pixels[3, :, :16] = 0
    pixels[:3, :, 40:] = 0
    path = scene_file(tmp_path / "nir.tif", pixels, photometric="RGB", alpha="NO", nodata=0)
    chosen = pixels if bands is None else pixels[[band - 1 for band in bands]]
    assert (valid_of(path, bands=bands) == (chosen != 0).any(axis=0)).all()


def test_alpha_and_a_nodata_tag_both_count(tmp_path: Path, scene_file: Write) -> None:
    pixels = noise(4, 64, 64)
    pixels[3], pixels[:3, :8, 20:] = 255, 201
    pixels[3, :, :16] = 0
    path = scene_file(tmp_path / "rgba.tif", pixels, photometric="RGB", alpha="YES", nodata=201)
    assert (valid_of(path) == ((pixels[3] > 0) & (pixels[:3] != 201).any(axis=0))).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_colour_that_the_user_names_is_no_data(tmp_path: Path, scene_file: Write, dtype: str) -> None:
    pixels = noise(3, 64, 64).astype(dtype)
    pixels[:, :9], pixels[0, 30:40], pixels[:, 50] = 0, 0, np.array([5, 6, 7])[:, None]
    path, scale = scene_file(tmp_path / "a.tif", pixels), None if dtype == "uint8" else (0, 255)
    assert (valid_of(path, nodata=(0,), scale=scale) == (pixels != 0).any(axis=0)).all()
    told = valid_of(path, nodata=(5, 6, 7), scale=scale)
    assert (told == (np.arange(64) != 50)[:, None]).all()
    with pytest.raises(UsageError, match=r"--nodata 0,0: .*a\.tif is read in 3 bands; give one value, or as many"):
        inspect_scene(path, BandRule(nodata=(0, 0), scale=scale))


def test_values_near_the_colour_count_in_a_lossy_file(tmp_path: Path, scene_file: Write) -> None:
    pixels = noise(3, 256, 256, low=16, high=26)
    pixels[:, :, :100] = 0
    path = scene_file(tmp_path / "a.tif", pixels, photometric="YCBCR", **LOSSY)
    with rasterio.open(path) as dataset:
        blurred = (dataset.read() != 0).any(axis=0)[:, :100]
    valid = valid_of(path, nodata=(0,))
    assert blurred.sum() > 200, "the codec changed the fill"
    assert valid[:, :100].sum() < 0.1 * blurred.sum() and valid[:, 104:].all()


def collar_notes(path: Path, **rule: object) -> list[str]:
    return [line for line in inspect_scene(path, BandRule(**rule)).warnings if "one colour" in line]  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 64}, {"driver": "PNG"}])
def test_a_collar_that_nothing_marks_is_mentioned(tmp_path: Path, scene_file: Write, layout: dict) -> None:
    rows, cols = np.mgrid[:300, :400]
    pixels = noise(3, 300, 400)
    pixels[:, rows + cols < 150] = np.array([255, 254, 0], np.uint8)[:, None]
    path = scene_file(tmp_path / "a.tif", pixels, **layout)
    (note,) = collar_notes(path)
    assert "a.tif: a large part of it" in note and "--nodata 255,254,0" in note
    assert not collar_notes(path, nodata=(255, 254, 0))


@pytest.mark.parametrize("driver", ["JPEG", "PNG"])
def test_a_collar_at_the_bottom_of_a_tile_of_a_map_service_is_mentioned(
    tmp_path: Path, scene_file: Write, driver: str
) -> None:
    rows, cols = np.mgrid[:512, :512]
    pixels = noise(3, 512, 512)
    pixels[:, rows - cols > 200] = 255
    (note,) = collar_notes(scene_file(tmp_path / "a.jpg", pixels, driver=driver))
    assert "--nodata 255,255,255" in note


def test_nothing_is_said_of_noise_a_small_corner_or_what_the_file_marks(tmp_path: Path, scene_file: Write) -> None:
    pixels = noise(3, 512, 512)
    pixels[:, 300:] = np.random.default_rng(1).integers(20, 23, (3, 212, 512))  # asphalt, deep water
    assert not collar_notes(scene_file(tmp_path / "water.tif", pixels))
    assert not collar_notes(scene_file(tmp_path / "lossy.tif", pixels, photometric="YCBCR", **LOSSY))
    pixels[:, :20, :20] = pixels[:, 200:280, 200:280] = 0
    assert not collar_notes(scene_file(tmp_path / "corner.tif", pixels))
    pixels[:, :, :200] = 0
    assert not collar_notes(scene_file(tmp_path / "tagged.tif", pixels, nodata=0))
    assert collar_notes(scene_file(tmp_path / "bare.tif", pixels))
