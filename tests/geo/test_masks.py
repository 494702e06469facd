"""What mask values mean: every form people store masks in, and every form that must be refused."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from aerialseg.errors import BadDataError, UsageError
from aerialseg.geo.masks import MaskRule, ResolvedRule, _spread, decide_rule, read_mask
from aerialseg.geo.opening import open_raster
from aerialseg.geo.raster import block_windows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]


def checker(*values: float, dtype: str = "uint8", size: int = 32) -> np.ndarray:
    """The values, one after another, over a square."""
    return np.resize(np.array(values, dtype=dtype), (size, size))


def read(path: Path, rule: ResolvedRule) -> tuple[np.ndarray, np.ndarray]:
    with open_raster(path) as mask:
        return read_mask(mask, rule, Window(0, 0, mask.width, mask.height))


@pytest.mark.parametrize(
    ("values", "profile", "building", "valid"),
    [
        ((0, 255), {}, (0, 1), (1, 1)),
        ((0, 1), {}, (0, 1), (1, 1)),
        ((0, 1, 255), {"nodata": 255}, (0, 1, 0), (1, 1, 0)),
        ((0, 255, 7), {"nodata": 7}, (0, 1, 0), (1, 1, 0)),
        ((0, 1), {"nbits": 1}, (0, 1), (1, 1)),
        ((0.0, 1.0, np.nan), {"dtype": "float32"}, (0, 1, 0), (1, 1, 0)),
        ((0, 1, -9999), {"dtype": "int32", "nodata": -9999}, (0, 1, 0), (1, 1, 0)),
    ],
)
def test_common_forms_are_understood_without_being_told(
    tmp_path: Path, mask_file: Write, values: tuple[float, ...], profile: dict[str, Any], building: Any, valid: Any
) -> None:
    array = checker(*values, dtype=profile.pop("dtype", "uint8"))
    path = mask_file(tmp_path / "m.tif", array, **profile)
    found, counted = read(path, decide_rule([path]))
    assert (found == checker(*building, dtype="bool")).all()
    assert (counted == checker(*valid, dtype="bool")).all()


def test_a_set_is_decided_as_one(tmp_path: Path, mask_file: Write) -> None:
    """A file that holds nothing but 255 is all building in a 0/255 set; it says nothing by itself."""
    full = mask_file(tmp_path / "full.tif", checker(255))
    paths = [mask_file(tmp_path / "empty.tif", checker(0)), mask_file(tmp_path / "m.tif", checker(0, 255)), full]
    rule = decide_rule(paths)
    assert rule.building_values == (255,)
    assert read(full, rule)[0].all()


def test_one_and_255_without_nodata_are_refused_in_one_file_and_across_files(tmp_path: Path, mask_file: Write) -> None:
    both = mask_file(tmp_path / "both.tif", checker(0, 1, 255))
    ones, full = mask_file(tmp_path / "ones.tif", checker(0, 1)), mask_file(tmp_path / "full.tif", checker(0, 255))
    with pytest.raises(BadDataError, match=r"both.tif.*--building-values 1,255 or .*--ignore-values 255"):
        decide_rule([both])
    with pytest.raises(BadDataError, match=r"full\.tif: 255 .*ones\.tif holds 1"):
        decide_rule([ones, full])
    building, valid = read(both, decide_rule([both], MaskRule(building_values=(1,), ignore_values=(255,))))
    assert (building == checker(0, 1, 0, dtype="bool")).all()
    assert (valid == checker(1, 1, 0, dtype="bool")).all()
    assert read(both, decide_rule([both], MaskRule(building_values=(1, 255))))[0].sum() == (checker(0, 1, 1)).sum()


def test_other_values_are_refused_with_the_values_found(tmp_path: Path, mask_file: Write) -> None:
    path = mask_file(tmp_path / "classes.tif", checker(0, 1, 2, 6))
    with pytest.raises(BadDataError, match=r"classes\.tif: mask values 0, 1, 2, 6 found.*--building-values"):
        decide_rule([path])
    building, valid = read(path, decide_rule([path], MaskRule(building_values=(2, 6), ignore_values=(1,))))
    assert (building == checker(0, 0, 1, 1, dtype="bool")).all()
    assert (valid == checker(1, 0, 1, 1, dtype="bool")).all()


def test_an_anti_aliased_mask_is_refused_and_then_read_with_a_threshold(tmp_path: Path, mask_file: Write) -> None:
    path = mask_file(tmp_path / "smooth.tif", checker(*range(0, 256, 15)))
    with pytest.raises(BadDataError, match=r"and 10 more found.*--mask-threshold 128"):
        decide_rule([path])
    building, valid = read(path, decide_rule([path], MaskRule(threshold=128)))
    assert (building == (checker(*range(0, 256, 15)) >= 128)).all()
    assert valid.all()


def test_a_threshold_beyond_eight_bits_is_refused_for_masks_that_have_no_more(tmp_path: Path, mask_file: Write) -> None:
    path = mask_file(tmp_path / "m.tif", checker(0, 255))
    with pytest.raises(BadDataError, match=r"highest value is 255.*--mask-threshold 300 is never reached"):
        decide_rule([path], MaskRule(threshold=300))


def test_zero_as_nodata_is_background_when_nothing_else_could_be(tmp_path: Path, mask_file: Write) -> None:
    """GIS tools write nodata 0 so that the background shows transparent; the ground there was looked at."""
    path = mask_file(tmp_path / "m.tif", checker(0, 255), nodata=0)
    rule = decide_rule([path])
    assert "m.tif: declares 0 as nodata" in rule.warnings[0]
    assert read(path, rule)[1].all()
    classes = mask_file(tmp_path / "classes.tif", checker(0, 1, 2), nodata=0)
    rule = decide_rule([classes], MaskRule(building_values=(1,)))
    assert not rule.warnings
    assert (read(classes, rule)[1] == checker(0, 1, 1, dtype="bool")).all()


def test_colour_masks_count_when_their_bands_agree(tmp_path: Path, mask_file: Write) -> None:
    grey = checker(0, 255)
    path = mask_file(tmp_path / "rgb.tif", np.stack([grey] * 3))
    assert (read(path, decide_rule([path]))[0] == (grey == 255)).all()
    image = mask_file(tmp_path / "image.tif", np.stack([grey, grey, np.zeros_like(grey)]))
    with pytest.raises(BadDataError, match=r"image\.tif: a mask has one band.*is it an image"):
        decide_rule([image])


def test_alpha_and_mask_bands_are_unlabelled_ground(tmp_path: Path, mask_file: Write) -> None:
    grey, alpha = checker(0, 255, 255), checker(255, 255, 0)
    transparent = mask_file(tmp_path / "alpha.tif", np.stack([grey, alpha]))
    with rasterio.open(transparent, "r+") as target:
        target.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
    masked = mask_file(tmp_path / "masked.tif", grey)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as target:
        target.write_mask(alpha)
    for path in (transparent, masked):
        building, valid = read(path, decide_rule([path]))
        assert (valid == (alpha > 0)).all()
        assert (building == ((grey > 0) & (alpha > 0))).all()


def test_a_set_without_building_is_read_as_background(tmp_path: Path, mask_file: Write) -> None:
    path = mask_file(tmp_path / "m.tif", checker(0))
    building, valid = read(path, decide_rule([path]))
    assert valid.all()
    assert not building.any()


def test_reading_is_strict_about_what_the_sample_missed(tmp_path: Path, mask_file: Write) -> None:
    array = np.zeros((2000, 2000), dtype=np.uint8)
    array[::50] = 255
    array[1999, 0] = 1
    path = mask_file(tmp_path / "m.tif", array, tiled=True, blockxsize=256, blockysize=256)
    rule = decide_rule([path])
    assert rule.building_values == (255,)
    with pytest.raises(BadDataError, match=r"m\.tif: mask values 0, 1, 255 found, 0 for background and 255"):
        read(path, rule)


def test_a_lone_building_is_found_beside_the_sample(tmp_path: Path, mask_file: Write) -> None:
    array = np.zeros((2000, 2000), dtype=np.uint8)
    array[1000, 1999] = 1
    path = mask_file(tmp_path / "m.tif", array)
    with open_raster(path) as mask:
        assert not any(mask.read(1, window=window).any() for window in _spread(mask))
    assert decide_rule([path]).building_values == (1,)


@pytest.mark.parametrize("threshold", [-1, 0, 65536])
def test_a_threshold_that_all_or_nothing_passes_is_refused(threshold: int) -> None:
    with pytest.raises(UsageError, match="--mask-threshold"):
        MaskRule(threshold=threshold)


def test_contradicting_options_are_refused() -> None:
    with pytest.raises(UsageError, match="contradict"):
        MaskRule(building_values=(1,), threshold=128)
    with pytest.raises(UsageError, match="value 3 is both"):
        MaskRule(building_values=(3,), ignore_values=(3,))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=6),
    building=st.sets(st.integers(0, 255), min_size=1, max_size=3),
    ignored=st.sets(st.integers(0, 255), max_size=2),
    nodata=st.none() | st.integers(1, 255),
)
def test_told_values_are_read_as_a_loop_would(
    tmp_path: Path, mask_file: Write, values: list[int], building: set[int], ignored: set[int], nodata: int | None
) -> None:
    ignored -= building
    array = checker(*values, size=8)
    path = mask_file(tmp_path / "told.tif", array, nodata=nodata)
    rule = decide_rule([path], MaskRule(building_values=tuple(building), ignore_values=tuple(ignored)))
    found, valid = read(path, rule)
    for pixel, is_building, is_valid in zip(array.flat, found.flat, valid.flat, strict=True):
        assert is_valid == (pixel not in ignored and pixel != nodata)
        assert is_building == (is_valid and pixel in building)


@pytest.mark.parametrize("profile", [{}, {"tiled": True, "blockxsize": 256, "blockysize": 256}, {"blockysize": 3000}])
@pytest.mark.parametrize("size", [(1, 1), (31, 700), (1500, 1700), (3000, 800), (7, 300000)])
@pytest.mark.parametrize("pixels", [10_000, 300_000, 2**22])
def test_windows_cover_every_pixel_once(
    tmp_path: Path, mask_file: Write, size: tuple[int, int], profile: dict[str, Any], pixels: int
) -> None:
    path = mask_file(tmp_path / "m.tif", np.zeros(size, np.uint8), **profile)
    with open_raster(path) as mask:
        block = int(np.prod(mask.block_shapes[0]))
        sampled, windows = list(_spread(mask)), list(block_windows(mask, pixels))
    covered = np.zeros(size, dtype=np.uint8)
    for window in windows:
        assert window.height * window.width <= max(2 * pixels, 4 * pixels if block > pixels else 0, block)
        covered[window.toslices()] += 1
    assert (covered == 1).all()
    for window in sampled:
        assert 0 <= window.row_off < window.row_off + window.height <= size[0]
        assert 0 <= window.col_off < window.col_off + window.width <= size[1]


def test_a_building_value_that_is_declared_nodata_is_building_when_the_user_says_so(
    tmp_path: Path, mask_file: Write
) -> None:
    path = mask_file(tmp_path / "m.tif", checker(0, 0, 0, 1), nodata=1)
    rule = decide_rule([path], MaskRule(building_values=(1,)))
    building, valid = read(path, rule)
    assert valid.all() and not rule.warnings
    assert (building == checker(0, 0, 0, 1, dtype="bool")).all()


def test_a_building_value_that_is_declared_nodata_is_said_with_its_share(tmp_path: Path, mask_file: Write) -> None:
    paths = [mask_file(tmp_path / f"{i}.tif", checker(0, 0, 0, *[1] * i), nodata=1) for i in range(4)]
    (line,) = decide_rule(paths, MaskRule()).warnings
    assert line.startswith(f"{paths[3]}: declares 1 as nodata, so 49.9% of it is unlabelled (and 2 more like it)")
    assert "--building-values 1" in line and "--ignore-values 1" in line
    assert not decide_rule(paths, MaskRule(ignore_values=(1,))).warnings
    assert not decide_rule(paths).warnings, "what predict wrote without a building is no label"
    assert decide_rule(paths[3:], MaskRule(threshold=1)).warnings


def test_a_lone_pixel_of_such_nodata_is_found_beside_the_sample(tmp_path: Path, mask_file: Write) -> None:
    array = np.zeros((2000, 2000), dtype=np.uint8)
    array[700, 1301] = 255
    path = mask_file(tmp_path / "m.tif", array, nodata=255)
    assert "0.0% of it" in decide_rule([path], MaskRule()).warnings[0]


def test_masks_whose_zero_is_white_need_a_word(tmp_path: Path, mask_file: Write) -> None:
    path = mask_file(tmp_path / "m.tif", checker(0, 255), photometric="MINISWHITE")
    with pytest.raises(BadDataError, match=r"m\.tif: its values are inverted.*values 0 takes.*--building-values 255"):
        decide_rule([path], MaskRule())
    for value in (0, 255):
        building, valid = read(path, decide_rule([path], MaskRule(building_values=(value,))))
        assert valid.all() and (building == (checker(0, 255) == value)).all()


def test_a_nodata_tag_beside_alpha_counts_in_the_masks_own_band(tmp_path: Path, mask_file: Write) -> None:
    grey, alpha = checker(0, 1, 255, 0), checker(255, 255, 255, 0)
    path = mask_file(
        tmp_path / "rgba.tif", np.stack([grey, grey, grey, alpha]), photometric="RGB", alpha="YES", nodata=255
    )
    with warnings.catch_warnings(action="error"):
        building, valid = read(path, decide_rule([path], MaskRule()))
    assert (valid == checker(1, 1, 0, 0, dtype="bool")).all()
    assert (building == checker(0, 1, 0, 0, dtype="bool")).all()
