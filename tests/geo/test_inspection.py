"""Checks before work: each refusal names the file, what was found, and the option that settles it."""

from __future__ import annotations

import resource
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from aerialseg.errors import BadDataError, NoInputError, UsageError
from aerialseg.geo.inspection import Access, BandRule, find_faults, inspect_scene
from aerialseg.geo.opening import open_raster
from aerialseg.geo.raster import read_window

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLAIN = {"photometric": "MINISBLACK", "alpha": "NO"}
ANYWHERE = Access(allow_ungeoreferenced=True)


BARE = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
"""For rasters that are written without a place; our own reading never warns, see test_raster.py."""


def recoloured(path: Path, *colours: ColorInterp) -> Path:
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = colours
    return path


@pytest.mark.parametrize(
    ("written", "rule", "expected", "words"),
    [
        ({"bands": 4, "dtype": "uint16", **PLAIN}, {}, 3, "4 bands uint16, model wants 3 x uint8: use --bands"),
        ({"bands": 4, **PLAIN}, {}, 3, "scene has 4 bands uint8, model wants 3 x uint8: use --bands"),
        ({"bands": 1}, {}, 3, "no option adds bands; give a model of 1 band, or scenes of 3 bands"),
        ({"bands": 3, "dtype": "uint16"}, {}, 3, "model wants 3 x uint8: use --scale LO:HI"),
        ({"bands": 1}, {}, 3, "scene has 1 band uint8, model wants 3"),
        ({"bands": 3, "dtype": "uint16"}, {}, None, "scene has 3 bands uint16, uint8 is wanted: use --scale LO:HI"),
        ({"bands": 3, "dtype": "float32"}, {}, 3, "3 bands float32, model wants 3 x uint8"),
        ({"bands": 3}, {"bands": (1, 2)}, 3, "(--bands 1,2 takes 2), model wants 3"),
        ({"bands": 3}, {"bands": (1, 2, 4)}, 3, "scene has 3 bands, --bands 1,2,4"),
        ({"bands": 3, "dtype": "complex64"}, {"scale": (0, 1)}, 3, "complex64"),
        ({"bands": 3}, {"scale": (0, 2047)}, 3, "uint8, whose values never reach the upper end of --scale 0:2047"),
    ],
)  # fmt: skip
def test_wrong_bands_and_types_are_refused_with_the_fix(
    tmp_path: Path, scene_file: Callable[..., Path], written: dict, rule: dict, expected: int | None, words: str
) -> None:
    path = scene_file(tmp_path / "a.tif", **written)
    with pytest.raises(BadDataError) as caught:
        inspect_scene(path, BandRule(**rule), expected_bands=expected)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_bands_and_scale_make_such_scenes_fit(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = scene_file(tmp_path / "a.tif", bands=4, dtype="uint16")
    source = inspect_scene(path, BandRule((3, 2, 1), (0, 4095)), expected_bands=3)
    assert (source.bands, source.dtype, source.scale) == ((3, 2, 1), "uint16", (0, 4095))
    grey = scene_file(tmp_path / "grey.tif", bands=1)
    assert inspect_scene(grey, BandRule((1, 1, 1)), expected_bands=3).bands == (1, 1, 1)


@pytest.mark.parametrize("limit", [float("nan"), 0, -5])
def test_a_limit_that_limits_nothing_or_all_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match="--max-pixels"):
        Access(max_pixels=limit)


@pytest.mark.parametrize("numbers", [(0, 0, 6e5, 0, 0, 3e6), (1, 1, 6e5, 1, 1, 3e6)])
def test_a_transform_without_area_is_refused_even_when_no_place_is_wanted(
    tmp_path: Path, scene_file: Callable[..., Path], numbers: tuple[float, ...]
) -> None:
    path = scene_file(tmp_path / "a.tif", transform=numbers)
    with pytest.raises(BadDataError, match=r"a\.tif: its transform gives pixels no place or no area"):
        inspect_scene(path, access=ANYWHERE)


@pytest.mark.parametrize("bands", [(), (0, 1), (-1,)])
def test_bands_count_from_one(bands: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="count from 1"):
        BandRule(bands=bands)


@pytest.mark.parametrize("scale", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_a_scale_needs_two_ends(scale: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="LO below HI"):
        BandRule(scale=scale)


def test_colours_that_are_not_rgb_are_refused(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    palette = scene_file(tmp_path / "palette.tif", bands=1, photometric="PALETTE")
    with rasterio.open(palette, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255)})
    cmyk = scene_file(tmp_path / "cmyk.tif", bands=4, photometric="CMYK")
    white = scene_file(tmp_path / "white.tif", bands=1, photometric="MINISWHITE")
    bgr = recoloured(scene_file(tmp_path / "bgr.tif"), ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    for path, words in (
        (palette, "-expand rgb"),
        (cmyk, "CMYK.*convert"),
        (white, "0 is white"),
        (bgr, "use --bands 3,2,1"),
    ):
        with pytest.raises(BadDataError, match=words):
            inspect_scene(path)
    with pytest.raises(BadDataError, match="CMYK"):
        inspect_scene(cmyk, BandRule((1, 2, 3)))
    assert inspect_scene(bgr, BandRule((3, 2, 1))).bands == (3, 2, 1)


def rgba(path: Path, alpha: np.ndarray, scene_file: Callable[..., Path], dtype: str = "uint8") -> Path:
    colours = np.random.default_rng(0).integers(0, 200, (3, *alpha.shape))
    return scene_file(path, np.concatenate([colours, alpha[np.newaxis]]).astype(dtype), photometric="RGB", alpha="YES")


def test_a_true_alpha_band_is_dropped_with_a_line(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    alpha = np.full((300, 300), 255)
    alpha[:, :40], alpha[:, 40] = 0, 90
    source = inspect_scene(rgba(tmp_path / "a.tif", alpha, scene_file), expected_bands=3)
    assert source.bands == (1, 2, 3)
    assert source.has_mask
    assert "band 4 is alpha" in source.warnings[0]
    wide = inspect_scene(rgba(tmp_path / "w.tif", alpha * 257, scene_file, "uint16"), BandRule(scale=(0, 4095)))
    assert wide.has_mask


def test_near_infrared_tagged_alpha_is_not_taken_for_alpha(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    for dtype, high in (("uint8", 255), ("uint16", 4000)):
        infrared = np.random.default_rng(2).integers(0, high, (300, 300))
        path = rgba(tmp_path / f"{dtype}.tif", infrared, scene_file, dtype)
        scale = None if dtype == "uint8" else (0, 4095)
        with pytest.raises(BadDataError, match=r"band 4 looks like data.*use --bands"):
            inspect_scene(path, BandRule(scale=scale))
        three = inspect_scene(path, BandRule((1, 2, 3), scale))
        assert not three.has_mask, "near infrared must not decide what is valid"
        assert inspect_scene(path, BandRule((1, 2, 3, 4), scale), expected_bands=4).bands == (1, 2, 3, 4)


@BARE
def test_all_that_is_wrong_with_a_scene_is_told_at_once(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = recoloured(
        scene_file(tmp_path / "s.tif", bands=4, dtype="uint16", crs=None, transform=None),
        ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined,
    )  # fmt: skip
    with pytest.raises(BadDataError) as caught:
        inspect_scene(path, expected_bands=3)
    said = str(caught.value)
    assert said.count(str(path)) == 1 and said.startswith(f"{path}: its bands are in the order blue, green, red")
    assert "; scene has 4 bands uint16, model wants 3 x uint8: use --bands and --scale" in said
    assert "; has no georeferencing" in said
    (fault,) = find_faults([path, scene_file(tmp_path / "good.tif")], BandRule(), Access())
    assert fault.args[0].startswith(f"{path}: its bands") and "has no georeferencing" in str(fault)


def gcp_scene(path: Path, scene_file: Callable[..., Path]) -> Path:
    scene_file(path, crs=None, transform=None)
    points = [GroundControlPoint(0, 0, 6e5, 3e6, 0), GroundControlPoint(0, 128, 600038.4, 3e6, 0)]
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = (points, rasterio.CRS.from_epsg(26914))
    return path


@BARE
@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"crs": None, "transform": None}, "has no georeferencing"),
        ({"crs": None}, "has no CRS"),
        ({"transform": None}, "has a CRS but no transform"),
    ],
)
def test_a_scene_without_a_place_needs_permission(
    tmp_path: Path, scene_file: Callable[..., Path], written: dict[str, Any], words: str
) -> None:
    path = scene_file(tmp_path / "a.tif", **written)
    with pytest.raises(BadDataError, match=rf"{words}.*--allow-ungeoreferenced"):
        inspect_scene(path)
    source = inspect_scene(path, access=ANYWHERE)
    assert words in source.warnings[0]
    assert not source.box.georeferenced


@BARE
@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG"])
def test_a_missing_transform_reads_as_identity(tmp_path: Path, scene_file: Callable[..., Path], driver: str) -> None:
    """GDAL before 3.12 returns uninitialised memory here when overviews are switched off."""
    path = scene_file(tmp_path / "a.tif", driver=driver, crs=None, transform=None)
    with open_raster(path) as dataset:
        assert dataset.transform == Affine.identity()
    assert inspect_scene(path, access=ANYWHERE).box.transform == Affine.identity()


@BARE
def test_ground_control_points_alone_need_permission_and_are_kept(
    tmp_path: Path, scene_file: Callable[..., Path]
) -> None:
    path = gcp_scene(tmp_path / "a.tif", scene_file)
    with pytest.raises(BadDataError, match=r"2 ground control points but no grid.*--allow-ungeoreferenced"):
        inspect_scene(path)
    box = inspect_scene(path, access=ANYWHERE).box
    assert [point[:4] for point in box.gcps] == [(0, 0, 6e5, 3e6), (0, 128, 600038.4, 3e6)]
    assert box.gcps_crs.to_epsg() == 26914
    assert box.transform == Affine.identity()


def test_max_pixels_is_checked_before_anything_is_allocated(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = tmp_path / "huge.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=300_000, width=300_000, count=1, dtype="uint8", tiled=True, sparse_ok=True,
        crs="EPSG:26914", transform=Affine(0.3, 0, 0, 0, -0.3, 0), bigtiff="YES",
    ):  # fmt: skip
        pass
    tracemalloc.start()
    with pytest.raises(BadDataError, match=r"300000x300000 is 9e\+10 pixels, more than --max-pixels 1e\+10"):
        inspect_scene(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    small = scene_file(tmp_path / "small.tif", size=(64, 64))
    with pytest.raises(BadDataError, match="--max-pixels 1000"):
        inspect_scene(small, access=Access(max_pixels=1000))


def tiff_header(side: int) -> bytes:
    """Return a TIFF of a few hundred bytes that claims to be side x side RGB, deflated, in a single strip."""
    entries = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 3, 200), (259, 3, 1, 8), (262, 3, 1, 2), (273, 4, 1, 300),
        (277, 3, 1, 3), (278, 4, 1, side), (279, 4, 1, 101), (284, 3, 1, 1),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    header = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + directory + bytes(4)
    return header.ljust(200, b"\0") + struct.pack("<HHH", 8, 8, 8) + bytes(94 + 101)


def test_a_few_bytes_that_claim_gigabytes_cost_no_memory(tmp_path: Path) -> None:
    """The Python process's own peak is checked: GDAL's allocations do not show in tracemalloc."""
    path = tmp_path / "bomb.tif"
    path.write_bytes(tiff_header(65_535))
    assert path.stat().st_size == 401
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = inspect_scene(path, access=ANYWHERE)
    with pytest.raises(BadDataError, match="damaged"), open_raster(path) as dataset:
        read_window(dataset, source, Window(60_000, 60_000, 64, 64))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"


def test_a_block_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "block.tif"
    grid = {"crs": "EPSG:26914", "transform": Affine(0.3, 0, 0, 0, -0.3, 0)}
    with rasterio.open(
        path, "w", driver="GTiff", height=40_000, width=40_000, count=2, dtype="uint8", tiled=True, blockxsize=32_768,
        blockysize=32_768, interleave="pixel", sparse_ok=True, **grid,
    ):  # fmt: skip
        pass
    with pytest.raises(BadDataError, match=r"blocks of 32768x32768 px, 2.1 GB each.*TILED=YES"):
        inspect_scene(path)


def test_row_3_blocks_never_written_are_mentioned(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = tmp_path / "sparse.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 128, "width": 128, "dtype": "uint8", "sparse_ok": True}
    grid = {
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
        "crs": "EPSG:26914",
        "transform": Affine(1, 0, 5, 0, -1, 5),
    }
    with rasterio.open(path, "w", **profile, **grid) as dataset:
        dataset.write(np.ones((3, 64, 128), np.uint8), window=((0, 64), (0, 128)))
    assert "2 blocks were never written" in inspect_scene(path).warnings[0]
    assert inspect_scene(scene_file(tmp_path / "whole.tif")).warnings == ()
    with rasterio.open(path, "r+") as dataset:
        dataset.nodata = 0
    assert inspect_scene(path).warnings == ()


def test_paths_that_are_no_rasters_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match=r"missing\.tif: no such file"):
        inspect_scene(tmp_path / "missing.tif")
    folder = tmp_path / "folder.tif"
    folder.mkdir()
    with pytest.raises(BadDataError, match="is a folder"):
        inspect_scene(folder)
    link = tmp_path / "link.tif"
    link.symlink_to("nowhere")
    with pytest.raises(BadDataError, match="link to nothing"):
        inspect_scene(link)


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64"])
def test_complex_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    """NumPy has no type for GDAL's complex integers, and asking for it is a TypeError."""
    grid = {"crs": "EPSG:26914", "transform": Affine(0.3, 0, 6e5, 0, -0.3, 3e6)}
    with rasterio.open(
        tmp_path / "sar.tif", "w", driver="GTiff", height=16, width=16, count=1, dtype=dtype, **grid
    ) as d:
        d.write(np.zeros((1, 16, 16), np.complex64))
    with pytest.raises(BadDataError, match=r"sar\.tif: holds complex numbers"):
        inspect_scene(tmp_path / "sar.tif")
